"""How the parts of a run, and parts of other runs, fit together."""

import functools
import hashlib
import inspect
import json
import pathlib
import typing
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from diffusion_lm import bigram, checkpoint, graft, judges, keys, names, parallel, step, translate
from diffusion_lm.types import Judge, Objective, Optimizer, Sampler

# Of a network that starts as that of another run.
MAY_DIFFER = ("dropout_rate", "dtype", "remat", "rows", "shifted", "anneal_steps")


class Model(NamedTuple):
    """What is trained and how."""

    objective: Objective
    optimizer: Optimizer
    axes: dict  # logical axes of its network's parameters


class OtherRun(NamedTuple):
    """A run that another model takes a part from."""

    workdir: str
    step: int  # of its newest checkpoint
    config: ConfigDict
    model: Model


class Parts(NamedTuple):
    """Everything a config names, built."""

    data: typing.Any
    objective: Objective
    optimizer: Optimizer
    sampler: Sampler
    evaluators: dict[str, Callable]
    axes: dict
    others: dict[str, OtherRun]  # by the name of the part of params that comes from them


def parts(config: ConfigDict, workdir: str | None = None) -> Parts:
    """Builds everything a resolved config names. Raises ValueError or OSError, in one line."""
    data = names.make(config, "data", workdir=workdir)
    others = _others(config, data)
    model = _model(config, data, others)
    objective = model.objective
    sampler = names.make(config, "sampler", objective=objective)
    supplied = {"data": data, "objective": objective, "samplers": _samplers(config, objective)}
    evaluators = {}
    for label, section in config.get("evaluators", {}).items():
        if "judge" in section:
            option = f"config.evaluators.{label}.judge"
            supplied["judge"] = _judge(option, section.judge, config, data)
        evaluators[label] = names.make(config, f"evaluators.{label}", **supplied)
    return Parts(data, objective, model.optimizer, sampler, evaluators, model.axes, others)


def _samplers(config: ConfigDict, objective: Objective) -> Callable[..., tuple[Sampler, dict]]:
    """(**fields) -> config.sampler with these fields replaced, and all its fields."""

    def make(**replaced):
        fields = config.sampler.to_dict()
        for field in replaced:
            if field not in fields:
                has = ", ".join(f for f in fields if f != "name") or "nothing"
                raise ValueError(
                    f"the {config.sampler.name} sampler has no {field} to vary; it has: {has}"
                )
        sampler = names.make(config, "sampler", objective=objective, **replaced)
        return sampler, fields | replaced

    return make


def _others(config: ConfigDict, data) -> dict[str, OtherRun]:
    """The runs that the objective's arguments of the type Objective name."""
    hints = typing.get_type_hints(names.find("objective", config.objective.name))
    return {
        option: _other_run(f"config.objective.{option}", config.objective[option], config, data)
        for option, hint in hints.items()
        if hint in (Objective, Objective | None) and config.objective.get(option)
    }


def _model(config: ConfigDict, data, others: dict[str, OtherRun]) -> Model:
    network_takes = inspect.signature(names.find("network", config.network.name)).parameters
    if data.of_sources and "source_length" not in network_takes:
        raise ValueError(f"network {config.network.name!r} takes no source; for pairs: 'seq2seq'")
    about = {"classes": data.classes, "shape": data.shape, "length": data.length}
    about["start"] = data.tokenizer.end
    about |= {"source_length": None} | data.of_sources
    network = partial(names.make, config, "network", **about)
    axes = getattr(names.module("network", config.network.name), "AXES", {})
    if config.network.get("anneal_steps") and config.objective.name != "md4":
        raise ValueError("network.anneal_steps is for objective 'md4', which tells it the step")
    takes = inspect.signature(names.find("objective", config.objective.name)).parameters
    if "schedule" not in takes and config.schedule.name != "linear":
        raise ValueError(
            f"objective {config.objective.name!r} takes no schedule, got {config.schedule.name!r}"
        )
    objective = names.make(
        config,
        "objective",
        network=network,
        vocab_size=data.vocab_size,
        length=data.length,
        schedule=names.make(config, "schedule"),
        start=data.tokenizer.end,
        end=data.tokenizer.end,
        classes=data.classes,
        shape=data.shape,
        **{name: other.model.objective for name, other in others.items()},
    )
    optimizer = names.make(config, "optimizer", steps=config.train.steps, axes=axes)
    return Model(objective, optimizer, axes)


def _other_run(option: str, workdir: str, mine: ConfigDict, data) -> OtherRun:
    """The run in a folder; its tokens and training text must be those of `data`, made by `mine`."""
    config, record, reached = _found(option, workdir)
    seen, here = record["data"], data.windows("train").fingerprint
    if seen != here or config.data.get("length") != mine.data.get("length"):
        fields = {*config.data, *mine.data}
        differ = ", ".join(
            f"{f} {config.data.get(f)!r} there and {mine.data.get(f)!r} here"
            for f in sorted(fields)
            if config.data.get(f) != mine.data.get(f)
        )
        raise ValueError(
            f"{option}: the run in {workdir!r} was trained on other tokens or another text "
            f"(fingerprint {seen} there, {here} here); config.data: {differ or 'the same'}"
        )
    return OtherRun(workdir, reached, config, _model(config, data, _others(config, data)))


def _found(option: str, workdir: str) -> tuple[ConfigDict, dict, int]:
    """(config, what its newest checkpoint remembers, its step) of the run in a folder."""
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{option}: no run in {workdir!r}: it has no config.json")
    saves = checkpoint.Checkpoints(workdir, read_only=True)
    record, reached = saves.record(), saves.latest()
    saves.close()
    return ConfigDict(json.loads(path.read_text())), record, reached


def _judge(option: str, given: str, config: ConfigDict, data) -> Judge:
    """The judge that an evaluator's option names: "source", or the folder of an exact run, whose
    text and tokenizer may be others than those of `data`. Its parameters are read when it judges
    for the first time."""
    if given == "source":
        return judges.source(option, data)
    there, record, reached = _found(option, given)
    # tokenizer "file" is a file of the run's own folder
    same = there.data == config.data and there.data.get("tokenizer") != "file"
    reads = data if same else names.make(there, "data", workdir=given)
    if reads.windows("train").fingerprint != record["data"]:
        raise ValueError(
            f"{option}: the training text or the tokenizer of the run in {given!r} is not what it "
            "was when that run began, so its tokens may mean something else"
        )
    other = OtherRun(given, reached, there, _model(there, reads, _others(there, reads)))
    if not other.model.objective.exact or other.model.objective.token_nll is None:
        raise ValueError(
            f"{option}: the run in {given!r} (objective {there.objective.name!r}) has no exact "
            "likelihood of single tokens, which a judge must have: an 'ar' run, or 'source'"
        )
    mesh = parallel.make_mesh(**config.mesh)
    sums = record.get(checkpoint.SUMS) or record.get("checksums", {})  # of all its arrays
    sums = json.dumps(sums, sort_keys=True)
    facts = {"judge": pathlib.Path(given).resolve().name, "judge_network": there.network.name}
    facts["judge_weights"] = hashlib.sha256(sums.encode()).hexdigest()[:16]
    facts["judge_dtype"] = there.network.get("dtype", "float32")
    return judges.run(
        option, other.model.objective, lambda: _read(other, mesh), mesh, reads, data, facts
    )


class Setup(NamedTuple):
    """A run on a mesh: what training, evaluation and sampling share."""

    parts: Parts
    mesh: jax.sharding.Mesh
    init: Callable  # () -> a new, sharded TrainState
    abstract: step.TrainState  # its shapes, types and shardings
    tokens_per_step: int


def setup(
    config: ConfigDict, workdir: str | None = None, *, devices: Sequence[jax.Device] | None = None
) -> Setup:
    """Builds the parts and the layout of the state, on all devices or on those that are given;
    `workdir` is where the run keeps its files, if there are any yet. Raises ValueError before
    anything compiles."""
    options = step.settings(**config.train)
    mesh = parallel.make_mesh(**config.mesh, devices=devices)
    own = workdir and _begun(workdir)
    starts = options.start not in ("random", "bigram")  # from another run, whose tokens it has too
    made = parts(config, options.start if starts and not own else workdir)
    made.data.windows("train")
    model = Model(made.objective, made.optimizer, made.axes)
    init, layout = _initial(config, model, mesh)
    # Runs once, and is costly to compile well.
    quick = {"xla_backend_optimization_level": 0}
    jitted = jax.jit(init, out_shardings=layout, compiler_options=quick)
    abstract = _abstract(init, layout)
    if options.start == "bigram":
        bigram.check(abstract.params)
    root = functools.cache(partial(_root, config, made.data, mesh, abstract.params))
    if starts and not own:
        root()  # raises if it does not fit; a run that has begun may outlive it
    if made.objective.start:
        jax.eval_shape(made.objective.start, abstract.params)  # raises if the parts do not fit

    def begin():
        state = jitted()
        params = state.params
        for name, other in made.others.items():
            params = params | {name: jax.device_put(_read(other, mesh), layout.params[name])}
        if made.objective.start:
            # copies, or what is donated later would be gone from the part it was taken from
            begun = jax.jit(made.objective.start, out_shardings=layout.params)(params)
            params = begun | {name: params[name] for name in made.others}
        if options.start == "bigram":
            params = bigram.start(params, made.objective, made.data, seed=config.seed)
        if starts:
            params = jax.jit(graft.onto, out_shardings=layout.params)(params, _read(root(), mesh))
        average = step.averaged(step.trained(made.objective, params), options.ema)
        return state._replace(params=params, ema=average)

    return Setup(made, mesh, begin, abstract, options.batch_size * made.data.length)


def _begun(workdir: str) -> bool:
    """Whether a run has saved something here."""
    saves = checkpoint.Checkpoints(workdir, read_only=True)
    begun = saves.latest() is not None
    saves.close()
    return begun


def _root(mine: ConfigDict, data, mesh, params) -> OtherRun:
    """The run whose network a new one starts from; `params` are the new ones, abstract."""
    workdir = mine.train.start
    config, _, reached = _found("config.train.start (random, bigram or a run's folder)", workdir)
    differ = [
        f"{field} {config.network.get(field)!r} there and {value!r} here"
        for field, value in mine.network.items()
        if field not in MAY_DIFFER and config.network.get(field) != value
    ]
    if differ:
        raise ValueError(
            f"config.train.start: {workdir!r} has another network: {'; '.join(differ)}"
        )
    theirs = names.make(config, "data", workdir=workdir)
    own, other = data.tokenizer, theirs.tokenizer
    if own.fingerprint != other.fingerprint:
        raise ValueError(
            f"config.train.start: the run in {workdir!r} has other tokens, {other.name} of "
            f"{other.vocab_size}, here {own.name} of {own.vocab_size}"
        )
    found = OtherRun(workdir, reached, config, _model(config, theirs, _others(config, theirs)))
    there = _abstract(*_initial(config, found.model, mesh)).params
    jax.eval_shape(graft.onto, params, there)  # raises if they do not fit
    return found


def _initial(config: ConfigDict, model: Model, mesh):
    """(init, layout): () -> a new TrainState, and its shardings on a mesh."""

    def init():
        options = {name: config.train.get(name, 0.0) for name in ("ema", "skip_spikes")}
        return step.init_state(model.objective, model.optimizer, seed=config.seed, **options)

    return init, parallel.shardings(mesh, jax.eval_shape(init), model.axes, config.rules.to_dict())


def _read(other: OtherRun, mesh):
    """The newest parameters of another run (the averaged ones, if it keeps them)."""
    abstract = _abstract(*_initial(other.config, other.model, mesh))
    saves = checkpoint.Checkpoints(other.workdir, read_only=True)
    params = step.eval_params(saves.restore(abstract))
    saves.close()
    return params


def translator(config: ConfigDict, made: Setup) -> Callable | None:
    """What writes targets for sources (translate.py); None where the data are no pairs."""
    data = made.parts.data
    if not data.of_sources:
        return None
    options, reranker = translate.settings(**config.decoding), None
    if options.reranker:
        other = _other_run("config.decoding.reranker", options.reranker, config, data)
        if not other.model.objective.exact:
            raise ValueError(
                f"config.decoding.reranker: {options.reranker!r} is no autoregressive run"
            )
        params = _read(other, made.mesh)
        reranker = translate.Reranker(other.model.objective, params)
    facts = {"distillation": config.data.distillation, "sampler": config.sampler.name}
    facts |= {f"sampler_{k}": v for k, v in config.sampler.items() if k != "name"}
    return translate.translator(
        made.parts.objective,
        made.parts.sampler,
        data,
        options,
        reranker,
        facts,
        abstract=made.abstract.params,
        mesh=made.mesh,
    )


def train_step(config: ConfigDict, made: Setup) -> jax.stages.Wrapped:
    """The jitted (state, global batch) -> (state, metrics); what it is given of the state is gone
    afterwards."""
    options, parts = step.settings(**config.train), made.parts
    function = step.make_train_step(
        parts.objective,
        parts.optimizer,
        mesh=made.mesh,
        seed=config.seed,
        microbatches=options.microbatches,
        exact=options.exact,
        ema=options.ema,
        skip_spikes=options.skip_spikes,
    )
    layout = jax.tree.map(lambda a: a.sharding, made.abstract)
    return parallel.jit(function, made.mesh, donate_argnums=0, out_shardings=(layout, None))


def check_batches(config: ConfigDict, made: Setup, *, train: bool) -> None:
    """Raises ValueError if batches do not fit the data, the mesh or (if `train`) the loss."""
    shards, options = parallel.batch_shards(made.mesh), step.settings(**config.train)
    for label, section in config.evaluators.items():
        made.parts.data.windows(section.get("split", "train"))
        if section.get("batch_size", 0) % shards:
            raise ValueError(
                f"evaluators.{label}.batch_size {section.batch_size} is not divisible by the "
                f"{shards} devices that share a batch"
            )
    if not train:
        return
    train_step(config, made)  # raises if its options and the mesh do not fit
    shards = options.microbatches if options.exact else shards * options.microbatches
    if options.batch_size % shards:
        raise ValueError(
            f"train.batch_size {options.batch_size} is not divisible by {shards} (mesh "
            f"{dict(made.mesh.shape)} x {options.microbatches} microbatches)"
        )
    # Tracing the loss on the rows of one device and microbatch shows now what does not fit.
    batch = keys.number(made.parts.data.example(options.batch_size // shards))
    key = jax.eval_shape(lambda: jax.random.key(0))
    jax.eval_shape(partial(made.parts.objective.loss, train=True), made.abstract.params, batch, key)


def _abstract(init, layout) -> step.TrainState:
    """Shapes, types and shardings of the state that `init()` would make."""

    def of(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(of, jax.eval_shape(init), layout)

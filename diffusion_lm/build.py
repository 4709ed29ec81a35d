"""Name -> module: the only file that knows names, and how the parts of a run fit together."""

import importlib
import inspect
import json
import pathlib
import pkgutil
import typing
from functools import partial
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from diffusion_lm import bigram, checkpoint, keys, optim, parallel, schedules, step, translate
from diffusion_lm.types import Objective, Optimizer, Sampler

# Sections whose `name` is a module in a folder of the package, with the arguments that the house
# supplies itself.
FOLDERS = {
    "data": ("data", ("workdir",)),
    "network": (
        "networks",
        ("inputs", "outputs", "causal", "time_input", "vectors", "classes", "shape", "length")
        + ("source_length", "source_ids", "source_end"),
    ),
    "objective": (
        "objectives",
        ("network", "vocab_size", "length", "schedule", "start", "end", "classes", "shape"),
    ),
    "sampler": ("samplers", ("objective",)),
    "evaluators": ("evaluators", ("objective", "data")),
}
# Sections whose `name` is a function in a module.
FUNCTIONS = {
    "schedule": (schedules, ("linear", "polynomial", "cosine", "geometric"), ()),
    "optimizer": (optim, ("adamw", "muon"), ("steps", "axes")),
}
# Sections without a name: one function each.
SETTINGS = {
    "train": step.settings,
    "mesh": parallel.make_mesh,
    "decoding": translate.settings,  # of pairs only
}

# Logical axes of parameters -> mesh axes.
RULES = {"vocab": "tensor", "heads": "tensor", "hidden": "tensor", "width": "fsdp"}


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
    evaluators: dict[str, typing.Callable]
    axes: dict
    others: dict[str, OtherRun]  # by the name of the part of params that comes from them


def sections(config: ConfigDict) -> list[str]:
    """Dotted names of all sections that have a schema."""
    names = [s for s in (*FOLDERS, *FUNCTIONS, *SETTINGS) if s != "evaluators"]
    if config.get("data", {}).get("name") != "pairs":
        names.remove("decoding")
    return names + [f"evaluators.{label}" for label in config.get("evaluators", {})]


def add_missing_sections(config: ConfigDict) -> None:
    defaults = {
        "mesh": {},
        "rules": RULES,
        "schedule": {"name": "linear"},
        "evaluators": {},
        "decoding": {},
    }
    for section, value in defaults.items():
        if section not in config and (section != "decoding" or section in sections(config)):
            config[section] = ConfigDict(value)
    for section in sections(config):
        if section not in config and "." not in section:
            raise ValueError(f"config.{section} is missing")
        if section not in SETTINGS and "name" not in _section(config, section):
            raise ValueError(f"config.{section}.name is missing; choices: {choices(section)}")


def choices(section: str) -> str:
    """The names that a section may have, joined for an error message."""
    kind = section.split(".")[0]
    if kind in FUNCTIONS:
        return ", ".join(FUNCTIONS[kind][1])
    package = importlib.import_module(f"diffusion_lm.{FOLDERS[kind][0]}")
    found = [m.name for m in pkgutil.iter_modules(package.__path__)]
    return ", ".join(n for n in found if hasattr(_module(kind, n), "make"))


def find(section: str, name: str | None = None):
    """The function that a section calls."""
    kind = section.split(".")[0]
    if kind in SETTINGS:
        return SETTINGS[kind]
    if kind in FUNCTIONS:
        module, names, _ = FUNCTIONS[kind]
        if name in names:
            return getattr(module, name)
    elif name.isidentifier():
        try:
            return _module(kind, name).make
        except (ModuleNotFoundError, AttributeError) as error:
            if isinstance(error, ModuleNotFoundError) and not error.name.startswith("diffusion_lm"):
                raise
    raise ValueError(f"unknown config.{section}.name {name!r}; choices: {choices(section)}")


def schema(config: ConfigDict, section: str) -> tuple[dict, dict]:
    """(types, defaults) of a section's fields, read from the signature of what it calls."""
    if section in ("", "evaluators"):
        return {"seed": int}, {}
    kind = section.split(".")[0]
    name = _section(config, section).get("name")
    function = find(section, name)
    supplied = {**{k: v[1] for k, v in FOLDERS.items()}, **{k: v[2] for k, v in FUNCTIONS.items()}}
    supplied |= {"mesh": ("devices",)}
    hints = typing.get_type_hints(function)
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(function).parameters.items()
        if key not in supplied.get(kind, ())
    }
    return {key: _in_config(hints.get(key, str)) for key in defaults}, defaults


def _in_config(hint):
    """The type of an option in a config: an objective is given by the folder of its run."""
    if hint is Objective:
        return str
    return str | None if hint == Objective | None else hint


def parts(config: ConfigDict, workdir: str | None = None) -> Parts:
    """Builds everything a resolved config names. Raises ValueError or OSError, in one line."""
    data = _make(config, "data", workdir=workdir)
    others = _others(config, data)
    model = _model(config, data, others)
    objective = model.objective
    sampler = _make(config, "sampler", objective=objective)
    evaluators = {
        label: _make(config, f"evaluators.{label}", objective=objective, data=data)
        for label in config.get("evaluators", {})
    }
    return Parts(data, objective, model.optimizer, sampler, evaluators, model.axes, others)


def _others(config: ConfigDict, data) -> dict[str, OtherRun]:
    """The runs that the objective's arguments of the type Objective name."""
    hints = typing.get_type_hints(find("objective", config.objective.name))
    return {
        option: _other_run(f"config.objective.{option}", config.objective[option], config, data)
        for option, hint in hints.items()
        if hint in (Objective, Objective | None) and config.objective.get(option)
    }


def _model(config: ConfigDict, data, others: dict[str, OtherRun]) -> Model:
    network_takes = inspect.signature(find("network", config.network.name)).parameters
    if data.of_sources and "source_length" not in network_takes:
        raise ValueError(f"network {config.network.name!r} takes no source; for pairs: 'seq2seq'")
    about = {"classes": data.classes, "shape": data.shape, "length": data.length}
    about |= {"source_length": None} | data.of_sources
    network = partial(_make, config, "network", **about)
    axes = getattr(_module("network", config.network.name), "AXES", {})
    takes = inspect.signature(find("objective", config.objective.name)).parameters
    if "schedule" not in takes and config.schedule.name != "linear":
        raise ValueError(
            f"objective {config.objective.name!r} takes no schedule, got {config.schedule.name!r}"
        )
    objective = _make(
        config,
        "objective",
        network=network,
        vocab_size=data.vocab_size,
        length=data.length,
        schedule=_make(config, "schedule"),
        start=data.tokenizer.end,
        end=data.tokenizer.end,
        classes=data.classes,
        shape=data.shape,
        **{name: other.model.objective for name, other in others.items()},
    )
    optimizer = _make(config, "optimizer", steps=config.train.steps, axes=axes)
    return Model(objective, optimizer, axes)


def _other_run(option: str, workdir: str, mine: ConfigDict, data) -> OtherRun:
    """The run in a folder; its tokens and training text must be those of `data`, made by `mine`."""
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{option}: no run in {workdir!r}: it has no config.json")
    config = ConfigDict(json.loads(path.read_text()))
    saves = checkpoint.Checkpoints(workdir, read_only=True)
    seen, reached = saves.record()["data"], saves.latest()
    saves.close()
    here = data.windows("train").fingerprint
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


class Setup(NamedTuple):
    """A run on a mesh: what training, evaluation and sampling share."""

    parts: Parts
    mesh: jax.sharding.Mesh
    init: typing.Callable  # () -> a new, sharded TrainState
    abstract: step.TrainState  # its shapes, types and shardings
    tokens_per_step: int


def setup(config: ConfigDict, workdir: str | None = None) -> Setup:
    """Builds the parts and the layout of the state; `workdir` is where the run keeps its files, if
    there are any yet. Raises ValueError before anything compiles."""
    options = step.settings(**config.train)
    mesh = parallel.make_mesh(**config.mesh)
    made = parts(config, workdir)
    made.data.windows("train")
    model = Model(made.objective, made.optimizer, made.axes)
    init, layout = _initial(config, model, mesh)
    jitted = jax.jit(init, out_shardings=layout)
    abstract = _abstract(init, layout)
    if options.start == "bigram":
        bigram.check(abstract.params)
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
        average = step.averaged(step.trained(made.objective, params), options.ema)
        return state._replace(params=params, ema=average)

    return Setup(made, mesh, begin, abstract, options.batch_size * made.data.length)


def _initial(config: ConfigDict, model: Model, mesh):
    """(init, layout): () -> a new TrainState, and its shardings on a mesh."""

    def init():
        ema = config.train.get("ema", 0.0)
        return step.init_state(model.objective, model.optimizer, seed=config.seed, ema=ema)

    return init, parallel.shardings(mesh, jax.eval_shape(init), model.axes, config.rules.to_dict())


def _read(other: OtherRun, mesh):
    """The newest parameters of another run (the averaged ones, if it keeps them)."""
    abstract = _abstract(*_initial(other.config, other.model, mesh))
    saves = checkpoint.Checkpoints(other.workdir, read_only=True)
    params = step.eval_params(saves.restore(abstract))
    saves.close()
    return params


def translator(config: ConfigDict, made: Setup) -> typing.Callable | None:
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
        out_shardings=parallel.replicated(made.mesh),
    )


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
    shards *= options.microbatches
    if options.batch_size % shards:
        raise ValueError(
            f"train.batch_size {options.batch_size} is not divisible by {shards} (mesh "
            f"{dict(made.mesh.shape)} x {options.microbatches} microbatches)"
        )
    # Tracing the loss on the rows of one device and microbatch shows now what does not fit.
    batch = keys.number(made.parts.data.example(options.batch_size // shards))
    key = jax.eval_shape(lambda: jax.random.key(0))
    jax.eval_shape(partial(made.parts.objective.loss, train=True), made.abstract.params, batch, key)


def _module(kind: str, name: str):
    return importlib.import_module(f"diffusion_lm.{FOLDERS[kind][0]}.{name}")


def _section(config: ConfigDict, section: str) -> ConfigDict:
    for part in section.split("."):
        config = config[part]
    return config


def _options(config: ConfigDict, section: str) -> dict:
    return {k: v for k, v in _section(config, section).items() if k != "name"}


def _make(config: ConfigDict, section: str, **supplied):
    """Calls a section's function with its options and those supplied arguments that it takes."""
    function = find(section, _section(config, section).name)
    takes = inspect.signature(function).parameters
    supplied = {key: value for key, value in supplied.items() if key in takes}
    return function(**_options(config, section) | supplied)


def _abstract(init, layout) -> step.TrainState:
    """Shapes, types and shardings of the state that `init()` would make."""

    def of(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(of, jax.eval_shape(init), layout)

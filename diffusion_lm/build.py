"""Name -> module: the only file that knows names, and how the parts of a run fit together."""

import importlib
import inspect
import pkgutil
import typing
from functools import partial
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from diffusion_lm import bigram, keys, optim, parallel, schedules, step
from diffusion_lm.types import Objective, Optimizer, Sampler

# Sections whose `name` is a module in a folder of the package, with the arguments that the house
# supplies itself.
FOLDERS = {
    "data": ("data", ()),
    "network": ("networks", ("inputs", "outputs", "causal", "time_input", "classes", "shape")),
    "objective": (
        "objectives",
        ("network", "vocab_size", "length", "schedule", "start", "classes"),
    ),
    "sampler": ("samplers", ("objective",)),
    "evaluators": ("evaluators", ("objective",)),
}
# Sections whose `name` is a function in a module.
FUNCTIONS = {
    "schedule": (schedules, ("linear", "polynomial", "cosine", "geometric"), ()),
    "optimizer": (optim, ("adamw", "muon"), ("steps", "axes")),
}
# Sections without a name: one function each.
SETTINGS = {"train": "settings", "mesh": "make_mesh"}

# Logical axes of parameters -> mesh axes.
RULES = {"vocab": "tensor", "heads": "tensor", "hidden": "tensor", "width": "fsdp"}

# Sizes of the networks that `reduced` makes.
TINY = {"layers": 2, "width": 16, "heads": 2, "hidden": 32, "blocks": 1, "outer": 1}
TINY |= {"outer_width": 16, "patch": 2}


class Parts(NamedTuple):
    """Everything a config names, built."""

    data: typing.Any
    objective: Objective
    optimizer: Optimizer
    sampler: Sampler
    evaluators: dict[str, typing.Callable]
    axes: dict


def sections(config: ConfigDict) -> list[str]:
    """Dotted names of all sections that have a schema."""
    names = [s for s in (*FOLDERS, *FUNCTIONS, *SETTINGS) if s != "evaluators"]
    return names + [f"evaluators.{label}" for label in config.get("evaluators", {})]


def add_missing_sections(config: ConfigDict) -> None:
    defaults = {
        "mesh": {},
        "rules": RULES,
        "schedule": {"name": "linear"},
        "evaluators": {},
    }
    for section, value in defaults.items():
        if section not in config:
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
    if kind == "train":
        return step.settings
    if kind == "mesh":
        return parallel.make_mesh
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
    return {key: hints.get(key, str) for key in defaults}, defaults


def parts(config: ConfigDict) -> Parts:
    """Builds everything a resolved config names. Raises ValueError or OSError, in one line."""
    data = _make(config, "data")
    facts = {"classes": data.classes, "shape": data.shape}
    network = partial(_make, config, "network", **facts)
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
        classes=data.classes,
    )
    optimizer = _make(config, "optimizer", steps=config.train.steps, axes=axes)
    sampler = _make(config, "sampler", objective=objective)
    evaluators = {
        label: _make(config, f"evaluators.{label}", objective=objective)
        for label in config.get("evaluators", {})
    }
    return Parts(data, objective, optimizer, sampler, evaluators, axes)


class Setup(NamedTuple):
    """A run on a mesh: what training, evaluation and sampling share."""

    parts: Parts
    mesh: jax.sharding.Mesh
    init: typing.Callable  # () -> a new, sharded TrainState
    abstract: step.TrainState  # its shapes, types and shardings
    tokens_per_step: int


def setup(config: ConfigDict) -> Setup:
    """Builds the parts and the layout of the state. Raises ValueError before anything compiles."""
    options = step.settings(**config.train)
    mesh = parallel.make_mesh(**config.mesh)
    made = parts(config)
    made.data.windows("train")

    def init():
        return step.init_state(made.objective, made.optimizer, seed=config.seed, ema=options.ema)

    layout = parallel.shardings(mesh, jax.eval_shape(init), made.axes, config.rules.to_dict())
    jitted = jax.jit(init, out_shardings=layout)
    abstract = _abstract(init, layout)
    if options.start == "bigram":
        bigram.check(abstract.params)

    def begin():
        state = jitted()
        if options.start == "bigram":
            params = bigram.start(state.params, made.objective, made.data, seed=config.seed)
            average = None if state.ema is None else jax.tree.map(jax.numpy.copy, params)
            state = state._replace(params=params, ema=average)
        return state

    return Setup(made, mesh, begin, abstract, options.batch_size * made.data.length)


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
    shape = (options.batch_size // shards, made.parts.data.length)
    batch = keys.number({"x": jax.numpy.zeros(shape, int)})
    key = jax.eval_shape(lambda: jax.random.key(0))
    jax.eval_shape(partial(made.parts.objective.loss, train=True), made.abstract.params, batch, key)


def reduced(config: ConfigDict, text: str) -> ConfigDict:
    """A config made small enough to run anywhere in seconds, on a text file or folder of one's own.

    The tests put every file of configs/ through this: same objective, estimator, optimiser and
    sampler, but a tiny network, bytes for tokens (of images, 8 x 8 digits), short windows and two
    steps.
    """
    config = ConfigDict(config.to_dict())
    if config.data.name == "images":
        config.data = ConfigDict({**config.data, "source": "digits", "cache_dir": None})
    else:
        config.data = ConfigDict({"name": "text", "source": "files", "path": text, "length": 16})
        config.data.tokenizer = "bytes"
    takes = inspect.signature(find("network", config.network.name)).parameters
    config.network.update({name: size for name, size in TINY.items() if name in takes})
    config.train.update(steps=2, batch_size=16, microbatches=1, log_every=1, eval_every=2)
    config.train.update(checkpoint_every=2)
    small = {"batch_size": 8, "draws": 2, "max_windows": 16, "num_steps": 4}
    for section in ("sampler", *(f"evaluators.{label}" for label in config.evaluators)):
        fields = schema(config, section)[0]
        _section(config, section).update({k: v for k, v in small.items() if k in fields})
    return config


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
    return function(**_options(config, section), **supplied)


def _abstract(init, layout) -> step.TrainState:
    """Shapes, types and shardings of the state that `init()` would make."""

    def of(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(of, jax.eval_shape(init), layout)

"""Name -> module: the only file that knows names, and what the options of a section are."""

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from diffusion_lm import optim, parallel, schedules, step, translate
from diffusion_lm.types import Judge, Objective

# Sections whose `name` is a module in a folder of the package, with the arguments that the house
# supplies itself.
FOLDERS = {
    "data": ("data", ("workdir",)),
    "network": (
        "networks",
        ("inputs", "outputs", "causal", "time_input", "vectors", "classes", "shape", "length")
        + ("start", "source_length", "source_ids", "source_end"),
    ),
    "objective": (
        "objectives",
        ("network", "vocab_size", "length", "schedule", "start", "end", "classes", "shape"),
    ),
    "sampler": ("samplers", ("objective",)),
    "evaluators": ("evaluators", ("objective", "data", "samplers")),
}
# Sections whose `name` is a function in a module.
FUNCTIONS = {
    "schedule": (schedules, ("linear", "polynomial", "cosine", "geometric"), ()),
    "optimizer": (optim, ("adamw", "muon"), ("steps", "axes")),
}
# Sections without a name: one function each.
SETTINGS: dict[str, Callable] = {
    "train": step.settings,
    "mesh": parallel.make_mesh,
    "decoding": translate.settings,  # of pairs only
}

# Logical axes of parameters -> mesh axes.
RULES = {"vocab": "tensor", "heads": "tensor", "hidden": "tensor", "width": "fsdp"}


def sections(config: ConfigDict) -> list[str]:
    """Dotted names of all sections that have a schema."""
    found = [s for s in (*FOLDERS, *FUNCTIONS, *SETTINGS) if s != "evaluators"]
    if config.get("data", {}).get("name") != "pairs":
        found.remove("decoding")
    return found + [f"evaluators.{label}" for label in config.get("evaluators", {})]


def add_missing_sections(config: ConfigDict) -> None:
    """Fills in the sections that a config may leave out. Raises ValueError, with the choices, for
    one that it may not, or without a name."""
    defaults = {
        "mesh": {},
        "rules": RULES,
        "schedule": {"name": "linear"},
        "evaluators": {},
        "decoding": {},
    }
    known = (*FOLDERS, *FUNCTIONS, *SETTINGS, "rules")
    given = {name: config[name] for name in known if name in config}
    if isinstance(config.get("evaluators"), ConfigDict):
        given |= {f"evaluators.{label}": value for label, value in config.evaluators.items()}
    for section, value in given.items():
        if not isinstance(value, ConfigDict):
            raise ValueError(f"config.{section} must be a section, got {in_one_line(value)}")
    for section, value in defaults.items():
        if section not in config and (section != "decoding" or section in sections(config)):
            config[section] = ConfigDict(value)
    for section in sections(config):
        if section not in config and "." not in section:
            raise ValueError(f"config.{section} is missing")
        if section not in SETTINGS and "name" not in section_of(config, section):
            raise ValueError(f"config.{section}.name is missing; choices: {choices(section)}")


def choices(section: str) -> str:
    """The names that a section may have, joined for an error message."""
    kind = section.split(".")[0]
    if kind in FUNCTIONS:
        return ", ".join(FUNCTIONS[kind][1])
    package = importlib.import_module(f"diffusion_lm.{FOLDERS[kind][0]}")
    found = [m.name for m in pkgutil.iter_modules(package.__path__)]
    return ", ".join(n for n in found if hasattr(module(kind, n), "make"))


def find(section: str, name: str | None = None) -> Callable:
    """The function that a section calls."""
    kind = section.split(".")[0]
    if kind in SETTINGS:
        return SETTINGS[kind]
    if kind in FUNCTIONS:
        home, known, _ = FUNCTIONS[kind]
        if name in known:
            return getattr(home, name)
    elif isinstance(name, str) and name.isidentifier():
        try:
            return module(kind, name).make
        except (ModuleNotFoundError, AttributeError) as error:
            if isinstance(error, ModuleNotFoundError) and not error.name.startswith("diffusion_lm"):
                raise
    raise ValueError(
        f"unknown config.{section}.name {in_one_line(name)}; choices: {choices(section)}"
    )


def in_one_line(value: Any) -> str:
    """The start of its repr, which of a section has several."""
    return " ".join(repr(value).split())[:200]


def schema(config: ConfigDict, section: str) -> tuple[dict, dict]:
    """(types, defaults) of a section's fields, read from the signature of what it calls."""
    if section in ("", "evaluators"):
        return {"seed": int}, {}
    kind = section.split(".")[0]
    name = section_of(config, section).get("name")
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
    """The type of an option in a config: objectives and judges are given by the folders of runs."""
    if hint in (Objective, Judge):
        return str
    return str | None if hint == Objective | None else hint


def module(kind: str, name: str) -> ModuleType:
    """The module of a name, such as ("sampler", "score"). Raises ModuleNotFoundError."""
    return importlib.import_module(f"diffusion_lm.{FOLDERS[kind][0]}.{name}")


def section_of(config: ConfigDict, section: str) -> ConfigDict:
    """The section of a dotted name, such as "evaluators.valid"."""
    for part in section.split("."):
        config = config[part]
    return config


def _options(config: ConfigDict, section: str) -> dict:
    return {k: v for k, v in section_of(config, section).items() if k != "name"}


def make(config: ConfigDict, section: str, **supplied) -> Any:
    """Calls a section's function with its options and those supplied arguments that it takes."""
    function = find(section, section_of(config, section).name)
    takes = inspect.signature(function).parameters
    supplied = {key: value for key, value in supplied.items() if key in takes}
    return function(**_options(config, section) | supplied)

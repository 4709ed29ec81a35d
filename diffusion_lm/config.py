"""Config files: load, fill in defaults, override from the command line, check.

A config is data: sections whose `name` picks a module (see `names.py`) and whose other fields are
that module's keyword arguments. The signature of the module's `make` is the schema: it supplies
defaults and types, so a mistyped field is refused before anything compiles.
"""

import difflib
import importlib.util
import inspect
import json
import os
import types
import typing

from ml_collections import ConfigDict

from diffusion_lm import names

# Fields that may change when a run is resumed; everything else must stay as it was.
PLACES = ("data.path", "data.cache_dir", "data.data_dir", "data.download")
PLACES += ("objective.proposal", "objective.ar")  # folders of other runs
MAY_CHANGE = ("evaluators.", "sampler.", "decoding.", "mesh.", "rules.", "train.", *PLACES)
MUST_STAY = ("train.batch_size", "train.ema", "train.start", "train.skip_spikes")


def load(path: str) -> ConfigDict:
    """Runs `get_config()` of a config file, or `get_config(argument)` for "file.py:argument"."""
    argument = ""
    if not os.path.isfile(path):  # a folder of runs may be named by the time
        path, _, argument = path.partition(":")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no config file {path!r}")
    if path.endswith(".json"):
        return ConfigDict(_read_json(path))
    spec = importlib.util.spec_from_file_location("config", path)
    if spec is None:
        raise ValueError(f"{path!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config(argument) if argument else module.get_config()
    except (SyntaxError, AttributeError, TypeError, NameError, ImportError) as error:
        raise ValueError(f"config file {path!r}: {type(error).__name__}: {error}") from error


def _read_json(path: str) -> dict:
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config file {path!r} is not JSON: {error}") from None
    if type(value) is not dict:
        raise ValueError(f"config file {path!r} must be an object, got {type(value).__name__}")
    return value


def resolve(config: ConfigDict, overrides: list[str]) -> ConfigDict:
    """A complete, checked copy of `config` with overrides "a.b=value" applied.

    Raises ValueError, naming what was given and what is there, for an unknown field or a value of
    the wrong type.
    """
    config = ConfigDict(config.to_dict())
    names.add_missing_sections(config)
    pairs = []
    for override in overrides:
        field, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"--config.{field} needs a value: --config.{field}=VALUE")
        # a folder: after "=" a shell leaves it as it is
        pairs.append((field, os.path.expanduser(text) if text.startswith("~/") else text))
    renamed = [(field, text) for field, text in pairs if field.endswith(".name")]
    for field, text in renamed:
        section = field.removesuffix(".name")
        parent, _, label = section.rpartition(".")
        if parent == "evaluators" and label.isidentifier() and label not in config.evaluators:
            config.evaluators[label] = ConfigDict({"name": text})  # a new one
        known = names.sections(config)
        if section not in known:
            raise ValueError(_unknown(f"config.{section}", [f"config.{s}" for s in known]))
        names.find(section, text)
        _get(config, section).name = text
    _complete(config, {field.removesuffix(".name") for field, _ in renamed}, dict(pairs))
    fields = flatten(config)
    for field, text in pairs:
        if field not in fields:
            raise ValueError(_unknown(f"config.{field}", [f"config.{f}" for f in fields]))
        section, _, key = field.rpartition(".")
        hints = names.schema(config, section)[0] if section != "rules" else {}
        _get(config, section)[key] = _parse(f"config.{field}", text, hints.get(key, str))
    _complete(config, set(), {})
    return config


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """{"a.b": value} for every field."""
    out = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def to_json(config: ConfigDict) -> str:
    """A config as the text of a config.json, fields in the order of the alphabet."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def check_resumable(old: dict, new: ConfigDict, workdir: str) -> None:
    """Raises ValueError naming the fields in which a run may not change when it is resumed.

    `old` is what an earlier run wrote; options that came since then take their defaults.
    """
    old, new = flatten(resolve(ConfigDict(old), [])), flatten(new)
    changed = [
        f"{field} {old.get(field)!r} -> {new.get(field)!r}"
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field)
        and (field in MUST_STAY or not field.startswith(MAY_CHANGE))
    ]
    if changed:
        raise ValueError(
            f"{workdir} holds a run with another config ({'; '.join(changed)}): leave these as "
            "they were, or take another workdir"
        )


def _get(config: ConfigDict, section: str) -> ConfigDict:
    for part in section.split(".") if section else []:
        config = config[part]
    return config


def _complete(config: ConfigDict, renamed: set[str], coming: dict[str, str]) -> None:
    """Fills in defaults and checks fields and types, section by section; a required field may be
    missing if it is among the overrides that are still `coming`."""
    names.add_missing_sections(config)
    known = {s.split(".")[0] for s in names.sections(config)} | {"seed", "rules", "evaluators"}
    for key in config:
        if key not in known:
            raise ValueError(_unknown(f"config.{key}", [f"config.{k}" for k in known]))
    config.seed = config.get("seed", 0)
    if type(config.seed) is not int or not 0 <= config.seed < 2**32:
        given = names.in_one_line(config.seed)
        raise ValueError(f"config.seed must be an integer in [0, 2^32), got {given}")
    for section in names.sections(config):
        fields = _get(config, section)
        hints, defaults = names.schema(config, section)
        for key in list(fields):
            if key == "name" and section not in names.SETTINGS:
                continue
            if key not in hints and section in renamed:
                del fields[key]  # it belonged to the module that was replaced
            elif key not in hints:
                raise ValueError(
                    _unknown(f"config.{section}.{key}", [f"config.{section}.{h}" for h in hints])
                )
        for key, default in defaults.items():
            if key not in fields and default is inspect.Parameter.empty:
                if f"{section}.{key}" in coming:
                    fields[key] = None
                    continue
                raise ValueError(f"config.{section}.{key} is required")
            value = _checked(f"config.{section}.{key}", fields.get(key, default), hints[key])
            if key in fields:
                del fields[key]  # or a tuple would become the list that stood there
            fields[key] = value


def _unknown(given: str, choices: list[str]) -> str:
    given = f"{given:.200}"
    near = difflib.get_close_matches(given, choices, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else f"; choices: {', '.join(sorted(choices))}"
    return f"unknown field {given}{hint}"


def _members(hint) -> tuple:
    """The types in a hint: int -> (int,), int | None -> (int, NoneType)."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _checked(field: str, value, hint):
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (tuple, list)):
            raise ValueError(f"{field} must be several values, got {names.in_one_line(value)}")
        return tuple(_checked(field, item, typing.get_args(hint)[0]) for item in value)
    wanted = _members(hint)
    if type(value) is int and float in wanted and int not in wanted:
        value = float(value)
    if type(value) not in wanted:
        kinds = " or ".join(w.__name__.replace("NoneType", "none") for w in wanted)
        raise ValueError(f"{field} must be {kinds}, got {names.in_one_line(value)}")
    return value


def _parse(field: str, text: str, hint):
    if typing.get_origin(hint) is tuple:  # values parted by commas
        items = text.strip("()").split(",")
        return tuple(_parse(field, i, typing.get_args(hint)[0]) for i in items if i.strip())
    wanted = _members(hint)
    if type(None) in wanted and text.lower() == "none":
        return None
    if bool in wanted:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{field} must be true or false, got {text!r}")
        return text.lower() == "true"
    for kind in (int, float):
        if kind in wanted:
            try:
                return kind(text)
            except ValueError:
                continue
    if str in wanted:
        return text
    raise ValueError(f"{field} must be {' or '.join(w.__name__ for w in wanted)}, got {text!r}")

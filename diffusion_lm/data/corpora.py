"""Test sets of other texts, read and cut as papers do, for zero-shot likelihoods.

Names of data sets, the file that each wants, and what stands in it:
  "text": a file or folder as of source "files" (sources.py), its documents as they are.
  "wikitext": wiki.test.tokens or its raw twin; every line is a document, blank ones too.
  "ptb": Mikolov's ptb.test.txt; every line is a document.
  "lm1b": a held-out shard of the One Billion Word benchmark; every line is a document.
  "lambada": OpenAI's lambada_test.jsonl, passages in "text".
  "ag_news": test.csv of class, title and description; a document is the last two.
  "scientific": .jsonl of PubMed or arXiv articles, in "article" or "text".

Protocols: which documents are windows. An end token stands after every document in all three.
  "joined": what this project trains on: all documents joined, cut into windows of `length`.
  "sedd": SEDD's (data.py of its release): the same for every 1,000 documents alone, what is left
    of each thousand dropped. (Its loader first deals the documents out to its worker processes, so
    the thousands depend on their number; here there is one.)
  "mdlm": MDLM's and EDLM's (dataloader.py): as SEDD's, with windows of length - 2 between two more
    end tokens, which are counted like the text. An autoregressive model is given the first.
Of both papers the detokenizers are the same, SEDD's: tables below, in their order. What they do
is kept even where it is odd (of quotes they take the spaces inside, of `'` across words too).
"""

import csv
import io
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from diffusion_lm.data import sources, text, tokenizers

PROTOCOLS = ("joined", "sedd", "mdlm")
GROUP = 1000  # documents, the batch of datasets.Dataset.map


def _rules(*pairs: tuple[str, str], plain: bool = True) -> list:
    """(pattern, replacement) of plain texts or, else, of regular expressions."""
    if plain:
        return [(re.compile(re.escape(old)), new.replace("\\", r"\\")) for old, new in pairs]
    return [(re.compile(old), new) for old, new in pairs]


WIKITEXT = [
    *_rules(("s '", "s'")),
    *_rules((r"/' [0-9]/", r"/'[0-9]/"), plain=False),  # meant otherwise, but so it is
    *_rules((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")),
    *_rules(*((f" {mark} ", f"{mark} ") for mark in ":;.!?,")),
    *_rules(
        (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
        (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
        (r"{\s*([^}]*?)\s*}", r"{\1}"),
        (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
        (r"'\s*([^']*?)\s*'", r"'\1'"),
        plain=False,
    ),
    *_rules(("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°")),
    *_rules((" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")),
]
PTB = [
    *_rules((" 's", "'s"), ("s ' ", "s' "), (" n't", "n't"), (" \n ", "\n"), ("\\/", "/")),
    *_rules((" N ", " 1 ")) * 10,  # of "N N" one pass takes every other
    *_rules(("$ 1", "$1"), ("# 1", "#1"), ("<unk>", "?")),
]
LM1B = [
    *_rules(("http : / / ", "http://"), ("https : / / ", "https://")),
    *_rules((r" '(\w+)", r"'\1"), (r" (\w+) \. ", r" \1. "), (r" (\w+) \.$", r" \1."), plain=False),
    *_rules((" ? ", "? ")),
    *_rules((r" \?$", "?"), plain=False),
    *_rules((" ! ", "! ")),
    *_rules((r" \!$", "!"), plain=False),
    *_rules((" , ", ", "), (" : ", ": "), (" ; ", "; "), (" / ", "/")),
    *_rules(
        (r'" ([^"]+) "', r'"\1"'),
        (r"' ([^']+) '", r"'\1'"),
        (r"\( ([^\(\)]+) \)", r"(\1)"),
        (r"\[ ([^\[\]]+) \]", r"[\1]"),
        plain=False,
    ),
    *_rules(("$ ", "$"), ("£ ", "£")),
]
LAMBADA = [
    *_rules(("“", '"'), ("”", '"')),
    *_rules((r"\s+\Z", ""), (r"\A\s*", "\n"), plain=False),
]


def _lines(content: str) -> Iterator[str]:
    return (line for line in io.StringIO(content))


def _wikitext(content: str) -> Iterator[str]:
    return (line if line.strip() else "" for line in _lines(content))


def _stripped(content: str) -> Iterator[str]:
    return (line.strip() for line in _lines(content))


def _ag_news(content: str) -> Iterator[str]:
    for number, row in enumerate(csv.reader(_lines(content), skipinitialspace=True), 1):
        if len(row) != 3:
            raise ValueError(f"row {number}: wanted class, title and description, got {len(row)}")
        yield " ".join(row[1:])


def _jsonl(content: str) -> Iterator[str]:
    for number, line in enumerate(_lines(content), 1):
        if line.strip():
            try:
                record = json.loads(line)
                found = record["article"] if "article" in record else record["text"]
                found.encode()
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise ValueError(
                    f"line {number}: wanted a JSON object with a string 'article' or 'text'"
                ) from None
            yield found


class Dataset(NamedTuple):
    """How a data set is read, and what its detokenizer replaces."""

    read: Callable[[str], Iterator[str]] | None  # a file's content -> its documents
    detokenizer: list  # (pattern, replacement), in their order


DATASETS = {
    "text": Dataset(None, []),
    "wikitext": Dataset(_wikitext, WIKITEXT),
    "ptb": Dataset(_stripped, PTB),
    "lm1b": Dataset(_stripped, LM1B),
    "lambada": Dataset(_jsonl, LAMBADA),
    "ag_news": Dataset(_ag_news, []),
    "scientific": Dataset(_jsonl, WIKITEXT + LM1B),
}


def detokenize(document: str, dataset: str) -> str:
    """A document of a data set as the papers feed it to their models."""
    for pattern, replacement in DATASETS[dataset].detokenizer:
        document = pattern.sub(replacement, document)
    return document


def check(path: str, *, dataset: str, protocol: str, length: int) -> None:
    """Raises ValueError or FileNotFoundError for what `corpus` would refuse; reads nothing."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; choices: {', '.join(PROTOCOLS)}")
    if protocol == "mdlm" and length < 3:
        raise ValueError(f"protocol 'mdlm' wants windows of 3 tokens or more, got {length}")
    _files(path, dataset)


def corpus(
    path: str,
    *,
    dataset: str,
    protocol: str,
    tokenizer: tokenizers.Tokenizer,
    length: int,
    started: bool,
) -> text.TextData:
    """The documents of a data set as windows, the split "test" of a TextData; the protocol stands
    in its `protocol`. `started`: the model puts an end token before a window itself. Raises
    ValueError, naming file and line, for what cannot be read."""
    check(path, dataset=dataset, protocol=protocol, length=length)
    found = documents(path, dataset)
    inner = length - 2 if protocol == "mdlm" else length
    size = None if protocol == "joined" else GROUP
    parts, number, dropped = [], 0, 0
    while group := list(itertools.islice(found, size)):
        ids = [np.append(tokenizer.encode(document), tokenizer.end) for document in group]
        joined = np.concatenate(ids).astype(np.int32)
        rest = len(joined) % inner
        parts.append(joined[: len(joined) - rest].reshape(-1, inner))
        number, dropped = number + len(group), dropped + rest
    windows = np.concatenate(parts) if parts else np.zeros((0, inner), np.int32)
    facts = text.JOINED
    if protocol == "mdlm":  # the same facts for all models, though one token more is given to some
        facts = facts | {
            "wrap": "end tokens before and after",
            "counted": "every token, but what a model is given to begin with",
            "context": length,
            "stride": inner,
            "data": text.cut(windows.reshape(-1), number, tokenizer, inner).fingerprint,
        }
        windows = np.pad(windows, ((0, 0), (1 - started, 1)), constant_values=tokenizer.end)
        length -= started
    cut = text.cut(windows.reshape(-1), number, tokenizer, length)._replace(dropped=dropped)
    facts = facts | {
        "detokenizer": dataset if DATASETS[dataset].detokenizer else "none",
        "remainder": f"dropped every {GROUP} documents" if size else text.JOINED["remainder"],
    }
    return text.TextData(tokenizer.vocab_size, length, tokenizer, {"test": cut}, protocol=facts)


def documents(path: str, dataset: str) -> Iterator[str]:
    """The documents of a data set, detokenized. Raises ValueError or FileNotFoundError."""
    files, read = _files(path, dataset), DATASETS[dataset].read
    if read is None:
        return (document for document in sources.read(files) if document)  # as in training
    content = sources.decode(files[0].read_bytes(), files[0])
    try:
        return iter([detokenize(document, dataset) for document in read(content)])
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{files[0]}, {error}") from None


def _files(path: str, dataset: str) -> list[pathlib.Path]:
    place = pathlib.Path(path).expanduser()
    if dataset not in DATASETS:
        raise ValueError(f"unknown dataset {dataset!r}; choices: {', '.join(DATASETS)}")
    if dataset == "text":
        return sources.find(place)
    if not place.is_file():
        raise FileNotFoundError(f"dataset {dataset!r} wants a file, {path!r} is none")
    return [place]

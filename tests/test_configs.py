"""Every file in configs/: its parts fit together, and one of each kind trains, reduced."""

import inspect
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict
from test_runs import ROOT, rows

from diffusion_lm import build, config, main, names, train

CONFIGS = sorted((ROOT / "configs").glob("*.py"))

# Sizes of the networks that `reduced` makes.
TINY = {"layers": 2, "width": 16, "heads": 2, "hidden": 32, "blocks": 1, "outer": 1}
TINY |= {"outer_width": 16, "patch": 2, "embedding_width": 8, "kv_heads": 1}
PAIRS = {"name": "pairs", "source": "reverse", "tokenizer": "characters"}
PAIRS |= {"symbols": 5, "length": 9, "pairs": 200}


def reduced(name: str, text: str) -> ConfigDict:
    """A config made small enough to run in seconds: the same objective, estimator, optimiser and
    sampler, but a tiny network, bytes of `text` for tokens (of images, 8 x 8 digits; of pairs, a
    toy), short windows and two steps."""
    small = ConfigDict(config.load(str(ROOT / f"configs/{name}.py")).to_dict())
    if small.data.name == "images":
        small.data = ConfigDict({**small.data, "source": "digits", "cache_dir": None})
    elif small.data.name == "pairs":
        small.data = ConfigDict(PAIRS)
    else:
        small.data = ConfigDict({"name": "text", "source": "files", "path": text, "length": 16})
        small.data.tokenizer = "bytes"
    takes = inspect.signature(names.find("network", small.network.name)).parameters
    small.network.update({name: size for name, size in TINY.items() if name in takes})
    small.train.update(steps=2, batch_size=16, microbatches=1, log_every=1, eval_every=2)
    small.train.update(checkpoint_every=2)
    if small.train.get("start") != "bigram":
        small.train.start = "random"  # not the folder of a run
    sizes = {"batch_size": 8, "draws": 2, "max_windows": 16, "num_steps": 4}
    sizes |= {"max_pairs": 8, "early_stop": 1}
    sections = {"sampler": small.sampler}
    sections |= {f"evaluators.{label}": part for label, part in small.evaluators.items()}
    for section, part in sections.items():
        fields = names.schema(small, section)[0]
        part.update({k: v for k, v in sizes.items() if k in fields})
    return small


@pytest.fixture(scope="module")
def reduced_run(tmp_path_factory, text_file):
    """(name of a config) -> the folder of its reduced run, made once, with those that it needs."""
    folder = tmp_path_factory.mktemp("reduced")

    def run(name):
        workdir = folder / name
        if not workdir.exists():
            small = reduced(name, text_file)
            for option in {"proposal", "ar"} & set(small.objective):
                if other := small.objective[option]:  # the run of the config of that name
                    small.objective[option] = str(run(pathlib.Path(other).name))
            assert train.prepare(config.resolve(small, []), str(workdir))() == 0
        return workdir

    return run


def kind(path):
    """What a config puts together: those of one kind differ in sizes and settings only."""
    made = config.load(str(path))
    data = made.data.name if made.data.name in ("images", "pairs") else "text"
    return data, *(made[section].name for section in ("network", "objective", "sampler"))


# One config of each kind, the smallest file first: those for a CPU.
FIRST = {kind(path): path for path in sorted(CONFIGS, key=lambda path: -path.stat().st_size)}


@pytest.mark.parametrize("path", CONFIGS, ids=[p.stem for p in CONFIGS])
def test_every_config_fits_together(path, text_file):
    """All parts are built, and the loss of a batch traced, of every file in configs/ reduced."""
    small = reduced(path.stem, text_file)
    header = path.read_text().split('"""')[1]
    for word in ("python -m diffusion_lm.main", "Hardware", "Cost", "Expected"):
        assert word in header, f"{path.name} opens without {word!r}"
    if {"proposal", "ar"} & set(small.objective):
        return  # wants other runs, which the next test trains
    resolved = config.resolve(small, [])
    build.check_batches(resolved, build.setup(resolved), train=True)


@pytest.mark.parametrize("path", FIRST.values(), ids=[p.stem for p in FIRST.values()])
def test_every_kind_of_config_runs_reduced(path, reduced_run):
    """Two steps, an evaluation, samples and a checkpoint."""
    log = rows(reduced_run(path.stem))
    assert [r["step"] for r in log if r.get("split") == "train"] == [1, 2]

    def score(row):
        return next(row[n] for n in ("nats_per_token", "contrast", "bleu", "loss") if n in row)

    scores = [score(r) for r in log if r.get("evaluator", "valid") == "valid"]
    scores += [r["norm"] for r in log if r.get("evaluator") == "health"]
    assert len(scores) >= 3 and np.all(np.isfinite(scores))


def test_config_arguments(capsys):
    medium = config.load(f"{ROOT / 'configs/md4_owt.py'}:medium")
    assert medium.network.layers == 24
    with pytest.raises(ValueError, match="small, medium"):
        config.load(f"{ROOT / 'configs/md4_owt.py'}:huge")


def test_folders_with_a_colon_or_a_tilde(tmp_path, monkeypatch):
    """Named by the time; and as a shell leaves what stands after "="."""
    folder = tmp_path / "10:30"
    folder.mkdir()
    loaded = config.load(str(ROOT / "configs/sedd_sotu.py:uniform"))
    (folder / "config.json").write_text(config.to_json(loaded))
    again = config.load(str(folder / "config.json"))
    assert again == loaded
    monkeypatch.setenv("HOME", "/home/me")
    assert config.resolve(again, ["data.path=~/texts"]).data.path == "/home/me/texts"
    line = ["--workdir=~/runs/x", "--config=~/mine.py"]
    assert main._parse(line).workdir == "/home/me/runs/x"
    assert main._parse(line).config == "/home/me/mine.py"

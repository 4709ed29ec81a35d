"""The head-to-head study: its cells are configs, its arithmetic and its pages are right."""

import json
import math
import subprocess
import sys

import pytest
from test_runs import ROOT

from diffusion_lm import config

sys.path.append(str(ROOT / "launch"))  # as it is for a script there
import race_table as race  # noqa: E402
import study  # noqa: E402
import study_pages as pages  # noqa: E402


def test_every_cell_of_the_study_is_a_config():
    """All fields are there; a cell that is not there is refused."""
    path, made = ROOT / "configs/study.py", set()
    for source in ("markov", "text"):
        for system in ("ar", "md4", "genmd4", "sedd", "sedd_uniform", "rdm", "edlm_nce", "edlm_ar"):
            resolved = config.resolve(config.load(f"{path}:{source}/{system}"), [])
            made.add((resolved.data.name, *resolved.objective.values(), resolved.sampler.name))
            assert (resolved.network.layers, resolved.network.width) == (2, 64)
    assert len(made) == 16
    with pytest.raises(ValueError, match="unknown system 'mdlm' of study; choices: md4, "):
        config.load(f"{path}:text/mdlm")
    with pytest.raises(ValueError, match="unknown source 'texts' of study; choices: markov, text"):
        config.load(f"{path}:texts/md4")


def test_equal_time_is_that_of_md4():
    """EDLM's parts share the time, and what is close to equal steps is the same run."""
    seconds = {"md4": 1.0, "ar": 0.95, "genmd4": 2.5, "sedd": 1.3, "rdm": 0.5, "edlm_nce": 4.0}
    steps = {system: study.in_time(seconds, system) for system in ("md4", "ar", "genmd4", "rdm")}
    assert steps == {"md4": 500, "ar": 500, "genmd4": 200, "rdm": 1000}
    assert study.in_time(seconds, "edlm_nce") == 100  # 100 of md4 and 100 of the energy
    assert study.in_time(seconds, "edlm_ar") == 250  # 256 of each, close to half of 500


def test_a_finished_run_is_not_taken_for_one_of_other_options(tmp_path, monkeypatch):
    started = []

    def run(line, **options):
        started.append(line)
        return subprocess.CompletedProcess(line, 0)

    monkeypatch.setattr(study.subprocess, "run", run)
    for _ in range(2):
        study.train(tmp_path / "cell", "md4_sotu.py", ["train.steps=7"], "cache")
    assert len(started) == 1 and "--config.train.steps=7" in started[0]
    with pytest.raises(SystemExit, match="begun with other options"):
        study.train(tmp_path / "cell", "md4_sotu.py", ["train.steps=8"], "cache")


def test_the_race_trains_both_recipes_for_their_minutes(tmp_path, monkeypatch):
    """On made-up seconds and scores: steps, the best of the rates, who is ahead and by how much."""
    scores = {f"published_{rate:g}": 2.4 - 0.1 * n for n, rate in enumerate(race.RATES[:3])}
    scores |= {"published_0.01": 2.3, "ours": 1.7}
    options = {}

    def train(folder, config, given, cache):
        name, _, seed = folder.name.rpartition("_")
        options[folder.name] = given
        folder.mkdir(parents=True, exist_ok=True)
        row = {"evaluator": "valid", "bits_per_char": scores[name] + 0.01 * int(seed)}
        row |= {"nats_per_token": 5.0, "standard_error": 0.0}
        (folder / "metrics.jsonl").write_text(json.dumps(row))
        return folder

    monkeypatch.setattr(race, "train", train)
    monkeypatch.setattr(race, "step_seconds", lambda cases: dict.fromkeys(cases, 0.5))
    results = race.measure(tmp_path, 3) | {"hardware": "a machine", "jax": "0"}
    assert {f"published_{rate:g}_0" for rate in race.RATES} <= set(options)
    assert {"published_0.003_2", "ours_2"} <= set(options) and "published_0.001_2" not in options
    wanted = {"train.steps=1200", "optimizer.learning_rate=0.003", "seed=2"}
    assert wanted <= set(options["published_0.003_2"])
    assert "train.steps=600" in options["ours_2"] and "train.start=random" not in options["ours_2"]
    block = race.render(json.loads(json.dumps(results)))
    assert "| published | 10 | 500 | 1200 | 2.210 ± 0.006 |" in block
    assert "Ahead by 0.500 ± 0.000" in block and "rate is 0.003, the best of 0.0003, 0.001" in block


def test_the_race_in_the_readme_is_its_results():
    results, readme = json.loads((ROOT / "results/race.json").read_text()), ROOT / "README.md"
    assert race.render(results) in readme.read_text()
    assert {row["seed"] for row in results["rows"]} == set(range(5))


@pytest.fixture
def results():
    """Of two seeds: systems in the order of SYSTEMS, 0.1 apart, but for the last two."""
    rows = []
    for source in pages.SOURCES:
        for seed in (0, 1):
            for rank, system in enumerate(pages.SYSTEMS):
                value = 1.0 + 0.1 * min(rank, 6) + 0.01 * seed * (rank != 6)
                points = [
                    {"of": of, "steps": n, "nats_per_judged_token": value + 1, "entropy": 2.5}
                    for of in ("model", "data")
                    for n in ([None] if system == "ar" or of == "data" else pages.SAMPLING)
                ]
                row = {"source": source, "seed": seed, "system": system, "points": points}
                row |= {"kind": "upper bound", "nats_per_token": value, "bits_per_char": 2 * value}
                rows += [row | {"arm": arm, "steps": 500} for arm in ("steps", "time")]
    seconds = {source: {system: 0.1 for system in pages.SYSTEMS} for source in pages.SOURCES}
    about = {"hardware": "a machine", "jax": "0", "source": 0.5, "step_seconds": seconds}
    floor = {"nats_per_token": 2.0, "bits_per_char": 4.0}
    about |= {"unigram": {source: floor for source in pages.SOURCES}}
    return about | {"rows": rows}


def test_pages_of_the_study_say_what_was_measured(results, tmp_path):
    page, block = pages.render(results), pages.readme(results)
    # AR: 1.0 and 1.01 less the source, and twice that in bits
    assert "0.505 ± 0.005 | 0.505 ± 0.005 | 2.010 ± 0.010 | 2.010 ± 0.010 |" in block
    assert "| frequencies alone | exact | 1.500 | | 4.000 | |" in block
    assert block.count("](diffusion_lm/objectives/") == len(pages.SYSTEMS)
    for path in {f"diffusion_lm/objectives/{file}.py" for _, file in pages.SYSTEMS.values()}:
        assert (ROOT / path).exists()
    assert page.count("by paired seeds: EDLM, nce and EDLM, ar.") == 2
    assert "| AR | 2.005 ± 0.005 | 2.500 ± 0.000 |" in page
    pages.plot(results, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000
    for row in results["rows"]:  # now the last is worse for certain
        row["bits_per_char"] += 0.1 * (row["system"] == "edlm_ar")
    assert "no two neighbours" in "".join(pages.told_apart(results, "text"))
    assert "no two" not in "".join(pages.told_apart(results, "markov"))


def test_floors_of_the_study():
    """By hand: of the Markov source the source lies below what frequencies reach."""
    found = study.floors()
    assert 0 < found["source"] < found["unigram"]["markov"]["nats_per_token"] < math.log(8)
    text = found["unigram"]["text"]
    assert 1 < text["bits_per_char"] < text["nats_per_token"] / math.log(2) < 10


def test_pages_of_the_study_equal_its_results():
    results = json.loads(pages.RESULTS.read_text())
    assert pages.render(results) == (ROOT / "docs/study.md").read_text()
    assert pages.readme(results) in (ROOT / "README.md").read_text()

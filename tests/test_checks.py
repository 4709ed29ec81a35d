"""A short torture: what it injects, what it compares, and that it sees a difference."""

import json
import re
import shutil

import pytest
from test_runs import write_config

from diffusion_lm import checkpoint, checks


@pytest.fixture(scope="module")
def tortured(tmp_path_factory, text_file):
    """(exit code, folder) of a torture of three faults."""
    folder = tmp_path_factory.mktemp("torture")
    changes = {"train.steps": 60, "train.checkpoint_every": 10, "train.num_samples": 0}
    path = write_config(folder, text_file, evaluators={}, **changes)
    argv = ["torture", f"--config={path}", f"--workdir={folder / 'all'}", "--faults=3"]
    argv += ["--config.network.layers=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        code = checks.main(argv)
    return code, folder / "all"


def test_a_short_torture_is_survived(tortured, capsys):
    code, folder = tortured
    assert code == 0
    said = (folder / "run1.log").read_text()
    assert "is finished: step 60 of 60" in said and len(re.findall("new run|going on", said)) > 1


def test_torture_sees_what_differs(tortured, tmp_path):
    """In metrics, samples and each part of the state; timings count for nothing."""
    _, folder = tortured
    shutil.copytree(folder / "calm", tmp_path / "calm")
    test = checks.Torture(tmp_path, [], seed=0)

    def differing(change):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(folder / "calm", tmp_path / "run")
        change(tmp_path / "run")
        return {name for name, same in test.differences("run").items() if not same}

    def row(field, value):
        def change(run):
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            rows[3][field] = value
            (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))

        return change

    def sums(part):
        def change(run):
            (file,) = (run / "checkpoints/60/record").glob("metadata")
            record = json.loads(file.read_text())
            del record["own_checksum"]
            name = next(name for name in record[checkpoint.SUMS] if name.startswith(f"['{part}']"))
            record[checkpoint.SUMS][name] = "0" * 8
            file.write_text(json.dumps(record))

        return change

    assert differing(lambda run: None) == set()
    assert differing(row("tokens_per_second", 1.0)) == set()
    assert differing(row("nats_per_token", 1.0)) == {"metrics"}
    assert differing(lambda run: (run / "samples.jsonl").write_text("{}\n")) == {"samples"}
    for part, name in (("params", "parameters"), ("opt_state", "optimiser"), ("ema", "average")):
        assert differing(sums(part)) == {name}
    assert differing(lambda run: shutil.rmtree(run / "checkpoints/60")) >= {"step", "parameters"}


def test_damage_spares_the_last_whole_checkpoint(tmp_path):
    test = checks.Torture(tmp_path, [], seed=0)
    for step in ("9", "10"):
        assert not test.damage(tmp_path / "checkpoints", "flipped bit")
        (tmp_path / "checkpoints" / step).mkdir(parents=True)
        (tmp_path / "checkpoints" / step / "file").write_bytes(bytes(100))
    (tmp_path / "checkpoints" / "11.orbax-checkpoint-tmp").mkdir()
    assert test.damage(tmp_path / "checkpoints", "flipped bit")
    changed = (tmp_path / "checkpoints/10/file").read_bytes()
    assert len(changed) == 100 and sum(map(int.bit_count, changed)) == 1
    assert (tmp_path / "checkpoints/9/file").read_bytes() == bytes(100)
    assert not test.damage(tmp_path / "checkpoints", "lost file")


def test_a_run_that_does_not_come_back_is_lost(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    for folder, faults, said in (
        ("full", "1", "must be a new or empty folder"),
        ("new", "0", "must be positive"),
        ("other", "1", "calm ended with exit code 2 after: no fault; it said: "),
    ):
        argv = ["torture", "--config=missing.py", f"--workdir={tmp_path / folder}"]
        assert checks.main([*argv, f"--faults={faults}"]) == 2
        assert said in capsys.readouterr().err

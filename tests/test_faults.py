"""What happens to a run and its checkpoints when things break: nothing is lost, none in silence."""

import inspect
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_runs import ROOT, assert_same, launcher, rows, state_of, write_config

from diffusion_lm import build, checkpoint, config, lock, main, parallel, step, train
from diffusion_lm.data import text
from diffusion_lm.evaluators import likelihood
from diffusion_lm.objectives import md4
from diffusion_lm.types import LossOutput, Objective, Optimizer, ratio

# Orbax leaves futures behind where a file is damaged.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
RNG = np.random.default_rng(0)
# How many flipped bits, and how many cut and lost files; DIFFUSION_LM_FAULTS=1000,200 for long.
FLIPS, CUTS = map(int, os.environ.get("DIFFUSION_LM_FAULTS", "40,16").split(","))


def little_state(number):
    """A state of a few arrays of several types."""
    w = np.random.default_rng(number).normal(size=(40, 33)).astype(np.float32)
    params = {
        "network": {"w": jnp.asarray(w), "b": jnp.arange(7.0), "half": jnp.ones(5, "bfloat16")}
    }
    return step.TrainState(
        jnp.int32(number), params, (jnp.int32(3), {"m": jnp.asarray(w * 2)}), params
    )


@pytest.fixture(scope="module")
def model_state(tmp_path_factory, text_file):
    """(number) -> the state of a tiny run of MD4: parameters, Adam's moments, an average."""
    path = write_config(tmp_path_factory.mktemp("model"), text_file)
    setup = build.setup(config.resolve(config.load(path), []))
    begun = jax.device_get(setup.init())

    def state(number):
        rng = np.random.default_rng(number)
        moved = (np.asarray(a + rng.normal(size=a.shape), a.dtype) for a in jax.tree.leaves(begun))
        moved = jax.tree.unflatten(jax.tree.structure(begun), moved)
        return jax.device_put(moved._replace(step=np.int32(number)))

    return state


def saved(workdir, steps=(1, 2), state=little_state):
    saves = checkpoint.Checkpoints(str(workdir))
    for number in steps:
        saves.save(number, state(number), {"config": {"a": 1}})
    saves.close()
    return pathlib.Path(workdir) / "checkpoints"


def restored(workdir, read_only=True, state=little_state):
    saves = checkpoint.Checkpoints(str(workdir), read_only=read_only)
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state(0)
    )
    try:
        return saves.restore(abstract)
    finally:
        saves.close()


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path, rng):
    """Turns one bit of a file; returns how to turn it back."""
    content = bytearray(path.read_bytes())
    at, bit = int(rng.integers(len(content))), 1 << int(rng.integers(8))
    content[at] ^= bit
    path.write_bytes(content)


def test_checksums_see_every_change_and_no_layout():
    state = little_state(5)
    sums = checkpoint.checksums(state)
    assert len(sums) == len(jax.tree.leaves(state)) and len(set(sums.values())) == 6
    mesh = parallel.make_mesh()
    spread = jax.device_put(
        np.zeros((8, 3), np.float32) + np.arange(3), parallel.batch_sharding(mesh)
    )
    one = state._replace(params={"x": jax.device_put(np.asarray(spread))}, ema=None)
    assert checkpoint.checksums(one) == checkpoint.checksums(one._replace(params={"x": spread}))
    w = np.asarray(state.params["network"]["w"])
    for _ in range(40):
        changed = w.copy()
        row, column = RNG.integers(40), RNG.integers(33)
        changed.view(np.uint32)[row, column] ^= np.uint32(1 << int(RNG.integers(32)))
        params = {"network": state.params["network"] | {"w": jnp.asarray(changed)}}
        found = checkpoint.checksums(state._replace(params=params))
        wrong = [name for name in sums if found[name] != sums[name]]
        assert wrong == ["['params']['network']['w']"]
    swapped = w[::-1].copy()  # the same elements in other places
    params = {"network": state.params["network"] | {"w": jnp.asarray(swapped)}}
    assert checkpoint.checksums(state._replace(params=params)) != sums


def test_flipped_bits_are_never_restored_in_silence(tmp_path, capsys, model_state):
    """In any file of the newest checkpoint: what comes back is the newest state as it was saved, or
    the one before it, and then that is said."""
    folder = saved(tmp_path / "run", state=model_state)
    wanted = {number: model_state(number) for number in (1, 2)}
    files = files_of(folder / "2")
    size = np.array([path.stat().st_size for path in files], float)
    passed_over = 0
    for number in range(FLIPS):
        rng = np.random.default_rng(number)
        path = files[rng.choice(len(files), p=size / size.sum())]
        content = path.read_bytes()
        flip(path, rng)
        try:
            state = restored(tmp_path / "run", state=model_state)
        finally:
            path.write_bytes(content)
        err = capsys.readouterr().err
        assert_same(state, wanted[int(state.step)])
        assert int(state.step) == (1 if "damaged checkpoint" in err else 2)
        passed_over += int(state.step) == 1
    with capsys.disabled():
        print(f"{FLIPS} flipped bits: {passed_over} passed over, the rest changed no value")
    assert passed_over > FLIPS / 2


def test_a_damaged_array_is_named_and_put_aside(tmp_path, capsys, monkeypatch):
    folder = saved(tmp_path / "run")
    real = checkpoint.checksums

    def wrong(state):
        found = real(state)
        return found | ({"['params']['network']['b']": "0" * 8} if int(state.step) == 2 else {})

    monkeypatch.setattr(checkpoint, "checksums", wrong)
    assert int(restored(tmp_path / "run").step) == 1
    err = capsys.readouterr().err
    assert "step 2: the array ['params']['network']['b'] is not as it was saved" in err
    assert "step 1 is used" in err and (folder / "2").exists()  # evaluation moves nothing
    saves = checkpoint.Checkpoints(str(tmp_path / "run"))
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), little_state(0)
    )
    assert int(saves.restore(abstract).step) == 1 and saves.latest() == 1
    assert (tmp_path / "run/damaged/2.0").is_dir() and not (folder / "2").exists()
    monkeypatch.setattr(checkpoint, "checksums", real)
    saves.save(2, little_state(2), {})  # the run comes to this step again
    saves.close()
    assert int(restored(tmp_path / "run").step) == 2


def needed(path):
    """Whether a checkpoint cannot be read without a file: the others are what each process wrote
    before all was merged, marks of the end of a save, and layouts, which are known here."""
    names = ("manifest.ocdbt", "_METADATA", "metadata")
    return "process_0" not in str(path) and (path.parent.name == "d" or path.name in names)


def test_missing_and_truncated_files_fall_back(tmp_path, capsys, model_state):
    """To the step before if the file is needed, each time; else what comes back is whole."""
    folder = saved(tmp_path / "run", state=model_state)
    wanted = {number: model_state(number) for number in (1, 2)}
    shutil.copytree(folder / "2", tmp_path / "copy")
    asked = passed_over = unharmed = 0
    for number in range(CUTS):
        rng = np.random.default_rng(number)
        files = [path for path in files_of(folder / "2") if path.stat().st_size]
        files = files if number % 4 > 1 else list(filter(needed, files))
        path = files[rng.integers(len(files))]
        if number % 2:
            path.unlink()
        else:
            os.truncate(path, int(rng.integers(path.stat().st_size)))
        state = restored(tmp_path / "run", state=model_state)
        assert_same(state, wanted[int(state.step)])
        assert ("damaged" in capsys.readouterr().err) == (int(state.step) == 1), path
        if needed(path):
            asked += 1
            assert int(state.step) == 1, path
        passed_over += int(state.step) == 1
        unharmed += int(state.step) == 2
        shutil.rmtree(folder / "2")
        shutil.copytree(tmp_path / "copy", folder / "2")
    with capsys.disabled():
        print(
            f"{CUTS} cut or lost files: {asked} needed, all of them passed over; of the others "
            f"{passed_over - asked} passed over, {unharmed} read nonetheless, and whole"
        )
    assert asked >= CUTS / 2


def test_nothing_whole_is_an_error_that_names_all(tmp_path):
    folder = saved(tmp_path / "run", steps=(3,))
    for path in files_of(folder / "3" / "state"):
        os.truncate(path, 0)
    with pytest.raises(ValueError, match="no checkpoint in .* can be used: step 3: "):
        restored(tmp_path / "run")


def test_a_full_disk_is_an_error_at_that_save(tmp_path):
    """A limit on the size of files stands in for the disk."""
    saves = checkpoint.Checkpoints(str(tmp_path / "run"))
    saves.save(1, little_state(1), {})
    saves.close()
    saves = checkpoint.Checkpoints(str(tmp_path / "run"))
    limits, old = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(
            OSError, match="could not be written to .*; the newest whole one is step 1"
        ):
            saves.save(2, little_state(2), {})
            saves.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert int(restored(tmp_path / "run").step) == 1
    assert checkpoint.Checkpoints(str(tmp_path / "run"), read_only=True).latest() == 1


def test_two_processes_fall_back_together(tmp_path, text_file):
    """What only the second process reads is damaged: both go on from the older step."""
    path = write_config(tmp_path, text_file, mesh={"data": 1, "fsdp": 4})
    workdir = tmp_path / "run"
    argv, env = launcher(2, f"--config={path}", f"--workdir={workdir}")
    subprocess.run(argv, check=True, env=env, timeout=300, cwd=ROOT, capture_output=True)
    damaged = files_of(workdir / "checkpoints/4/state/ocdbt.process_1/d")
    assert damaged
    for file in damaged:
        os.truncate(file, file.stat().st_size // 2)
    done = subprocess.run(argv, check=True, env=env, timeout=300, cwd=ROOT, capture_output=True)
    assert b"going on from step 2" in done.stdout, done.stdout
    assert b"damaged checkpoint" in done.stderr and (workdir / "damaged/4.0").is_dir()
    assert checkpoint.Checkpoints(str(workdir), read_only=True).latest() == 4


def quadratic(poison):
    """sum of (w - x)^2; its loss, or only its gradient, is NaN where a row of x is negative."""

    def loss(params, batch, key, *, train):
        w, x_B = params["network"]["w"], batch["x"][:, 0]
        bad_B = x_B < 0
        nats_B = (w - x_B) ** 2
        if poison == "loss":
            nats_B = jnp.where(bad_B, jnp.nan, nats_B)
        else:  # sqrt at 0 has an infinite slope
            nothing_B = jnp.where(bad_B, w - jax.lax.stop_gradient(w), 1)
            nats_B += jnp.where(bad_B, jnp.sqrt(nothing_B), 0)
        tokens_B = jnp.ones_like(nats_B)
        return LossOutput(nats_B, tokens_B, {"nats_per_token": ratio(nats_B, tokens_B)})

    def init(key):
        return {"network": {"w": jnp.float32(3)}}

    return Objective(init, loss, None, None, None, ("masked",))


def test_a_stop_between_the_last_samples_makes_up_for_them(tmp_path, text_file, monkeypatch):
    """The evaluators have had their turn by then, which is not all that a finished run has."""
    path = write_config(tmp_path, text_file, **{"train.steps": 2, "train.num_samples": 3})
    calm, other = ([f"--config={path}", f"--workdir={tmp_path / n}"] for n in ("calm", "other"))
    assert main.main(calm) == 0
    real = train.sampling.samples

    def stopped(*args, **options):
        yield next(real(*args, **options))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(train.sampling, "samples", stopped)
    assert main.main(other) == 128 + signal.SIGTERM
    monkeypatch.setattr(train.sampling, "samples", real)
    assert any(row.get("evaluator") == "valid" for row in rows(tmp_path / "other"))
    assert main.main(other) == 0
    assert rows(tmp_path / "other", "samples.jsonl") == rows(tmp_path / "calm", "samples.jsonl")
    kept = [[row for row in rows(tmp_path / n) if "evaluator" in row] for n in ("calm", "other")]
    assert kept[0] == kept[1] and len(kept[0]) == 1


def test_a_run_of_no_steps_that_died_in_its_evaluation_starts_anew(
    tmp_path, text_file, monkeypatch
):
    """EDLM by an autoregressive model has nothing to train; no checkpoint says what was written."""
    path = write_config(tmp_path, text_file, **{"train.steps": 0, "train.num_samples": 1})
    argv = [f"--config={path}", f"--workdir={tmp_path / 'run'}"]
    real = train.sampling.samples
    monkeypatch.setattr(train.sampling, "samples", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main.main(argv)
    monkeypatch.setattr(train.sampling, "samples", real)
    for folder in (tmp_path / "run" / "checkpoints").iterdir():  # that a kill would not have left
        shutil.rmtree(folder)
    assert main.main(argv) == 0
    assert [row["evaluator"] for row in rows(tmp_path / "run")] == ["valid"]
    assert len(rows(tmp_path / "run", "samples.jsonl")) == 1


@pytest.mark.parametrize("poison", ["loss", "gradient"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_one_bad_batch_costs_exactly_one_update(poison, microbatches, platform):
    """On eight devices, of which one sees the bad row: as if that batch had not been."""
    objective = quadratic(poison)
    optimizer = Optimizer(optax.adam(0.1), None)
    mesh = parallel.make_mesh()
    train_step = jax.jit(
        step.make_train_step(
            objective, optimizer, mesh=mesh, seed=0, microbatches=microbatches, ema=0.9
        )
    )

    def run(batches):
        state = step.init_state(objective, optimizer, seed=0, ema=0.9)
        seen = []
        for x in batches:
            batch = parallel.global_batch(mesh, {"x": np.tile(x, (16, 1)).astype(np.float32)})
            if x < 0:
                mixed = np.ones((16, 1), np.float32)
                mixed[13] = x
                batch = parallel.global_batch(mesh, {"x": mixed})
            state, metrics = train_step(state, batch)
            seen.append(float(metrics["skipped"].sum))
        return state, seen

    with_bad, seen = run([1.0, -1.0, 2.0])
    without, _ = run([1.0, 2.0])
    assert seen == [0, 1, 0] and int(with_bad.step) == 3
    assert_same((with_bad.params, with_bad.opt_state), (without.params, without.opt_state))
    assert np.isfinite(np.asarray(jax.tree.leaves(with_bad.ema))).all()
    assert float(with_bad.params["network"]["w"]) != 3


def scaled():
    """sum of (w x)^2 / 2, whose gradient is large where x is."""

    def loss(params, batch, key, *, train):
        nats_B = (params["network"]["w"] * batch["x"][:, 0]) ** 2 / 2
        tokens_B = jnp.ones_like(nats_B)
        return LossOutput(nats_B, tokens_B, {"nats_per_token": ratio(nats_B, tokens_B)})

    return quadratic("loss")._replace(loss=loss)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_spike_costs_exactly_one_update_if_that_is_wanted(microbatches):
    """A loss x100: recorded; skipped by option, as if that batch had not been; the same in a run
    that is saved and read in between; and what stays large is soon usual."""
    objective, optimizer = scaled(), Optimizer(optax.sgd(1e-3), None)
    mesh = parallel.make_mesh()

    def run(xs, skip_spikes=10.0, state=None):
        options = {"seed": 0, "ema": 0.9, "skip_spikes": skip_spikes}
        train_step = jax.jit(
            step.make_train_step(
                objective, optimizer, mesh=mesh, microbatches=microbatches, **options
            )
        )
        state = state or step.init_state(objective, optimizer, **options)
        seen = []
        for x in xs:
            batch = {"x": np.full((16, 1), x, np.float32)}
            state, metrics = train_step(state, parallel.global_batch(mesh, batch))
            seen.append((float(metrics["skipped"].sum), float(metrics["grad_norm"].sum)))
        return state, seen

    calm, spike = [1.0] * 104, [10.0]  # the loss x100, and its gradient
    with_spike, seen = run(calm + spike + calm[:5], 50.0)
    assert [s for s, _ in seen] == [0] * 104 + [step.SPIKE] + [0] * 5
    assert seen[104][1] == pytest.approx(100 * seen[103][1], rel=0.01)
    without, _ = run(calm + calm[:5], 50.0)
    assert_same((with_spike.params, with_spike.ema), (without.params, without.ema))
    begun, _ = run(calm + spike, 50.0)
    resumed, _ = run(calm[:5], 50.0, state=jax.device_put(jax.device_get(begun)))
    assert_same(resumed, with_spike)
    assert step.SPIKE not in [s for s, _ in run(spike + calm + spike, 1000.0)[1]]
    assert not any(s for s, _ in run(calm + spike, 0.0)[1])
    for_good = [s for s, _ in run(calm + [4.0] * 40)[1]]  # gradients x16, for good
    assert 0 < for_good.count(step.SPIKE) < 10 and for_good[-1] == 0


def test_a_loss_is_told_the_step():
    """What annealing goes by (networks/llama.py), in all microbatches."""
    objective = quadratic("loss")
    seen = []

    def loss(params, batch, key, *, train):
        seen.append(batch["step"].shape)
        out = objective.loss(params, batch, key, train=train)
        return out._replace(metrics={"step": ratio(batch["step"].astype(jnp.float32))})

    mesh, optimizer = parallel.make_mesh(), Optimizer(optax.sgd(0.1), None)
    told = objective._replace(loss=loss)
    train_step = step.make_train_step(told, optimizer, mesh=mesh, seed=0, microbatches=2)
    state = step.init_state(told, optimizer, seed=0, ema=0.0)._replace(step=jnp.int32(7))
    batch = parallel.global_batch(mesh, {"x": np.ones((16, 1), np.float32)})
    _, metrics = jax.jit(train_step)(state, batch)
    assert float(metrics["step"].sum / metrics["step"].count) == 7 and seen[0] == (8,)


@pytest.fixture
def poisoned(monkeypatch):
    """Makes the batches of some steps such that the loss is NaN."""
    real, batches = md4.make, text.TextData.batches

    def make(**options):
        objective = real(**options)

        def loss(params, batch, key, *, train):
            out = objective.loss(params, batch, key, train=train)
            return out._replace(loss=jnp.where((batch["x"] == 255).all(1), jnp.nan, out.loss))

        return objective._replace(loss=loss)

    make.__signature__ = inspect.signature(real)
    make.__annotations__ = real.__annotations__

    def at(steps):
        def poison(self, split, *, start_step=0, **options):
            for number, batch in enumerate(batches(self, split, start_step=start_step, **options)):
                bad = start_step + number + 1 in steps
                yield {"x": np.full_like(batch["x"], 255)} if bad else batch

        monkeypatch.setattr(md4, "make", make)
        monkeypatch.setattr(text.TextData, "batches", poison)

    return at


def test_a_run_skips_says_and_goes_on(tmp_path, text_file, poisoned, capsys):
    poisoned({3})
    path = write_config(tmp_path, text_file, **{"train.log_every": 2, "train.steps": 6})
    assert main.main([f"--config={path}", f"--workdir={tmp_path / 'run'}"]) == 0
    out = capsys.readouterr().out
    assert "step 3: the loss or its gradient is not finite; this update is skipped" in out
    log = [row for row in rows(tmp_path / "run") if row["split"] == "train"]
    assert [row.get("skipped") for row in log] == [None, 1, None]
    assert all(np.isfinite(row["nats_per_token"]) for row in log)
    assert "1 updates skipped" in out


def test_a_run_that_cannot_go_on_stops_with_what_it_had(
    tmp_path, text_file, poisoned, capsys, monkeypatch
):
    monkeypatch.setattr(train, "MOST_SKIPPED", 3)
    poisoned(set(range(5, 100)))
    path = write_config(tmp_path, text_file, **{"train.steps": 50, "train.log_every": 10})
    assert main.main([f"--config={path}", f"--workdir={tmp_path / 'run'}"]) == 3
    err = capsys.readouterr().err
    assert "stopped at step 7: 3 updates in a row were skipped, the last since the loss" in err
    state = state_of(path, tmp_path / "run", ["train.steps=50"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_a_failing_evaluation_at_the_end_loses_no_step(tmp_path, text_file, monkeypatch):
    path = write_config(tmp_path, text_file, **{"train.checkpoint_every": 100})
    monkeypatch.setattr(likelihood, "_mean", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main.main([f"--config={path}", f"--workdir={tmp_path / 'run'}"])
    assert checkpoint.Checkpoints(str(tmp_path / "run"), read_only=True).latest() == 4


def test_a_signal_ends_an_evaluation_which_is_made_up_for(tmp_path, text_file):
    """At the last step, with an evaluation that takes for ever; then with one that does not."""
    path = write_config(tmp_path, text_file, **{"evaluators.valid.draws": 10**6})
    workdir = tmp_path / "run"
    argv = [sys.executable, "-m", "diffusion_lm.main", f"--config={path}", f"--workdir={workdir}"]
    process = subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    killer = threading.Timer(200, process.kill)
    killer.start()
    for line in process.stdout:
        if line.startswith("step 4/"):
            time.sleep(2)
            process.send_signal(signal.SIGTERM)
            break
    out, _ = process.communicate()
    killer.cancel()
    assert process.returncode == 143 and "stopped at step 4, saved" in out
    assert checkpoint.Checkpoints(str(workdir), read_only=True).latest() == 4
    assert not [row for row in rows(workdir) if row["split"] == "valid"]
    again = [f"--config={path}", f"--workdir={workdir}", "--config.evaluators.valid.draws=2"]
    assert main.main(again) == 0
    assert [row["step"] for row in rows(workdir) if row["split"] == "valid"] == [4]


def test_a_run_goes_on_when_nobody_listens_any_more(tmp_path):
    """As after Ctrl-C in `... 2>&1 | tee log`, which ends tee: what is said is lost, no more."""
    code = (
        "import os, signal; from diffusion_lm import train\n"
        "train.say('heard')\n"
        "input()\n"
        "with train.Stop() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    for _ in range(3): train.say('lost')\n"
        "    open('saved', 'w').close()\n"
        "    raise SystemExit(128 + stop.signal)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=tmp_path,
    ) as process:
        assert process.stdout.readline() == b"heard\n"
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(60) == 130 and (tmp_path / "saved").exists()


def test_a_second_signal_waits_for_nothing():
    """Not for a thread that never ends, as one of a broken save."""
    code = (
        "import os, signal, threading, time; from diffusion_lm import train\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "with train.Stop():\n"
        "    os.kill(os.getpid(), signal.SIGINT); print('noted', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('went on', flush=True)\n"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130 and done.stdout == "noted\n"
    assert "SIGINT: saving at the next step; once more ends at once" in done.stderr
    assert "ended at once; nothing since the newest checkpoint" in done.stderr


def test_two_runs_in_one_folder(tmp_path, text_file, capsys):
    """The second names the first, that of a dead process holds nothing up."""
    path = write_config(tmp_path, text_file)
    workdir = tmp_path / "run"
    holder = (
        "import sys, time; from diffusion_lm import lock; "
        f"held = lock.Lock({str(workdir)!r}); print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    argv = [f"--config={path}", f"--workdir={workdir}"]
    assert main.main(argv) == 2
    err = capsys.readouterr().err
    assert f"is in use by another run: process {process.pid} on " in err
    process.kill()
    process.wait()
    assert main.main(argv) == 0


def test_a_lock_ends_with_its_run(tmp_path):
    held = lock.Lock(str(tmp_path))
    with pytest.raises(ValueError, match="in use by another run"):
        lock.Lock(str(tmp_path))
    held.close()
    lock.Lock(str(tmp_path)).close()
    assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()


def test_a_workdir_that_cannot_be_one_is_refused_at_once(tmp_path, text_file, capsys):
    path = write_config(tmp_path, text_file)
    (tmp_path / "file").write_text("mine")
    assert main.main([f"--config={path}", f"--workdir={tmp_path / 'file'}"]) == 2
    err = capsys.readouterr().err
    assert str(tmp_path / "file") in err and err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"

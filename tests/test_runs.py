"""Whole runs through the command line's own entry: train, stop, resume, evaluate, sample."""

import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
import toy

from diffusion_lm import build, checkpoint, config, evaluate, keys, main, sample, train
from diffusion_lm.objectives import md4
from diffusion_lm.samplers import first_hitting
from diffusion_lm.types import Samples

ROOT = pathlib.Path(__file__).parent.parent
# Of a run in processes of its own, which compile all that they run.
SMALL = {"network.layers": 1, "train.ema": 0.0, "train.num_samples": 0, "train.eval_every": 100000}


def write_config(folder, text, **changes):
    """A tiny config file as JSON; `changes` are "a.b" -> value."""
    base = {
        "data": {"name": "text", "source": "files", "path": text, "tokenizer": "bytes"},
        "network": {"name": "transformer", "layers": 2, "width": 16, "heads": 2},
        "objective": {"name": "md4"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2, "warmup": 0},
        "sampler": {"name": "ancestral", "num_steps": 4},
        "evaluators": {"valid": {"name": "likelihood", "batch_size": 8, "draws": 2}},
        "train": {"steps": 4, "batch_size": 8, "log_every": 1, "eval_every": 4, "ema": 0.9},
    }
    base["data"]["length"] = 16
    base["train"]["checkpoint_every"] = 2
    for field, value in changes.items():  # whole sections too
        *sections, key = field.split(".")
        part = base
        for section in sections:
            part = part[section]
        part[key] = value
    path = pathlib.Path(folder) / "config_file.json"
    path.write_text(json.dumps(base))
    return str(path)


def rows(workdir, name="metrics.jsonl"):
    return [json.loads(line) for line in (pathlib.Path(workdir) / name).read_text().splitlines()]


def state_of(config_file, workdir, overrides=()):
    setup = build.setup(config.resolve(config.load(config_file), list(overrides)))
    saves = checkpoint.Checkpoints(str(workdir), read_only=True)
    return jax.device_get(saves.restore(setup.abstract))


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, text_file):
    """(config file, workdir) of a finished run of four steps."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_config(folder, text_file)
    assert main.main([f"--config={path}", f"--workdir={folder / 'run'}"]) == 0
    return path, folder / "run"


def test_train_writes_what_it_promises(finished, capsys):
    path, workdir = finished
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 4
    log = rows(workdir)
    steps = [r["step"] for r in log if r["split"] == "train"]
    assert steps == [1, 2, 3, 4]
    wanted = {
        "step", "split", "bits_per_token", "bits_per_char", "nats_per_token", "standard_error",
        "learning_rate", "grad_norm", "tokens_per_second", "flops_per_second", "matmul_fraction",
    }  # fmt: skip
    assert wanted <= set(log[0])
    assert 0 < log[0]["matmul_fraction"] < 1
    valid = [r for r in log if r["split"] == "valid"]
    assert [r["step"] for r in valid] == [4] and valid[0]["standard_error"] > 0
    assert "draws" in valid[0]
    assert {"tokenizer", "data", "windows"} <= set(valid[0]["protocol"])
    assert abs(valid[0]["bits_per_char"] - valid[0]["bits_per_token"]) < 0.3  # bytes, ASCII text
    assert len(rows(workdir, "samples.jsonl")) == 2
    before = (workdir / "metrics.jsonl").read_text()
    assert main.main([f"--config={path}", f"--workdir={workdir}"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_text() == before


def test_four_steps_equal_two_and_two(finished, tmp_path):
    """train 4 = train 2 + restore + train 2, bit for bit: parameters, optimiser, average, log."""
    path, workdir = finished
    other = tmp_path / "run"
    stopper = StopAfter(2)
    assert stopper.run([f"--config={path}", f"--workdir={other}"]) == 128 + signal.SIGTERM
    assert rows(other)[-1]["step"] == 2
    assert main.main([f"--config={path}", f"--workdir={other}"]) == 0
    assert_same(state_of(path, workdir), state_of(path, other))
    for a, b in zip(rows(workdir), rows(other), strict=True):
        assert a["step"] == b["step"] and a["nats_per_token"] == b["nats_per_token"]


def test_the_default_recipe_resumes_bit_for_bit(tmp_path, text_file):
    """Muon, paired counts, bigram start and no average: stopped at an evaluation, too."""
    changes = {
        "network.shift": True,
        "objective.estimator": "paired",
        "optimizer": {"name": "muon"},
        "train.start": "bigram",
        "train.ema": 0.0,
        "train.batch_size": 16,
        "train.eval_every": 2,
    }
    path = write_config(tmp_path, text_file, **changes)
    assert main.main([f"--config={path}", f"--workdir={tmp_path / 'a'}"]) == 0
    assert StopAfter(2).run([f"--config={path}", f"--workdir={tmp_path / 'b'}"]) > 128
    assert main.main([f"--config={path}", f"--workdir={tmp_path / 'b'}"]) == 0
    assert_same(state_of(path, tmp_path / "a"), state_of(path, tmp_path / "b"))
    logs = [
        [(r["step"], r["split"], r["nats_per_token"]) for r in rows(tmp_path / name)]
        for name in "ab"
    ]
    assert logs[0] == logs[1] and [r[1] for r in logs[0]].count("valid") == 2
    assert rows(tmp_path / "a", "samples.jsonl") == rows(tmp_path / "b", "samples.jsonl")


class StopAfter:
    """Sends this process SIGTERM so that it stops at step `number`."""

    def __init__(self, number):
        self.number = number

    def run(self, argv):
        original, number = train._speed, self.number

        def progress(row, *rest):
            if row["step"] == number - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(row, *rest)

        train._speed = progress
        try:
            return main.main(argv)
        finally:
            train._speed = original


def test_another_layout_continues_the_same_run(finished, tmp_path):
    """A checkpoint saved on 8 devices goes on over 2 x 2 x 2 and with microbatches."""
    path, workdir = finished
    other = tmp_path / "run"
    assert StopAfter(2).run([f"--config={path}", f"--workdir={other}"]) > 128
    flags = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    argv = [f"--config={path}", f"--workdir={other}", *flags, "--config.train.microbatches=2"]
    assert main.main(argv) == 0
    for a, b in zip(
        jax.tree.leaves(state_of(path, workdir).params),
        jax.tree.leaves(state_of(path, other).params),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_resume_refuses_another_model(finished, capsys):
    path, workdir = finished
    argv = [f"--config={path}", f"--workdir={workdir}", "--config.network.width=32"]
    assert main.main(argv) == 2
    error = capsys.readouterr().err
    assert "network.width 16 -> 32" in error and error.count("\n") == 1


def test_resume_and_eval_refuse_another_text(tmp_path, text_file, capsys):
    """A changed text has another split: what was trained on could now be test."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for n, part in enumerate(pathlib.Path(text_file).read_text().split("\n\n")):
        (folder / f"{n}.txt").write_text(part)
    path = write_config(tmp_path, str(folder), **{"train.steps": 1, "train.checkpoint_every": 1})
    argv = [f"--config={path}", f"--workdir={tmp_path / 'run'}"]
    assert main.main(argv) == 0
    (folder / "new.txt").write_text("something new " * 20)
    capsys.readouterr()
    for mode in (["--config.train.steps=2"], ["--mode=eval"]):
        assert main.main([*argv, *mode]) == 2
        assert "trained on another text" in capsys.readouterr().err


def test_options_added_later_do_not_lock_old_runs(finished):
    """A config.json without a field that has a default is the same as one with the default."""
    path, _ = finished
    new = config.resolve(config.load(path), [])
    old = new.to_dict()
    del old["objective"]["timesteps"], old["network"]["shift"]
    config.check_resumable(old, new, "run")
    old["network"]["width"] = 8
    with pytest.raises(ValueError, match="network.width 8 -> 16"):
        config.check_resumable(old, new, "run")


def test_eval_appends_rows(finished, capsys):
    _, workdir = finished
    argv = [f"--workdir={workdir}", "--mode=eval", "--config.evaluators.valid.split=test"]
    assert main.main([*argv, "--config.evaluators.valid.draws=3"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["split"] == "test" and row["draws"] == 3 and row["step"] == 4
    assert row == rows(workdir, "eval.jsonl")[-1]
    assert row["kind"] == "upper bound" and row["standard_error"] > 0


def test_sample_infills_and_repeats(finished, capsys):
    _, workdir = finished
    argv = [f"--workdir={workdir}", "--mode=sample", "--json", "--num_steps=3", "--seed=5"]
    assert main.main([*argv, "--num_samples=3", "--prompt=the [MASK:4] of"]) == 0
    first = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["index"] for r in first] == [0, 1, 2]
    assert all(r["text"].startswith("the ") and r["text"].endswith(" of") for r in first)
    assert all(r["calls"] <= 3 for r in first)
    assert main.main([*argv, "--num_samples=1", "--prompt=the [MASK:4] of"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == first[0]["text"]


def test_autoregressive_run(tmp_path, text_file, capsys):
    """Exact likelihood, continuation with a cache, and a clear no to infilling."""
    path = write_config(
        tmp_path, text_file, **{"objective.name": "ar", "sampler": {"name": "autoregressive"}}
    )
    workdir = tmp_path / "run"
    assert main.main([f"--config={path}", f"--workdir={workdir}"]) == 0
    row = [r for r in rows(workdir) if r["split"] == "valid"][-1]
    assert row["kind"] == "exact" and row["standard_error"] == 0 and row["draws"] == 1
    capsys.readouterr()
    sampled = [f"--workdir={workdir}", "--mode=sample", "--json"]
    assert main.main([*sampled, "--prompt=the people"]) == 0
    assert json.loads(capsys.readouterr().out)["text"].startswith("the people")
    assert main.main([*sampled, "--prompt=a [MASK:2] b"]) == 2
    assert "autoregressive model cannot fill" in capsys.readouterr().err


BAD_INPUT = {
    "--config.network.widht=3": "did you mean config.network.width",
    "--config.netwrk.width=3": "did you mean",
    "--config.train.batch_size=abc": "must be int",
    "--config.train.batch_size=2.5": "must be int",
    "--config.train.batch_size=-5": "at least 1",
    "--config.train.batch_size=12": "not divisible by 8",
    "--config.train.microbatches=3": "not divisible",
    "--config.network.width=0": "must be positive",
    "--config.network.width": "needs a value",
    "--config.network.remat=yes": "true or false",
    "--config.objective.name=md5": "choices: ar",
    "--config.objective.estimator=x": "choices: independent",
    "--config.optimizer.name=sgd": "choices: adamw, muon",
    "--config.optimizer.learning_rate=-1": "must be positive",
    "--config.data.path=/nowhere": "neither a file nor a folder",
    "--config.data.source=wikipedia": "choices: sotu",
    "--config.data.tokenizer=words": "choices: characters",
    "--config.data.length=0": "positive integer",
    "--config.data.length=100000": "no window of length",
    "--config.sampler.name=autoregressive": "served by: ancestral, confidence",
    "--config.sampler.num_steps=0": "at least 1",
    "--config.mesh.data=3": "does not fit 8 devices",
    "--config.seed=-1": "2^32",
    "--config.evaluators.valid.split=dev": "unknown split",
    "--config.evaluators.valid.batch_size=12": "not divisible by the 8 devices",
    "--config.objective.estimator=paired": "even number of rows per device",
    "--config.train.start=bigram": "network.shift=True",
    "--config.schedule.name=sigmoid": "choices: linear",
    "--config.train.name=x": "unknown field config.train.name",
    "--config.mesh.name=x": "unknown field config.mesh.name",
    "--config.optimizer.learning_rate=inf": "must be positive",
    "--config.optimizer.clip=nan": "must be positive",
    "--config.seed=4294967296": "2^32",
    "--config.rules.width=model": "unknown axes",
}


@pytest.mark.parametrize("flag", BAD_INPUT)
def test_bad_input_is_one_line(flag, tmp_path, text_file, capsys):
    path = write_config(tmp_path, text_file)
    workdir = tmp_path / "run"
    assert main.main([f"--config={path}", f"--workdir={workdir}", flag]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and BAD_INPUT[flag] in error, error
    assert not workdir.exists()


@pytest.mark.parametrize(
    "argv,words",
    [
        (["--config=nowhere.py"], "no config file 'nowhere.py'"),
        ([], "needs --config"),
        (["--mode=eval"], "no run in"),
        ([f"--config={ROOT / 'configs/md4_sotu.py'}:big"], "md4_sotu.py': TypeError"),
        (["--mode=sample"], "no run in"),
    ],
)
def test_missing_files_are_one_line(argv, words, tmp_path, capsys):
    assert main.main([*argv, f"--workdir={tmp_path / 'none'}"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "flags,words",
    [
        (["--num_samples=0"], "at least 1"),
        (["--block=17"], "more than the model holds"),
        (["--label=0"], "trained without"),
        (["--guidance=2"], "needs a --label"),
        (
            ["--config.sampler.name=first_hitting", "--num_steps=3"],
            "the first_hitting sampler has no --num_steps",
        ),
        (["--config.sampler.name=state_dependent"], "it is served by: ancestral, confidence"),
        (["--num_steps=0"], "at least 1"),
        (["--top_p=0"], "top_p"),
        (["--temperature=-1"], "temperature"),
        (["--seed=-1"], "seed"),
        (["--prompt=" + "long " * 10], "the text to write 16"),
        (["--prompt=[MASK:0]"], "at least one token"),
        (["--prompt=[MASK:99]"], "the text to write 16"),
        (["--prompt=" + "x" * 16], "nothing is left to write"),
    ],
)
def test_bad_sampling_input_is_one_line(flags, words, finished, capsys):
    _, workdir = finished
    assert main.main([f"--workdir={workdir}", "--mode=sample", *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_mistyped_flags_are_refused(capsys):
    for argv, words in [
        (["--workdir=x", "--confg=y"], "did you mean --config"),
        (["--config=x"], "--workdir"),
        (["--workdir=x", "--num_samples=abc"], "num_samples"),
        (["--workdir=x", "--config=y", "--prompt=z"], "--prompt is for --mode=sample"),
        (["--workdir=x", "--config=y", "--label=0"], "--label is for --mode=sample"),
        (["--workdir=x", "--mode=tran"], "invalid choice"),
    ]:
        with pytest.raises(SystemExit) as stop:
            main.main(argv)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def test_prompts_are_laid_out(finished):
    path, _ = finished
    data = build.parts(config.resolve(config.load(path), [])).data
    prompt = sample.encode_prompt("ab[MASK:3]c[MASK:1]", data, length=16, ordered=False)
    np.testing.assert_array_equal(prompt.free, [0, 0, 1, 1, 1, 0, 1])
    assert np.all(prompt.tokens[prompt.free] == data.vocab_size)
    assert data.tokenizer.decode(prompt.tokens[[0, 1, 5]]) == "abc"
    rest = sample.encode_prompt("ab", data, length=16, ordered=True)
    assert len(rest.tokens) == 16 and rest.free.sum() == 14


def test_blocks_see_what_is_given_on_both_sides():
    """Windows of 4 over 9 tokens, the last one given: a block of 2 has one token after it."""
    seen = []

    def spy(params, keys_B, z_BL, free_BL, cond):
        seen.append((np.asarray(z_BL)[0].tolist(), np.asarray(free_BL)[0].tolist()))
        return Samples(jax.numpy.where(free_BL, 1 + len(seen), z_BL), 1)

    tokens, free = np.full(9, 99, np.int32), np.ones(9, bool)
    tokens[8], free[8] = 7, False
    out = sample.in_blocks(
        spy,
        None,
        keys.rows(jax.random.key(0), jax.numpy.arange(2)),
        sample.Prompt(tokens, free),
        window=4,
        block=2,
        mask=99,
        cond=None,
    )
    np.testing.assert_array_equal(out.tokens, [[2, 2, 3, 3, 4, 4, 5, 5, 7]] * 2)
    assert out.calls == 4
    assert [z for z, _ in seen] == [[99] * 4, [2, 99, 99, 99], [3, 99, 99, 99], [4, 99, 99, 7]]
    assert [sum(free) for _, free in seen] == [2, 2, 2, 2]


@pytest.mark.parametrize("length,block", [(4, 1), (5, 2), (3, 3), (2, 1)])
def test_blocks_have_the_law_of_windows_in_turn(length, block):
    """Windows of 3 over a longer text, with the exact denoiser and one token at a time: by
    enumeration each block is p(block | the window before it)."""
    num = 100_000
    sampler = jax.jit(first_hitting.make(objective=toy.objective(md4, toy.exact_network)).sample)
    prompt = sample.Prompt(np.full(length, toy.MASK, np.int32), np.ones(length, bool))
    out = sample.in_blocks(
        sampler,
        {"network": {"unused": jax.numpy.zeros(1)}},
        keys.rows(jax.random.key(length), jax.numpy.arange(num)),
        prompt,
        window=toy.L,
        block=block,
        mask=toy.MASK,
        cond=None,
    )
    assert sampler._cache_size() == 1
    assert out.calls == length

    def marginal(place, tokens):
        """P of tokens at place, place + 1, ..., in a window."""
        fits = np.all(toy.X[:, place : place + len(tokens)] == tokens, axis=1)
        return toy.P_X[fits].sum()

    counts = np.zeros(toy.V**length)
    np.add.at(counts, out.tokens @ (toy.V ** np.arange(length - 1, -1, -1)), 1)
    for text, count in zip(itertools.product(range(toy.V), repeat=length), counts, strict=True):
        want = 1.0
        for start in range(0, length, block):
            end = min(start + block, length)
            first = max(0, end - toy.L)
            want *= marginal(0, text[first:end]) / marginal(0, text[first:start])
        assert abs(count / num - want) < 5 * np.sqrt(want / num) + 1e-9


def test_evaluation_counts_every_window_once(finished, capsys):
    """The mean does not depend on the batch size, for an objective whose nll is exact, and equals
    that of a plain sum over the windows."""
    path, _ = finished
    means = []
    for size in (8, 16):
        flags = ["objective.name=ar", "sampler.name=autoregressive"]
        resolved = config.resolve(
            config.load(path), [*flags, f"evaluators.valid.batch_size={size}"]
        )
        setup = build.setup(resolved)

        params = setup.init().params
        head = jax.random.normal(jax.random.key(0), params["network"]["head"]["kernel"].shape)
        params["network"]["head"]["kernel"] = head
        run = evaluate.Run(
            setup.parts.data,
            setup.parts.objective,
            params,
            setup.mesh,
            0,
            evaluate.make_eval_step(setup.parts.objective, setup.mesh),
        )
        (row,) = evaluate.evaluate(setup.parts, run, 0)
        means.append(row["nats_per_token"])
    windows = np.array(setup.parts.data.windows("valid").tokens, np.int32)
    nats = setup.parts.objective.nll(params, {"x": windows})
    assert len(windows) % 8 and np.std(nats) > 1
    np.testing.assert_allclose(means, float(nats.mean()) / 16, rtol=1e-5)


def launcher(number, *argv):
    """(argv, environment) of launch/local.sh with `number` processes of two CPU devices each."""
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PATH": path}
    return [str(ROOT / "launch/local.sh"), str(number), *argv], env


def test_two_processes_train_like_one(finished, tmp_path):
    """launch/local.sh starts a real two-process job; its log equals that of one process. It saves
    before each evaluation, which a signal does not end."""
    path, workdir = finished
    changes = ["--config.train.eval_every=3", "--config.train.checkpoint_every=100"]
    argv, env = launcher(2, f"--config={path}", f"--workdir={tmp_path / 'two'}", *changes)
    subprocess.run(argv, check=True, env=env, timeout=300, cwd=ROOT, capture_output=True)
    assert (tmp_path / "two/checkpoints/3").is_dir()
    two = [r for r in rows(tmp_path / "two") if r["step"] != 3 or r["split"] == "train"]
    for a, b in zip(rows(workdir), two, strict=True):
        assert a["step"] == b["step"]
        np.testing.assert_allclose(a["nats_per_token"], b["nats_per_token"], rtol=1e-5)


def test_two_processes_stop_at_the_same_step(tmp_path, text_file):
    """SIGTERM to the launcher: the processes agree on a step, save it and exit."""
    path = write_config(tmp_path, text_file, evaluators={}, **SMALL, **{"train.steps": 100000})
    workdir = tmp_path / "run"
    argv, env = launcher(2, f"--config={path}", f"--workdir={workdir}")
    process = subprocess.Popen(
        argv, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    killer = threading.Timer(200, process.kill)
    killer.start()
    for line in process.stdout:
        if line.startswith("step 5/"):
            process.terminate()
            break
    out, _ = process.communicate()
    killer.cancel()
    assert process.returncode == 143
    stopped = checkpoint.Checkpoints(str(workdir), read_only=True).latest()
    assert stopped % train.Stop.EVERY == 0 and f"stopped at step {stopped}" in out


def test_interrupt_saves_and_the_run_goes_on(tmp_path, text_file):
    """Ctrl-C in a real process: exit code 130, a checkpoint, and the next start continues."""
    path = write_config(tmp_path, text_file, evaluators={}, **SMALL, **{"train.steps": 100000})
    workdir = tmp_path / "run"
    argv = [sys.executable, "-m", "diffusion_lm.main", f"--config={path}", f"--workdir={workdir}"]
    process = subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    killer = threading.Timer(200, process.kill)
    killer.start()
    for line in process.stdout:
        if line.startswith("step 5/"):
            process.send_signal(signal.SIGINT)
            break
    out, _ = process.communicate()
    killer.cancel()
    assert process.returncode == 130
    assert "saved; the same command goes on" in out
    stopped = checkpoint.Checkpoints(str(workdir), read_only=True).latest()
    assert stopped >= 5
    argv = [f"--config={path}", f"--workdir={workdir}", f"--config.train.steps={stopped + 1}"]
    assert main.main(argv) == 0
    assert checkpoint.Checkpoints(str(workdir), read_only=True).latest() == stopped + 1


def test_ema_is_what_is_evaluated(finished, capsys):
    """The logged row is that of the average, and the parameters themselves give another."""
    path, workdir = finished
    state = state_of(path, workdir)
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, state.ema)
    assert max(jax.tree.leaves(gaps)) > 1e-4
    capsys.readouterr()
    assert main.main([f"--workdir={workdir}", "--mode=eval"]) == 0
    row = json.loads(capsys.readouterr().out)
    logged = [r for r in rows(workdir) if r["split"] == "valid"][-1]
    assert row["nats_per_token"] == logged["nats_per_token"]
    setup = build.setup(config.resolve(config.load(path), []))
    step_function = evaluate.make_eval_step(setup.parts.objective, setup.mesh)
    for params, same in [(state.ema, True), (state.params, False)]:
        run = evaluate.Run(
            setup.parts.data, setup.parts.objective, params, setup.mesh, 0, step_function
        )
        (got,) = evaluate.evaluate(setup.parts, run, 4)
        close = abs(got["nats_per_token"] - row["nats_per_token"]) < 1e-4
        assert close == same

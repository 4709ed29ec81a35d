"""What the benchmarks stand on, counted in programs and not timed."""

import json
import math
import re

import jax
import jax.numpy as jnp
import pytest

from diffusion_lm import benchmark, build, config, parallel
from diffusion_lm.samplers import ancestral


def lowered(monkeypatch, **options):
    """The text of the program whose compiled form `train` times."""

    class Kept(Exception):
        pass

    def keep(self, *args, **kwargs):
        raise Kept(self.as_text())

    monkeypatch.setattr(jax.stages.Lowered, "compile", keep)
    with pytest.raises(Kept) as kept:
        benchmark.train_step(**options)
    return kept.value.args[0]


def test_more_layers_are_no_larger_program(monkeypatch):
    sizes = [
        len(lowered(monkeypatch, vocab_size=27, batch_size=2, layers=n).splitlines())
        for n in (4, 24)
    ]
    assert sizes[0] == sizes[1]


def test_a_train_step_holds_no_logits_of_a_whole_batch(monkeypatch):
    """4 windows of 256: two pairs of 257 masked rows, whose logits are there a half at a time."""
    text = lowered(monkeypatch, vocab_size=50257, batch_size=4)
    shapes = [
        [int(n) for n in dims.split("x")] for dims in re.findall(r"tensor<([\dx]+)xf32>", text)
    ]
    rows = [math.prod(shape) // 50257 for shape in shapes if 50257 in shape]
    assert max(rows) == 2 * 129 > benchmark.WIDTH  # the rows of the head itself, the embedding's


def test_sampling_holds_no_logits_of_a_whole_batch():
    objective = benchmark._model(50257, layers=1)
    params = jax.eval_shape(objective.init, jax.random.key(0))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8))
    prompt = jax.ShapeDtypeStruct((8, 256), jnp.int32)
    free = jax.ShapeDtypeStruct((8, 256), bool)
    sampler = ancestral.make(objective=objective, num_steps=1000)
    text = jax.jit(sampler.sample).lower(params, keys, prompt, free).as_text()
    assert "x50257xf32" in text and not re.search(r"8x256x50257|2048x50257", text)


def test_a_train_step_compiles_once(text_file, tmp_path):
    small = config.resolve(
        config.load("configs/md4_sotu.py"),
        ["data.source=files", f"data.path={text_file}", "data.tokenizer=bytes"]
        + ["data.vocab_size=none", "data.length=8", "network.layers=1", "network.width=8"]
        + ["network.heads=1", "network.hidden=8", "train.batch_size=8", "train.start=random"]
        + ["evaluators.valid.batch_size=8"],
    )
    made = build.setup(small)
    state, run = made.init(), build.train_step(small, made)
    batches = made.parts.data.batches(
        "train", batch_size=8, seed=0, start_step=0, process_index=0, process_count=1
    )
    for _ in range(3):
        state, _ = run(state, parallel.global_batch(made.mesh, next(batches)))
    assert run._cache_size() == 1


def test_without_a_gpu_it_says_so(capsys):
    assert benchmark.main(["gpu", "--repeats=1"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert "no GPU" in row["skipped"] and row["cores"] >= 1
    assert benchmark.main(["gpu", "--repeats=0"]) == 2


def test_what_is_timed_runs_in_turns():
    called = []
    found = benchmark.in_turns({n: lambda n=n: called.append(n) for n in "ab"}, 3)
    assert called == list("ab" * 4) and set(found) == {"a", "b"}
    assert all(wall > 0 for wall, _ in found.values())

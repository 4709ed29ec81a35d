"""Optimisers, meshes, metrics, the log: small parts with exact expectations."""

import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_lm import metrics, optim, parallel, step
from diffusion_lm.ops.cross_entropy import token_log_prob
from diffusion_lm.types import Ratio


def test_learning_rates():
    rate = optim.learning_rate_schedule(1.0, "linear", 10, 110, 0.5)
    np.testing.assert_allclose(
        [rate(0), rate(9), rate(60), rate(85), rate(110)], [0.1, 1, 1, 0.5, 0]
    )
    rate = optim.learning_rate_schedule(2.0, "cosine", 0, 100, 1.0)
    np.testing.assert_allclose([rate(0), rate(50), rate(100)], [2, 1, 0], atol=1e-6)
    rate = optim.learning_rate_schedule(1.0, "inverse_sqrt", 100, 1000, 1.0)
    np.testing.assert_allclose([rate(49), rate(99), rate(399)], [0.5, 1, 0.5])
    assert float(optim.learning_rate_schedule(3.0, "constant", 0, 10, 1.0)(7)) == 3


@pytest.mark.parametrize(
    "options,word",
    [
        ({"decay": "exp"}, "constant, linear, cosine"),
        ({"learning_rate": 0.0}, "positive"),
        ({"warmup": -1}, "negative"),
        ({"cooldown": 0.0}, "cooldown"),
        ({"clip": -1.0}, "clip"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_optimizers_refuse_bad_options(options, word):
    with pytest.raises(ValueError, match=word):
        optim.adamw(steps=10, **options)


def test_adamw_decays_matrices_only():
    params = {"kernel": jnp.ones((2, 2)), "norm": {"scale": jnp.ones((3, 2))}, "bias": jnp.ones(2)}
    params["embedding"] = jnp.ones((3, 2))
    made = optim.adamw(steps=10, learning_rate=0.1, decay="constant", warmup=0, weight_decay=0.5)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = made.transform.update(zero, made.transform.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05)
    for spared in (updates["norm"]["scale"], updates["bias"], updates["embedding"]):
        assert np.all(spared == 0)


def test_clipping_bounds_the_global_norm():
    """Beyond the bound the size of a gradient no longer matters, within it does."""
    params = {"a": jnp.zeros(4)}
    for clip, same in [(1.0, True), (0.0, False)]:
        made = optim.adamw(steps=10, clip=clip, warmup=0, b1=0.0, b2=0.5)
        state = made.transform.init(params)
        _, state = made.transform.update({"a": jnp.full(4, 1.0)}, state, params)
        updates = [
            made.transform.update({"a": jnp.full(4, size)}, state, params)[0]["a"]
            for size in (10.0, 100.0)
        ]
        assert np.allclose(*updates) == same


def test_meshes():
    assert dict(parallel.make_mesh(fsdp=2).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert parallel.batch_shards(parallel.make_mesh(data=2, fsdp=2, tensor=2)) == 4
    for sizes in ({"data": 3}, {"data": -1, "fsdp": -1}, {"data": 2, "fsdp": 2}, {"tensor": 0}):
        with pytest.raises(ValueError, match="mesh"):
            parallel.make_mesh(**sizes)


def test_microbatches_keep_rows_on_their_shard():
    """Each microbatch takes the same number of contiguous rows from every shard."""
    batch = {"row": jnp.arange(16)}
    chunks = np.asarray(parallel.spread_microbatches(batch, 2, 4)["row"])
    np.testing.assert_array_equal(chunks[0], [0, 1, 4, 5, 8, 9, 12, 13])
    np.testing.assert_array_equal(chunks[1], [2, 3, 6, 7, 10, 11, 14, 15])


def test_flops_are_counted_through_loops_and_branches():
    a = jnp.ones((4, 8))

    def looped(a):
        def body(c, _):
            return jnp.tanh(c @ jnp.ones((8, 8))), None

        return jax.lax.scan(body, a, None, length=5)[0]

    assert metrics.matmul_flops(looped, a) == 5 * 2 * 4 * 8 * 8

    def branched(a):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ jnp.ones((8, 3)), lambda: jnp.zeros((4, 3)))

    assert metrics.matmul_flops(jax.jit(branched), a) == 2 * 4 * 8 * 3

    def convolved(x):  # a 3 x 3 kernel from 2 to 5 channels, with padding
        kernel = jnp.ones((3, 3, 2, 5))
        axes = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)

    assert metrics.matmul_flops(convolved, jnp.ones((2, 6, 7, 2))) == 2 * 2 * 6 * 7 * 5 * 9 * 2


def test_means_divide_once():
    parts = [Ratio(jnp.float32(1), jnp.float32(1)), Ratio(jnp.float32(2), jnp.float32(3))]
    total = jax.tree.map(jnp.add, *parts)
    assert metrics.means({"a": total}) == {"a": 0.75}


def test_log_rewinds_without_losing(tmp_path):
    log = metrics.Log(str(tmp_path), "log.jsonl")
    for number in (1, 2, 3):
        log.write({"step": number, "split": "train", "value": np.float32(1 / 3), "bad": math.nan})
        log.write({"step": number, "split": "valid"})
    with open(log.path, "a") as file:
        file.write('{"step": 4, "val')  # cut off by a crash
    log.rewind(2, again=True)
    rows = [json.loads(line) for line in open(log.path)]
    assert [(r["step"], r["split"]) for r in rows] == [(1, "train"), (1, "valid"), (2, "train")]
    assert rows[0] == {"step": 1, "split": "train", "value": 0.333333, "bad": "nan"}
    assert len(open(f"{log.path}.1.bak").readlines()) == 7
    log.rewind(2, again=True)
    assert not (tmp_path / "log.jsonl.2.bak").exists()


def test_a_log_rewinds_where_there_are_no_links(tmp_path, monkeypatch):
    def none(*paths):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "link", none)  # as on a mounted bucket
    monkeypatch.setattr(os, "symlink", none)
    test_log_rewinds_without_losing(tmp_path)


def test_a_run_that_is_extended_keeps_its_last_evaluation(tmp_path):
    log = metrics.Log(str(tmp_path), "log.jsonl")
    rows = [{"step": 2, "split": "train"}, {"step": 2, "split": "train", "evaluator": "own"}]
    for row in rows + [{"step": 3, "split": "train"}]:
        log.write(row)
    log.rewind(2, again=False)
    assert [json.loads(line) for line in open(log.path)] == rows
    log.rewind(2, again=True)
    assert [json.loads(line) for line in open(log.path)] == rows[:1]


def test_token_log_prob_is_log_softmax():
    logits = 5 * jax.random.normal(jax.random.key(0), (3, 4, 7))
    tokens = jax.random.randint(jax.random.key(1), (3, 4), 0, 7)
    want = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(token_log_prob(logits, tokens), want, atol=1e-5)


@pytest.mark.parametrize(
    "options,word",
    [
        ({"steps": -1}, "steps"),
        ({"ema": 1.0}, "ema"),
        ({"microbatches": 3}, "not divisible"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
    ],
)
def test_settings_are_checked(options, word):
    with pytest.raises(ValueError, match=word):
        step.settings(**{"steps": 1, "batch_size": 8} | options)


def test_tensorboard_is_optional(tmp_path):
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="tensorboard"):
            step.settings(steps=1, batch_size=8, tensorboard=True)
        return
    log = metrics.Log(str(tmp_path), "log.jsonl", tensorboard=True)
    log.rewind(5, again=True)
    log.write({"step": 6, "split": "train", "value": 2.0})
    for evaluator in ("valid", "quality"):
        log.write({"step": 6, "split": "valid", "evaluator": evaluator, "value": 3.0})
    log._events.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    written = file.read_bytes()
    for tag in (b"train/value", b"valid/value", b"quality/value"):
        assert written.count(tag) == 1

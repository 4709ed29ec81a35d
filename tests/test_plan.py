"""Counts read from compiled programs, the fused attention, and plans for machines not there."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_lm import benchmark, hlo, keys, main, metrics, parallel
from diffusion_lm.ops import attention

HAS_COMPILER = importlib.util.find_spec("libtpu") is not None


def test_bytes_of_a_product_and_of_a_loop():
    a, b = jnp.ones((64, 128)), jnp.ones((128, 32))
    product = 4 * (64 * 128 + 128 * 32 + 64 * 32)
    text = jax.jit(jnp.matmul).lower(a, b).compile().as_text()
    assert hlo.bytes_moved(text) == product

    def loop(h, weights):
        return jax.lax.scan(lambda h, w: (jnp.sin(h @ w), None), h, weights)[0]

    moved = [
        hlo.bytes_moved(jax.jit(loop).lower(b.T, jnp.ones((n, 128, 128))).compile().as_text())
        for n in (10, 20, 30)
    ]
    each = 4 * (128 * 128 + 2 * 32 * 128)  # at the least: a slice of the weights, h in and out
    assert moved[2] - moved[1] == moved[1] - moved[0] >= 10 * each
    assert moved[1] - moved[0] <= 10 * 4 * each


def test_bytes_agree_with_the_compilers_account_where_nothing_loops():
    def f(a, b):
        return jax.nn.softmax(a @ b).sum(0) * b.mean()

    compiled = jax.jit(f).lower(jnp.ones((256, 64)), jnp.ones((64, 128))).compile()
    mine, xla = hlo.bytes_moved(compiled.as_text()), compiled.cost_analysis()["bytes accessed"]
    assert abs(mine / xla - 1) < 0.1


def test_bytes_after_a_kernel_whose_attributes_have_several_lines():
    text = """HloModule m

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %k = f32[4]{0} custom-call(%a), custom_call_target="k", frontend_attributes={kernel_metadata={
"about":"{\\"block\\": 128}"
}}, metadata={op_name="k"}
  ROOT %b = f32[4]{0} negate(%k)
}
"""
    assert hlo.bytes_moved(text) == 2 * (16 + 16)


def test_bytes_received_from_other_devices():
    """Of four devices, by hand: three quarters of what is gathered; of a sum twice that, and as
    often as its loop runs; all of what is passed on."""
    mesh = parallel.make_mesh(data=4, devices=jax.devices()[:4])

    def f(x):
        gathered = jax.lax.all_gather(x, "data")
        ring = [(i, (i + 1) % 4) for i in range(4)]
        passed = jax.lax.ppermute(x[:, :8], "data", ring)
        summed = jax.lax.scan(lambda s, _: (jnp.sin(jax.lax.psum(s, "data")), None), x, None, 3)[0]
        scattered = jax.lax.psum_scatter(gathered * 2, "data", tiled=True)
        return gathered.sum(0) + summed + passed.sum() + scattered[0]

    spec = jax.sharding.PartitionSpec("data")
    f = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    text = f.lower(jnp.ones((4, 1000))).compile().as_text()
    whole = 4 * 4 * 1000
    assert hlo.bytes_received(text) == 0.75 * whole + 3 * 1.5 * whole / 4 + 32 + 0.75 * whole


def test_flops_done_again_are_those_inside_checkpoint():
    def f(a):
        h = jax.checkpoint(lambda a: a @ a)(a)
        return jax.lax.scan(lambda h, _: (jax.checkpoint(jnp.matmul)(h, h), None), h @ h, None, 3)

    a, product = jnp.ones((8, 8)), 2 * 8**3
    assert metrics.matmul_flops(f, a) == 5 * product
    # sin's gradient needs h @ w again, no gradient needs the last product of a layer
    plain = lambda h, w: jnp.sin(h @ w) @ w  # noqa: E731
    for layer, again in ((plain, 0), (jax.checkpoint(plain), 3)):

        def loss(w, layer=layer):
            return jax.lax.scan(lambda h, _: (layer(h, w), None), a @ w, None, 3)[0]

        required = 3 * 7 - 1  # a itself has no gradient
        assert metrics.train_flops(loss, a) == (required * product, again * product)
    stopped = lambda w: jax.lax.stop_gradient(a @ w) @ w  # noqa: E731
    assert metrics.train_flops(stopped, a) == (3 * product, 0)


def test_flops_of_a_step_are_three_times_those_of_its_forward_pass():
    """Where all of it has a gradient, but for sums over rows, which are made as products."""
    objective = benchmark._model(97, layers=2)
    batch = keys.number({"x": jnp.zeros((4, benchmark.LENGTH), int)})

    def loss(params, batch, key):
        return objective.loss(params, batch, key, train=True).loss

    args = objective.init(jax.random.key(0)), batch, jax.random.key(1)
    required, again = metrics.train_flops(loss, *args)
    assert required == pytest.approx(3 * metrics.matmul_flops(loss, *args), rel=1e-3) and not again


@pytest.mark.parametrize(
    ("line", "moved"),
    [
        ("(f32[1000]{0}, f32[1000]{0}) collective-permute-start(%a), channel_id=1", 8000),
        ("((f32[1000]{0}), f32[250]{0}) reduce-scatter-start(%a), channel_id=1", 5000),
        ("(f32[1000]{0}, f32[4000]{0}) all-gather-start(%a), channel_id=1", 20000),
        ("f32[1000]{0} all-reduce-start(%a), channel_id=1", 8000),
    ],
)
def test_bytes_of_asynchronous_collectives_count_once(line, moved):
    """What they read and what they write, as their synchronous forms."""
    kind = line.split("-start")[0].rpartition(" ")[2]
    text = f"""HloModule m

ENTRY %main (a: f32[1000]) -> f32[1000] {{
  %a = f32[1000]{{0}} parameter(0)
  %s = {line}
  ROOT %d = f32[1000]{{0}} {kind}-done(%s)
}}
"""
    assert hlo.bytes_moved(text) == moved


@pytest.mark.parametrize("causal", [False, True])
def test_splash_attention_is_attention(causal):
    """The TPU's kernel, interpreted, on a mesh: its outputs and gradients in bfloat16."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 256, 2, 64)), jnp.bfloat16) for _ in range(3))

    def plain(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal)

    def fused(q, k, v):
        return attention._splash(q, k, v, causal=causal, interpret=True)

    mesh = parallel.make_mesh(data=2, devices=jax.devices()[:2])
    spread = jax.device_put((q, k, v), parallel.batch_sharding(mesh))
    for f, args in ((lambda f: f, (q, k, v)), (lambda f: parallel.jit(f, mesh), spread)):
        np.testing.assert_allclose(
            np.asarray(f(fused)(*args), np.float32),
            np.asarray(plain(q, k, v), np.float32),
            atol=0.02,
        )
    loss = lambda f: lambda *a: (f(*a).astype(jnp.float32) ** 2).sum()  # noqa: E731
    mine, theirs = (jax.grad(loss(f), argnums=(0, 1, 2))(q, k, v) for f in (fused, plain))
    for a, b in zip(mine, theirs, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() < 0.03 * np.abs(b).max()


def test_attention_on_a_cpu_is_the_plain_one():
    q = jnp.ones((1, 128, 2, 8))
    assert (
        "pallas"
        not in jax.jit(lambda q: attention.attention(q, q, q, causal=False)).lower(q).as_text()
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--topology=v5e:8x8"], ["--config=FILE"]),
        (["--config=configs/md4_owt.py"], ["--topology=NAME"]),
        (["--config=configs/md4_owt.py", "--topology=v9:3"], ["v9:3", "v5e:8x8"]),
    ],
)
def test_bad_plans_are_one_line(flags, words, capsys):
    assert main.main(["--mode=plan", *flags]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in words)


@pytest.mark.skipif(not HAS_COMPILER, reason="needs the TPU's compiler: extra tpu")
def test_a_small_plan_for_a_slice(capsys):
    small = ["layers=2", "width=128", "heads=2", "hidden=128"]
    flags = ["--mode=plan", "--config=configs/md4_owt.py", "--topology=v5e:2x2"]
    flags += ["--config.data.length=128", "--config.train.batch_size=8"]
    flags += [f"--config.network.{field}" for field in small]
    assert main.main(flags) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["fits"] and row["devices"] == 4 and row["mesh"]["data"] == 4
    assert 0 < row["mfu_bound"] <= 1 and row["peak_gb"] < row["memory_gb"]
    assert main.main([*flags, "--config.train.batch_size=262144"]) == 1
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not row["fits"] and "memory" in row["said"]

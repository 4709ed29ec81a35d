"""Work at chosen positions: the head by chunks is the head, its gradients too, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_lm import parallel
from diffusion_lm.ops import rows
from diffusion_lm.ops.cross_entropy import token_log_prob

B, R, D, V = 8, 13, 4, 7
RNG = np.random.default_rng(0)
PARAMS = {
    "kernel": jnp.asarray(RNG.normal(size=(D, V)), jnp.float32),
    "bias": jnp.asarray(RNG.normal(size=V), jnp.float32),
    "of another part": jnp.ones(3),
}
H = jnp.asarray(RNG.normal(size=(B, R, D)), jnp.float32)
X = jnp.asarray(RNG.integers(0, V, (B, R)))
WEIGHT = jnp.asarray(RNG.uniform(size=(B, R)), jnp.float32)
COTANGENTS = {
    "of the sum": jnp.ones((B, R)),
    "of the mean": jnp.full((B, R), 1 / (B * R)),
    "any": jnp.asarray(RNG.normal(size=(B, R)), jnp.float32),
    "zero": jnp.zeros((B, R)),
}


def nats(params, h, x):
    return -token_log_prob(h @ params["kernel"] + params["bias"], x)


@pytest.mark.parametrize("cotangent", COTANGENTS)
@pytest.mark.parametrize("mesh", [None, (8, 1, 1), (2, 4, 1), (2, 2, 2)])
@pytest.mark.parametrize("entries", [2**22, 30])
def test_weighted_is_weight_times_value(cotangent, mesh, entries, monkeypatch):
    monkeypatch.setattr(rows, "ENTRIES", entries)
    g = COTANGENTS[cotangent]

    def by_chunks(params, weight, h, g):
        return (g * rows.weighted(nats, params, weight, h, X, width=V)).sum()

    def plain(params, weight, h, g):
        return (g * weight * nats(params, h, X)).sum()

    wanted = jax.value_and_grad(plain, argnums=(0, 1, 2))(PARAMS, WEIGHT, H, g)
    found = jax.value_and_grad(by_chunks, argnums=(0, 1, 2))
    if mesh is None:
        found = jax.jit(found)(PARAMS, WEIGHT, H, g)
    else:
        mesh = parallel.make_mesh(data=mesh[0], fsdp=mesh[1], tensor=mesh[2])
        spread = jax.device_put((WEIGHT, H, g), parallel.batch_sharding(mesh))
        whole = jax.device_put(PARAMS, parallel.replicated(mesh))
        found = parallel.jit(found, mesh)(whole, *spread)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), found, wanted)


def test_gradients_of_a_picked_logit(platform):
    """As by one-hot vectors; also forwards, and of the gradient."""
    logits = 3 * jnp.asarray(RNG.normal(size=(B, R, V)), jnp.float32)

    def mine(logits):
        return (WEIGHT * jnp.sin(token_log_prob(logits, X))).sum()

    def textbook(logits):
        log_p = (jax.nn.one_hot(X, V) * jax.nn.log_softmax(logits)).sum(-1)
        return (WEIGHT * jnp.sin(log_p)).sum()

    ways = jax.grad, jax.jacfwd, lambda f: jax.grad(lambda a: (jax.grad(f)(a) ** 2).sum())
    for way in ways:
        found, wanted = way(mine)(logits), way(textbook)(logits)
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-5)


def one_hot(params, h, x):
    """The textbook: one-hot times log-softmax."""
    logits = jnp.matmul(h, params["kernel"], preferred_element_type=jnp.float32) + params["bias"]
    return -(jax.nn.one_hot(x, logits.shape[-1]) * jax.nn.log_softmax(logits)).sum(-1)


def test_a_large_head_needs_a_quarter_of_the_memory():
    """At V = 50257, by the compiler's account; and the gradients are equal to 1e-6."""
    size, length, width, vocab = 4, 128, 32, 50257
    rng = np.random.default_rng(1)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(width, vocab)) * 0.1, jnp.float32),
        "bias": jnp.zeros(vocab),
    }
    h = jnp.asarray(rng.normal(size=(size, length, width)), jnp.float32)
    x = jnp.asarray(rng.integers(0, vocab, (size, length)))
    weight = jnp.full(x.shape, 1 / x.size)

    def ours(params, h):
        return rows.weighted(nats, params, weight, h, x, width=vocab).sum()

    def textbook(params, h):
        return (weight * one_hot(params, h, x)).sum()

    mine, theirs = (
        jax.jit(jax.value_and_grad(f, argnums=(0, 1))).lower(params, h).compile()
        for f in (ours, textbook)
    )
    least = theirs.memory_analysis().temp_size_in_bytes / mine.memory_analysis().temp_size_in_bytes
    assert least > 4
    whole = 4 * size * length * vocab  # bytes of [B, L, V]
    assert mine.memory_analysis().temp_size_in_bytes < whole
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mine(params, h), theirs(params, h)
    )

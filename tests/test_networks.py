"""The transformer: who sees whom, the cache, time input, precision, layout."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_lm import keys, optim, parallel
from diffusion_lm.networks import layers, transformer
from diffusion_lm.ops.attention import plain
from diffusion_lm.ops.product import product

TINY = partial(transformer.make, inputs=7, outputs=6, layers=2, width=16, heads=2)


def noisy(network, scale=0.3, seed=0):
    """Parameters moved away from their special initial values (zero heads and gates)."""
    params = jax.jit(network.init)(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    moved = [
        leaf + scale * jax.random.normal(jax.random.key(i), leaf.shape)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, moved)


def influence(causal):
    """J[i, j]: how strongly the logits at i depend on the embedding of the token at j."""
    network = TINY(causal=causal, inputs=8, shift=True)
    params = noisy(network)
    tokens = jnp.arange(8)[None]  # every position has its own row of the embedding

    def logits_at(embedding, i):
        h = network.trunk(params | {"embedding": embedding}, tokens)
        return network.head(params, h)[0, i].sum()

    grad = jax.vmap(jax.grad(logits_at), (None, 0))(params["embedding"], jnp.arange(8))
    return np.abs(grad).sum(-1)


def test_causal_network_sees_only_the_past():
    jacobian = influence(causal=True)
    assert np.all(jacobian[np.triu_indices(8, 1)] == 0)
    assert np.all(jacobian[np.tril_indices(8)] > 1e-4)


def test_bidirectional_network_sees_everything():
    assert np.all(influence(causal=False) > 1e-4)


def test_cache_gives_the_same_logits():
    network = TINY(causal=True, qk_norm=True, shift=True)
    params = noisy(network)
    tokens = jax.random.randint(jax.random.key(1), (3, 10), 0, 7)
    want = network.head(params, network.trunk(params, tokens))
    cache, rows, decode = network.cache(3, 10), [], jax.jit(network.decode)
    for at in range(10):
        logits, cache = decode(params, cache, tokens[:, at], at)
        rows.append(logits)
    np.testing.assert_allclose(jnp.stack(rows, 1), want, atol=2e-5)


def test_positions_matter_and_are_relative():
    network = TINY(causal=False)
    params = noisy(network)
    one = network.trunk(params, jnp.array([[1, 2, 3, 4]]))
    other = network.trunk(params, jnp.array([[2, 1, 3, 4]]))
    assert np.abs(one[0, 3] - other[0, 3]).max() > 1e-3
    h = jax.random.normal(jax.random.key(0), (1, 4, 2, 8))
    near, far = (layers.rotate(h, jnp.arange(4) + shift) for shift in (0, 90))
    scores = [jnp.einsum("blhk,bmhk->bhlm", r, r) for r in (near, far)]
    np.testing.assert_allclose(*scores, atol=1e-4)


def test_new_network_is_uniform_and_adaln_starts_at_identity():
    for time_input in (False, True):
        network = TINY(time_input=time_input)
        params = jax.jit(network.init)(jax.random.key(0))
        t = jnp.array([0.1, 0.9])
        h = network.trunk(params, jnp.zeros((2, 4), int), t)
        assert np.all(network.head(params, h) == 0)
        if time_input:
            np.testing.assert_allclose(h[0], h[1], atol=1e-6)
            h = network.trunk(noisy(network), jnp.zeros((2, 4), int), t)
            assert np.abs(h[0] - h[1]).max() > 1e-2


@pytest.mark.parametrize("length", [1, 16])
@pytest.mark.parametrize("size,heads", [(1, 1), (1, 4), (3, 1), (3, 4)])
def test_gradients_of_products(size, heads, length):
    """Those by hand against autodiff's of the textbook, and in bfloat16, which axes of length 1
    send other ways through the compiler, near them."""
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, size, length, heads, 8)).astype(np.float32)
    kernel, bias = rng.normal(size=(8, 5)).astype(np.float32), np.ones(5, np.float32)

    def attended(q, k, v):
        logits = jnp.einsum("blhk,bmhk->bhlm", q, k) / math.sqrt(8)
        logits = jnp.where(np.tri(length, dtype=bool), logits, -jnp.inf)
        return jnp.einsum("bhlm,bmhk->blhk", jax.nn.softmax(logits), v)

    pairs = [
        (partial(plain, causal=True), attended, (q, k, v)),
        (partial(product, jnp.float32), lambda h, w, b: h @ w + b, (q, kernel, bias)),
        (
            lambda h, w, b: product(q.dtype, h, w.T, b),
            lambda h, w, b: h @ w.T + b,
            (q, kernel.T, bias),
        ),
    ]
    for mine, textbook, args in pairs:

        def grads(f, *args):
            of = jax.grad(lambda *x: (f(*x).astype(jnp.float32) ** 2).sum(), argnums=(0, 1, 2))
            return jax.jit(of)(*args)

        want = grads(textbook, *args)
        for dtype, share in ((jnp.float32, 1e-5), (jnp.bfloat16, 5e-2)):
            got = grads(mine, *(a.astype(dtype) if a.ndim > 2 else a for a in args))
            for a, b in zip(got, want, strict=True):
                np.testing.assert_allclose(a, b, atol=share * (1 + np.abs(b).max()), rtol=0)


def test_remat_and_bfloat16_change_little():
    tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 7)

    def value_and_grad(network, params):
        def loss(p):
            return jax.nn.logsumexp(network.head(p, network.trunk(p, tokens))).sum()

        return jax.jit(jax.value_and_grad(loss))(params)

    plain = TINY()
    params = noisy(plain, 0.1)
    want = value_and_grad(plain, params)
    chex.assert_trees_all_close(
        value_and_grad(TINY(remat=True), params), want, rtol=1e-4, atol=1e-5
    )
    half = TINY(dtype="bfloat16")
    assert half.trunk(params, tokens).dtype == jnp.bfloat16
    assert half.head(params, half.trunk(params, tokens)).dtype == jnp.float32
    np.testing.assert_allclose(value_and_grad(half, params)[0], want[0], rtol=0.02)


def test_tied_head_shares_the_embedding():
    network = TINY(tied=True)
    params = jax.jit(network.init)(jax.random.key(0))
    assert "head" not in params
    h = jax.random.normal(jax.random.key(1), (3, 16))
    np.testing.assert_allclose(network.head(params, h), h @ params["embedding"][:6].T, atol=1e-5)


def test_dropout_is_by_row():
    h = jnp.ones((4, 50, 16))
    row_keys = keys.rows(jax.random.key(0), jnp.arange(4))
    out = np.asarray(layers.dropout(h, row_keys, 0.25))
    assert abs((out == 0).mean() - 0.25) < 0.03 and abs(out.mean() - 1) < 0.05
    np.testing.assert_array_equal(out[2:], layers.dropout(h[2:], row_keys[2:], 0.25))
    np.testing.assert_array_equal(layers.dropout(h, None, 0.25), h)


def test_every_matrix_has_logical_axes_and_shards():
    """All large parameters are named in AXES, with as many axes as they have, as in
    the optimiser's state."""
    network = TINY(width=32, heads=4, inputs=8, outputs=8, time_input=True, shape=(2, 2, 2))
    params = jax.jit(network.init)(jax.random.key(0))
    named = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        axes = parallel.logical_axes(transformer.AXES, path)
        if axes is None:
            assert leaf.ndim < 3 or "modulation" in parallel.name(path), parallel.name(path)
        else:
            named.add(axes)
            assert len(axes) == leaf.ndim
    assert named == set(transformer.AXES.values())
    mesh = parallel.make_mesh(data=2, fsdp=2, tensor=2)
    rules = {"width": "fsdp", "heads": "tensor", "hidden": "tensor", "vocab": "tensor"}
    state = optim.muon(steps=1, axes=transformer.AXES).transform.init(params)
    for tree in (params, state):
        for path, sharding in jax.tree_util.tree_leaves_with_path(
            parallel.shardings(mesh, tree, transformer.AXES, rules)
        ):
            if parallel.name(path).endswith("attention/qkv"):
                assert tuple(sharding.spec)[:4] == (None, "fsdp", None, "tensor")


def test_what_a_mesh_does_not_divide_is_said():
    shapes = jax.eval_shape(TINY(width=32, heads=4, inputs=8, outputs=9).init, jax.random.key(0))
    rules = {"width": "fsdp", "heads": "tensor", "hidden": "tensor", "vocab": "tensor"}
    mesh = parallel.make_mesh(data=2, fsdp=2, tensor=2)
    assert parallel.undivided(mesh, shapes, transformer.AXES, rules) == [
        "mesh.tensor=2 does not divide vocab 9: 288 parameters are not spread over it"
    ]
    mesh = parallel.make_mesh(data=8)
    assert parallel.undivided(mesh, shapes, transformer.AXES, rules) == []


def test_muon_orthogonalises_each_matrix():
    """An update of Muon has singular values near 1 for q, k and v of every layer apart."""
    network = TINY(width=32, heads=4)
    params = jax.jit(network.init)(jax.random.key(0))
    optimizer = optim.muon(steps=10, axes=transformer.AXES, learning_rate=1.0, warmup=0)
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
    state = optimizer.transform.init(params)
    updates, _ = jax.jit(optimizer.transform.update)(grads, state, params)
    qkv = updates["blocks"]["attention"]["qkv"].reshape(2, 32, 3, 32)
    out = updates["blocks"]["attention"]["out"].reshape(2, 32, 32)
    for matrix in [*(qkv[i, :, c] for i in range(2) for c in range(3)), *out]:
        values = np.linalg.svd(matrix, compute_uv=False)
        # Five Newton-Schulz steps bring all but the very smallest near 1.
        assert values.max() < 1.5 and (values > 0.5).mean() > 0.9
    adam = updates["embedding"]
    first = 1 + 0.9 * 0.1 / (1 - 0.9**2)  # of Adam with Nesterov's look-ahead, as optax has it
    np.testing.assert_allclose(np.abs(adam), 3e-3 * first, rtol=1e-2)


@pytest.mark.parametrize(
    "options,word",
    [
        ({"width": 30, "heads": 4}, "multiple of 2 x heads"),
        ({"layers": 0}, "layers"),
        ({"norm": "batch"}, "rms, layer"),
        ({"dtype": "float16"}, "float32, bfloat16"),
        ({"dropout_rate": 1.0}, "dropout_rate"),
    ],
)
def test_bad_options_are_named(options, word):
    with pytest.raises(ValueError, match=word):
        TINY(**options)

"""The encoder-decoder: padding is never seen, the cache equals the whole, lengths are a law."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_lm.networks import seq2seq
from diffusion_lm.objectives import ar
from diffusion_lm.samplers import autoregressive

V, L, S, END = 12, 9, 7, 11
MAKE = partial(
    seq2seq.make,
    inputs=V,
    outputs=V,
    length=L,
    source_length=S,
    source_end=END,
    layers=2,
    width=16,
    heads=2,
    hidden=32,
)
SRC = jnp.array([[1, 2, 3, END, END, END, END], [4, 5, 6, 7, 8, 9, END]])


def moved(params):
    """Parameters away from where they start, where many products are 0."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    new = [a + 0.2 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, new)


@pytest.mark.parametrize("options", [{}, {"post_norm": True, "embedding_width": 8}])
def test_cache_equals_the_whole_and_looks_only_back(options):
    net = MAKE(causal=True, **options)
    params = moved(net.init(jax.random.key(0)))
    x_BL = jax.random.randint(jax.random.key(1), (2, L), 0, V)
    memory = net.encode(params, SRC)
    assert memory.length is None
    whole = net.head(params, net.trunk(params, x_BL, None, None, memory))
    cache, decode = net.cache(2, L), jax.jit(net.decode)
    for at in range(L):
        logits, cache = decode(params, cache, x_BL[:, at], jnp.int32(at), memory)
        np.testing.assert_allclose(logits, whole[:, at], atol=2e-5)
    later = net.head(params, net.trunk(params, x_BL.at[:, 5].set(0), None, None, memory))
    np.testing.assert_array_equal(later[:, :5], whole[:, :5])
    assert np.abs(later - whole)[:, 5:].max() > 1e-3


@pytest.mark.parametrize("post_norm", [False, True])
def test_padding_is_never_seen(post_norm):
    """Neither the source's nor the target's: more of it, or anything in it, changes nothing."""
    net = MAKE(vectors=2, time_input=True, embedding_width=8, post_norm=post_norm)
    params = moved(net.init(jax.random.key(0)))
    t_B, n_B = jnp.array([0.3, 0.8]), jnp.array([4, 8])
    z = jax.random.normal(jax.random.key(1), (2, L, 16))
    shown = jnp.arange(L) < n_B[:, None]

    @jax.jit
    def run(z, src):
        memory = net.encode(params, src)._replace(target=shown[: len(src)])
        return memory.length, net.trunk(params, z, t_B[: len(src)], None, memory)

    length, h = run(z, SRC)
    short_length, short = run(z[:1], SRC[:1, :4])  # a batch of a shorter bucket
    np.testing.assert_allclose(short_length, length[:1], atol=1e-6)
    np.testing.assert_allclose(short, h[:1], atol=1e-6)
    _, other = run(jnp.where(shown[..., None], z, 7.0), SRC)
    np.testing.assert_array_equal(np.where(shown[..., None], other - h, 0), 0)
    assert h.shape == (2, L, 8)
    _, wrong = run(z, SRC[::-1])
    assert np.abs(wrong - h).max() > 1e-2  # but the source is


def test_lengths_are_a_law_of_the_difference():
    net = MAKE()
    params = net.init(jax.random.key(0))
    law = jnp.exp(net.encode(params, SRC).length)
    np.testing.assert_allclose(law[:, 0], 0)
    np.testing.assert_allclose(law[:, 1:], 1 / (L - 1), rtol=1e-6)  # uniform at the start
    # a class, "two more than the source", moves the length 5 of the first and 8 of the second alone
    kernel = params["length"]["kernel"].at[:, 128 + 2].set(jnp.linspace(-1, 2, 16))
    law = np.exp(net.encode(params | {"length": {"kernel": kernel}}, SRC).length)
    for row, at in zip(law, (5, 8), strict=True):
        others = np.delete(row[1:], at - 1)
        np.testing.assert_allclose(others, others[0], rtol=1e-5)
        assert abs(np.log(row[at] / others[0])) > 0.1

    def trained(params):
        return -net.encode(params, SRC).length[jnp.arange(2), jnp.array([5, 8])].sum()

    grad = jax.jit(jax.grad(trained))
    for _ in range(60):
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, grad(params))
    np.testing.assert_array_equal(net.encode(params, SRC).length.argmax(1), [5, 8])


def test_own_vocabulary_of_the_source():
    net = MAKE(source_ids=40, causal=True)
    params = net.init(jax.random.key(0))
    assert params["source_embedding"].shape == (40, 16) and params["embedding"].shape == (V, 16)
    high = net.encode(params, jnp.full((1, S), 39))
    other = net.encode(params, jnp.full((1, S), 38))
    assert np.abs(high.keys - other.keys).max() > 1e-3


def test_rows_of_dropout_are_their_own():
    net = MAKE(dropout_rate=0.5)
    params = moved(net.init(jax.random.key(0)))
    rows = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(2))
    x = jnp.zeros((2, L), int)

    @jax.jit
    def run(src, x, rows):
        return net.trunk(params, x, None, rows, net.encode(params, src, rows))

    both = run(SRC, x, rows)
    np.testing.assert_allclose(run(SRC[1:], x[1:], rows[1:]), both[1:], atol=1e-5)
    same = run(jnp.stack([SRC[0], SRC[0]]), x, rows)
    assert np.abs(same[0] - same[1]).max() > 1e-2


def objective():
    return ar.make(network=partial(MAKE, causal=True), vocab_size=V, start=END)


def test_ar_scores_a_target_to_its_end_and_sums_to_one():
    """-log p(x | src) of a target counts the first end token and nothing behind it."""
    small = partial(seq2seq.make, length=3, source_length=3, source_end=2, layers=1, width=8)
    small = partial(small, heads=2, hidden=8)
    made = ar.make(network=small, vocab_size=3, start=2)
    params = moved(made.init(jax.random.key(0)))
    # all targets of at most 2 tokens of 2, filled up with ends; those of 2 must end
    x = np.array([[2, 2, 2], *([a, 2, 2] for a in range(2))])
    x = np.concatenate([x, [[a, b, 2] for a in range(2) for b in range(2)]])
    batch = {"x": jnp.asarray(x), "src": jnp.tile(jnp.array([[0, 1, 2]]), (len(x), 1))}
    each = np.asarray(made.token_nll(params, batch))
    np.testing.assert_array_equal(each[0, 1:], 0)
    np.testing.assert_array_equal(each[1:3, 2], 0)
    assert (each[3:] > 0).all()
    # the third place ends whatever stands before, so there the end's probability is not asked
    total = np.exp(-each[:, :2].sum(1)).sum()
    np.testing.assert_allclose(total, 1, rtol=1e-5)
    out = made.loss(params, batch | {"row": jnp.arange(len(x))}, jax.random.key(0), train=False)
    np.testing.assert_array_equal(out.tokens, [1, 2, 2, 3, 3, 3, 3])
    np.testing.assert_allclose(out.loss, each.sum(1), rtol=1e-6)


def test_ar_label_smoothing_mixes_in_the_uniform():
    made = ar.make(network=partial(MAKE, causal=True), vocab_size=V, start=END, label_smoothing=0.1)
    params = moved(made.init(jax.random.key(0)))
    batch = {"x": jnp.array([[1, 2, *[END] * 7], [3, *[END] * 8]]), "src": SRC}
    batch["row"] = jnp.arange(2)
    out = made.loss(params, batch, jax.random.key(0), train=False)
    plain = objective().loss(params, batch, jax.random.key(0), train=False)
    net = MAKE(causal=True)
    weights = params["network"]
    before = jnp.array([[END, 1, 2], [END, 3, END]])
    h = net.trunk(weights, before, None, None, net.encode(weights, SRC))
    log_p = np.asarray(jax.nn.log_softmax(net.head(weights, h)), np.float64)
    uniform = -log_p.mean(-1)
    wanted = 0.9 * np.asarray(plain.loss) + 0.1 * np.array([uniform[0].sum(), uniform[1, :2].sum()])
    np.testing.assert_allclose(out.loss, wanted, rtol=1e-5)
    np.testing.assert_allclose(
        float(out.metrics["nats_per_token"].sum), float(plain.loss.sum()), rtol=1e-5
    )


def test_ar_sampler_ends_rows_and_scores_what_it_wrote():
    made = objective()
    params = moved(made.init(jax.random.key(0)))
    sampler = autoregressive.make(objective=made)
    size = 64
    src = jnp.tile(SRC[:1], (size, 1))
    keys_B = jax.random.split(jax.random.key(1), size)
    prompt = jnp.full((size, L), END)
    out = jax.jit(sampler.sample)(params, keys_B, prompt, jnp.ones((size, L), bool), {"src": src})
    x = np.asarray(out.tokens)
    ended = (x == END).any(1)
    assert 5 < ended.sum() <= size
    first = np.where(ended, (x == END).argmax(1), L)
    for row, at in zip(x, first, strict=True):
        assert (row[at:] == END).all()
    nats = made.token_nll(params, {"x": out.tokens, "src": src}).sum(1)
    np.testing.assert_allclose(out.score, -np.asarray(nats), rtol=1e-4, atol=1e-4)


def test_refusals():
    with pytest.raises(ValueError, match="for pairs"):
        MAKE(source_length=None)
    with pytest.raises(ValueError, match="multiple of network.heads"):
        MAKE(width=15)
    net = MAKE()
    with pytest.raises(ValueError, match="was given no source"):
        net.trunk(net.init(jax.random.key(0)), jnp.zeros((1, L), int))

"""The laws of the draws, by chi-square tests with fixed seeds; tails included."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_lm import keys
from diffusion_lm.ops import categorical

CHUNK = 20_000
# conftest asks for little compilation; the long loops below are worth more.
OPTIMISED = {"xla_backend_optimization_level": "3"}


def count(draw, size, classes, seed=0):
    """How often each class came up in `size` calls of draw(keys): int[classes]."""

    def add(i, counts):
        keys_N = jax.random.split(jax.random.fold_in(jax.random.key(seed), i), CHUNK)
        return counts + jnp.bincount(draw(keys_N), length=classes)

    def run():
        return jax.lax.fori_loop(0, size // CHUNK, add, jnp.zeros(classes, jnp.int32))

    counts = np.asarray(jax.jit(run, compiler_options=OPTIMISED)())
    assert counts.sum() == size
    return counts


def p_value(counts, law):
    """Of the chi-square test; classes expected less than 5 times are one cell."""
    want = law * counts.sum()
    own = want >= 5
    pool = [] if own.all() else [True]
    seen = np.append(counts[own], [counts[~own].sum() for _ in pool])
    want = np.append(want[own], [want[~own].sum() for _ in pool])
    return stats.chisquare(seen, want).pvalue


def softmax(log_p):
    log_p = np.asarray(log_p, np.float64)
    p = np.exp(log_p - log_p.max())
    return p / p.sum()


# Tokens of two-level draws, in blocks of 20; the last block is cut at 10.
SIZE, V, WIDTH = 10_000_000, 390, 20
P = np.zeros((WIDTH, WIDTH))
P[:4, 0] = 0.2  # four heavy blocks, each one token
P[:4, 1:] = 1e-8  # and some rare ones that only the draw within the block can lose
P[4:16] = 2.4e-9  # blocks of nothing but rare tokens, that the draw of a block can lose
P[16] = 0.0
P[17] = np.logspace(-2.5, -6, WIDTH)
P[18] = 1e-6
P[19] = 0.7 ** np.arange(WIDTH) / 20
P = P.ravel()[:V]
with np.errstate(divide="ignore"):
    LOG_P = np.log(P).astype(np.float32) + np.float32(5)  # not normalised
LAW = softmax(LOG_P)


@pytest.fixture(scope="module")
def counts():
    assert WIDTH == math.isqrt(V - 1) + 1 and V > categorical.ONE_LEVEL and V % WIDTH
    return count(lambda keys_N: categorical.draw(keys_N, LOG_P), SIZE, V, seed=1)


def test_law_of_ten_million_draws(counts):
    assert (LAW * SIZE >= 5).sum() > 50
    assert p_value(counts, LAW) > 0.01


def test_the_rarest_tokens_together_have_their_share(counts):
    """Of probability 2e-9 to 1e-8 each: float32 noise would lose three in four of them."""
    rare = (LAW > 0) & (LAW < 1e-7)
    want = LAW[rare].sum() * SIZE
    assert rare.sum() > 300 and want > 12
    tail = stats.poisson(want)
    assert min(tail.cdf(counts[rare].sum()), tail.sf(counts[rare].sum() - 1)) > 0.01


def test_minus_infinity_is_never_drawn(counts):
    assert np.all(counts[P == 0] == 0) and np.sum(P == 0) == WIDTH
    keys_N, draw = jax.random.split(jax.random.key(1), 100), jax.jit(categorical.draw)
    for vocab in (3, V):
        for only in (0, vocab - 1):
            log_p = jnp.full(vocab, -jnp.inf).at[only].set(-3.0)
            assert np.all(draw(keys_N, log_p) == only)


@pytest.mark.parametrize("vocab", [2, 17, 256, 257])
def test_any_number_of_tokens(vocab):
    log_p = jax.random.normal(jax.random.key(vocab), (vocab,))
    counts = count(lambda keys_N: categorical.draw(keys_N, log_p), 40_000, vocab)
    assert p_value(counts, softmax(log_p)) > 0.01


@pytest.mark.parametrize("vocab", [17, V])
@pytest.mark.parametrize("offset", [-(2.0**16), 2.0**16])
def test_a_constant_changes_nothing(vocab, offset):
    """On a grid of 1/64 the sums are exact, so the draws must be the same to the last one."""
    log_p = jnp.round(64 * jax.random.normal(jax.random.key(0), (vocab,))) / 64
    keys_N = jax.random.split(jax.random.key(1), 1000)
    draw = jax.jit(categorical.draw)
    draws = draw(keys_N, log_p)
    np.testing.assert_array_equal(draw(keys_N, log_p + offset), draws)
    assert len(np.unique(draws)) > 10


def test_a_draw_depends_on_its_own_key_and_row_alone():
    log_p = jax.random.normal(jax.random.key(0), (4, 3, V))
    keys_BL = jax.random.split(jax.random.key(1), (4, 3))
    draw = jax.jit(categorical.draw)
    want = draw(keys_BL, log_p)
    assert want.shape == (4, 3) and want.dtype == jnp.int32
    np.testing.assert_array_equal(jax.vmap(draw)(keys_BL, log_p), want)
    np.testing.assert_array_equal(draw(keys_BL[2:, 1], log_p[2:, 1]), want[2:, 1])
    assert draw(keys_BL[3, 2], log_p[3, 2]) == want[3, 2]
    # Every key counts: one row with twelve keys has several outcomes.
    assert len(np.unique(draw(keys_BL, jnp.broadcast_to(log_p[0, 0], log_p.shape)))) > 3


@pytest.mark.parametrize("leading", [(), (4,), (4, 1), (1, 4), (3, 4)])
def test_no_key_serves_two_draws(leading):
    keys_BL = jax.random.split(jax.random.key(0), leading)
    with pytest.raises(ValueError):
        categorical.draw(keys_BL, jnp.zeros((4, 4, 3)))
    with pytest.raises(ValueError):
        categorical.draw_or_mask_float32(keys_BL, jnp.zeros((4, 4, 3)), 0.5)


def test_rare_tokens_have_their_share():
    """Tokens of probability 1e-5 are drawn as often as they should be."""
    size, rare = 2_000_000, 1e-5
    log_p = jnp.log(jnp.array([1 - 3 * rare, rare, rare, rare]))
    keys_N = keys.rows(jax.random.key(0), jnp.arange(size))
    count = int((jax.jit(categorical.draw)(keys_N, log_p) > 0).sum())
    want = 3 * rare * size
    assert abs(count - want) < 4 * math.sqrt(want)


def test_draw_or_mask_has_its_law():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    draw = functools.partial(categorical.draw_or_mask_float32, log_probs=np.log(p))
    counts = count(lambda keys_N: draw(keys_N, reveal=0.3), 1_000_000, 5)
    assert p_value(counts, np.append(0.3 * p, 0.7)) > 0.01
    keys_BL = jax.random.split(jax.random.key(0), (3, 1000))
    never, always, _ = draw(keys_BL, reveal=jnp.array([[0.0], [1.0], [0.5]]))
    assert np.all(never == 4) and not np.any(always == 4)


def test_draw_or_mask_loses_the_tail():
    """A thousand tokens of 4e-8 come up 0.16 as often as they should, on average."""
    size, vocab, p = 300_000, 1000, 4e-8
    log_p = jnp.full(vocab, -math.log(vocab))
    draw = functools.partial(categorical.draw_or_mask_float32, log_probs=log_p, reveal=p * vocab)
    seen = size - count(draw, size, vocab + 1)[-1]
    assert stats.poisson(size * vocab * p).cdf(seen) < 0.01


def test_temperature_and_top_p():
    p = jnp.array([0.5, 0.3, 0.15, 0.05])
    cold = jnp.exp(categorical.shape(jnp.log(p), temperature=0.5))
    np.testing.assert_allclose(cold, p**2 / (p**2).sum(), rtol=1e-5)
    for top_p, kept in [(0.4, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (1.0, 4)]:
        shaped = np.exp(categorical.shape(jnp.log(p), top_p=top_p))
        want = np.where(np.arange(4) < kept, p, 0)
        np.testing.assert_allclose(shaped, want / want.sum(), rtol=1e-5)


@pytest.mark.parametrize("vocab", [5, 400])
def test_several_draws_of_a_key(vocab):
    """Each has the law of one, they differ, and more of them change nothing of the first."""
    log_probs = jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (3, vocab)) * 2)
    keys = jax.random.split(jax.random.key(0), 3)
    few, log_few = categorical.draw_several(keys, log_probs, 2)
    many, _ = categorical.draw_several(keys, log_probs, 20_000)
    np.testing.assert_array_equal(few, many[:, :2])
    np.testing.assert_array_equal(log_few, np.take_along_axis(np.asarray(log_probs), few, axis=1))
    for row in range(3):
        share = np.bincount(many[row], minlength=vocab) / many.shape[1]
        assert np.abs(share - np.exp(log_probs[row])).max() < 0.02

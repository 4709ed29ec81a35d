"""The laws of the samplers, against sums over all states."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from diffusion_lm import keys, processes, schedules
from diffusion_lm.objectives import ar, md4
from diffusion_lm.ops import categorical
from diffusion_lm.samplers import ancestral, autoregressive

NUM = 200_000
FREE = np.ones((NUM, toy.L), bool)
UNKNOWN = np.full((NUM, toy.L), toy.MASK, np.int32)


def draw(sampler, prompt=UNKNOWN, free=FREE, seed=0):
    keys_B = keys.rows(jax.random.key(seed), jnp.arange(len(prompt)))
    out = jax.jit(sampler.sample)({"network": {"unused": jnp.zeros(1)}}, keys_B, prompt, free)
    return np.asarray(out.tokens), int(out.calls)


def assert_law(tokens, law, states):
    """Chi-square test of counts against exact probabilities, and total variation under 0.01."""
    counts = np.array([np.all(tokens == s, axis=1).sum() for s in states])
    assert counts.sum() == len(tokens)
    assert np.abs(counts / len(tokens) - law).sum() / 2 < 0.01
    seen = law * len(tokens) > 5
    assert counts[law == 0].sum() == 0
    chi2 = ((counts - law * len(tokens)) ** 2 / np.maximum(law * len(tokens), 1e-9))[seen].sum()
    degrees = seen.sum() - 1
    assert chi2 < degrees + 4 * math.sqrt(2 * degrees)  # p of about 1e-4


def kernel_law(process, times, denoiser=toy.DENOISER, reveal_last=True):
    """The T-step law by enumeration: every masked position is revealed with (a_s - a_t)/(1 - a_t)
    and then drawn from the denoiser, all positions independently."""
    law = np.zeros(len(toy.Z))
    law[toy.index(np.full(toy.L, toy.MASK))] = 1
    mu = np.exp(denoiser)
    for t, s in itertools.pairwise(times):
        reveal = (
            1.0 if s == 0 and reveal_last else float(processes.reveal_prob(process.schedule, t, s))
        )
        new = np.zeros_like(law)
        for z, p in zip(toy.Z, law, strict=True):
            if p == 0:
                continue
            options = []
            for n in range(toy.L):
                if z[n] != toy.MASK:
                    options.append([(z[n], 1.0)])
                else:
                    row = mu[toy.index(z), n]
                    options.append(
                        [(toy.MASK, 1 - reveal)] + [(v, reveal * row[v]) for v in range(toy.V)]
                    )
            for choice in itertools.product(*options):
                new[toy.index(np.array([c[0] for c in choice]))] += p * math.prod(
                    c[1] for c in choice
                )
        law = new
    return law


@pytest.fixture(scope="module")
def model():
    return toy.objective(md4, toy.exact_network)


@pytest.mark.parametrize(
    "grid,steps", [("uniform", 1), ("uniform", 2), ("cosine", 3), ("cosine", 8)]
)
def test_ancestral_law_is_the_enumerated_kernel(model, grid, steps):
    tokens, calls = draw(ancestral.make(objective=model, num_steps=steps, grid=grid), seed=steps)
    time = schedules.grid(grid, steps)
    times = [float(time(float(i))) for i in range(steps, -1, -1)]
    law = kernel_law(model.process(None), times)
    assert abs(law.sum() - 1) < 1e-6
    assert_law(tokens, law, toy.Z)
    assert calls <= steps


def test_many_steps_approach_the_data(model):
    """With T steps the law is the data's up to O(1/T): enumerated, so no noise hides the rate."""
    joint = np.zeros(len(toy.Z))
    joint[toy.index(toy.X)] = toy.P_X
    gaps = []
    for steps in (4, 16, 64):
        times = np.linspace(1, 0, steps + 1)
        gaps.append(np.abs(kernel_law(model.process(None), times) - joint).sum() / 2)
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert 2.5 < gaps[0] / gaps[1] < 6 and 2.5 < gaps[1] / gaps[2] < 6


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_one_token_at_a_time_gives_the_data(model, order):
    """Positions revealed one by one, in any order, give p(x) itself."""
    sampler = ancestral.make(objective=model, num_steps=2)
    tokens = UNKNOWN
    for place in order:
        free = np.zeros_like(FREE)
        free[:, place] = True
        tokens, _ = draw(sampler, tokens, free, seed=17 + place)
    assert_law(tokens, toy.P_X, toy.X)


def test_infilling_clamps_and_conditions(model):
    """Given x^1 = 2, with positions filled one by one: the exact conditional; x^1 never moves."""
    sampler = ancestral.make(objective=model, num_steps=3)
    tokens = UNKNOWN.copy()
    tokens[:, 1] = 2
    for place in (2, 0):
        free = np.zeros_like(FREE)
        free[:, place] = True
        tokens, _ = draw(sampler, tokens, free, seed=place)
    given = np.where(toy.X[:, 1] == 2, toy.P_X, 0)
    assert_law(tokens, given / given.sum(), toy.X)


def test_unknown_positions_stay_unknown(model):
    """A mask that is not free is marginalised out: x^0 alone then has its marginal law."""
    free = np.zeros_like(FREE)
    free[:, 0] = True
    tokens, _ = draw(ancestral.make(objective=model, num_steps=5), UNKNOWN, free)
    assert np.all(tokens[:, 1:] == toy.MASK)
    want = np.array([toy.P_X[toy.X[:, 0] == v].sum() for v in range(toy.V)])
    assert np.abs(np.bincount(tokens[:, 0], minlength=toy.V) / NUM - want).max() < 0.005


def test_autoregressive_law_is_the_data():
    model = toy.objective(ar, toy.exact_network)
    tokens, calls = draw(autoregressive.make(objective=model))
    assert_law(tokens, toy.P_X, toy.X)
    assert calls == toy.L


def test_autoregressive_continues_a_prefix():
    model = toy.objective(ar, toy.exact_network)
    prompt, free = UNKNOWN.copy(), FREE.copy()
    prompt[:, 0], free[:, 0] = 1, False
    tokens, _ = draw(autoregressive.make(objective=model), prompt, free)
    given = np.where(toy.X[:, 0] == 1, toy.P_X, 0)
    assert_law(tokens, given / given.sum(), toy.X)


def test_a_sample_depends_on_its_own_key_alone(model):
    sampler = jax.jit(ancestral.make(objective=model, num_steps=4).sample)
    params = {"network": {"unused": jnp.zeros(1)}}
    row_keys = keys.rows(keys.stream(3, "sample"), jnp.arange(8))
    many = sampler(params, row_keys, UNKNOWN[:8], FREE[:8]).tokens
    few = sampler(params, row_keys[5:7], UNKNOWN[:2], FREE[:2]).tokens
    np.testing.assert_array_equal(many[5:7], few)


def test_one_compilation_for_all_prompts_of_a_length(model):
    sampler = jax.jit(ancestral.make(objective=model, num_steps=4).sample)
    params = {"network": {"unused": jnp.zeros(1)}}
    row_keys = keys.rows(jax.random.key(0), jnp.arange(4))
    for place in range(toy.L):
        free = np.arange(toy.L) >= place
        sampler(params, row_keys, UNKNOWN[:4], np.tile(free, (4, 1)))
    assert sampler._cache_size() == 1


@pytest.mark.parametrize("make", [ancestral.make, autoregressive.make])
def test_bad_options(make, model):
    with pytest.raises(ValueError, match="top_p"):
        make(objective=model if make is ancestral.make else ar_model(), top_p=0.0)
    with pytest.raises(ValueError, match="temperature"):
        make(objective=model if make is ancestral.make else ar_model(), temperature=0.0)
    with pytest.raises(ValueError, match="served by"):
        make(objective=ar_model() if make is ancestral.make else model)


def ar_model():
    return toy.objective(ar, toy.exact_network)


def test_rare_tokens_have_their_share():
    """Tokens of probability 1e-5 are drawn as often as they should be."""
    size, rare = 2_000_000, 1e-5
    log_p = jnp.log(jnp.array([1 - 3 * rare, rare, rare, rare]))
    row_keys = keys.rows(jax.random.key(0), jnp.arange(20))
    out = categorical.draw(row_keys, jnp.broadcast_to(log_p, (20, size // 20, 4)))
    count = int((out > 0).sum())
    want = 3 * rare * size
    assert abs(count - want) < 4 * math.sqrt(want)


def test_temperature_and_top_p():
    p = jnp.array([0.5, 0.3, 0.15, 0.05])
    cold = jnp.exp(categorical.shape(jnp.log(p), temperature=0.5))
    np.testing.assert_allclose(cold, p**2 / (p**2).sum(), rtol=1e-5)
    for top_p, kept in [(0.4, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (1.0, 4)]:
        shaped = np.exp(categorical.shape(jnp.log(p), top_p=top_p))
        want = np.where(np.arange(4) < kept, p, 0)
        np.testing.assert_allclose(shaped, want / want.sum(), rtol=1e-5)

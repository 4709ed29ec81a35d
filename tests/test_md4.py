"""MD4: the bound by enumeration, its limits, the posterior."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from diffusion_lm import keys, processes, schedules
from diffusion_lm.objectives import md4


def pattern_nats(x, denoiser):
    """{mask pattern: sum of cross entropies at its masked positions}, in nats."""
    return {
        tuple(m): -denoiser[toy.index(np.where(m, toy.MASK, x))][m, x[m]].sum()
        for m in toy.masked_patterns()
    }


def enumerated_bound(x, schedule, steps, denoiser=toy.DENOISER):
    """The discrete-time bound with T steps, summed over all mask patterns, in float64."""
    nats = pattern_nats(x, denoiser)
    total = toy.L * float(schedule.mask_prob(jnp.float64(0))) * math.log(toy.V)
    for i in range(1, steps + 1):
        t, s = jnp.float64(i / steps), jnp.float64((i - 1) / steps)
        p = float(schedule.mask_prob(t))
        inner = sum(p ** sum(m) * (1 - p) ** (toy.L - sum(m)) * value for m, value in nats.items())
        total += float(processes.reveal_prob(schedule, t, s)) * inner
    return total


def test_discrete_bound_falls_to_the_continuous_one():
    """For the exact denoiser the limit is -log p(x); the excess falls like 1/T."""
    with jax.enable_x64(True):
        for row in (0, 13, 25):
            x, want = toy.X[row], -math.log(toy.P_X[row])
            average = [enumerated_bound(x, schedules.linear(eps=1e-9), T) for T in (8, 32, 128)]
            excess = np.array(average) - want
            assert np.all(np.abs(excess[1:] / excess[:-1] - 0.25) < 0.08)


def test_discrete_bound_averaged_over_data_exceeds_the_entropy():
    with jax.enable_x64(True):
        entropy = -(toy.P_X * np.log(toy.P_X)).sum()
        bounds = [
            sum(
                p * enumerated_bound(x, schedules.cosine(), T)
                for x, p in zip(toy.X, toy.P_X, strict=True)
            )
            for T in (1, 2, 4, 8)
        ]
    assert bounds[0] > bounds[1] > bounds[2] > bounds[3] > entropy


@pytest.mark.parametrize("steps", [1, 4])
def test_discrete_loss_averages_to_the_enumerated_bound(steps):
    objective = toy.objective(md4, toy.exact_network, timesteps=steps)
    batch = keys.number({"x": jnp.tile(jnp.asarray(toy.X[7], jnp.int32), (2048, 1))})
    params = objective.init(jax.random.key(0))
    nll = jax.jit(lambda key: objective.nll(params, batch, key).mean())
    got = np.array([nll(jax.random.key(i)) for i in range(64)], np.float64)
    with jax.enable_x64(True):
        want = enumerated_bound(toy.X[7], schedules.linear(), steps)
    error = got.std(ddof=1) / 8
    assert abs(got.mean() - want) < 4 * error + 1e-5


def test_any_order_form_is_the_integral():
    """E_n L/n E_subset [...] equals -log p(x) for the exact denoiser, summed exactly."""
    for row in range(len(toy.X)):
        x = toy.X[row]
        total = 0.0
        for m, value in pattern_nats(x, toy.DENOISER).items():
            n = sum(m)
            if n:
                total += value * toy.L / n / toy.L / math.comb(toy.L, n)
        assert abs(total + math.log(toy.P_X[row])) < 1e-6


def test_pairs_mask_n_and_its_complement_count():
    seen = []

    def spy(*, inputs, outputs, causal, time_input):
        network = toy.zero_network(inputs=inputs, outputs=outputs)

        def trunk(params, tokens, t=None, keys=None):
            seen.append(np.asarray((tokens == toy.MASK).sum(1)))
            return jnp.zeros((*tokens.shape, outputs))

        return network._replace(trunk=trunk)

    objective = toy.objective(md4, spy, estimator="paired")
    batch = keys.number({"x": jnp.zeros((12, toy.L), jnp.int32)})
    nll = objective.nll(objective.init(None), batch, jax.random.key(0))
    counts = seen[0].reshape(-1, 2)
    assert np.all(counts.sum(1) == toy.L + 1) and counts.min() >= 1
    assert sorted(counts[:, 0]) == sorted([1, 2, 3] * 2)  # n itself is stratified over the batch
    np.testing.assert_allclose(nll, toy.L * math.log(toy.V), rtol=1e-6)  # for every single draw


def test_time_input_reaches_the_network():
    """With time_input the network sees the t of the corruption, one a row; without, none."""
    seen = []

    def spy(*, inputs, outputs, causal, time_input):
        def trunk(params, tokens, t=None, keys=None):
            seen.append(t)
            return jnp.zeros((*tokens.shape, outputs))

        return toy.zero_network(inputs=inputs, outputs=outputs)._replace(trunk=trunk)

    batch = keys.number({"x": jnp.zeros((8, toy.L), jnp.int32)})
    for timesteps, time_input in [(0, True), (5, True)]:
        objective = toy.objective(md4, spy, time_input=time_input, timesteps=timesteps)
        objective.nll(objective.init(None), batch, jax.random.key(0))
    continuous, discrete = (np.sort(t) for t in seen)
    np.testing.assert_allclose(np.diff(continuous), 1 / 8, atol=1e-6)
    np.testing.assert_allclose(discrete * 5, np.round(discrete * 5), atol=1e-5)
    assert set(np.round(discrete * 5)) == {1, 2, 3, 4, 5}
    predict = objective.predict(objective.init(None))
    predict(batch["x"], jnp.full(8, 0.25))
    np.testing.assert_array_equal(seen[-1], 0.25)


def test_low_discrepancy_lowers_the_variance():
    """At equal network calls, for a network that predicts better the less is masked."""

    def network(*, inputs, outputs, causal, time_input):
        def trunk(params, tokens, t=None, keys=None):
            known = 1 - (tokens == toy.MASK).mean(1, keepdims=True)
            right = jnp.broadcast_to(4 * known, tokens.shape)[..., None]
            return jnp.concatenate([right, jnp.zeros((*tokens.shape, outputs - 1))], -1)

        return toy.zero_network(inputs=inputs, outputs=outputs)._replace(trunk=trunk)

    variance = {}
    for estimator in md4.ESTIMATORS:
        objective = toy.objective(md4, network, estimator=estimator)
        batch = keys.number({"x": jnp.zeros((16, 64), jnp.int32)})
        nll = jax.jit(lambda k, o=objective, b=batch: o.nll(o.init(None), b, k).mean())
        variance[estimator] = np.var([float(nll(jax.random.key(i))) for i in range(1000)])
    assert variance["independent"] > 1.3 * variance["low_discrepancy"]
    assert variance["low_discrepancy"] > 1.3 * variance["paired"]


def test_posterior_satisfies_bayes():
    """q(z_s | z_t, x) q(z_t | x) = q(z_t | z_s) q(z_s | x), position by position."""
    process = processes.absorbing(schedules.cosine(), toy.V)
    t, s = jnp.array([0.7]), jnp.array([0.4])
    alpha_t, alpha_s = (float(process.schedule.alpha(u)[0]) for u in (t, s))
    size = toy.V + 1
    for x, z in itertools.product(range(toy.V), (None, toy.MASK)):
        z_t = x if z is None else z
        got = np.asarray(process.posterior(jnp.array([[z_t]]), jnp.array([[x]]), t, s))[0, 0]
        q_t = alpha_t * (np.arange(size) == x) + (1 - alpha_t) * (np.arange(size) == toy.MASK)
        q_s = alpha_s * (np.arange(size) == x) + (1 - alpha_s) * (np.arange(size) == toy.MASK)
        keep = alpha_t / alpha_s
        forward = np.array(  # q(z_t | z_s) for every z_s
            [keep * (v == z_t) + (1 - keep) * (z_t == toy.MASK) for v in range(size)]
        )
        forward[toy.MASK] = float(z_t == toy.MASK)
        np.testing.assert_allclose(got * q_t[z_t], forward * q_s, atol=1e-6)


def test_corruption_has_the_schedules_rate():
    process = processes.absorbing(schedules.linear(), 5)
    row_keys = keys.rows(jax.random.key(0), jnp.arange(1000))
    x = jnp.full((1000, 100), 2)
    z = process.corrupt(row_keys, x, jnp.full(1000, 0.3))
    rate = float((z == process.mask).mean())
    assert abs(rate - float(process.schedule.mask_prob(jnp.float32(0.3)))) < 4 * 0.46 / 316
    assert set(np.unique(z)) == {2, 5}
    assert np.all(process.prior(row_keys, 4) == 5)


def test_prediction_keeps_what_is_known():
    objective = toy.objective(md4, toy.exact_network)
    predict = objective.predict(objective.init(None))
    log_mu = predict(jnp.array([[1, toy.MASK, 0]]), jnp.array([0.5]))
    assert log_mu.shape == (1, toy.L, toy.V)
    np.testing.assert_allclose(jnp.exp(log_mu).sum(-1), 1, atol=1e-5)
    assert log_mu[0, 0, 1] == 0 and log_mu[0, 2, 0] == 0 and np.isneginf(log_mu[0, 0, 0])


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="choices: independent"):
        toy.objective(md4, toy.exact_network, estimator="iid")
    with pytest.raises(ValueError, match="time_input=False"):
        toy.objective(md4, toy.exact_network, estimator="paired", time_input=True)
    objective = toy.objective(md4, toy.exact_network, estimator="paired")
    with pytest.raises(ValueError, match="even number of rows"):
        objective.nll(
            objective.init(None), keys.number({"x": jnp.zeros((3, 3), int)}), jax.random.key(0)
        )

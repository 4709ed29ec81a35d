"""MD4: the bound by enumeration, its limits, the posterior."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from diffusion_lm import keys, processes, schedules
from diffusion_lm.objectives import md4

NONE = {"network": {}}  # the parameters of a table
WRONG = np.array(jax.nn.log_softmax(np.random.default_rng(1).normal(size=toy.DENOISER.shape) * 1.5))


def table_network(denoiser, seen=None, *, inputs, outputs, causal=False, time_input=False):
    """Predicts from a table; notes (tokens, t, label) of every call in `seen`."""
    table = jnp.asarray(denoiser, jnp.float32)

    def trunk(params, tokens, t=None, keys=None, label=None):
        if seen is not None:
            seen.append((tokens, t, label))
        return table[toy.index(tokens)]

    return toy.exact_network(inputs=inputs, outputs=outputs)._replace(trunk=trunk)


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


def any_order_bound(x, denoiser):
    """sum_n 1/n E_subset [ cross entropies ], summed over all mask patterns, in nats."""
    return sum(
        value / sum(m) / math.comb(toy.L, sum(m))
        for m, value in pattern_nats(x, denoiser).items()
        if any(m)
    )


def time_bound(x, schedule, denoiser):
    """The continuous-time bound, an integral over p = 1 - alpha that any schedule shares."""
    low = float(schedule.mask_prob(jnp.float32(0)))
    nodes, weights = np.polynomial.legendre.leggauss(8)
    p, weights = low + (1 - low) * (nodes + 1) / 2, (1 - low) * weights / 2
    total = toy.L * low * math.log(toy.V)
    for m, value in pattern_nats(x, denoiser).items():
        if any(m):
            total += value * (weights * p ** (sum(m) - 1) * (1 - p) ** (toy.L - sum(m))).sum()
    return total


def test_any_order_form_is_the_integral():
    """It equals -log p(x) for the exact denoiser, and the integral over time for any other."""
    for x, p in zip(toy.X, toy.P_X, strict=True):
        assert abs(any_order_bound(x, toy.DENOISER) + math.log(p)) < 1e-6
        bounds = [time_bound(x, schedules.cosine(eps=e), WRONG) for e in (1e-7, 1e-4)]
        np.testing.assert_allclose(bounds, any_order_bound(x, WRONG), atol=1e-3)
        assert abs(bounds[0] - any_order_bound(x, WRONG)) < 1e-5


def batch_means(score, x, *, size=32, batches=10_000):
    """f64[batches]: means of score(batch, key) over batches that hold `size` times the same x."""
    batch = keys.number({"x": jnp.tile(jnp.asarray(x, jnp.int32), (size, 1))})
    means = jax.jit(jax.vmap(lambda key: score(batch, key).mean()))
    return np.asarray(means(jax.random.split(jax.random.key(size), batches)), np.float64)


def errors_off(values, want) -> float:
    """Distance of the mean of `values` from `want` in standard errors."""
    return abs(values.mean() - want) / (values.std(ddof=1) / math.sqrt(len(values)))


def loss_of(objective):
    return lambda batch, key: objective.loss(NONE, batch, key, train=False).loss


LOSSES = [(e, d) for e in md4.ESTIMATORS for d in (1, 2) if d == 1 or e in md4.SINGLE]


@pytest.mark.parametrize("denoiser", [toy.DENOISER, WRONG], ids=["exact", "wrong"])
@pytest.mark.parametrize("estimator,draws", LOSSES)
def test_estimators_are_unbiased(estimator, draws, denoiser, monkeypatch):
    """To 3 standard errors over 10,000 batches; and a weight 2 % off would be seen."""
    x, network = toy.X[20], partial(table_network, denoiser)
    objective = toy.objective(md4, network, estimator=estimator, draws=draws)
    want = any_order_bound(x, denoiser)
    if estimator in md4.BY_TIME:
        want = time_bound(x, schedules.linear(), denoiser)
    got = batch_means(loss_of(objective), x)
    assert errors_off(got, want) < 3
    if estimator == "control_variate":  # its weight is on a part of the bound only
        early = md4.early_counts
        monkeypatch.setattr(md4, "early_counts", lambda *a: (early(*a)[0], 1.02 * early(*a)[1]))
        assert errors_off(batch_means(loss_of(objective), x), want) > 3
    else:
        assert errors_off(1.02 * got, want) > 3


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_nll_is_unbiased_at_any_batch_size(size):
    for options in ({}, {"time_input": True}):
        objective = toy.objective(md4, partial(table_network, WRONG), **options)
        got = batch_means(lambda *a, o=objective: o.nll(NONE, *a), toy.X[20], size=size)
        assert errors_off(got, any_order_bound(toy.X[20], WRONG)) < 3


def test_nll_takes_the_best_estimator_that_the_network_allows():
    """Whatever training uses: the control variate without time, else low-discrepancy times."""
    batch = keys.number({"x": jnp.asarray(toy.X[:8], jnp.int32)})
    network, key = partial(table_network, WRONG), jax.random.key(0)
    for best, others, options in [
        ("control_variate", ("low_discrepancy", "paired"), {}),
        ("low_discrepancy", ("independent",), {"time_input": True}),
        ("low_discrepancy", ("independent",), {"timesteps": 4}),
    ]:
        want = toy.objective(md4, network, estimator=best, **options)
        want = jax.jit(loss_of(want))(batch, key)
        for other in others:
            got = toy.objective(md4, network, estimator=other, **options)
            got = jax.jit(partial(got.nll, NONE))(batch, key)
            np.testing.assert_array_equal(got, want)


LONG = 10  # positions, for the counts


def masks_of(estimator, size=12, **options):
    """Masks bool[calls][rows, LONG] that the network sees for one loss."""
    seen = []

    def spy(*, inputs, outputs, causal, time_input):
        def trunk(params, tokens, t=None, keys=None, label=None):
            seen.append((np.asarray(tokens == toy.MASK), t))
            return jnp.zeros((*tokens.shape, outputs))

        return toy.zero_network(inputs=inputs, outputs=outputs)._replace(trunk=trunk)

    objective = toy.objective(md4, spy, length=LONG, estimator=estimator, **options)
    batch = keys.number({"x": jnp.zeros((size, LONG), jnp.int32)})
    nats = objective.loss(NONE, batch, jax.random.key(0), train=False).loss
    if estimator not in md4.BY_TIME:  # for every single draw
        np.testing.assert_allclose(nats, LONG * math.log(toy.V), rtol=1e-6)
    return seen


def test_counts_are_spread_over_the_batch():
    ((masked, _),) = masks_of("counts", size=2 * LONG)
    assert sorted(masked.sum(1)) == sorted([*range(1, LONG + 1)] * 2)


def test_pairs_mask_n_and_its_complement_count():
    ((masked, _),) = masks_of("paired", size=2 * LONG)
    counts = masked.sum(1).reshape(-1, 2)
    assert np.all(counts.sum(1) == LONG + 1) and counts.min() >= 1
    assert sorted(counts[:, 0]) == [*range(1, LONG + 1)]  # n itself is spread over the batch


def test_complementary_masks_share_one_position():
    ((masked, _),) = masks_of("complementary", size=LONG)
    first, second = masked[::2], masked[1::2]
    assert np.all(first | second) and np.all((first & second).sum(1) == 1)
    assert sorted(first.sum(1)) == [*range(1, LONG + 1)]


def test_control_variate_masks_few_positions_more_often():
    """n = ceil(L u^2) and ceil(L (1 - u)^2): at most L+1 in a pair, a third of all in the mean."""
    (masked, _), (unseen, _) = masks_of("control_variate", size=200)
    assert unseen.shape == (1, LONG) and unseen.all()
    counts = masked.sum(1)
    assert counts.min() == 1 and np.all(counts.reshape(-1, 2).sum(1) <= LONG + 1)
    for n in range(1, LONG + 1):
        want = math.sqrt(n / LONG) - math.sqrt((n - 1) / LONG)
        assert abs((counts == n).mean() - want) <= 0.01


@pytest.mark.parametrize("length", [1, 2, 3, 64, 1024])
def test_early_counts_fit_into_pairs(length):
    u = jnp.asarray([0.0, 1e-9, 1e-4, 0.3, 0.5, 0.999, 1 - 2**-24], jnp.float32)
    n, other = (md4.early_counts(v, length)[0] for v in (u, 1 - u))
    assert n.min() >= 1 and n.max() <= length and (n + other).max() <= length + 1
    n, weight = md4.early_counts(jnp.sqrt(jnp.arange(1, length + 1) / length) - 1e-5, length)
    np.testing.assert_array_equal(n, np.arange(1, length + 1))
    np.testing.assert_allclose((1 / (weight * n)).sum(), 1, rtol=1e-5)  # the sum of all P(n)


@pytest.mark.parametrize("estimator", md4.SINGLE)
def test_draws_share_the_time_and_not_the_mask(estimator):
    time_input = estimator in md4.BY_TIME
    (one, t), (other, s) = masks_of(estimator, size=32, draws=2, time_input=time_input)
    ((alone, r),) = masks_of(estimator, size=32, time_input=time_input)
    np.testing.assert_array_equal(one, alone)
    if time_input:
        np.testing.assert_array_equal(t, s)
        np.testing.assert_array_equal(t, r)
        assert (one.mean(1) - other.mean(1)).std() < 0.3  # 0.45 if the times were independent
    else:
        np.testing.assert_array_equal(one.sum(1), other.sum(1))
    assert np.mean(np.any(one != other, axis=1)) > 0.7


def test_the_prediction_from_masks_alone_has_no_label():
    """One row serves examples of all labels; the rows of an example have its own."""
    seen = []
    network = partial(table_network, WRONG, seen)
    batch = keys.number({"x": jnp.zeros((4, toy.L), jnp.int32), "label": jnp.arange(4) % 3})
    for estimator in ("control_variate", "complementary"):
        score = loss_of(toy.objective(md4, network, estimator=estimator, classes=3))
        jax.eval_shape(score, batch, jax.random.key(0))
    shapes = [
        (tokens.shape[0], None if label is None else label.shape[0]) for tokens, _, label in seen
    ]
    assert shapes == [(4, 4), (1, None), (8, 8)]


def test_time_input_reaches_the_network():
    """With time_input the network sees the t of the corruption, one a row; without, none."""
    seen = []

    def spy(*, inputs, outputs, causal, time_input):
        def trunk(params, tokens, t=None, keys=None, label=None):
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
    denoiser = objective.predict(objective.init(None))
    denoiser.trunk(batch["x"], jnp.full(8, 0.25))
    np.testing.assert_array_equal(seen[-1], 0.25)


def test_variance_falls_from_estimator_to_estimator():
    """At equal network rows, where tokens are of different frequencies f and every log f rises by
    what the unmasked part of the text tells."""
    vocab, length = 16, 64
    x = jnp.arange(length) % vocab
    log_f = jax.nn.log_softmax(-jnp.arange(vocab) / 3)

    def network(*, inputs, outputs, causal, time_input):
        def trunk(params, tokens, t=None, keys=None, label=None):
            known = 1 - (tokens == vocab).mean(1)[:, None]
            right = log_f[x] + known
            rest = jnp.log1p(-jnp.exp(right)) - jnp.log1p(-jnp.exp(log_f[x]))
            is_right = jax.nn.one_hot(x, vocab, dtype=bool)
            return jnp.where(is_right, right[..., None], log_f + rest[..., None])

        return toy.zero_network(inputs=inputs, outputs=outputs)._replace(trunk=trunk)

    variance = {}
    for estimator in md4.ESTIMATORS:
        objective = toy.objective(
            md4, network, vocab_size=vocab, length=length, estimator=estimator
        )
        size = 4 if estimator == "complementary" else 8
        values = batch_means(loss_of(objective), x, size=size, batches=1000)
        variance[estimator] = values.var()
    assert variance["independent"] > 1.3 * variance["low_discrepancy"]
    assert variance["low_discrepancy"] > 1.3 * variance["counts"]
    assert variance["low_discrepancy"] > 1.3 * variance["paired"]
    assert variance["counts"] > 1.3 * variance["complementary"]
    assert variance["complementary"] > 1.3 * variance["control_variate"]


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


def test_the_denoiser_is_normalised_at_any_rows():
    objective = toy.objective(md4, toy.exact_network)
    denoiser = objective.predict(objective.init(None))
    z = jnp.array([[1, toy.MASK, 0]])
    h = denoiser.trunk(z, jnp.array([0.5]))
    log_mu = denoiser.head(h)
    assert log_mu.shape == (1, toy.L, toy.V)
    np.testing.assert_allclose(jnp.exp(log_mu).sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(denoiser.head(h[0, 1:2]), log_mu[0, 1:2])


BAD_OPTIONS = [
    ({"estimator": "iid"}, "choices: independent"),
    ({"timesteps": -1}, "must be 0"),
    *(({"estimator": e, "time_input": True}, "time_input=False") for e in md4.ESTIMATORS[2:]),
    *(({"estimator": e, "timesteps": 4}, "timesteps=0") for e in md4.ESTIMATORS[2:]),
    ({"draws": 0}, "at least 1"),
    *(({"estimator": e, "draws": 2}, "one of the estimators") for e in md4.ESTIMATORS[3:]),
]


@pytest.mark.parametrize("options,message", BAD_OPTIONS)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        toy.objective(md4, toy.exact_network, **options)


@pytest.mark.parametrize("estimator", ["paired", "control_variate"])
def test_pairs_need_even_batches(estimator):
    objective = toy.objective(md4, toy.exact_network, estimator=estimator)
    batch = keys.number({"x": jnp.zeros((3, 3), int)})
    with pytest.raises(ValueError, match="even number of rows"):
        objective.loss(objective.init(None), batch, jax.random.key(0), train=True)

"""GenMD4: the bound, its RLOO gradient and its reverse transition, against enumeration."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from diffusion_lm import keys
from diffusion_lm.objectives import genmd4, md4
from diffusion_lm.samplers import state_dependent

W = np.array([0.5, 1.0, 2.5])  # exponents far from the linear schedule
RAW = jnp.asarray(np.log(np.expm1(W)), jnp.float32)
PATTERNS = toy.masked_patterns()


def exact_network(*, inputs, outputs, causal=False, time_input=True):
    """p(x^n | z, t): what is masked at t weighs each sequence by P(masked) = t^w."""
    x, log_p = jnp.asarray(toy.X), jnp.log(jnp.asarray(toy.P_X, jnp.float32))

    def trunk(params, tokens, t, keys=None, label=None):
        hidden = tokens == toy.MASK
        fits = (hidden[:, None] | (x == tokens[:, None])).all(-1)  # [B, 27]
        weight = (hidden[:, None] * jnp.asarray(W, jnp.float32)[x] * jnp.log(t)[:, None, None]).sum(
            -1
        )
        log_joint = jnp.where(fits, log_p + weight, -jnp.inf)
        is_v = jax.nn.one_hot(x, toy.V, dtype=bool)  # [27, L, V]
        return jax.nn.logsumexp(jnp.where(is_v, log_joint[:, :, None, None], -jnp.inf), axis=1)

    exact = toy.exact_network(inputs=inputs, outputs=outputs)
    return exact._replace(trunk=trunk, head=lambda params, h: jnp.maximum(h, -80.0))


def at_one_time(**options):
    """The exact network for a sampler, whose rows are all at one time: of the 64 states once."""
    exact = exact_network(**options)

    def trunk(params, tokens, t, keys=None, label=None):
        every = exact.trunk(params, jnp.asarray(toy.Z), jnp.full(len(toy.Z), t[0]))
        return every[toy.index(tokens)]

    return exact._replace(trunk=trunk)


def wrong_network(*, inputs, outputs, causal=False, time_input=True):
    """Some prediction with parameters, the same at any time."""
    table = np.random.default_rng(3).normal(size=(len(toy.Z), toy.L, toy.V))

    def trunk(params, tokens, t=None, keys=None, label=None):
        return params["table"][toy.index(tokens)]

    exact = toy.exact_network(inputs=inputs, outputs=outputs)
    init = lambda key: {"table": jnp.asarray(table, jnp.float32)}  # noqa: E731
    return exact._replace(init=init, trunk=trunk, head=lambda params, h: h)


def made(network, **options):
    objective = toy.objective(genmd4, network, **options)
    return objective, objective.init(jax.random.key(0)) | {"power": RAW}


def batch_of(x, size):
    return keys.number({"x": jnp.tile(jnp.asarray(x, jnp.int32), (size, 1))})


def enumerated(w_V, mu, x, first_time):
    """The bound as a sum over masks and a quadrature over log t; mu(z, t) -> [T, L, V]."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    low = math.log(first_time)
    log_t, weights = jnp.asarray((1 - nodes) / 2 * low), jnp.asarray(-weights / 2 * low)
    w_x, total = w_V[x], 0.0
    for m in PATTERNS:
        mu_TLV = mu(jnp.where(m, toy.MASK, x), jnp.exp(log_t))
        rates_TL = mu_TLV @ w_V - w_x * (jnp.log(mu_TLV[:, jnp.arange(toy.L), x]) + 1)
        hidden = jnp.exp(w_x * log_t[:, None])
        q_T = jnp.where(m, hidden, 1 - hidden).prod(1)
        total += (weights * q_T * jnp.where(m, rates_TL, 0).sum(1)).sum()  # dt / t = d log t
    start = jnp.exp(w_x * low) * (jax.nn.logsumexp(w_V * low) - w_x * low)
    return total + start.sum()


@pytest.mark.parametrize("row", [0, 13, 25])
def test_bound_of_the_exact_model_is_the_nll_at_any_exponents(row):
    network = exact_network(inputs=4, outputs=3)

    def mu(z, t):
        z_TL = jnp.broadcast_to(z, (len(t), toy.L))
        return jax.nn.softmax(network.head(None, network.trunk(None, z_TL, t)))

    got = float(enumerated(jnp.asarray(W, jnp.float32), mu, toy.X[row], 1e-8))
    assert abs(got + math.log(toy.P_X[row])) < 2e-3


def test_bound_and_rloo_gradient_are_the_enumerated_ones():
    """Value and gradient, to the exponents through q and to the network, by a z-test."""
    objective, params = made(wrong_network)
    x = toy.X[5]

    def bound(params):
        def mu(z, t):
            row = jax.nn.softmax(params["network"]["table"][toy.index(z)])
            return jnp.broadcast_to(row, (len(t), toy.L, toy.V))

        return enumerated(jax.nn.softplus(params["power"]), mu, x, 1e-3)

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
        want = jax.device_get(jax.value_and_grad(bound)(wide))
    batch = batch_of(x, 4096)

    def mean_loss(params, key):
        return objective.loss(params, batch, key, train=True).loss.mean()

    step = jax.jit(jax.value_and_grad(mean_loss))
    seen = [jax.device_get(step(params, jax.random.key(i))) for i in range(100)]
    flat = [np.concatenate([np.ravel(a) for a in jax.tree.leaves(s)]) for s in seen]
    got, wanted = np.array(flat), np.concatenate([np.ravel(a) for a in jax.tree.leaves(want)])
    error = got.std(0, ddof=1) / 10
    assert np.all(np.abs(got.mean(0) - wanted) < 4.5 * error + 1e-5)
    power = np.array([s[1]["power"] for s in seen])
    size = np.abs(want[1]["power"])
    assert np.all(power.std(0) / 10 < 0.05 * size.max())  # the test has the power to see a fault
    # without the score term the gradient to the exponents is another one
    plain = jax.jit(jax.grad(lambda p, k: objective.nll(p, batch, k).mean()))
    biased = np.mean([plain(params, jax.random.key(i))["power"] for i in range(30)], axis=0)
    assert np.abs(biased - want[1]["power"]).max() > 0.2 * size.max()


def test_linear_exponents_give_md4():
    """At w = 1 the bound is MD4's in the mean; 5e-3 covers what each takes t to start from."""
    objective = toy.objective(genmd4, toy.exact_network)
    linear = toy.objective(md4, toy.exact_network, estimator="low_discrepancy")
    batch = batch_of(toy.X[7], 4096)
    means = []
    for o in (objective, linear):
        nll = jax.jit(lambda key, o=o: o.nll(o.init(None), batch, key).mean())
        means.append(np.array([nll(jax.random.key(i)) for i in range(40)], np.float64))
    error = math.hypot(*(m.std(ddof=1) / math.sqrt(40) for m in means))
    assert abs(means[0].mean() - means[1].mean()) < 4 * error + 5e-3
    assert abs(means[0].mean() + math.log(toy.P_X[7])) < 4 * error + 5e-3


def test_posterior_satisfies_bayes():
    objective, params = made(exact_network)
    process = objective.process(params)
    t, s, size = jnp.array([0.7]), jnp.array([0.4]), toy.V + 1
    for x, z in itertools.product(range(toy.V), (None, toy.MASK)):
        z_t = x if z is None else z
        hidden_t, hidden_s = 0.7 ** W[x], 0.4 ** W[x]
        got = np.asarray(process.posterior(jnp.array([[z_t]]), jnp.array([[x]]), t, s))[0, 0]
        q_t = (1 - hidden_t) * (np.arange(size) == x) + hidden_t * (np.arange(size) == toy.MASK)
        q_s = (1 - hidden_s) * (np.arange(size) == x) + hidden_s * (np.arange(size) == toy.MASK)
        keep = (1 - hidden_t) / (1 - hidden_s)
        forward = np.array(
            [keep * (v == z_t) + (1 - keep) * (z_t == toy.MASK) for v in range(size)]
        )
        forward[toy.MASK] = float(z_t == toy.MASK)
        np.testing.assert_allclose(got * q_t[z_t], forward * q_s, atol=1e-6)


def kernel_law(times):
    """The T-step law by enumeration: from the mask to v with r_v mu_v(z, t)."""
    network = exact_network(inputs=4, outputs=3)
    law = np.zeros(len(toy.Z))
    law[-1] = 1  # all masked
    for t, s in itertools.pairwise(times):
        h = network.trunk(None, jnp.asarray(toy.Z), jnp.full(len(toy.Z), t))
        mu = np.asarray(jax.nn.softmax(network.head(None, h)), np.float64)
        r = 1 - (s / t) ** W
        new = np.zeros_like(law)
        for i, z in enumerate(toy.Z):
            if law[i] == 0:
                continue
            options = []
            for n in range(toy.L):
                if z[n] != toy.MASK:
                    options.append([(z[n], 1.0)])
                    continue
                shown = r * mu[i, n]
                options.append([(toy.MASK, 1 - shown.sum()), *enumerate(shown)])
            for choice in itertools.product(*options):
                to = toy.index(np.array([c[0] for c in choice]))
                new[to] += law[i] * math.prod(c[1] for c in choice)
        law = new
    return law


def test_sampler_law_is_the_enumerated_kernel_and_tends_to_the_data():
    from test_samplers import FREE, UNKNOWN, assert_law

    objective, params = made(at_one_time)
    sampler = state_dependent.make(objective=objective, num_steps=4, grid="uniform")
    keys_B = keys.rows(jax.random.key(1), jnp.arange(len(FREE)))
    out = jax.jit(sampler.sample)(params, keys_B, UNKNOWN, FREE)
    assert_law(np.asarray(out.tokens), kernel_law(np.linspace(1, 0, 5)), toy.Z)
    assert int(out.calls) == 4
    joint = np.zeros(len(toy.Z))
    joint[toy.index(toy.X)] = toy.P_X
    gaps = [np.abs(kernel_law(np.linspace(1, 0, T + 1)) - joint).sum() / 2 for T in (8, 32, 128)]
    assert 2.5 < gaps[0] / gaps[1] < 6 and 2.5 < gaps[1] / gaps[2] < 6


@pytest.mark.parametrize("given", [False, True])
def test_infilling_and_unknown_positions(given):
    """x^0 is free, x^2 unknown (it must not be left masked, which would say something about it),
    x^1 given or unknown as well: with many steps, the exact conditional law of x^0."""
    from test_samplers import FREE, UNKNOWN

    objective, params = made(at_one_time)
    prompt, free = UNKNOWN[:25_000].copy(), np.zeros_like(FREE[:25_000])
    free[:, 0] = True
    fits = np.ones(len(toy.X), bool)
    if given:
        prompt[:, 1], fits = 1, toy.X[:, 1] == 1
    sampler = state_dependent.make(objective=objective, num_steps=200, grid="uniform")
    keys_B = keys.rows(jax.random.key(1), jnp.arange(len(free)))
    out = np.asarray(jax.jit(sampler.sample)(params, keys_B, prompt, free).tokens)
    np.testing.assert_array_equal(out[:, 1:], prompt[:, 1:])
    want = np.bincount(toy.X[fits, 0], toy.P_X[fits]) / toy.P_X[fits].sum()
    gap = np.abs(np.bincount(out[:, 0], minlength=toy.V) / len(out) - want).max()
    assert gap < 0.012  # 3.8 standard errors of a half, the largest


def test_large_exponents_do_not_poison_the_others():
    """t^w underflows for w = 60: such a token is revealed first, and nothing becomes NaN."""
    objective, params = made(toy.exact_network)
    params["power"] = jnp.array([60.0, 1.0, 1.0])
    sampler = state_dependent.make(objective=objective, num_steps=64)
    keys_B = keys.rows(jax.random.key(1), jnp.arange(256))
    z = jnp.full((256, toy.L), toy.MASK)
    out = jax.jit(sampler.sample)(params, keys_B, z, z == toy.MASK)
    assert np.all(out.tokens < toy.V)
    process = objective.process(params)
    t = jnp.float32([0.05])
    assert float(process.schedule.mask_prob(t)[0, 0]) == 0  # the case that is meant


def test_options_are_checked():
    with pytest.raises(ValueError, match="first_time"):
        toy.objective(genmd4, toy.exact_network, first_time=0.0)

"""EDLM: energies, partition functions, the bound and its three counterexamples, by enumeration."""

import importlib.util
import itertools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from diffusion_lm import config, keys, main, optim, parallel, step
from diffusion_lm.objectives import ar, edlm, genmd4, md4, sedd
from diffusion_lm.samplers import ancestral, importance
from diffusion_lm.schedules import time_of

ROOT = pathlib.Path(__file__).parent.parent
UNUSED = {"network": {"unused": jnp.zeros(1)}}
PARAMS = {"proposal": UNUSED, "ar": UNUSED}
MU = np.exp(toy.DENOISER)  # [64, L, V]


def exact(energy, **options):
    return toy.objective(edlm, toy.exact_network, energy=energy, **options)


def product(z):
    """mu(x | z) of all 27 sequences, 0 for those that z excludes."""
    fits = np.all((z == toy.MASK) | (toy.X == z), axis=1)
    mu = MU[toy.index(z)]
    each = np.where(z == toy.MASK, mu[np.arange(toy.L), toy.X], 1.0)
    return each.prod(1) * fits


def joint(z):
    """The exact p(x | z) of all 27 sequences."""
    p = toy.P_X * np.all((z == toy.MASK) | (toy.X == z), axis=1)
    return p / p.sum()


def energies(objective, z, t=0.5):
    """E(x, z) of all 27 sequences x."""
    denoiser = objective.predict(PARAMS)
    log_mu = jnp.asarray(np.log(np.maximum(product(z), 1e-30)), jnp.float32)
    z_BL = jnp.broadcast_to(jnp.asarray(z), toy.X.shape)
    x_BL = jnp.asarray(toy.X)
    return np.asarray(denoiser.energy(z_BL, x_BL, jnp.full(len(toy.X), t), log_mu), np.float64)


def test_partition_functions_by_summation():
    """coar: Z = 1 for every z; ar: Z is the probability of what z shows."""
    for z in toy.Z:
        fits = product(z) > 0
        shown = toy.P_X[np.all((z == toy.MASK) | (toy.X == z), axis=1)].sum()
        for energy, want in (("coar", 1.0), ("ar", shown)):
            z_of = (product(z) * np.where(fits, np.exp(-energies(exact(energy), z)), 0)).sum()
            assert abs(z_of - want) < 1e-4 * want, (energy, z)


def test_exact_energies_give_the_exact_posterior():
    for z in toy.Z[[-1, 15, 40, 63 - 16]]:
        w = product(z) * np.where(product(z) > 0, np.exp(-energies(exact("ar"), z)), 0)
        np.testing.assert_allclose(w / w.sum(), joint(z), atol=1e-5)


@pytest.mark.parametrize("number", [2, 8])
def test_log_partition_lies_between_its_two_estimates(number):
    z = toy.Z[-1]
    mu, e = product(z), np.random.default_rng(0).normal(size=27) * 1.5
    want = math.log((mu * np.exp(-e)).sum())
    x = np.random.default_rng(1).choice(27, p=mu / mu.sum(), size=(200_000, number))
    below, above = (np.asarray(a) for a in edlm.log_partition(jnp.asarray(-e[x], jnp.float32)))
    error = (below.std() + above.std()) / math.sqrt(len(x))
    assert below.mean() + 4 * error < want < above.mean() - 4 * error
    if number == 8:  # and they close in
        assert above.mean() - below.mean() < 0.5


def equal_tokens():
    """Four symbols, two positions, x^1 = x^2."""
    x = np.array(list(itertools.product(range(4), repeat=2)))
    return x, np.where(x[:, 0] == x[:, 1], 0.25, 0.0)


def table(seed, concentration):
    return toy.X, np.random.default_rng(seed).dirichlet(np.full(27, concentration))


TOYS = {"equal": equal_tokens(), "toy": (toy.X, toy.P_X), "sparse": table(5, 0.2)}


def exact_figures(x, p):
    """(the paper's joint figure, the bound by marginals, the entropy), all with exact p(x | z)."""
    length, paper, bound = x.shape[1], 0.0, 0.0
    for row, weight in zip(x, p, strict=True):
        for m in itertools.product([False, True], repeat=length):
            n = sum(m)
            if weight == 0 or n == 0:
                continue
            shown = np.all(np.array(m) | (x == row), axis=1) * p
            chance = weight / length / math.comb(length, n)  # of x, n and the subset
            paper -= chance * length / n * math.log(weight / shown.sum())
            for l in np.flatnonzero(m):  # noqa: E741
                one = shown[x[:, l] == row[l]].sum() / shown.sum()
                bound -= chance / n * length * math.log(one)
    return paper, bound, -(p[p > 0] * np.log(p[p > 0])).sum()


@pytest.mark.parametrize("name", TOYS)
def test_the_papers_figure_is_no_bound_and_ours_is(name):
    """With the exact posterior the joint figure lies under the entropy; marginals give it."""
    paper, bound, entropy = exact_figures(*TOYS[name])
    assert paper < entropy - 0.1
    assert abs(bound - entropy) < 1e-9
    if name == "equal":
        np.testing.assert_allclose([paper, entropy], [math.log(4) / 2, math.log(4)], rtol=1e-9)


def chosen_law(at, mu, log_w):
    """q(x^at | z) for K = 2 by enumeration: [V]; log_w of all 27 sequences, mu their proposal."""
    w = np.exp(log_w)
    pairs = mu[:, None] * mu[None] * w[:, None] / (w[:, None] + w[None])
    taken = pairs.sum(1) + pairs.sum(1)
    return np.array([taken[toy.X[:, at] == v].sum() for v in range(toy.V)])


def test_the_bound_is_that_of_the_sampler_with_as_many_candidates():
    """K = 2 and a uniform proposal under the exact AR energy: every z and l by enumeration."""
    x = toy.X[7]
    want = 0.0
    for m in toy.masked_patterns():
        n = m.sum()
        if n == 0:
            continue
        z = np.where(m, toy.MASK, x)
        fits = np.all((z == toy.MASK) | (toy.X == z), axis=1)
        mu = fits / fits.sum()
        log_w = np.log(toy.P_X) - np.log(1 / toy.V**n)
        for l in np.flatnonzero(m):  # noqa: E741
            chance = 1 / toy.L / math.comb(toy.L, n) / n
            want -= chance * toy.L * math.log(chosen_law(l, mu, log_w)[x[l]])
    objective = edlm.make(
        network=toy.zero_network,
        vocab_size=3,
        proposal=toy.objective(md4, toy.zero_network),
        ar=toy.objective(ar, toy.exact_network),
        energy="ar",
        candidates=2,
    )
    batch = keys.number({"x": jnp.tile(jnp.asarray(x), (4096, 1))})
    run = jax.jit(lambda key: objective.figures(PARAMS, batch, key))
    drawn = [run(jax.random.key(i)) for i in range(16)]
    got = np.array([np.asarray(d["nll"]).mean() for d in drawn])
    error = got.std(ddof=1) / 4
    # the logarithm of the unbiased estimate errs upwards
    assert want - 4 * error < got.mean() < want + 0.6
    # the estimate itself, without the logarithm: all tokens masked, so l tells nothing of the rest
    log_w = np.log(toy.P_X) + toy.L * math.log(toy.V)
    index = np.random.default_rng(0).integers(0, 27, (200_000, 2))
    for l in range(toy.L):  # noqa: E741
        put_in = toy.X[index].copy()
        put_in[..., l] = x[l]
        put_in = (put_in * toy.V ** np.arange(toy.L - 1, -1, -1)).sum(-1)
        chosen = np.exp(edlm.log_chosen(jnp.asarray(log_w[index]), jnp.asarray(log_w[put_in])))
        want = chosen_law(l, np.full(27, 1 / 27), log_w)[x[l]]
        assert abs(chosen.mean() / toy.V - want) < 4 * chosen.std() / toy.V / math.sqrt(len(index))


def test_figures_tend_to_the_corrected_model():
    """A uniform proposal under the exact AR energy: with many candidates the bound is -log p(x),
    from above at every number; the plug-in figures close in; the paper's lies under the entropy."""
    paper, _, entropy = exact_figures(toy.X, toy.P_X)
    x = np.random.default_rng(0).choice(27, p=toy.P_X, size=1024)
    batch = keys.number({"x": jnp.asarray(toy.X[x], jnp.int32)})
    truth = -np.log(toy.P_X[x]).mean()
    excess = {}
    for number in (4, 64):
        objective = edlm.make(
            network=toy.zero_network,
            vocab_size=3,
            proposal=toy.objective(md4, toy.zero_network),
            ar=toy.objective(ar, toy.exact_network),
            energy="ar",
            candidates=number,
        )
        run = jax.jit(lambda key, o=objective: o.figures(PARAMS, batch, key))
        drawn = [run(jax.random.key(i)) for i in range(8)]
        got = {n: np.array([np.asarray(d[n]).mean() for d in drawn]) for n in drawn[0]}
        error = {n: v.std(ddof=1) / math.sqrt(8) for n, v in got.items()}
        mean = {n: v.mean() for n, v in got.items()}
        excess[number] = mean["nll"] - truth
        assert excess[number] > -4 * error["nll"]
        assert mean["plug_in_log_z_below"] < mean["plug_in_log_z_above"]
    plain = toy.L * math.log(toy.V) - truth
    assert excess[4] < 0.8 * plain and excess[64] < 0.25 * excess[4]
    assert excess[64] < 0.1
    assert abs(mean["plug_in_log_z_above"] - truth) < 0.1
    assert abs(mean["paper_joint_not_a_bound"] - paper - (truth - entropy)) < 0.15
    assert mean["paper_joint_not_a_bound"] < truth - (entropy - paper) / 2


def constant_network(p):
    """Predicts p at every position, whatever it sees."""

    def make(**_):
        def trunk(params, tokens, t=None, keys=None, label=None):
            return jnp.broadcast_to(jnp.log(jnp.asarray(p)), (*tokens.shape, len(p)))

        return toy.exact_network(inputs=4, outputs=3)._replace(trunk=trunk)

    return make


def test_the_bound_holds_where_weights_are_spread_widely():
    """A point mass (truth: 0 nats) that the proposal hardly draws. Where the ratio of means is far
    below the truth, log Z from above or not, the bound is above it."""
    batch = keys.number({"x": jnp.zeros((4096, toy.L), int)})
    mean = {}
    for number in (2, 16):
        objective = edlm.make(
            network=None,
            vocab_size=3,
            proposal=toy.objective(md4, constant_network([0.1, 0.45, 0.45])),
            ar=toy.objective(ar, constant_network([1 - 2e-8, 1e-8, 1e-8])),
            energy="ar",
            candidates=number,
        )
        run = jax.jit(lambda key, o=objective: o.figures(PARAMS, batch, key))
        mean[number] = {n: float(v.mean()) for n, v in run(jax.random.key(0)).items()}
    assert mean[2]["plug_in_log_z_below"] < mean[2]["plug_in_log_z_above"] < -10
    assert mean[2]["nll"] > mean[16]["nll"] > 1


@pytest.mark.parametrize("number", [2, 8])
def test_the_bound_is_that_of_a_sampler_that_tells_networks_the_time(number):
    """A denoiser that knows the time alone, and energies of 0. The L times at which the sampler
    reveals tokens are together uniform in P(masked), so the law of each token is an integral."""
    logits = jnp.array([2.0, 0.0, -1.0])

    def timed_network(**_):
        def trunk(params, tokens, t=None, keys=None, label=None):
            return jnp.broadcast_to(4 * t[:, None, None] ** 2 * logits, (*tokens.shape, toy.V))

        return toy.exact_network(inputs=4, outputs=3)._replace(trunk=trunk)

    proposal = toy.objective(md4, timed_network, time_input=True)
    objective = edlm.make(
        network=energy_table_network,
        vocab_size=3,
        proposal=proposal,
        candidates=number,
        time_input=True,
    )
    params = {"proposal": UNUSED, "network": {"table": jnp.zeros((64, 27))}, "pool": POOL}
    schedule = proposal.process(UNUSED).schedule
    t = time_of(schedule, (jnp.arange(4096) + 0.5) / 4096)
    log_p = jax.nn.log_softmax(4 * t[:, None] ** 2 * logits)  # [4096, V]
    x = jnp.tile(jnp.array([0, 1, 2]), (2**15, 1))
    got = objective.figures(params, keys.number({"x": x}), jax.random.key(0))["nll"]
    want, error = -log_p.mean(0).sum(), got.std() / len(x) ** 0.5
    assert abs(got.mean() - want) < 4 * error < 0.3
    sampler = importance.make(objective=objective, candidates=number, order="first_hitting")
    blank, free = jnp.full((2**13, toy.L), toy.MASK), jnp.ones((2**13, toy.L), bool)
    drawn = sampler.sample(params, keys.samples(0, jnp.arange(2**13)), blank, free).tokens
    law = np.bincount(np.asarray(drawn).reshape(-1), minlength=toy.V) / drawn.size
    np.testing.assert_allclose(law, jnp.exp(log_p).mean(0), atol=4 * 0.5 / drawn.size**0.5)


def test_coar_is_the_autoregressive_model():
    objective = exact("coar")
    batch = keys.number({"x": jnp.asarray(toy.X)})
    assert objective.exact
    np.testing.assert_allclose(
        objective.nll(PARAMS, batch, jax.random.key(0)), -np.log(toy.P_X), rtol=1e-5
    )


def energy_table_network(**_):
    """E(x, z) = params["table"][z, x], with the pool of POOL."""

    def trunk(params, both, t=None, keys=None, label=None):
        z, x = both[:, : toy.L], both[:, toy.L :]
        place = (x * toy.V ** np.arange(toy.L - 1, -1, -1)).sum(1)
        h = params["table"][toy.index(z), place]
        return jnp.broadcast_to(jnp.stack([h, 0 * h], -1)[:, None], (*both.shape, 2))

    init = lambda key: {"table": jnp.zeros((64, 27))}  # noqa: E731
    return toy.exact_network(inputs=0, outputs=0)._replace(init=init, trunk=trunk)


# silu(v) - silu(-v) = v
POOL = {"hidden": jnp.array([[1.0, -1.0], [0.0, 0.0]]), "out": jnp.array([1.0, -1.0])}


@pytest.mark.parametrize("negatives", [1, 3])
def test_the_contrast_is_least_at_the_log_ratio(negatives):
    """The mean gradient vanishes at E = log mu(x|z) - log p(x|z), and nowhere near E = 0."""
    proposal = toy.objective(md4, toy.exact_network)
    objective = edlm.make(
        network=energy_table_network, vocab_size=3, proposal=proposal, negatives=negatives
    )
    best = np.zeros((64, 27))
    for i, z in enumerate(toy.Z):
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.log(product(z)) - np.log(joint(z))
        best[i] = np.where(np.isfinite(ratio), ratio, 0.0)
    x = np.random.default_rng(0).choice(27, p=toy.P_X, size=(60, 8192))

    @jax.jit
    def gradient(table, x_B, key):
        batch = keys.number({"x": jnp.asarray(toy.X)[x_B]})

        def loss(table):
            params = {"proposal": UNUSED, "network": {"table": table}, "pool": POOL}
            return objective.loss(params, batch, key, train=False).loss.mean()

        return jax.grad(loss)(table)

    def worst(table):
        g = np.array(
            [
                gradient(jnp.asarray(table, jnp.float32), row, jax.random.key(i))
                for i, row in enumerate(x)
            ]
        )
        error = g.std(0, ddof=1) / math.sqrt(len(g))
        known = error > 1e-7
        return (np.abs(g.mean(0))[known] / error[known]).max()

    assert worst(best) < 5  # the largest of about 1,000 z-scores
    assert worst(np.zeros_like(best)) > 50


def sir_law(z):
    """The law of one of two candidates, by enumeration."""
    mu, w = product(z), np.where(product(z) > 0, joint(z) / np.maximum(product(z), 1e-30), 0)
    pairs = mu[:, None] * mu[None]
    share = w[:, None] / np.maximum(w[:, None] + w[None], 1e-30)
    return 2 * (pairs * share).sum(1)


def drawn(prompt, free, seed=0, **options):
    sampler = importance.make(objective=exact("ar"), **options)
    keys_B = keys.rows(jax.random.key(seed), jnp.arange(len(prompt)))
    return jax.jit(sampler.sample)(PARAMS, keys_B, prompt, free)


def counts_law(tokens):
    place = (np.asarray(tokens) * toy.V ** np.arange(toy.L - 1, -1, -1)).sum(1)
    return np.bincount(place, minlength=27) / len(tokens)


def test_one_step_is_importance_resampling_and_tends_to_the_posterior():
    """k = 1: the product; k = 2: the enumerated law; then the distance falls like 1/k."""
    from test_samplers import FREE, UNKNOWN, assert_law

    prompt, free = UNKNOWN[:50_000], FREE[:50_000]
    z = toy.Z[-1]
    one = drawn(prompt, free, num_steps=1, candidates=1)
    assert_law(np.asarray(one.tokens), product(z), toy.X)
    two = drawn(prompt, free, num_steps=1, candidates=2)
    assert_law(np.asarray(two.tokens), sir_law(z), toy.X)
    assert int(one.calls) == 1 and int(two.calls) == 3
    many = drawn(prompt, free, num_steps=1, candidates=8)
    gaps = [np.abs(counts_law(o.tokens) - joint(z)).sum() / 2 for o in (two, many)]
    assert 2.5 < gaps[0] / gaps[1] < 6.5, gaps


def test_many_candidates_make_few_steps_exact():
    """The ancestral law of two steps is far from p(x); with candidates it is near."""
    from test_samplers import FREE, UNKNOWN

    prompt, free = UNKNOWN[:30_000], FREE[:30_000]
    plain = drawn(prompt, free, num_steps=2, candidates=1)
    good = drawn(prompt, free, num_steps=2, candidates=32)
    gaps = [np.abs(counts_law(o.tokens) - toy.P_X).sum() / 2 for o in (plain, good)]
    assert gaps[0] > 0.1 and gaps[1] < 0.025, gaps
    effective = np.asarray(good.effective)
    assert effective.shape == (2, len(prompt))
    seen = effective[np.isfinite(effective)]
    assert np.all((seen >= 1) & (seen <= 32.001)) and 5 < seen.mean() < 31
    assert np.isnan(np.asarray(plain.effective)).all()


def test_first_hitting_is_exact_with_one_candidate_and_near_with_several():
    """A candidate that is chosen among a few errs even where single tokens need no correction."""
    from test_samplers import FREE, UNKNOWN, assert_law

    prompt, free = UNKNOWN[:50_000], FREE[:50_000]
    out = drawn(prompt, free, order="first_hitting", candidates=3)
    assert 0.01 < np.abs(counts_law(out.tokens) - toy.P_X).sum() / 2 < 0.04
    single = drawn(prompt, free, order="first_hitting", candidates=1)
    assert_law(np.asarray(single.tokens), toy.P_X, toy.X)
    assert int(single.calls) == toy.L and int(out.calls) == toy.L * 4


def test_window_bounds_where_candidates_are_drawn():
    prompt, free = np.full((64, toy.L), toy.MASK), np.ones((64, toy.L), bool)
    out = drawn(prompt, free, num_steps=8, candidates=4, window=0.5, grid="uniform")
    late = np.asarray(out.effective)[4:]  # steps at t <= 0.5; 0.5 itself is inside
    assert np.isnan(late[1:]).all() and np.isfinite(np.asarray(out.effective)[:4]).any()
    none = drawn(prompt, free, num_steps=8, candidates=4, window=0.0, grid="uniform")
    assert np.isnan(np.asarray(none.effective)[1:]).all()


@pytest.mark.parametrize("order", importance.ORDERS)
def test_what_the_sampler_keeps(order):
    """A row does not depend on its batch or on how many candidates are scored at once; given
    tokens stay, unknown ones stay unknown."""
    prompt, free = np.full((8, toy.L), toy.MASK), np.ones((8, toy.L), bool)
    prompt[:, 0], free[:, :2] = 1, False
    options = {"objective": exact("ar"), "num_steps": 3, "candidates": 5, "order": order}
    sampler = jax.jit(importance.make(**options).sample)
    keys_B = keys.rows(keys.stream(3, "sample"), jnp.arange(8))
    whole = np.asarray(sampler(PARAMS, keys_B, prompt, free).tokens)
    assert np.all(whole[:, 0] == 1) and np.all(whole[:, 1] == toy.MASK)
    assert np.all(whole[:, 2] < toy.V)
    for row in range(8):
        mine = slice(row, row + 1)
        alone = sampler(PARAMS, keys_B[mine], prompt[mine], free[mine]).tokens
        np.testing.assert_array_equal(np.asarray(alone)[0], whole[row])
    chunked = importance.make(**options, at_once=2).sample(PARAMS, keys_B, prompt, free)
    np.testing.assert_array_equal(chunked.tokens, whole)


def test_only_the_energy_is_trained():
    """The proposal is not in the optimiser's state, and stays as it is."""
    from test_battery import TINY

    objective = toy.objective(edlm, TINY["transformer"], vocab_size=7, length=8)
    optimizer = optim.adamw(steps=10, learning_rate=1e-2, warmup=0)
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    state = step.init_state(objective, optimizer, seed=0, ema=0.9)
    number = lambda tree: sum(a.size for a in jax.tree.leaves(tree))  # noqa: E731
    mine = number(step.trained(objective, state.params))
    assert number(state.opt_state) < 2 * mine + 10 < 2 * number(state.params)
    assert number(state.ema) == mine
    run = jax.jit(step.make_train_step(objective, optimizer, mesh=mesh, seed=0, ema=0.9))
    new = state
    for _ in range(2):  # the first step moves the pool alone, as E = 0 does not see the network
        new, _ = run(new, {"x": jnp.zeros((16, 8), int)})
    for name in state.params:
        same = jax.tree.map(np.array_equal, state.params[name], new.params[name])
        assert all(jax.tree.leaves(same)) == (name == "proposal"), name
    assert set(step.eval_params(new)) == set(new.params)


def test_energy_starts_from_the_denoiser():
    from functools import partial

    from test_battery import TINY

    objective = toy.objective(edlm, TINY["transformer"], vocab_size=7, length=8)
    params = objective.init(jax.random.key(0))
    begun = objective.start(params)
    theirs = params["proposal"]["network"]
    assert set(begun["network"]) == set(theirs) - {"head"}
    for name in begun["network"]:
        jax.tree.map(np.testing.assert_array_equal, begun["network"][name], theirs[name])
    other = edlm.make(
        network=partial(TINY["transformer"], width=32),
        vocab_size=7,
        proposal=toy.objective(md4, TINY["transformer"], vocab_size=7, length=8),
    )
    with pytest.raises(ValueError, match="config.network"):
        other.start(other.init(jax.random.key(0)))


def test_mistakes_are_named():
    wrong = {
        "energy": ({"energy": "mce"}, "choices: nce, ar, coar"),
        "negatives": ({"negatives": 0}, "at least 1"),
        "candidates": ({"candidates": 1}, "at least 2"),
    }
    for options, words in wrong.values():
        with pytest.raises(ValueError, match=words):
            toy.objective(edlm, toy.exact_network, **options)
    masked, other = (toy.objective(m, toy.exact_network) for m in (md4, genmd4))
    left = toy.objective(ar, toy.exact_network)
    made = {"network": toy.exact_network, "vocab_size": 3}
    with pytest.raises(ValueError, match="must be masked diffusion"):
        edlm.make(**made, proposal=other)
    with pytest.raises(ValueError, match="needs an objective.ar"):
        edlm.make(**made, proposal=masked, energy="ar")
    with pytest.raises(ValueError, match="takes no objective.ar"):
        edlm.make(**made, proposal=masked, ar=left)
    with pytest.raises(ValueError, match="autoregressive"):
        edlm.make(**made, proposal=masked, ar=masked, energy="ar")
    with pytest.raises(ValueError, match="for text"):
        edlm.make(**made, proposal=masked, shape=(8, 8, 1))
    sedd_model = toy.objective(sedd, toy.exact_network)
    with pytest.raises(ValueError, match="told sigma"):
        edlm.make(**made, proposal=sedd_model, time_input=True)
    with pytest.raises(ValueError, match="it is served by: importance"):
        ancestral.make(objective=exact("ar"))
    bad = {"candidates": 0, "window": 1.5, "energy_temperature": 0.0, "order": "x", "at_once": -1}
    for name, value in bad.items():
        with pytest.raises(ValueError, match=f"sampler.{name}.*{value}"):
            importance.make(objective=exact("ar"), **{name: value})


def test_chain_from_the_command_line(tmp_path, text_file, capsys):
    """Denoiser, autoregressive model, energies: trained, resumed, scored, drawn from; other data is
    refused, and the folders may move."""
    from test_runs import rows, write_config

    def run(name, *overrides, **changes):
        path = write_config(tmp_path, text_file, **changes)
        argv = [f"--config={path}", f"--workdir={tmp_path / name}", *overrides]
        code = main.main(argv)
        return code, capsys.readouterr()

    short = {"train.eval_every": 2, "train.steps": 2, "evaluators.valid.max_windows": 8}
    assert run("md4", **short)[0] == 0
    left = {"sampler": {"name": "autoregressive"}, "objective": {"name": "ar"}}
    assert run("ar", **left, **short)[0] == 0
    places = {"proposal": str(tmp_path / "md4"), "candidates": 3, "name": "edlm"}
    draws = {"sampler": {"name": "importance", "num_steps": 3}}
    nce = {"objective": {**places, "energy": "nce"}, **draws, **short}
    code, said = run("nce", **nce)
    assert code == 0 and "contrast" in said.out and "told_apart" in said.out
    code, said = run("nce", **nce | {"train.steps": 3})
    assert code == 0 and "going on from step 2" in said.out
    score = next(r for r in rows(tmp_path / "nce") if r.get("evaluator") == "valid")
    for name in ("plug_in_log_z_below", "plug_in_log_z_above", "paper_joint_not_a_bound"):
        assert np.isfinite(score[f"{name}_nats_per_token"])
        assert score[f"{name}_standard_error"] > 0

    places["ar"] = str(tmp_path / "ar")
    for energy in ("ar", "coar"):
        change = {"objective": {**places, "energy": energy}, **draws, **short, "train.ema": 0.0}
        code, said = run(f"edlm_{energy}", **change | {"train.steps": 0})
        assert code == 0 and "finished: step 0" in said.out
        assert "is finished" in run(f"edlm_{energy}", **change | {"train.steps": 0})[1].out
    mine, theirs = (rows(tmp_path / n)[-1] for n in ("edlm_coar", "ar"))
    assert mine["kind"] == theirs["kind"] == "exact"
    assert mine["nats_per_token"] == theirs["nats_per_token"]

    (tmp_path / "md4").rename(tmp_path / "moved")
    sampling = [f"--workdir={tmp_path / 'edlm_ar'}", "--mode=sample", "--json"]
    assert main.main(sampling) == 2
    assert "config.objective.proposal: no run in" in capsys.readouterr().err
    moved = f"--config.objective.proposal={tmp_path / 'moved'}"
    assert main.main([*sampling, moved, "--temperature=0.5"]) == 2
    assert "the importance sampler has no --temperature" in capsys.readouterr().err
    moved = [moved, "--config.sampler.energy_temperature=0.5"]
    assert main.main([*sampling, *moved, "--num_samples=2"]) == 0
    out = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(out) == 2 and all(1 <= n <= 4 for o in out for n in o["effective_sample_size"])
    places["proposal"] = str(tmp_path / "moved")
    code, said = run("other", **{"objective": places, "data.length": 8, **draws, **short})
    assert code == 2 and said.err.count("\n") == 1
    assert "length 16 there and 8 here" in said.err


def test_the_chain_script_names_its_runs():
    spec = importlib.util.spec_from_file_location("edlm_chain", ROOT / "launch/edlm_chain.py")
    chain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(chain)
    runs = chain.commands(pathlib.Path("/runs"), ["nce", "coar"], ["--config.data.length=64"])
    assert [r[1].removeprefix("--workdir=/runs/") for r in runs] == [
        "md4_sotu",
        "ar_sotu",
        "edlm_sotu_nce",
        "edlm_sotu_coar",
    ]
    assert "--config.objective.ar=/runs/ar_sotu" in runs[-1]
    assert all("--config.data.length=64" in r for r in runs)
    assert len(chain.commands(pathlib.Path("/runs"), ["nce"], [])) == 2
    for run in runs:
        config.resolve(config.load(run[0].removeprefix("--config=")), [])

"""SEDD: score entropy, its limits and its samplers, against matrix exponentials and sums."""

import itertools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import toy

from diffusion_lm import keys, processes, schedules
from diffusion_lm.objectives import md4, sedd
from diffusion_lm.samplers import ancestral, first_hitting, score
from diffusion_lm.types import Schedule

REFERENCE = np.load(pathlib.Path(__file__).parent / "reference" / "sedd_absorb.npz")
PARAMS = {"network": {"unused": jnp.zeros(1)}}


def rates(graph, size):
    """Q(y, z), the rate from y to z: [S, S], rows summing to 0."""
    if graph == "uniform":
        return np.full((size, size), 1 / size) - np.eye(size)
    q = -np.eye(size + 1)
    q[:, size] += 1
    return q


def exact(graph, parametrization="score", **options):
    network = toy.exact_sedd_network(graph, parametrization)
    return toy.objective(sedd, network, graph=graph, parametrization=parametrization, **options)


@pytest.mark.parametrize("graph", sedd.GRAPHS)
@pytest.mark.parametrize("parametrization", sedd.PARAMETRIZATIONS)
def test_loss_is_the_sum_over_all_jumps(graph, parametrization):
    """The drawn loss of random logits, against the definition: matrix exponentials, every y."""
    size, length, rng = 5, 4, np.random.default_rng(0)
    logits = rng.normal(size=(64, length, size))
    seen = []

    def network(**_):
        def trunk(params, z, t, keys=None, label=None):
            seen.append((np.asarray(z), np.asarray(t)))
            return jnp.asarray(logits, jnp.float32)

        plain = toy.exact_network(inputs=0, outputs=0)
        return plain._replace(trunk=trunk)

    objective = toy.objective(
        sedd,
        network,
        vocab_size=size,
        length=length,
        graph=graph,
        parametrization=parametrization,
    )
    x = rng.integers(0, size, (64, length))
    got = objective.nll(PARAMS, keys.number({"x": jnp.asarray(x)}), jax.random.key(0))
    ((z, time),) = seen
    schedule, q = objective.process(None).schedule, rates(graph, size)
    want = np.zeros(64)
    for b in range(64):
        sigma = 1000 * float(time[b])  # what the network is told
        if sigma > 6.9:  # there it is told less than there is
            want[b] = np.nan
            continue
        alpha = math.exp(-sigma)
        push = scipy.linalg.expm(sigma * q)
        for n in range(length):
            at, out = z[b, n], np.exp(logits[b, n])
            mu = out / out.sum()
            if graph == "absorbing":
                m = mu if parametrization == "mean" else out / size
                s = np.append(m / math.expm1(sigma), 1.0)
            elif parametrization == "score":
                s = out
            else:
                there = mu @ push  # P(z^n) if the clean token has the law mu
                s = there / there[at]
            for y in range(len(q)):
                if y != at and q[y, at] > 0:
                    r = push[x[b, n], y] / push[x[b, n], at]
                    entropy = r * (math.log(r) - 1) if r > 0 else 0.0
                    want[b] += q[y, at] * (s[y] - (r * math.log(s[y]) if r > 0 else 0) + entropy)
        # sigma' by t: alpha is linear in t here
        want[b] *= -float(schedule.dalpha(jnp.float32(0.5))) / alpha
        start = scipy.linalg.expm(-np.log(float(schedule.alpha(jnp.float32(0)))) * q)[0]
        if graph == "absorbing":
            want[b] += length * start[-1] * math.log(size)
        else:
            last = scipy.linalg.expm(-math.log(sedd.LAST) * q)[0]
            kl = (last * np.log(last * size)).sum()
            want[b] += length * (kl - (start * np.log(start)).sum())
    known = np.isfinite(want)
    assert known.sum() >= 60
    np.testing.assert_allclose(np.asarray(got)[known], want[known], rtol=2e-4)


@pytest.mark.parametrize("parametrization", sedd.PARAMETRIZATIONS)
@pytest.mark.parametrize("row", [0, 13, 25])
def test_uniform_bound_of_exact_ratios_is_the_nll(parametrization, row):
    """All z by enumeration and sigma by quadrature, from nearly 0 to nearly infinity."""
    x, v = toy.X[row], toy.V
    nodes, weights = np.polynomial.legendre.leggauss(120)
    low, high = math.log(1e-7), math.log(16.0)
    sigmas = np.exp((nodes + 1) / 2 * (high - low) + low)
    with jax.enable_x64(True):
        total, z = 0.0, jnp.asarray(toy.X)
        for sigma, weight in zip(sigmas, weights * (high - low) / 2 * sigmas, strict=True):
            alpha = math.exp(-sigma)
            time = jnp.full(len(toy.X), sigma / 1000)
            network = toy.exact_sedd_network("uniform", parametrization)(inputs=v, outputs=v)
            log_s = network.trunk(None, z, time)
            log_odds = math.log(v) + math.log(alpha) - math.log(-math.expm1(-sigma))
            if parametrization == "mean":
                log_p = jax.nn.softplus(log_s + log_odds)
                log_s = log_p - jnp.take_along_axis(log_p, z[..., None], axis=-1)
            nats = sedd.uniform_score_entropy(
                log_s, z, jnp.broadcast_to(x, z.shape), jnp.full(z.shape, log_odds)
            ).sum(1)
            q = (alpha * (toy.X == x) + (1 - alpha) / v).prod(1)
            total += weight * float((q * nats).sum()) / v
    assert abs(total + math.log(toy.P_X[row])) < 2e-4


@pytest.mark.parametrize("parametrization", sedd.PARAMETRIZATIONS)
def test_absorbing_with_normalised_scores_is_md4_sample_by_sample(parametrization, monkeypatch):
    """The same x, t and masks: the same nats, for any prediction."""
    table = jax.nn.log_softmax(jnp.asarray(np.random.default_rng(1).normal(size=(64, 3, 3)) * 1.5))
    shift = {"score": math.log(toy.V), "mean": 0.3}[parametrization]

    def network(shift, **_):
        trunk = lambda params, z, t=None, keys=None, label=None: table[toy.index(z)] + shift  # noqa: E731
        return toy.exact_network(inputs=4, outputs=3)._replace(trunk=trunk)

    ours = toy.objective(
        sedd, lambda **_: network(shift), graph="absorbing", parametrization=parametrization
    )
    theirs = toy.objective(md4, lambda **_: network(0.0), time_input=True)
    split = keys.split
    batch = keys.number({"x": jnp.asarray(np.tile(toy.X, (40, 1)))})
    for seed in range(3):
        key = jax.random.key(seed)
        want = jax.jit(theirs.nll)(PARAMS, batch, key)
        with monkeypatch.context() as patch:  # MD4 splits off a key for the time first
            patch.setattr(keys, "split", lambda keys_B, number: split(keys_B, 3)[1:])
            got = jax.jit(ours.nll)(PARAMS, batch, key)
        assert float(jnp.std(want)) > 0.1
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_no_table_of_the_vocabulary_squared():
    size = 211
    objective = toy.objective(
        sedd, toy.zero_network, vocab_size=size, length=4, graph="uniform", parametrization="mean"
    )
    batch = keys.number({"x": jnp.zeros((2, 4), int)})
    loss = jax.value_and_grad(lambda p: objective.loss(p, batch, key, train=True).loss.sum())
    key = jax.random.key(0)
    shapes = [
        v.aval.shape for eqn in _equations(jax.make_jaxpr(loss)(PARAMS).jaxpr) for v in eqn.outvars
    ]
    assert any(size in shape for shape in shapes)
    assert not [shape for shape in shapes if math.prod(shape) > 2 * 4 * size]


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.core.jaxprs_in_params(eqn.params):
            yield from _equations(inner)


def test_uniform_process():
    """Its marginals by counting, its posterior by Bayes, its prior."""
    schedule, v = schedules.lifted(schedules.cosine(), 0.01), 4
    process = processes.uniform(schedule, v)
    keys_B = keys.rows(jax.random.key(0), jnp.arange(40_000))
    t, s = jnp.float32(0.6), jnp.float32(0.35)
    alpha_t, alpha_s = float(schedule.alpha(t)), float(schedule.alpha(s))
    z = process.corrupt(keys_B, jnp.full((40_000, 1), 2), jnp.full(40_000, t))
    want = alpha_t * (np.arange(v) == 2) + (1 - alpha_t) / v
    np.testing.assert_allclose(np.bincount(np.ravel(z), minlength=v) / 40_000, want, atol=0.01)
    prior = np.bincount(np.ravel(process.prior(keys_B, 2)), minlength=v) / 80_000
    np.testing.assert_allclose(prior, 1 / v, atol=0.01)
    kept, lost = processes.kept_and_lost(schedule, t, s)
    assert abs(float(kept) - alpha_t / alpha_s) < 1e-6 and abs(float(kept + lost) - 1) < 1e-6
    k = scipy.linalg.expm(math.log(alpha_s / alpha_t) * rates("uniform", v))  # from s to t
    q_s = scipy.linalg.expm(-math.log(alpha_s) * rates("uniform", v))
    for x, z_t in itertools.product(range(v), repeat=2):
        want = k[:, z_t] * q_s[x] / (k[:, z_t] @ q_s[x])
        got = process.posterior(jnp.array([[z_t]]), jnp.array([[x]]), t[None], s[None])
        np.testing.assert_allclose(got[0, 0], want, atol=2e-6)


def test_released_losses_and_steps():
    """Log scores, losses and steps of the released code, on a random network's outputs."""
    r = REFERENCE
    eps, v = 1e-3, 31
    noise = Schedule(  # the paper's log-linear noise, which does not end at 0
        alpha=lambda t: 1 - (1 - eps) * t,
        mask_prob=lambda t: (1 - eps) * t,
        dalpha=lambda t: -(1 - eps) * jnp.ones_like(t),
    )
    x, z, t = (jnp.asarray(r[k]) for k in ("x0", "xt", "t"))
    log_score = jnp.asarray(r["log_score"])
    logits = log_score[..., :v] + jnp.log(jnp.expm1(r["sigma"]))[:, None, None] + math.log(v)
    trunk = lambda params, z, t=None, keys=None, label=None: logits  # noqa: E731
    network = toy.exact_network(inputs=0, outputs=0)._replace(trunk=trunk)
    objective = sedd.make(network=lambda **_: network, vocab_size=v, schedule=noise)
    got = objective.predict(PARAMS).score(logits, z, jnp.broadcast_to(t[:, None], z.shape))
    masked = np.asarray(z) == v
    np.testing.assert_allclose(got[masked], log_score[masked], atol=1e-5)
    # the loss at these t and z, which it would draw itself
    drawn = {"corrupt": lambda keys, x, t: z}
    with pytest.MonkeyPatch.context() as patch:
        made = processes.absorbing(noise, v)._replace(**drawn)
        patch.setattr(processes, "absorbing", lambda *_: made)
        patch.setattr(schedules, "stratified_times", lambda *_: t)
        objective = sedd.make(network=lambda **_: network, vocab_size=v, schedule=noise)
        nats = objective.nll(PARAMS, keys.number({"x": x}), jax.random.key(0))
    np.testing.assert_allclose(nats, r["loss_per_example"], rtol=1e-5)
    # its steps
    own = jnp.broadcast_to(jnp.arange(v + 1) == z[..., None], got.shape)
    for name, when in (("analytic", "analytic_t"), ("euler", "euler_t"), ("denoiser", None)):
        t_BL = jnp.asarray(r[when] if when else np.full((4, 1), r["denoise_t"]), jnp.float32)
        s_BL = t_BL - float(r["step"]) if when else jnp.zeros_like(t_BL)
        kept, lost = (a[..., None] for a in processes.kept_and_lost(noise, t_BL, s_BL))
        if name == "euler":
            jump = float(r["step"]) * (1 - eps) / noise.alpha(t_BL)[..., None]
            log_p = score.euler(log_score, own, jump=jump)
        else:
            log_p = score.tweedie(log_score, own, absorbing=True, kept=kept, lost=lost)
        # scores are at hand at the times t alone
        mine = masked & (np.abs(t_BL - t[:, None]) < 1e-6)
        assert mine.sum() > 2
        p, want = np.exp(log_p)[mine], r[f"{name}_probs"][mine]
        if name == "denoiser":  # the mask's column is dropped
            p = p[:, :v]
        p, want = (a / a.sum(-1, keepdims=True) for a in (p, np.maximum(want, 0)))
        np.testing.assert_allclose(p, want, atol=2e-6, err_msg=name)


def by_enumeration(objective, graph, num_steps, rule="tweedie", corrector_steps=0):
    """The law of the score sampler by sums over all states: [S, S, S] flattened."""
    process, q = objective.process(None), rates(graph, toy.V)
    size = len(q)
    sigma = lambda t: -math.log(float(process.schedule.alpha(jnp.float32(t))))  # noqa: E731
    data = np.zeros((size,) * toy.L)
    data[tuple(toy.X.T)] = toy.P_X

    def pushed(law, by):
        for n in range(toy.L):
            law = np.moveaxis(np.tensordot(law, by, (n, 0)), -1, n)
        return law

    def stepped(law, t, s, last):
        sigma_t, sigma_s = sigma(t), 0.0 if last else sigma(s)
        p_t = pushed(data, scipy.linalg.expm(sigma_t * q))
        slope = -float(process.schedule.dalpha(jnp.float32(t))) * math.exp(sigma_t)
        there = scipy.linalg.expm((sigma_t - sigma_s) * q)
        back = scipy.linalg.expm((sigma_s - sigma_t) * q)
        new = np.zeros_like(law)
        for z in itertools.product(range(size), repeat=toy.L):
            if law[z] < 1e-15:
                continue
            ways = []
            for n in range(toy.L):
                line = np.array([p_t[(*z[:n], y, *z[n + 1 :])] for y in range(size)])
                s_y = line / p_t[z]
                if graph == "absorbing" and z[n] != toy.MASK:
                    way = (np.arange(size) == z[n]).astype(float)
                elif rule == "euler" and not last:
                    way = (t - s) * slope * q[:, z[n]] * s_y
                    way[z[n]] = 0
                    way[z[n]] = max(0.0, 1 - way.sum())
                else:
                    way = np.maximum(s_y @ back, 0) * there[:, z[n]]
                    if last and graph == "absorbing":
                        way[toy.MASK] = 0
                ways.append(way / way.sum())
            new += law[z] * np.einsum("a,b,c->abc", *ways)
        return new

    law = np.full(data.shape, 1 / data.size)
    if graph == "absorbing":
        law = np.zeros_like(data)
        law[(toy.MASK,) * toy.L] = 1
    times = np.minimum(np.linspace(1, 0, num_steps + 1), 1 - 1e-6)
    for number, (t, s) in enumerate(itertools.pairwise(times)):
        law = stepped(law, t, s, s == 0)
        for _ in range(corrector_steps if number else 0):
            noise = scipy.linalg.expm((sigma(t) - (sigma(s) if s else 0)) * q)
            law = stepped(pushed(law, noise), t, s, s == 0)
    return law[: toy.V, : toy.V, : toy.V].ravel()


def drawn(sampler, prompt, free, seed=0):
    keys_B = keys.rows(jax.random.key(seed), jnp.arange(len(prompt)))
    out = jax.jit(sampler.sample)(PARAMS, keys_B, prompt, free)
    return np.asarray(out.tokens), int(out.calls)


@pytest.mark.parametrize("graph", sedd.GRAPHS)
@pytest.mark.parametrize(
    "options",
    [{}, {"rule": "euler"}, {"corrector_steps": 1}],
    ids=["tweedie", "euler", "corrector"],
)
def test_law_is_the_enumerated_kernel(graph, options):
    from test_samplers import FREE, UNKNOWN, assert_law

    # not the linear schedule, under which an absorbing Euler step is Tweedie's
    objective = exact(graph, schedule=schedules.cosine())
    sampler = score.make(objective=objective, num_steps=4, **options)
    tokens, calls = drawn(sampler, UNKNOWN[:100_000], FREE[:100_000])
    assert_law(tokens, by_enumeration(objective, graph, 4, **options), toy.X)
    assert calls == 4 + 3 * options.get("corrector_steps", 0)


@pytest.mark.parametrize("graph", sedd.GRAPHS)
@pytest.mark.parametrize("rule", score.RULES)
def test_many_steps_give_the_data(graph, rule):
    """On the cosine grid, whose first step is far shorter than float32 can tell from t = 1."""
    size = 500
    prompt, free = np.full((size, toy.L), toy.V), np.ones((size, toy.L), bool)
    sampler = score.make(objective=exact(graph), num_steps=2048, grid="cosine", rule=rule)
    tokens, _ = drawn(sampler, prompt, free)
    place = (tokens * toy.V ** np.arange(toy.L - 1, -1, -1)).sum(1)
    assert np.abs(np.bincount(place, minlength=27) / size - toy.P_X).sum() / 2 < 0.12


def test_the_mean_parametrization_has_the_same_law():
    prompt = np.full((512, toy.L), toy.V)
    free = np.ones_like(prompt, bool)
    tokens = [
        drawn(score.make(objective=exact("uniform", p), num_steps=6), prompt, free)[0]
        for p in sedd.PARAMETRIZATIONS
    ]
    assert np.mean(tokens[0] == tokens[1]) > 0.995  # the same up to rounding


def test_large_scores_do_not_overflow():
    log_s = jnp.array([[0.0, 95.0, 120.0, 3.0]])
    own = jnp.array([[True, False, False, False]])
    log_p = score.tweedie(log_s, own, absorbing=False, kept=0.9, lost=0.1)
    assert not np.isnan(log_p).any() and int(log_p.argmax()) == 2
    log_p = score.tweedie(log_s, own, absorbing=True, kept=0.9, lost=0.1)
    assert not np.isnan(log_p).any() and int(log_p.argmax()) == 2


def test_logits_of_shown_tokens_do_not_poison_the_gradient():
    """Nothing in the loss holds them, so they may drift to where their exponentials overflow."""

    def network(**_):
        def trunk(params, z, t=None, keys=None, label=None):
            shown = (z != toy.MASK)[..., None]
            return params["unused"] + jnp.where(shown, 100.0, 0.0) + jnp.zeros((*z.shape, 3))

        return toy.exact_network(inputs=0, outputs=0)._replace(trunk=trunk)

    objective = toy.objective(sedd, network)
    batch = keys.number({"x": jnp.zeros((64, toy.L), int)})
    loss = lambda p: objective.loss(p, batch, jax.random.key(0), train=False).loss.sum()  # noqa: E731
    value, slope = jax.value_and_grad(loss)(PARAMS)
    assert np.isfinite(value) and np.isfinite(slope["network"]["unused"]).all()


@pytest.mark.parametrize("parametrization", sedd.PARAMETRIZATIONS)
def test_masked_samplers_serve_absorbing_sedd(parametrization):
    from test_samplers import FREE, UNKNOWN, assert_law, grid_times, kernel_law

    objective = exact("absorbing", parametrization)
    tokens, _ = drawn(first_hitting.make(objective=objective), UNKNOWN[:100_000], FREE[:100_000])
    assert_law(tokens, toy.P_X, toy.X)
    tokens, _ = drawn(ancestral.make(objective=objective, num_steps=4), UNKNOWN, FREE)
    assert_law(tokens, kernel_law(objective.process(None), grid_times("cosine", 4)), toy.Z)


@pytest.mark.parametrize("graph", sedd.GRAPHS)
def test_what_the_score_sampler_keeps(graph):
    """Given tokens stay, unknown ones stay unknown, free ones are filled; a sample depends on its
    own key alone; one compilation serves all prompts."""
    sampler = jax.jit(score.make(objective=exact(graph), num_steps=4, corrector_steps=1).sample)
    keys_B = keys.rows(keys.stream(3, "sample"), jnp.arange(64))
    for given in range(toy.V):
        prompt, free = np.full((64, toy.L), toy.V), np.ones((64, toy.L), bool)
        prompt[:, 0], free[:, :2] = given, False
        out = np.asarray(sampler(PARAMS, keys_B, prompt, free).tokens)
        assert np.all(out[:, 0] == given) and np.all(out[:, 1] == toy.V)
        assert np.all(out[:, 2] < toy.V) and len(np.unique(out[:, 2])) > 1
        alone = sampler(PARAMS, keys_B[::-1], prompt, free).tokens
        np.testing.assert_array_equal(alone[::-1], out)
    assert sampler._cache_size() == 1


def test_absorbing_infilling_is_the_conditional():
    from test_samplers import FREE, UNKNOWN

    prompt, free = UNKNOWN[:20_000].copy(), FREE[:20_000].copy()
    prompt[:, 1], free[:, 1] = 2, False
    sampler = score.make(objective=exact("absorbing"), num_steps=100)
    given = np.where(toy.X[:, 1] == 2, toy.P_X, 0)
    place = (drawn(sampler, prompt, free)[0] * toy.V ** np.arange(toy.L - 1, -1, -1)).sum(1)
    law = np.bincount(place, minlength=27) / len(place)
    assert np.abs(law - given / given.sum()).sum() / 2 < 0.02


@pytest.mark.parametrize("graph", sedd.GRAPHS)
def test_guidance_mixes_scores(graph):
    """g log s(label) + (1 - g) log s(none)."""

    def trunk(params, z, t=None, keys=None, label=None):
        return jnp.broadcast_to(label[:, None, None] * jnp.array([0.0, 1.0, 2.0]), (*z.shape, 3))

    network = toy.exact_network(inputs=0, outputs=0)._replace(trunk=trunk)
    objective = toy.objective(sedd, lambda **_: network, graph=graph, classes=5)
    z, t = jnp.full((2, toy.L), toy.V if graph == "absorbing" else 0), jnp.full(2, 0.5)
    t_BL = jnp.full(z.shape, 0.5)

    def score_of(**cond):
        denoiser = objective.predict(PARAMS, {"label": jnp.array([1, 2]), **cond})
        return np.asarray(denoiser.score(denoiser.trunk(z, t), z, t_BL))

    plain, other = score_of(), score_of(label=jnp.array([5, 5]))
    got = score_of(guidance=jnp.float32(3.0))
    np.testing.assert_allclose(got, 3 * plain - 2 * other, rtol=1e-5, atol=1e-5)
    assert np.abs(got - plain).max() > 1


@pytest.mark.parametrize(
    "option,value", [("graph", "masked"), ("parametrization", "epsilon"), ("rule", "heun")]
)
def test_mistaken_values_are_named(option, value):
    with pytest.raises(ValueError, match=f"{value}.*choices"):
        if option == "rule":
            score.make(objective=exact("uniform"), rule=value)
        else:
            toy.objective(sedd, toy.zero_network, **{option: value})


@pytest.mark.parametrize("module", [ancestral, first_hitting])
def test_masked_samplers_do_not_serve_the_uniform_graph(module):
    with pytest.raises(ValueError, match="it is served by: score"):
        module.make(objective=exact("uniform"))

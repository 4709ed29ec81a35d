"""The laws of the samplers, against sums over all states."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from diffusion_lm import keys, processes, schedules
from diffusion_lm.objectives import ar, genmd4, md4
from diffusion_lm.samplers import (
    ancestral,
    autoregressive,
    confidence,
    entropy_bounded,
    first_hitting,
    predictor_corrector,
    remasking,
    routing,
    state_dependent,
)
from diffusion_lm.types import Denoiser

NUM = 200_000
FREE = np.ones((NUM, toy.L), bool)
UNKNOWN = np.full((NUM, toy.L), toy.MASK, np.int32)
JOINT = np.zeros(len(toy.Z))
JOINT[toy.index(toy.X)] = toy.P_X
ALL_MASKED = np.zeros(len(toy.Z))
ALL_MASKED[-1] = 1
MU = np.exp(toy.DENOISER)
# Every sampler of masked models; those in EXACT have p(x) as their law.
EXACT = {
    "first_hitting": (first_hitting, {}),
    "random": (confidence, {"order": "random", "num_steps": 3}),
    "confidence": (confidence, {"order": "confidence", "num_steps": 3}),
    "margin": (confidence, {"order": "margin", "num_steps": 3}),
    "entropy": (confidence, {"order": "entropy", "num_steps": 3}),
    "entropy_bounded": (entropy_bounded, {"gamma": 0.0}),
}
SAMPLERS = EXACT | {
    "ancestral": (ancestral, {"num_steps": 4}),
    "ancestral_float32": (ancestral, {"num_steps": 4, "draw": "float32_with_mask"}),
    "drawn": (confidence, {"order": "drawn", "num_steps": 2}),
    "routing": (routing, {"num_steps": 4, "score_noise": 1.0}),
    "remasking": (remasking, {"num_steps": 4, "eta": 0.5}),
    "remasking_confidence": (remasking, {"num_steps": 4, "eta": 1.0, "strategy": "confidence"}),
    "predictor_corrector": (predictor_corrector, {"num_steps": 3}),
}
PARAMS = {"network": {"unused": jnp.zeros(1)}}


def draw(sampler, prompt=UNKNOWN, free=FREE, seed=0):
    keys_B = keys.rows(jax.random.key(seed), jnp.arange(len(prompt)))
    out = jax.jit(sampler.sample)(PARAMS, keys_B, prompt, free)
    return np.asarray(out.tokens), int(out.calls)


def assert_law(tokens, law, states):
    """Chi-square test of counts against exact probabilities, and total variation under 0.01."""
    counts = np.bincount(toy.index(tokens), minlength=len(toy.Z))[toy.index(states)]
    assert counts.sum() == len(tokens)
    assert np.abs(counts / len(tokens) - law).sum() / 2 < 0.01
    seen = law * len(tokens) > 5
    assert counts[law == 0].sum() == 0
    chi2 = ((counts - law * len(tokens)) ** 2 / np.maximum(law * len(tokens), 1e-9))[seen].sum()
    degrees = seen.sum() - 1
    assert chi2 < degrees + 4 * math.sqrt(2 * degrees)  # p of about 1e-4


def moved(law, reveal, hide=0.0, fixed=()):
    """The law after one step: each shown position is hidden with probability `hide`, each hidden
    one is drawn from the exact denoiser with probability `reveal`, all independently."""
    new = np.zeros_like(law)
    for i, z in enumerate(toy.Z):
        if law[i] == 0:
            continue
        ways = np.zeros((toy.L, toy.V + 1))  # where each position goes
        for n in range(toy.L):
            if z[n] == toy.MASK:
                ways[n, : toy.V], ways[n, toy.MASK] = reveal * MU[i, n], 1 - reveal
            else:
                gone = 0.0 if n in fixed else hide
                ways[n, toy.MASK], ways[n, z[n]] = gone, 1 - gone
        new += law[i] * np.einsum("a,b,c->abc", *ways).ravel()  # in the order of toy.Z
    return new


def grid_times(grid, steps):
    time = schedules.grid(grid, steps)
    return [float(time(float(i))) for i in range(steps, -1, -1)]


def reveal_of(process, t, s):
    return 1.0 if s == 0 else float(processes.reveal_prob(process.schedule, t, s))


def kernel_law(process, times, law=ALL_MASKED, fixed=()):
    """The T-step product kernel of ancestral sampling."""
    for t, s in itertools.pairwise(times):
        law = moved(law, reveal_of(process, t, s))
    return law


def remasking_law(process, times, law=ALL_MASKED, fixed=(), *, strategy, eta):
    for t, s in itertools.pairwise(times):
        masked_t, masked_s = (float(process.schedule.mask_prob(u)) if u else 0.0 for u in (t, s))
        most = min(1.0, masked_s / max(1 - masked_t, 1e-12))
        sigma = min(eta, most) if strategy == "cap" else eta * most
        reveal = (masked_t - masked_s + sigma * (1 - masked_t)) / masked_t
        law = moved(law, reveal, sigma, fixed)
    return law


def corrector_law(process, times, law=ALL_MASKED, fixed=(), *, corrector_steps):
    for t, s in itertools.pairwise(times):
        reveal = reveal_of(process, t, s)
        law = moved(law, reveal)
        if t < 1:
            alpha_s = float(process.schedule.alpha(s)) if s else 1.0
            hide = 1 - float(process.schedule.alpha(t)) / alpha_s
            for _ in range(corrector_steps):
                law = moved(moved(law, 0.0, hide, fixed), reveal)
    return law


def product_law():
    """All positions at once, from the prediction of an empty sequence."""
    mu = MU[-1]
    law = np.zeros(len(toy.Z))
    law[toy.index(toy.X)] = [math.prod(mu[n, x[n]] for n in range(toy.L)) for x in toy.X]
    return law


def distance(law):
    return np.abs(law - JOINT).sum() / 2


@pytest.fixture(scope="module")
def model():
    return toy.objective(md4, toy.exact_network)


@pytest.mark.parametrize("name", EXACT)
def test_exact_samplers_have_the_law_of_the_data(model, name):
    module, options = EXACT[name]
    tokens, calls = draw(module.make(objective=model, **options), seed=11)
    assert_law(tokens, toy.P_X, toy.X)
    assert calls == toy.L


@pytest.mark.parametrize("name", EXACT)
def test_exact_infilling_has_the_conditional_law(model, name):
    module, options = EXACT[name]
    prompt, free = UNKNOWN[:100_000].copy(), FREE[:100_000].copy()
    prompt[:, 1], free[:, 1] = 2, False
    tokens, _ = draw(module.make(objective=model, **options), prompt, free)
    given = np.where(toy.X[:, 1] == 2, toy.P_X, 0)
    assert_law(tokens, given / given.sum(), toy.X)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    "module,options,law_of",
    [
        (ancestral, {}, kernel_law),
        (remasking, {"strategy": "cap", "eta": 0.3}, remasking_law),
        (remasking, {"strategy": "rescale", "eta": 0.3}, remasking_law),
        (predictor_corrector, {"corrector_steps": 2}, corrector_law),
    ],
)
def test_law_is_the_enumerated_kernel(model, module, options, law_of, given):
    """From nothing, and with x^1 = 2 given, which must never be hidden."""
    prompt, free, start = UNKNOWN.copy(), FREE.copy(), ALL_MASKED
    if given:
        prompt[:, 1], free[:, 1] = 2, False
        start = np.zeros(len(toy.Z))
        start[toy.index(prompt[0])] = 1
    sampler = module.make(objective=model, num_steps=4, **options)
    tokens, _ = draw(sampler, prompt, free)
    fixed = (1,) if given else ()
    law = law_of(model.process(None), grid_times("cosine", 4), start, fixed, **options)
    assert abs(law.sum() - 1) < 1e-6
    assert_law(tokens, law, toy.Z)


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_every_sampler_keeps(model, name):
    """Given tokens stay, unknown ones stay unknown, free ones are filled; a sample depends on its
    own key alone; one compilation serves all prompts; calls are counted."""
    module, options = SAMPLERS[name]
    sampler = jax.jit(module.make(objective=model, **options).sample)
    row_keys = keys.rows(keys.stream(3, "sample"), jnp.arange(8))
    for given in range(toy.V):
        prompt, free = UNKNOWN[:8].copy(), FREE[:8].copy()
        prompt[:, 0], free[:, :2] = given, False
        out = sampler(PARAMS, row_keys, prompt, free)
        assert np.all(out.tokens[:, 0] == given) and np.all(out.tokens[:, 1] == toy.MASK)
        assert np.all(out.tokens[:, 2] < toy.V)
        assert 1 <= int(out.calls) <= 7
    mixed, open_ = UNKNOWN[:8].copy(), FREE[:8].copy()  # rows with 3, 2 and 1 free positions
    mixed[2:5, 0], open_[2:5, 0] = 2, False
    mixed[5:], open_[5:] = [1, 0, toy.MASK], [False, False, True]
    many = np.asarray(sampler(PARAMS, row_keys, mixed, open_).tokens)
    assert np.all(many < toy.V)
    order = np.array([7, 3, 1, 0, 6, 2, 5, 4])  # each row beside others and in another place
    other = sampler(PARAMS, row_keys[order], mixed[order], open_[order]).tokens
    np.testing.assert_array_equal(many[order], other)
    kept = sampler(PARAMS, row_keys, prompt, ~FREE[:8])
    np.testing.assert_array_equal(kept.tokens, prompt)
    if name != "ancestral_float32":
        assert int(kept.calls) == 0
    assert sampler._cache_size() == 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_temperature_and_top_p_reach_every_draw(model, name):
    """Almost cold, and with a tiny nucleus, every draw is the likeliest token."""
    module, options = SAMPLERS[name]
    prompt, free = UNKNOWN[:64].copy(), FREE[:64].copy()
    prompt[:, 0], free[:, :2] = np.arange(64) % toy.V, False
    best = toy.DENOISER[toy.index(prompt), 2].argmax(-1)
    for shaping in ({"temperature": 0.0, "top_p": 0.9}, {"top_p": 1e-6}):
        tokens, _ = draw(module.make(objective=model, **options, **shaping), prompt, free)
        np.testing.assert_array_equal(tokens[:, 2], best)


@pytest.mark.parametrize(
    "grid,steps,by", [("uniform", 1, "exact"), ("uniform", 3, "float32_with_mask")]
)
def test_ancestral_law_on_a_uniform_grid(model, grid, steps, by):
    sampler = ancestral.make(objective=model, num_steps=steps, grid=grid, draw=by)
    tokens, calls = draw(sampler, seed=steps)
    assert_law(tokens, kernel_law(model.process(None), grid_times(grid, steps)), toy.Z)
    assert calls <= steps


def test_many_steps_approach_the_data(model):
    """With T steps the law is the data's up to O(1/T): enumerated, so no noise hides the rate."""
    gaps = [
        distance(kernel_law(model.process(None), np.linspace(1, 0, T + 1))) for T in (4, 16, 64)
    ]
    assert 2.5 < gaps[0] / gaps[1] < 6 and 2.5 < gaps[1] / gaps[2] < 6


def test_a_corrector_brings_the_law_nearer_to_the_data(model):
    """At three steps, by enumeration; each corrector step costs one more call."""
    process, times = model.process(None), grid_times("cosine", 3)
    gaps = [distance(corrector_law(process, times, corrector_steps=n)) for n in range(3)]
    assert gaps[0] == distance(kernel_law(process, times))
    assert gaps[1] < 0.95 * gaps[0] and gaps[2] < gaps[1]
    sampler = predictor_corrector.make(objective=model, num_steps=3, corrector_steps=2)
    assert draw(sampler, UNKNOWN[:64], FREE[:64])[1] == 3 + 2 * 2


def test_fixed_counts_at_random_places_have_the_law_of_their_sets(model):
    """Two steps over three positions: two at once, then one, all sets alike."""
    law = np.zeros(len(toy.Z))
    for last in range(toy.L):
        after = np.zeros(len(toy.Z))
        pair = [n for n in range(toy.L) if n != last]
        for values in itertools.product(range(toy.V), repeat=2):
            z = np.full(toy.L, toy.MASK)
            z[pair] = values
            after[toy.index(z)] = math.prod(MU[-1, n, v] for n, v in zip(pair, values, strict=True))
        law += moved(after, 1.0) / toy.L
    sampler = confidence.make(objective=model, num_steps=2, order="random")
    tokens, calls = draw(sampler)
    assert_law(tokens, law, toy.Z)
    assert calls == 2


@pytest.mark.parametrize("order", confidence.ORDERS)
def test_one_step_is_the_product_of_marginals(model, order):
    tokens, calls = draw(confidence.make(objective=model, num_steps=1, order=order))
    assert_law(tokens, product_law(), toy.Z)
    assert calls == 1


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
def test_the_surest_position_comes_first(model, order):
    """Of an empty sequence; each kind of sureness by its definition."""
    mu = np.sort(MU[-1], axis=-1)
    sure = {
        "confidence": mu[:, -1],
        "margin": mu[:, -1] - mu[:, -2],
        "entropy": (mu * np.log(mu)).sum(-1),
    }[order]
    sampler = confidence.make(objective=first_call_only(model), num_steps=3, order=order)
    tokens, _ = draw(sampler, UNKNOWN[:64], FREE[:64])
    assert np.all(np.delete(tokens, sure.argmax(), axis=1) == 0)
    assert tokens[:, sure.argmax()].max() > 0


def first_call_only(model):
    """A model that predicts as the exact one while nothing is revealed, and token 0 afterwards."""

    def predict(params, cond=None):
        exact = model.predict(params, cond)

        def trunk(z, t):
            empty = (z == toy.MASK).all(1)[:, None, None]
            return exact.trunk(z, t), jnp.broadcast_to(empty, (*z.shape, 1))

        def head(h):
            zero = jnp.log(jnp.array([1 - 2e-7, 1e-7, 1e-7]))
            return jnp.where(h[1], exact.head(h[0]), zero)

        return exact._replace(trunk=trunk, head=head)

    return model._replace(predict=predict)


def test_entropy_bounds_trade_calls_for_exactness(model):
    calls, gaps = [], []
    for gamma in (0.0, 100.0):
        sampler = entropy_bounded.make(objective=model, gamma=gamma)
        tokens, made = draw(sampler, UNKNOWN[:50_000], FREE[:50_000])
        counts = np.bincount(toy.index(tokens), minlength=len(toy.Z))[toy.index(toy.X)]
        calls.append(made)
        gaps.append(np.abs(counts / len(tokens) - toy.P_X).sum() / 2)
    assert calls == [toy.L, 1]
    assert gaps[0] < 0.02 < gaps[1]


def counting_model(length, vocab_size):
    """Predicts, with certainty, the number of masked positions it sees."""

    def network(*, inputs, outputs, causal, time_input):
        def trunk(params, tokens, t=None, keys=None, label=None):
            number = (tokens == vocab_size).sum(1, keepdims=True)
            return 50.0 * jax.nn.one_hot(jnp.broadcast_to(number, tokens.shape), outputs)

        return toy.zero_network(inputs=inputs, outputs=outputs)._replace(trunk=trunk)

    return toy.objective(md4, network, vocab_size=vocab_size, length=length)


def test_routing_keeps_its_counts():
    """After call i of 4 exactly floor(8 (1 - i/4)) positions are noise: equal scores are broken
    from the left, so the last calls rewrite the left, and each token tells what its call saw."""
    model = counting_model(8, 9)
    sampler = routing.make(objective=model, num_steps=4, rate="linear")
    tokens, calls = draw(sampler, np.full((2, 8), 9, np.int32), np.ones((2, 8), bool))
    np.testing.assert_array_equal(tokens, [[2, 2, 4, 4, 6, 6, 8, 8]] * 2)
    assert calls == 4


@pytest.mark.parametrize("rate", routing.RATES)
def test_routing_counts_are_whole(rate):
    """Of 10 positions over 10 steps: floor(10 rate), where float32 alone would round 3.9999."""
    sampler = routing.make(objective=counting_model(10, 11), num_steps=10, rate=rate)
    tokens, _ = draw(sampler, np.full((1, 10), 11, np.int32), np.ones((1, 10), bool))
    share = [1 - i / 10 if rate == "linear" else math.cos(math.pi / 20 * i) for i in range(11)]
    noise = [math.floor(10 * s + 1e-9) for s in share]
    want = [noise[max(i for i in range(10) if noise[i] > place)] for place in range(10)]
    np.testing.assert_array_equal(tokens[0], want)


def test_fixed_counts_are_fixed():
    """7 positions in 3 steps: 3, 2, 2."""
    sampler = confidence.make(objective=counting_model(7, 9), num_steps=3, order="confidence")
    tokens, _ = draw(sampler, np.full((2, 7), 9, np.int32), np.ones((2, 7), bool))
    np.testing.assert_array_equal(np.sort(tokens), [[2, 2, 4, 4, 7, 7, 7]] * 2)


def test_the_network_runs_only_when_something_is_revealed():
    """One token to reveal in 50 steps is one call; the head runs at that position alone."""
    sampler = ancestral.make(objective=counting_model(8, 9), num_steps=50)
    free = np.zeros((1, 8), bool)
    free[0, 3] = True
    tokens, calls = draw(sampler, np.full((1, 8), 9, np.int32), free)
    assert calls == 1 and tokens[0, 3] == 8


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
def test_the_largest_safe_set_is_filled(order):
    """Of four positions with known predictions, the surest k with sum H - max H <= gamma."""
    p = np.array([[0.9, 0.05, 0.05], [0.5, 0.5, 0.0], [0.7, 0.2, 0.1], [0.97, 0.02, 0.01]])
    log_p = np.log(p + 1e-12)
    entropy = -(p * log_p).sum(1)
    ranked = np.sort(p, axis=1)
    sure = {
        "confidence": ranked[:, -1],
        "margin": ranked[:, -1] - ranked[:, -2],
        "entropy": -entropy,
    }
    by = np.argsort(-sure[order])
    objective = toy.objective(md4, toy.zero_network)

    def predict(params, cond=None):
        def trunk(z, t):  # token 0 for certain once something is revealed
            fixed = jnp.log(jnp.array([1 - 2e-7, 1e-7, 1e-7]))
            empty = (z == toy.MASK).all(1)[:, None, None]
            return jnp.where(empty, jnp.asarray(log_p, jnp.float32), fixed)

        return Denoiser(trunk, lambda h: h)

    for count in range(1, 5):
        error = [entropy[by[:k]].sum() - entropy[by[:k]].max() for k in range(1, 5)]
        gamma = (error[count - 1] + error[count]) / 2 if count < 4 else 10.0
        sampler = entropy_bounded.make(
            objective=objective._replace(predict=predict), gamma=gamma, order=order
        )
        shape = (2000, 4)
        tokens, calls = draw(sampler, np.full(shape, toy.MASK, np.int32), np.ones(shape, bool))
        assert set(np.flatnonzero(tokens.max(0))) == set(by[:count])
        assert calls == 1 + (count < 4)


def test_time_conditioned_networks_hear_the_right_time(model):
    """The predicted token tells the time: of the grid, of the token, or of the share of masks."""
    ticks = 1000

    def predict(params, cond=None):
        def trunk(z, t):
            number = jnp.round(t * ticks).astype(int)[:, None]
            return 1e4 * jax.nn.one_hot(jnp.broadcast_to(number, z.shape), ticks + 1)

        return Denoiser(trunk, jax.nn.log_softmax)

    told = model._replace(predict=predict)
    process = processes.absorbing(schedules.cosine(), 5000)
    told = told._replace(process=lambda params: process)
    prompt, free = np.full((1000, 4), 5000, np.int32), np.ones((1000, 4), bool)
    for module in (ancestral, remasking, predictor_corrector):
        grid = {round(ticks * t) for t in grid_times("uniform", 5)}
        options = {"num_steps": 5, "grid": "uniform"}
        tokens, _ = draw(module.make(objective=told, **options), prompt, free)
        assert set(np.unique(tokens)) == grid - {0}
    shares = [float(schedules.time_of(process.schedule, jnp.float32(n / 4))) for n in (1, 2, 3, 4)]
    want = [round(ticks * t) for t in shares]
    for module, options in [
        (confidence, {"num_steps": 4}),
        (entropy_bounded, {"gamma": 0.0, "order": "margin"}),
    ]:
        tokens, calls = draw(module.make(objective=told, **options), prompt, free)
        got = sorted(np.unique(tokens))
        assert got == (want if calls == 4 else [want[-1]])  # certain predictions may go together
    tokens, _ = draw(first_hitting.make(objective=told), prompt, free)
    hit = np.asarray(process.schedule.mask_prob(jnp.asarray(np.sort(tokens, axis=1)) / ticks))
    for n in range(4):  # order statistics of four uniform numbers
        assert abs(hit[:, n].mean() - (n + 1) / 5) < 5 * 0.2 / math.sqrt(1000)
    # with given tokens the share of masks decides, here 2 of 4, then 1 of 4
    prompt[:, :2], free[:, :2] = 0, False
    for module, options in [(ancestral, {"num_steps": 7}), (first_hitting, {})]:
        tokens, _ = draw(module.make(objective=told, **options), prompt, free)
        assert set(np.unique(tokens[:, 2:])) <= {want[0], want[1]}


def test_cold_orders_still_look_at_the_prediction(model):
    """At temperature 0 the shaped prediction is certain everywhere; the order must not be."""
    mu = MU[-1]
    first = mu.max(1).argmax()
    sampler = confidence.make(
        objective=first_call_only(model), num_steps=3, order="confidence", temperature=0.0
    )
    tokens, _ = draw(sampler, UNKNOWN[:2], FREE[:2])
    want = np.zeros(toy.L, int)
    want[first] = mu[first].argmax()
    np.testing.assert_array_equal(tokens, [want, want])
    sampler = entropy_bounded.make(objective=model, gamma=0.0, temperature=0.0)
    assert draw(sampler, UNKNOWN[:2], FREE[:2])[1] == toy.L


def test_unknown_positions_stay_unknown(model):
    """A mask that is not free is marginalised out: x^0 alone then has its marginal law."""
    free = np.zeros_like(FREE)
    free[:, 0] = True
    tokens, _ = draw(ancestral.make(objective=model, num_steps=5), UNKNOWN, free)
    want = np.array([toy.P_X[toy.X[:, 0] == v].sum() for v in range(toy.V)])
    assert np.abs(np.bincount(tokens[:, 0], minlength=toy.V) / NUM - want).max() < 0.005


def test_autoregressive_law_is_the_data():
    tokens, calls = draw(autoregressive.make(objective=toy.objective(ar, toy.exact_network)))
    assert_law(tokens, toy.P_X, toy.X)
    assert calls == toy.L


def test_autoregressive_continues_a_prefix():
    prompt, free = UNKNOWN.copy(), FREE.copy()
    prompt[:, 0], free[:, 0] = 1, False
    sampler = autoregressive.make(objective=toy.objective(ar, toy.exact_network))
    tokens, _ = draw(sampler, prompt, free)
    given = np.where(toy.X[:, 0] == 1, toy.P_X, 0)
    assert_law(tokens, given / given.sum(), toy.X)


MODELS = {"masked": md4, "state_dependent": genmd4, "autoregressive": ar}
MODULES = {
    m.__name__.split(".")[-1]: m
    for m in (autoregressive, state_dependent, *(m for m, _ in SAMPLERS.values()))
}


@pytest.mark.parametrize("name", MODULES)
def test_bad_options(name):
    module = MODULES[name]
    objectives = {f: toy.objective(m, toy.exact_network) for f, m in MODELS.items()}
    right = next(objectives[f] for f in module.SERVES)
    for option in ({"top_p": 0.0}, {"top_p": 1.5}, {"temperature": -1.0}):
        with pytest.raises(ValueError, match=next(iter(option))):
            module.make(objective=right, **option)
    for family, objective in objectives.items():
        if family not in module.SERVES:
            wanted = [n for n, m in MODULES.items() if family in m.SERVES]
            with pytest.raises(ValueError, match="it is served by: ") as error:
                module.make(objective=objective)
            assert sorted(str(error.value).split(": ")[1].split(", ")) == sorted(wanted)


@pytest.mark.parametrize(
    "module,option,value",
    [
        (ancestral, "num_steps", 0),
        (ancestral, "draw", "float64"),
        (ancestral, "grid", "cos"),
        (confidence, "order", "sure"),
        (entropy_bounded, "gamma", -1.0),
        (entropy_bounded, "order", "random"),
        (routing, "rate", "square"),
        (routing, "score_noise", -1.0),
        (remasking, "strategy", "loop"),
        (remasking, "eta", 2.0),
        (predictor_corrector, "corrector_steps", -1),
    ],
)
def test_mistaken_values_are_named(model, module, option, value):
    with pytest.raises(ValueError, match=f"{option}|{value}"):
        module.make(objective=model, **{option: value})

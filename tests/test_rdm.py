"""RDM: the loss by enumeration, its bound, coupling, targets of any length, hints, routing."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from diffusion_lm import keys, processes, schedules
from diffusion_lm.networks import seq2seq
from diffusion_lm.objectives import rdm
from diffusion_lm.samplers import routing
from diffusion_lm.types import Denoiser, Memory

NONE = {"network": {}}  # the parameters of a table
TABLE = np.array(jax.nn.log_softmax(np.random.default_rng(1).normal(size=toy.DENOISER.shape) * 1.5))
STEPS = 4
PLAIN = {"label_smoothing": 0.0, "weight": "none", "timesteps": 1}  # the plain cross entropy


def table_network(denoiser=TABLE, *, inputs, outputs, causal, time_input):
    """Predicts from a table of all states of the toy, masks or not."""
    table = jnp.asarray(denoiser, jnp.float32)

    def trunk(params, tokens, t=None, keys=None, given=None):
        return table[toy.index(tokens)]

    return toy.exact_network(inputs=inputs, outputs=outputs)._replace(trunk=trunk)


def noted(seen, tokens):
    """Tokens, which go into `seen` when they are computed."""
    jax.debug.callback(lambda z: seen.append(np.asarray(z)), tokens, ordered=True)
    return tokens


def spying(seen, row=None, vocab_size=7):
    """A network that notes the tokens of each call; everywhere it has the logits `row`, or token 0
    alone."""
    row = jnp.eye(vocab_size)[0] if row is None else row

    def network(*, inputs, outputs, causal, time_input):
        assert not causal and not time_input and outputs == vocab_size

        def trunk(params, tokens, t=None, keys=None, given=None):
            return jnp.broadcast_to(row, (*noted(seen, tokens).shape, outputs))

        return toy.zero_network(inputs=inputs, outputs=outputs)._replace(trunk=trunk)

    return network


def loss_of(network, x, *, vocab_size=7, seed=3, **options):
    """The LossOutput of windows x, all callbacks done."""
    x = jnp.asarray(x, jnp.int32)
    objective = toy.objective(rdm, network, vocab_size=vocab_size, length=x.shape[1], **options)
    loss = jax.jit(partial(objective.loss, NONE, train=False))
    out = loss(keys.number({"x": x}), jax.random.key(seed))
    jax.effects_barrier()
    return jax.tree.map(np.asarray, out)


def alpha(u):
    """The cosine schedule, by its definition."""
    return math.cos(math.pi / 2 * (u + 0.008) / 1.008) ** 2 / (
        math.cos(math.pi / 2 * 0.008 / 1.008) ** 2
    )


def noise_law(x, noise, lost):
    """q(z | x) for all z of the toy at P(lost): [64]."""
    rows = {
        "absorbing": lambda v: [(1 - lost) * (v == z) + lost * (z == toy.MASK) for z in range(4)],
        "multinomial": lambda v: [
            (z < toy.V) * ((1 - lost) * (v == z) + lost / toy.V) for z in range(4)
        ],
    }
    return np.einsum("a,b,c->abc", *(rows[noise](v) for v in x)).ravel()


def smoothed(log_p, x, smoothing):
    """Cross entropies [L] of log p [L, V], a share `smoothing` of the label spread over all V."""
    label = (1 - smoothing) * np.eye(log_p.shape[-1])[x] + smoothing / log_p.shape[-1]
    return -(label * log_p).sum(-1)


def enumerated(x, noise, weight, smoothing, steps=STEPS, table=TABLE):
    """The mean over t and z of sum_n T lambda_t 1[z != x] CE, in float64."""
    total = 0
    for t in range(steps):
        u = (t + 1) / steps
        law = noise_law(x, noise, u if noise == "absorbing" else 1 - alpha(u))
        factor = {"linear": 1 - t / steps, "reciprocal": 1 / (t + 1), "none": 1}[weight]
        for z, q in zip(toy.Z, law, strict=True):
            nats = np.where(z != x, smoothed(table[toy.index(z)], x, smoothing), 0).sum()
            total += factor * q * nats  # T / T
    return total


def copies(batch, size):
    """`size` copies of the rows of a batch, their times independent, not spread evenly."""
    batch = {name: jnp.tile(jnp.asarray(a, jnp.int32), (size, 1)) for name, a in batch.items()}
    batch = keys.number(batch)
    slot = np.random.default_rng(0).random(len(batch["row"]))
    return batch | {"slot": jnp.asarray(slot, jnp.float32)}


def drawn(score, x, size=200_000):
    """f32[size]: score(batch, key) of as many copies of x."""
    return np.asarray(jax.jit(score)(copies({"x": x[None]}, size), jax.random.key(7)))


def errors_off(values, want):
    """Distance of the mean of `values` from `want` in standard errors."""
    return abs(values.mean() - want) / (values.std(ddof=1) / math.sqrt(len(values)))


def assert_mean(values, want, off=0.02):
    """To 4 standard errors; and a mean that is `off` would be seen."""
    values = np.asarray(values, np.float64)
    assert errors_off(values, want) < 4
    assert errors_off((1 + off) * values, want) > 4


# The loss.


@pytest.mark.parametrize("noise", rdm.NOISES)
@pytest.mark.parametrize(
    "weight,coupled", [*((weight, False) for weight in rdm.WEIGHTS), ("linear", True)]
)
def test_loss_averages_to_its_sum_over_all_noise(noise, weight, coupled):
    """Also of two coupled times."""
    x, options = toy.X[20], {"noise": noise, "weight": weight, "label_smoothing": 0.1}
    objective = toy.objective(rdm, table_network, timesteps=STEPS, coupled=coupled, **options)
    got = drawn(lambda *a: objective.loss(NONE, *a, train=False).loss, x)
    assert_mean(got, enumerated(x, noise, weight, 0.1))


def discrete_bound(x, table, steps):
    """MD4's bound with T steps (eq. 4) and alpha = 1 - t, over all mask patterns."""
    schedule, total = schedules.linear(eps=1e-9), 0
    for i in range(1, steps + 1):
        t, s = jnp.float64(i / steps), jnp.float64((i - 1) / steps)
        weight = float(processes.reveal_prob(schedule, t, s))
        for masked in toy.masked_patterns():
            q = (i / steps) ** masked.sum() * (1 - i / steps) ** (~masked).sum()
            log_mu = table[toy.index(np.where(masked, toy.MASK, x))]
            total -= weight * q * log_mu[masked, x[masked]].sum()
    return total


@pytest.mark.parametrize("table", [TABLE, toy.DENOISER], ids=["wrong", "exact"])
def test_reciprocal_loss_of_the_mask_is_the_bound(table):
    options = {"weight": "reciprocal", "label_smoothing": 0.0, "timesteps": STEPS}
    objective = toy.objective(rdm, partial(table_network, table), **options)
    with jax.enable_x64(True):
        want = [discrete_bound(toy.X[20], table, steps) for steps in (STEPS, 200)]
    assert abs(enumerated(toy.X[20], "absorbing", "reciprocal", 0, table=table) - want[0]) < 1e-6
    if table is toy.DENOISER:
        assert abs(want[1] + math.log(toy.P_X[20])) < 0.02
    got = drawn(lambda *a: objective.loss(NONE, *a, train=False).loss, toy.X[20])
    assert_mean(got, want[0])


def test_only_the_bound_is_called_a_likelihood():
    bound = {"weight": "reciprocal", "label_smoothing": 0.0}
    cases = [({}, True), ({"coupled": True}, True)]
    cases += [({name: value}, False) for name, value in [("weight", "linear"), ("glances", 1)]]
    cases += [({"label_smoothing": 0.1}, False), ({"noise": "multinomial"}, False)]
    batch = copies({"x": toy.X[:4]}, 1)
    for options, named in cases:
        objective = toy.objective(rdm, table_network, **bound | options)
        out = jax.eval_shape(partial(objective.loss, train=False), NONE, batch, jax.random.key(0))
        assert ("nats_per_token" in out.metrics) == named, options
        assert {"loss", "cross_entropy", "accuracy"} <= set(out.metrics)
    pairs = pairs_objective(**bound)
    params, batch = jax.eval_shape(pairs.init, jax.random.key(0)), keys.number(PAIRS)
    out = jax.eval_shape(partial(pairs.loss, train=True), params, batch, jax.random.key(0))
    assert "nats_per_token" not in out.metrics and "length_accuracy" in out.metrics


def test_label_smoothing_and_metrics():
    """With one step of masks all tokens are noise, at weight 1 for every lambda."""
    x = np.random.default_rng(2).integers(0, 7, (5, 6))
    row = np.asarray(jax.nn.log_softmax(np.random.default_rng(3).normal(size=7)), np.float32)
    nats = -row[x]
    for smoothing, weight in zip((0.0, 0.3, 0.6), rdm.WEIGHTS, strict=True):
        options = {"label_smoothing": smoothing, "weight": weight, "timesteps": 1}
        out = loss_of(spying([], row), x, **options)
        want = (1 - smoothing) * nats - smoothing * row.mean()
        np.testing.assert_allclose(out.loss, want.sum(1), rtol=1e-5)
        np.testing.assert_array_equal(out.tokens, np.full(5, 6))
        np.testing.assert_allclose(out.metrics["cross_entropy"].sum, nats.sum(), rtol=1e-5)
        assert out.metrics["cross_entropy"].count == out.metrics["accuracy"].count == x.size
        assert out.metrics["accuracy"].sum == (row.argmax() == x).sum()


def test_cosine_schedule():
    schedule, t = rdm.cosine(), np.linspace(0, 1, 101)
    with jax.enable_x64(True):
        want = np.array([alpha(u) for u in t])
        np.testing.assert_allclose(schedule.alpha(jnp.asarray(t)), want, atol=1e-12)
        np.testing.assert_allclose(schedule.mask_prob(jnp.asarray(t)), 1 - want, atol=1e-12)
        slope = jax.vmap(jax.grad(schedule.alpha))(jnp.asarray(t))
        np.testing.assert_allclose(schedule.dalpha(jnp.asarray(t)), slope, atol=1e-12)
    assert schedule.alpha(jnp.float32(1)) == 0 and schedule.mask_prob(jnp.float32(0)) == 0
    small = float(schedule.mask_prob(jnp.float32(1e-4)))
    np.testing.assert_allclose(small, 1 - alpha(float(np.float32(1e-4))), rtol=1e-5)
    assert abs(1 - float(schedule.alpha(jnp.float32(1e-4))) - small) > 1e-3 * small  # subtracted


@pytest.mark.parametrize("noise", rdm.NOISES)
def test_coupled_times_share_their_noise(noise):
    """What is noise at the earlier time is the same noise at the later one."""
    seen, x = [], np.random.default_rng(0).integers(0, 7, (64, 30))
    loss_of(spying(seen), x, noise=noise, coupled=True, timesteps=5)
    one, other = seen
    later = (one != x).sum(1) >= (other != x).sum(1)
    z_t, z_s = np.where(later[:, None], seen, seen[::-1])
    noisy = z_s != x
    np.testing.assert_array_equal(z_t[noisy], z_s[noisy])
    assert later.any() and not later.all()
    assert np.mean((z_t != x).sum(1) > noisy.sum(1)) > 0.9  # two times are never the same


def test_of_two_coupled_times_of_two_one_is_the_last():
    seen = []
    loss_of(spying(seen), np.zeros((64, 30)), coupled=True, timesteps=2)
    one, other = ((z == 7).all(1) for z in seen)
    np.testing.assert_array_equal(one, ~other)
    assert 20 < one.sum() < 44


# Pairs.

END = 5
PAIRS = {
    "x": jnp.array([[1, 4, 0, END, END], [2, END, END, END, END]], jnp.int32),
    "src": jnp.array([[3, 1, END, END], [0, 2, 4, END]], jnp.int32),
}


def pair_network(length=5, source_length=4, **options):
    return partial(
        seq2seq.make,
        length=length,
        source_length=source_length,
        source_end=END,
        **{"layers": 1, "width": 8, "heads": 2, "hidden": 8, "dropout_rate": 0.0} | options,
    )


def pairs_objective(length=5, source_length=4, network=None, **options):
    network = pair_network(length, source_length, **network or {})
    return toy.objective(rdm, network, vocab_size=END + 1, length=length, **options)


def parameters(objective):
    """Parameters that are nowhere zero; and there is no init to compile."""
    shapes, rng = jax.eval_shape(objective.init, jax.random.key(0)), np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(0.7 * rng.normal(size=p.shape), p.dtype), shapes)


NET = pair_network(5, 4)(inputs=END + 2, outputs=END + 1, causal=False, time_input=False)


def masked_log_probs(objective, params, row):
    """[8, 3, V], log p of the first three tokens of a pair under all their masks, as trained and,
    without the end, as samplers see it; and -log p of the lengths [L]; by the network itself."""
    length = int((PAIRS["x"][row] != END).sum())
    patterns = np.array(list(itertools.product([False, True], repeat=3)))
    z = np.tile(PAIRS["x"][row], (8, 1))
    z[:, :3][patterns] = END + 1
    src = jnp.tile(PAIRS["src"][row], (8, 1))

    @jax.jit
    def run(params):
        denoiser = objective.predict(params, {"src": src, "length": jnp.full(8, length)})
        h = denoiser.trunk(z, jnp.zeros(8))
        trained = jax.nn.log_softmax(NET.head(params["network"], h))
        return trained[:, :3], denoiser.head(h)[:, :3], -objective.lengths(params, src)[0]

    trained, log_p, lengths = (np.asarray(a, np.float64) for a in run(params))
    p = np.delete(np.exp(trained), END, axis=-1)
    np.testing.assert_allclose(
        np.delete(np.exp(log_p), END, axis=-1), p / p.sum(-1, keepdims=True), rtol=1e-4
    )
    assert (log_p[..., END] < -1e8).all()
    return patterns, trained, log_p, lengths


def test_pairs_average_to_their_sums():
    """Loss and nll of targets of 3 and of 1 token, against all their masks; the length adds."""
    options = {"timesteps": 3, "label_smoothing": 0.2, "length_weight": 1.5}
    objective = pairs_objective(**options)
    params, batch = parameters(objective), copies(PAIRS, 16_000)

    @jax.jit
    def run(params, batch, key):
        return objective.loss(params, batch, key, train=True), objective.nll(params, batch, key)

    out, nll = run(params, batch, jax.random.key(7))
    hits = 0
    for row, number in ((0, 3), (1, 1)):
        patterns, trained, log_p, lengths = masked_log_probs(objective, params, row)
        x, inside = np.asarray(PAIRS["x"][row, :number]), ~patterns[:, number:].any(1)
        want, bound = 1.5 * number * lengths[number], lengths[number]
        both = trained[inside, :number], log_p[inside, :number]
        for m, p, p_without in zip(patterns[inside, :number], *both, strict=True):
            for t in range(3):
                q = ((t + 1) / 3) ** m.sum() * (1 - (t + 1) / 3) ** (~m).sum()
                want += (1 - t / 3) * q * smoothed(p, x, 0.2)[m].sum()
            if m.any():
                bound += smoothed(p_without, x, 0)[m].sum() / m.sum() / math.comb(number, m.sum())
        assert_mean(out.loss[row::2], want, 0.05)
        if number == 1:  # one way to mask one token
            np.testing.assert_allclose(nll[row::2], bound, rtol=1e-5)
        else:
            assert_mean(nll[row::2], bound, 0.03)
        np.testing.assert_array_equal(out.tokens[row::2], np.full(16_000, number))
        hits += lengths.argmin() == number
    right = out.metrics["length_accuracy"]
    assert right.sum == 16_000 * hits and right.count == 32_000


@pytest.mark.parametrize("table", [TABLE, toy.DENOISER], ids=["wrong", "exact"])
def test_nll_of_windows_is_the_any_order_bound(table):
    objective = toy.objective(rdm, partial(table_network, table))
    x = toy.X[20]
    want = sum(
        -table[toy.index(np.where(m, toy.MASK, x))][m, x[m]].sum() / m.sum() / math.comb(3, m.sum())
        for m in toy.masked_patterns()[1:]
    )
    if table is toy.DENOISER:
        assert abs(want + math.log(toy.P_X[20])) < 1e-6
    assert_mean(drawn(partial(objective.nll, NONE), x), want)
    assert toy.objective(rdm, table_network, noise="multinomial").nll is None


@pytest.mark.parametrize("noise", rdm.NOISES)
def test_filling_does_not_matter(noise):
    """More of it on both sides, or other tokens behind the end; but the target's tokens do."""
    objective = pairs_objective(length=8, source_length=6, noise=noise, timesteps=3)
    params, key = parameters(objective), jax.random.key(2)
    loss = jax.jit(lambda batch: objective.loss(params, keys.number(batch), key, train=False))
    batch = PAIRS | {"x": jnp.tile(PAIRS["x"][:1], (2, 1))}
    want = jax.tree.leaves(loss(batch))
    more = {
        "x": jnp.pad(batch["x"], ((0, 0), (0, 3)), constant_values=END),
        "src": jnp.pad(batch["src"], ((0, 0), (0, 2)), constant_values=END),
    }
    # The numbers of a key are the same for any length, so the noise of both is the same.
    for got, value in zip(jax.tree.leaves(loss(more)), want, strict=True):
        np.testing.assert_allclose(got, value, rtol=2e-5)
    garbage = batch | {"x": batch["x"].at[:, 4].set(2)}
    for got, value in zip(jax.tree.leaves(loss(garbage)), want, strict=True):
        np.testing.assert_array_equal(got, value)
    other = batch | {"x": batch["x"].at[:, 2].set(2)}
    assert np.all(loss(other).loss != loss(batch).loss)
    if noise == "absorbing":
        nll = jax.jit(lambda batch: objective.nll(params, keys.number(batch), key))
        np.testing.assert_array_equal(nll(batch), nll(garbage))
        assert np.all(nll(batch) != nll(other))


@pytest.mark.parametrize(
    "options", [{"coupled": True}, {"noise": "multinomial", "glances": 1, "timesteps": 3}]
)
def test_a_row_does_not_depend_on_the_others(options):
    objective = pairs_objective(network={"dropout_rate": 0.2}, **options)
    params = parameters(objective)
    batch = keys.number({name: jnp.tile(value, (4, 1)) for name, value in PAIRS.items()})

    def both(batch):
        out = objective.loss(params, batch, jax.random.key(4), train=True).loss
        if objective.nll is None:
            return out[None]
        return jnp.stack([out, objective.nll(params, batch, jax.random.key(4))])

    both = jax.jit(both)
    want = both(batch)
    assert len(np.unique(want[0])) > 6
    # the others before and behind it, and none of them what they were
    turned = {name: value[::-1] for name, value in batch.items()}
    for i in (0, 5):
        others = jnp.arange(8)[:, None] != 7 - i
        mixed = turned | {name: jnp.where(others, 3, turned[name]) for name in ("x", "src")}
        np.testing.assert_allclose(both(mixed)[:, 7 - i], want[:, i], rtol=1e-5)


def test_dropout_is_for_training():
    """In every pass, of the encoder and with hints as well; that of a second time is another."""
    seen = []

    def network(**options):
        net = pair_network()(**options)

        def encode(params, src, keys_B=None):
            seen.append(keys_B)
            return net.encode(params, src, keys_B)

        def trunk(params, z, t, keys_B, memory):
            seen.append(keys_B)
            return net.trunk(params, z, t, keys_B, memory)

        return net._replace(encode=encode, trunk=trunk)

    options = {"glances": 1, "coupled": True, "vocab_size": END + 1, "length": 5}
    objective = toy.objective(rdm, network, **options)
    params, batch = parameters(objective), keys.number(PAIRS)
    for score in (partial(objective.loss, train=False), objective.nll):
        jax.eval_shape(score, params, batch, jax.random.key(0))
    assert seen == [None] * 7
    seen.clear()
    jax.make_jaxpr(partial(objective.loss, train=True))(params, batch, jax.random.key(0))
    assert len(seen) == 5 and None not in seen
    assert seen[1] is seen[2] and seen[3] is seen[4] and seen[1] is not seen[3]


@pytest.mark.parametrize("noise", rdm.NOISES)
def test_what_samplers_are_given(noise):
    objective = toy.objective(rdm, table_network, noise=noise)
    process, denoiser = objective.process(NONE), objective.predict(NONE)
    assert objective.lengths is None and process.vocab_size == toy.V
    if noise == "absorbing":
        assert objective.families == ("masked",) and process.mask == toy.MASK
    else:
        assert objective.families == ("multinomial",) and process.mask is None
    got = denoiser.head(denoiser.trunk(toy.X[:2], jnp.ones(2)))
    np.testing.assert_allclose(got, TABLE[toy.index(toy.X[:2])], atol=1e-5)


def test_the_source_is_encoded_once():
    """The target is shown up to its length, log p is normalised, at any positions."""
    calls = []

    def network(**options):
        net = pair_network()(**options)

        def encode(*args):
            calls.append(1)
            return net.encode(*args)

        return net._replace(encode=encode)

    objective = toy.objective(rdm, network, vocab_size=END + 1, length=5)

    @jax.jit
    def run(params):
        calls.clear()
        denoiser = objective.predict(params, {"src": PAIRS["src"], "length": jnp.array([3, 1])})
        h, changed = (
            denoiser.trunk(z, jnp.ones(2)) for z in (PAIRS["x"], PAIRS["x"].at[0, 3:].set(1))
        )
        assert len(calls) == 1
        lengths = objective.lengths(params, PAIRS["src"])
        return [denoiser.head(a) for a in (h, changed, h[1, 2:3])] + [lengths]

    log_p, changed, one, lengths = run(parameters(objective))
    np.testing.assert_allclose(jnp.exp(log_p).sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(jnp.exp(lengths).sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(one, log_p[1, 2:3], rtol=1e-5)
    np.testing.assert_allclose(changed[0, :3], log_p[0, :3], rtol=1e-5)
    assert np.abs(changed[0, 3:] - log_p[0, 3:]).max() > 0.1


# Glancing.


@pytest.mark.parametrize("noise", rdm.NOISES)
def test_hints_are_as_many_as_half_of_what_is_wrong(noise):
    """All guesses are token 0; each pass shows true tokens where there was noise, nowhere else."""
    seen, x = [], np.random.default_rng(0).integers(0, 3, (64, 40))
    options = {"noise": noise, "glances": 2, "timesteps": 5, "label_smoothing": 0.0}
    out = loss_of(spying(seen), x, **options)
    first, second, last = seen
    for before, after in [(first, second), (second, last)]:
        hint = before != after
        assert np.all(before[hint] != x[hint]) and np.all(after[hint] == x[hint])
        wrong = ((before != x) & (x != 0)).sum(1)
        np.testing.assert_array_equal(hint.sum(1), np.round(0.5 * wrong))
        assert hint[x == 0].any()  # what was guessed may be shown, too
    # the loss is on what stays noisy, at the weight of its time
    nats = math.log(math.e + 6) - (x == 0)
    nats = np.where(last != x, nats, 0).sum(1)
    np.testing.assert_allclose(out.metrics["cross_entropy"].sum, nats.sum(), rtol=1e-5)
    assert out.metrics["cross_entropy"].count == (last != x).sum()
    factor = out.loss[nats > 0] / nats[nats > 0]
    np.testing.assert_allclose(factor, np.round(factor), atol=1e-4)
    assert set(np.round(factor)) <= {1, 2, 3, 4, 5} and len(set(np.round(factor))) > 2


def test_nothing_is_left_where_all_is_shown():
    seen, x = [], np.array([[1, 2, 3, 4], [0, 0, 0, 0], [0, 1, 1, 1]])
    out = loss_of(spying(seen), x, glances=1, glance_ratio=1.0, **PLAIN)
    assert out.loss[0] == 0 and np.all(out.loss[1:] > 0)
    np.testing.assert_array_equal((seen[-1] == 7).sum(1), [0, 4, 1])


def test_hints_are_drawn_uniformly():
    """Three of six noisy tokens are wrong: round(1.5) = 2 hints, a third of all at every place."""
    seen, x = [], np.tile([0, 0, 0, 1, 1, 1], (1500, 1))
    loss_of(spying(seen), x, glances=1, **PLAIN)
    hint = seen[1] == x
    np.testing.assert_array_equal(hint.sum(1), 2)
    np.testing.assert_allclose(hint.mean(0), 1 / 3, atol=4 * math.sqrt(2 / 9 / 1500))
    pairs = (1.0 * hint.T @ hint)[np.triu_indices(6, 1)]
    np.testing.assert_allclose(pairs / 1500, 1 / 15, atol=4 * math.sqrt(1 / 15 / 1500))


def test_no_gradient_goes_through_a_glance():
    """It is that of the cross entropy of the last pass, its input taken as given."""
    seen, backward = [], []
    batch = keys.number({"x": jnp.asarray(np.random.default_rng(0).integers(0, 7, (4, 9)))})

    @jax.custom_vjp
    def passed(h):
        return h

    def back(_, g):
        backward.append(1)
        return (g,)

    passed.defvjp(lambda h: (h, None), back)

    def logits(params, tokens):
        return params["own"][tokens] + params["others"][tokens].mean(1, keepdims=True)

    def network(*, inputs, outputs, causal, time_input):
        def trunk(params, tokens, t=None, keys=None, given=None):
            return passed(logits(params, noted(seen, tokens)))

        return toy.zero_network(inputs=inputs, outputs=outputs)._replace(trunk=trunk)

    objective = toy.objective(rdm, network, vocab_size=7, length=9, glances=2, **PLAIN)
    weights = np.random.default_rng(1).normal(size=(2, 8, 7)).astype(np.float32)
    params = {"network": dict(zip(("own", "others"), weights, strict=True))}

    def total(params):
        return objective.loss(params, batch, jax.random.key(0), train=True).loss.sum()

    def plain(params):
        log_p = jax.nn.log_softmax(logits(params["network"], jnp.asarray(seen[-1])))
        own = jnp.take_along_axis(log_p, batch["x"][..., None], axis=-1)[..., 0]
        return -jnp.where(seen[-1] == 7, own, 0).sum()

    got = jax.jit(jax.grad(total))(params)["network"]
    jax.effects_barrier()
    assert len(seen) == 3 and len(backward) == 1
    want = jax.jit(jax.grad(plain))(params)["network"]
    assert np.abs(want["others"]).max() > 0.1
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=1e-5)


# Routing.


def multinomial(trunk, head=lambda h: h, vocab_size=toy.V):
    """A model of uniform noise whose denoiser is trunk(z) -> h, head(h) -> log p."""
    objective = toy.objective(rdm, toy.zero_network, noise="multinomial", vocab_size=vocab_size)
    predict = lambda params, cond=None: Denoiser(lambda z, t: trunk(z), head)  # noqa: E731
    return objective._replace(predict=predict)


def router(objective, cond=None, **options):
    """(prompt, free) -> Samples, all callbacks done."""
    sample = jax.jit(partial(routing.make(objective=objective, **options).sample, NONE))

    def run(prompt, free=None):
        free = np.ones(prompt.shape, bool) if free is None else free
        out = sample(keys.rows(jax.random.key(0), jnp.arange(len(prompt))), prompt, free, cond)
        jax.effects_barrier()
        return jax.tree.map(np.asarray, out)

    return run


def test_exactly_k_tokens_are_noise():
    """Token 0 is predicted for certain and noise is one of many others: it can be counted."""
    seen, vocab_size, length = [], 10**5, 10

    def head(h):
        log_p = jnp.where(jnp.arange(vocab_size) == 0, 0.0, -20.0)
        return jnp.broadcast_to(log_p, (*h.shape, vocab_size))

    free = np.ones((2, length), bool)
    free[1, 6:] = False
    prompt = np.full((2, length), 17, np.int32)
    model = multinomial(partial(noted, seen), head, vocab_size)
    out = router(model, num_steps=4)(prompt, free)
    got = [((z != 0) & free).sum(1) for z in seen]  # 10 and 6 cos(pi/8 i)
    np.testing.assert_array_equal(got, [[10, 6], [9, 5], [7, 4], [3, 2]])
    fresh = np.concatenate([z[free & (z != 0)] for z in seen])
    assert len(np.unique(fresh)) == len(fresh)  # what becomes noise is drawn anew
    assert all(np.all(z[~free] == 17) for z in seen)
    np.testing.assert_array_equal(out.tokens, np.where(free, 0, 17))
    assert out.calls == 4
    np.testing.assert_allclose(out.score, 0, atol=0.1)


NEIGHBOURS = jnp.asarray(np.random.default_rng(5).normal(size=(7, 7, 7)) * 1.5)


def by_neighbours(z):
    """log p of each token by those to its left and right."""
    return jax.nn.log_softmax(NEIGHBOURS[jnp.roll(z, 1, axis=1), jnp.roll(z, -1, axis=1)])


def test_score_is_that_of_the_last_prediction():
    """The sum of log p of all free tokens, those that were not noise any more among them; a row is
    the same with other rows beside it, though they are done later."""
    seen, length, options = [], 8, {"num_steps": 6, "temperature": 0.5}

    free = np.arange(length) < np.array([[8], [2], [5]])
    prompt = np.full((3, length), 6, np.int32)
    model = multinomial(lambda z: by_neighbours(noted(seen, z)), vocab_size=7)
    route = router(model, **options)
    out = route(prompt, free)
    assert out.score.shape == (3,) and len(seen) == out.calls
    log_p = jax.lax.map(by_neighbours, jnp.asarray(np.stack(seen)))
    of_each = np.take_along_axis(log_p, out.tokens[None, ..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(out.score[0], of_each[-1, 0].sum(), rtol=1e-5)
    np.testing.assert_array_equal(out.tokens[~free], 6)
    # the last call that found noise in a row is the one whose prediction counts
    share = [math.cos(math.pi / 2 * i / options["num_steps"]) for i in range(options["num_steps"])]
    for i, number in enumerate(free.sum(1)):
        last = max(j for j, s in enumerate(share) if math.floor(number * s + 1e-3))
        np.testing.assert_allclose(out.score[i], of_each[last, i][free[i]].sum(), rtol=1e-5)
    alone = route(prompt, np.tile(free[1], (3, 1)))
    np.testing.assert_array_equal(alone.tokens[1], out.tokens[1])
    np.testing.assert_allclose(alone.score[1], out.score[1], rtol=1e-6)


def test_what_stays_unknown_is_noise_to_the_network():
    """Uniform noise has no token for it; what stood there is given back."""
    seen, length = [], 8
    free = np.tile(np.arange(length) < 3, (2, 1))
    prompt = np.where(np.arange(length) < 6, 6, 7) * np.ones((2, 1), np.int32)
    model = multinomial(lambda z: by_neighbours(noted(seen, z)), vocab_size=7)
    out = router(model, num_steps=4)(prompt, free)
    assert max(z.max() for z in seen) < 7
    assert all(np.all(z[:, 3:6] == 6) for z in seen)
    np.testing.assert_array_equal(out.tokens[~free], prompt[~free])
    log_p = by_neighbours(jnp.asarray(seen[-1]))
    of_each = np.take_along_axis(np.asarray(log_p), out.tokens[..., None].clip(max=6), axis=-1)
    np.testing.assert_allclose(out.score, of_each[:, :3, 0].sum(1), rtol=1e-5)


def test_the_score_of_a_masked_model():
    """Its tokens keep the score that they were drawn with."""
    objective = toy.objective(rdm, partial(table_network, toy.DENOISER))
    free = np.arange(toy.L) < np.array([[1], [3]])
    prompt = np.array([[toy.MASK, 1, 2], [toy.MASK] * 3], np.int32)
    out = router(objective, num_steps=1)(prompt, free)
    of_each = toy.DENOISER[toy.index(prompt)[:, None], np.arange(toy.L), out.tokens]
    np.testing.assert_allclose(out.score, np.where(free, of_each, 0).sum(1), rtol=1e-5)


def test_one_step_draws_the_product_of_predictions():
    table = np.asarray(jax.nn.log_softmax(np.random.default_rng(4).normal(size=(3, 3))), np.float32)
    model = multinomial(lambda z: jnp.broadcast_to(table, (*z.shape, 3)))
    out = router(model, num_steps=1)(np.zeros((20_000, 3), np.int32))
    law = np.einsum("a,b,c->abc", *np.exp(table)).ravel()
    counts = np.bincount(out.tokens @ [9, 3, 1], minlength=27)
    error = np.sqrt(law * (1 - law) / 20_000)
    assert np.all(np.abs(counts / 20_000 - law) < 4.5 * error)


def test_steps_bring_tokens_to_agree():
    """Texts are one token again and again; the exact prediction of a token from the others, 30 % of
    which may be noise. One step can only guess, from noise; sixteen make them agree, and every
    token is as frequent as the others."""
    length, size, kept = 6, 600, 0.7

    def trunk(z):
        z_BLV = jax.nn.one_hot(z, toy.V)
        others = z_BLV.sum(1, keepdims=True) - z_BLV
        return jax.nn.log_softmax(others * math.log(1 + toy.V * kept / (1 - kept)))

    noise = np.array(list(itertools.product(range(toy.V), repeat=length)))
    once = np.exp(trunk(noise)).prod(1).sum(-1).mean()
    route = router(multinomial(trunk), num_steps=16)
    tokens = route(np.zeros((size, length), np.int32)).tokens
    assert once < 0.5 and np.mean((tokens == tokens[:, :1]).all(1)) > 0.9
    share = np.bincount(tokens[:, 0], minlength=toy.V) / size
    np.testing.assert_allclose(share, 1 / toy.V, atol=4 * math.sqrt(2 / 9 / size))


@pytest.mark.parametrize("noise", rdm.NOISES)
def test_a_source_is_copied(noise):
    """By a network that reads it off the Memory, sampled as translate.py does it: end tokens stay
    behind the length."""

    def network(*, inputs, outputs, causal, time_input):
        def encode(params, src, keys=None):
            return Memory(src[None], src[None], src != END, jnp.zeros(src.shape))

        def trunk(params, tokens, t=None, keys=None, memory=None):
            right = jax.nn.one_hot(memory.keys[0], outputs)
            return jnp.where(memory.target[..., None], 20 * right, 0)

        plain = toy.zero_network(inputs=inputs, outputs=outputs)
        return plain._replace(encode=encode, trunk=trunk)

    objective = toy.objective(rdm, network, vocab_size=END + 1, length=6, noise=noise)
    src = np.random.default_rng(0).integers(0, END, (8, 6)).astype(np.int32)
    length = np.arange(8) % 5 + 1
    free = np.arange(6) < length[:, None]
    cond = {"src": jnp.asarray(src), "length": jnp.asarray(length)}
    out = router(objective, cond, num_steps=5)(np.full((8, 6), END, np.int32), free)
    np.testing.assert_array_equal(out.tokens, np.where(free, src, END))
    np.testing.assert_allclose(out.score, 0, atol=1e-4)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"noise": "uniform"}, "objective.noise 'uniform'; choices: absorbing, multinomial"),
        ({"weight": "cosine"}, "objective.weight 'cosine'; choices: linear, reciprocal, none"),
        ({"timesteps": 0}, "objective.timesteps must be at least 1 .* got 0"),
        ({"timesteps": 1, "coupled": True}, "objective.timesteps must be at least 2 .* got 1"),
        ({"label_smoothing": 1.0}, "objective.label_smoothing"),
        ({"glances": -1}, "objective.glances"),
        ({"glance_ratio": 1.5}, "objective.glance_ratio"),
        ({"length_weight": -0.1}, "objective.length_weight"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        toy.objective(rdm, table_network, **options)

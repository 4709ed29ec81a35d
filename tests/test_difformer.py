"""Difformer: its loss by hand, its schedules and the step back against Gaussian algebra."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from diffusion_lm import keys
from diffusion_lm.evaluators import embeddings
from diffusion_lm.networks import seq2seq
from diffusion_lm.objectives import difformer
from diffusion_lm.samplers import gaussian
from diffusion_lm.types import Embedder, Objective

V, L, END = 9, 6, 8
NETWORK = partial(
    seq2seq.make,
    length=L,
    source_length=5,
    source_end=END,
    layers=1,
    width=16,
    heads=2,
    hidden=16,
    embedding_width=8,
    dropout_rate=0.0,
)
X = np.array([[1, 2, 3, END, END, END], [4, 5, 6, 7, 0, END]])
SRC = np.array([[3, 2, 1, END, END], [0, 7, 6, 5, END]])


def make(**options):
    return toy.objective(difformer, NETWORK, vocab_size=V, length=L, **options)


def batch_of(x, src):
    return keys.number({"x": jnp.asarray(x), "src": jnp.asarray(src)})


def moved(objective):
    """Parameters near the initial ones; none is zero, as some are at first."""
    rng = np.random.default_rng(1)
    params = jax.device_get(jax.jit(objective.init)(jax.random.key(0)))
    moves = jax.tree.map(lambda a: 0.1 * rng.normal(size=a.shape), params)
    return jax.tree.map(lambda a, move: jnp.asarray(a + move, a.dtype), params, moves)


@pytest.mark.parametrize("anchoring", difformer.ANCHORS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_by_hand(anchoring, smoothing):
    """Every term from the network's own prediction at the z_t that the keys give, in numpy."""
    objective = make(anchoring=anchoring, label_smoothing=smoothing, self_conditioning=False)
    params, batch, key = moved(objective), batch_of(X, SRC), jax.random.key(5)
    out = jax.jit(partial(objective.loss, train=False))(params, batch, key)
    net = NETWORK(inputs=V, outputs=V, time_input=True, vectors=1)
    weights = params["network"]
    key_t, key_rows = jax.random.split(key)
    t_B = (jax.random.uniform(key_t) + np.arange(2) / 2) % 1
    keys_noise = keys.split(keys.rows(key_rows, jnp.arange(2)), 3)[0]
    eps = np.stack([jax.random.normal(k, (L, 8)) for k in keys_noise])
    abar = 1 - np.sqrt(np.asarray(t_B) + 1e-4)[:, None, None]
    z_0 = np.sqrt(8) * np.asarray(weights["embedding"])[X]
    z_t = np.sqrt(abar) * z_0 + 4 * np.sqrt(1 - abar) * eps
    shown = X != END

    @jax.jit
    def predicted(weights, z_t, t_B):
        memory = net.encode(weights, batch["src"])._replace(target=shown)
        return net.trunk(weights, z_t, t_B, None, memory), memory.length

    z_hat, length = jax.device_get(predicted(weights, z_t, t_B))
    z_hat = z_hat.astype(np.float64)
    wanted = ((z_hat - z_0) ** 2).mean(-1)
    logits = (z_0 if anchoring == "rounding" else z_hat) @ np.asarray(weights["embedding"]).T
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.take_along_axis(log_p, X[..., None], axis=-1)[..., 0]
    if anchoring != "none":
        wanted += -(1 - smoothing) * own - smoothing * log_p.mean(-1)
    n = shown.sum(1)
    length = -length[np.arange(2), n]
    wanted = np.where(shown, wanted, 0).sum(1) + 0.1 * n * length
    np.testing.assert_allclose(out.loss, wanted, rtol=2e-5)
    np.testing.assert_array_equal(out.tokens, n)


def test_padding_changes_nothing():
    """A source in a shorter bucket has the same loss, and what fills up a target is not scored."""
    objective = make(self_conditioning=True)
    params = moved(objective)

    def loss(x, src):
        return objective.loss(params, batch_of(x, src), jax.random.key(2), train=False)

    out = jax.jit(loss)(X[:1], SRC[:1])
    short = jax.jit(loss)(X[:1], SRC[:1, :4])
    np.testing.assert_allclose(short.loss, out.loss, rtol=1e-5)


def test_what_fills_up_a_target_is_not_seen_or_scored():
    """Without noise that depends on the length: the prediction at a target's own positions is the
    same whatever stands behind it, and so is the loss of these."""
    objective = make(self_conditioning=False)
    params = moved(objective)
    model = objective.predict(params, {"src": jnp.asarray(SRC[:1]), "length": jnp.array([2])})
    z = jnp.asarray(np.random.default_rng(0).normal(size=(1, L, model.width)), jnp.float32)
    other = z.at[:, 2:].set(7.0)
    denoise = jax.jit(model.denoise)
    a, b = (denoise(x, jnp.zeros_like(z), jnp.full(1, 0.5)) for x in (z, other))
    np.testing.assert_allclose(a[:, :2], b[:, :2], rtol=1e-5)
    assert np.abs(np.asarray(a[:, 2:] - b[:, 2:])).max() > 1e-3


def test_the_end_is_no_token_of_a_target():
    objective = make()
    model = objective.predict(
        moved(objective), {"src": jnp.asarray(SRC), "length": jnp.array([2, 3])}
    )
    log_p = np.asarray(model.log_prob(jnp.zeros((2, L, model.width))))
    assert (log_p[..., END] < -1e8).all()
    np.testing.assert_allclose(np.exp(log_p).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("self_conditioning", [True, False])
def test_self_conditioning_takes_half_of_the_examples_and_no_gradient(self_conditioning):
    calls = []

    def network(**options):
        net = NETWORK(**options)

        def trunk(params, z, *rest):
            calls.append(z)
            return net.trunk(params, z, *rest)

        return net._replace(trunk=trunk)

    objective = toy.objective(
        difformer, network, vocab_size=V, length=L, self_conditioning=self_conditioning
    )
    params = moved(objective)
    size = 64
    batch = batch_of(np.tile(X[1], (size, 1)), np.tile(SRC[1], (size, 1)))

    @jax.jit
    def seen(params):
        calls.clear()
        objective.loss(params, batch, jax.random.key(0), train=False)
        return list(calls)

    inputs = jax.device_get(seen(params))
    if not self_conditioning:
        assert len(inputs) == 1 and inputs[0].shape[-1] == 8
        return
    first, second = (z[..., 8:] for z in inputs)
    assert not first.any()
    given = second.any((1, 2))
    assert 18 < given.sum() < 46  # 32, within 3.5 standard deviations
    np.testing.assert_array_equal(inputs[0][..., :8], inputs[1][..., :8])
    # No gradient flows through the first pass: cutting it off changes no gradient.
    key = jax.random.key(0)

    def loss(params, before):
        net = NETWORK(inputs=V, outputs=V, time_input=True, vectors=2)
        memory = net.encode(params["network"], batch["src"])._replace(target=batch["x"] != END)
        key_t = jax.random.split(key)[0]
        t_B = (jax.random.uniform(key_t) + batch["slot"]) % 1
        z_0 = difformer.clean(params["network"], batch["x"])
        signal, noise = difformer.noise_levels("sqrt", t_B, 4.0, False)
        keys_noise = keys.split(keys.rows(jax.random.split(key)[1], batch["row"]), 3)[0]
        eps = jax.vmap(lambda k: jax.random.normal(k, (L, 8)))(keys_noise)
        z = signal[:, None, None] * z_0 + noise[:, None, None] * eps
        z_hat = net.trunk(params["network"], jnp.concatenate([z, before], -1), t_B, None, memory)
        return jnp.where(batch["x"] != END, ((z_hat - z_0) ** 2).mean(-1), 0).sum()

    mse = toy.objective(
        difformer, NETWORK, vocab_size=V, length=L, anchoring="none", length_weight=0.0
    )
    wanted = jax.jit(jax.grad(loss))(params, second)
    got = jax.jit(jax.grad(lambda p: mse.loss(p, batch, key, train=False).loss.sum()))(params)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("noise", difformer.NOISES)
@pytest.mark.parametrize("preserving", [False, True])
def test_schedules(noise, preserving):
    """From nearly clean to nearly noise, falling; both forms have the same signal to noise."""
    t = np.linspace(0, 1, 201)
    a, n = (np.asarray(v) for v in difformer.noise_levels(noise, jnp.asarray(t), 4.0, preserving))
    assert np.isfinite(a).all() and np.isfinite(n).all()
    assert (np.diff(a / n) < 0).all() and a[0] ** 2 > 0.85 and a[-1] ** 2 < 1e-3
    if preserving:
        np.testing.assert_allclose(a**2 + n**2, 1, rtol=1e-5)
        b, m = difformer.noise_levels(noise, jnp.asarray(t), 4.0, False)
        np.testing.assert_allclose((a / n)[:-1], (b / m)[:-1], rtol=1e-3)
    if noise == "linear":  # DDPM's product of a thousand steps
        beta = np.linspace(1e-4, 0.02, 1000)
        b = np.cumprod(1 - beta)
        a, _ = difformer.noise_levels(noise, jnp.arange(1, 1001) / 1000, 4.0, False)
        # log abar of sum and integral differ by half the ends, .01, and by 1/999 of at most 10
        np.testing.assert_allclose(np.asarray(a) ** 2, b, rtol=0.022)


@pytest.mark.parametrize("preserving", [False, True])
def test_posterior_satisfies_bayes(preserving):
    """q(z_s | z_t, z_0) q(z_t | z_0) = q(z_t | z_s) q(z_s | z_0), as densities in one dimension."""
    t, s, z_0 = 0.7, 0.4, 1.3
    (a_t, n_t), (a_s, n_s) = (
        tuple(map(float, difformer.noise_levels("sqrt", jnp.float32(u), 3.0, preserving)))
        for u in (t, s)
    )

    def density(z, mean, deviation):
        return np.exp(-((z - mean) ** 2) / (2 * deviation**2)) / (deviation * np.sqrt(2 * np.pi))

    r = a_t / a_s
    step = np.sqrt(n_t**2 - r**2 * n_s**2)
    for z_t in (-2.0, 0.5, 4.0):
        mean, deviation = gaussian.posterior(z_t, z_0, (a_t, n_t), (a_s, n_s))
        for z_s in (-1.0, 0.0, 2.5):
            left = density(z_s, mean, deviation) * density(z_t, a_t * z_0, n_t)
            right = density(z_t, r * z_s, step) * density(z_s, a_s * z_0, n_s)
            np.testing.assert_allclose(left, right, rtol=2e-4)


def known(law, table, F):
    """An objective whose network is the exact E[z_0 | z_t] for one token from `law`."""
    width = table.shape[1]
    clean = np.sqrt(width) * jnp.asarray(table)

    def levels(t, factor):
        return difformer.noise_levels("sqrt", t, factor, False)

    def predict(params, cond):
        def denoise(z, before, t_B):
            signal, noise = (a[:, None, None, None] for a in levels(t_B, F))
            square = ((z[:, :, None] - signal * clean) ** 2).sum(-1)
            weight = jax.nn.softmax(jnp.log(law) - square / (2 * noise[..., 0] ** 2))
            return weight @ clean

        def log_prob(z):
            return jax.nn.log_softmax(-4 * ((z[..., None, :] - clean) ** 2).sum(-1))

        return Embedder(denoise, log_prob, levels, F, width)

    return Objective(None, None, None, predict, None, ("gaussian",))


def test_many_exact_steps_draw_from_the_law():
    """With the exact prediction and many steps the tokens have the law of the data."""
    law, size = np.array([0.1, 0.3, 0.6]), 4000
    table = np.array([[1.0, 0.2], [-0.5, 1.0], [0.1, -1.0]])
    sampler = gaussian.make(objective=known(jnp.asarray(law), table, 2.0), num_steps=200)
    keys_B = jax.random.split(jax.random.key(0), size)
    free = jnp.ones((size, 1), bool)
    out = jax.jit(sampler.sample)(None, keys_B, jnp.zeros((size, 1), int), free)
    got = np.bincount(np.asarray(out.tokens)[:, 0], minlength=3) / size
    assert int(out.calls) == 200
    np.testing.assert_allclose(got, law, atol=0.035)  # discretisation and 4 standard errors


def test_sampler_stops_early_scales_noise_and_keeps_what_is_given():
    seen = []
    objective = make()
    params = moved(objective)

    def predict(params, cond):
        model = objective.predict(params, cond)

        def denoise(z, before, t_B):
            out = model.denoise(z, before, t_B)
            jax.debug.callback(lambda *a: seen.append(a), z, before, t_B, out, ordered=True)
            return out

        return model._replace(denoise=denoise)

    def run(size=64, **options):
        seen.clear()
        sampler = gaussian.make(objective=objective._replace(predict=predict), **options)
        cond = {"src": jnp.tile(SRC[:1], (size, 1)), "length": jnp.full(size, 3)}
        free = jnp.broadcast_to(jnp.arange(L) < 3, (size, L))
        keys_B = jax.random.split(jax.random.key(0), size)
        out = jax.jit(sampler.sample)(params, keys_B, jnp.full((size, L), END), free, cond)
        jax.block_until_ready(out)
        jax.effects_barrier()
        return out, [tuple(np.asarray(a) for a in call) for call in seen]

    out, calls = run(num_steps=8, early_stop=3)
    last_BLE = jnp.asarray(calls[-1][3])
    assert int(out.calls) == len(calls) == 5
    np.testing.assert_allclose([call[2][0] for call in calls], [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8])
    assert not calls[0][1].any() and calls[1][1].any()  # the second step sees the first prediction
    assert (np.asarray(out.tokens)[:, 3:] == END).all()
    assert abs(calls[0][0].std() - 4) < 0.1
    _, calm = run(num_steps=8, early_stop=3, decode_F=1.0)
    assert abs(calm[0][0].std() - 1) < 0.03
    np.testing.assert_allclose(4 * calm[0][0], calls[0][0], rtol=1e-5)
    # the score is the log-probability of the tokens under the last prediction
    cond = {"src": jnp.asarray(SRC[:1]), "length": jnp.array([3])}
    log_p = np.asarray(objective.predict(params, cond).log_prob(last_BLE))
    chosen = np.take_along_axis(log_p, np.asarray(out.tokens)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(out.score, chosen[:, :3].sum(1), rtol=1e-4)


def test_rows_are_their_own():
    objective = make()
    params = moved(objective)
    sampler = jax.jit(gaussian.make(objective=objective, num_steps=3).sample)
    keys_B = jax.random.split(jax.random.key(0), 4)
    cond = {"src": jnp.asarray(SRC[[0, 1, 0, 1]]), "length": jnp.array([3, 5, 2, 4])}
    prompt, free = jnp.full((4, L), END), jnp.arange(L) < cond["length"][:, None]
    whole = sampler(params, keys_B, prompt, free, cond)
    alone = sampler(
        params, keys_B[2:3], prompt[2:3], free[2:3], {k: v[2:3] for k, v in cond.items()}
    )
    np.testing.assert_array_equal(alone.tokens[0], whole.tokens[2])
    np.testing.assert_allclose(alone.score[0], whole.score[2], rtol=1e-4)


def test_health_by_hand():
    table = np.array([[3.0, 0.0], [0.0, 4.0], [-3.0, 0.0]])
    got = embeddings.health(table, factor=2.0)
    assert got["norm"] == pytest.approx(10 / 3)
    assert got["mean_cosine"] == pytest.approx(-1 / 3)  # 0, 0 and -1
    assert got["nearest_distance"] == pytest.approx(5 / 2)
    assert embeddings.health(np.ones((5, 4)) + 1e-9, 1.0)["mean_cosine"] == pytest.approx(1)
    square = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert embeddings.health(square, 1.0)["effective_rank"] == pytest.approx(2)


def test_copy_score_falls_with_the_noise():
    table = np.random.default_rng(0).normal(size=(20, 8)) / np.sqrt(8)
    answer = np.random.default_rng(1).integers(0, 20, 500)

    def score(F):
        def levels(t, factor):
            return difformer.noise_levels("sqrt", t, factor, False)

        model = Embedder(None, None, levels, F, 8)
        return embeddings.copied(table, answer, model, np.random.default_rng(2))

    scores = [score(F) for F in (1e-3, 1.0, 4.0, 1e4)]
    assert scores[0] == 1 and scores[0] > scores[1] > scores[2] + 0.1 > scores[3]
    assert scores[3] < 0.1  # 1 in 20 by chance


@pytest.mark.parametrize(
    "options,message",
    [
        ({"anchoring": "anchr"}, "choices: anchor, rounding, none"),
        ({"train_F": 0.0}, "must be positive"),
        ({"noise": "log"}, "choices: sqrt, linear, cosine"),
        ({"label_smoothing": 1.0}, r"\[0, 1\)"),
        ({"length_weight": -1.0}, "0 or more"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_sampler_refusals():
    for options, message in (
        ({"num_steps": 0}, "at least 1"),
        ({"num_steps": 5, "early_stop": 5}, "0..num_steps - 1 = 4"),
        ({"decode_F": -1.0}, "positive or none"),
    ):
        with pytest.raises(ValueError, match=message):
            gaussian.make(objective=make(), **options)

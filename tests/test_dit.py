"""SEDD's and MDLM's transformer: the released code's logits and losses, the cache, the mask."""

import math
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_lm import keys, optim, parallel, processes, schedules
from diffusion_lm.interop import layouts, safetensors
from diffusion_lm.networks import dit
from diffusion_lm.objectives import ar, md4, sedd
from diffusion_lm.ops.cross_entropy import token_log_prob
from diffusion_lm.types import Schedule

FOLDER = pathlib.Path(__file__).parent / "reference"
V = 31  # and the mask
SIZE = {"layers": 2, "width": 64, "heads": 2, "condition_width": 32}
TINY = partial(dit.make, inputs=7, outputs=6, layers=2, width=16, heads=2, condition_width=8)
LOG_LINEAR = Schedule(  # SEDD's and MDLM's noise, which does not end at 0
    alpha=lambda t: 1 - (1 - 1e-3) * t,
    mask_prob=lambda t: (1 - 1e-3) * t,
    dalpha=lambda t: -(1 - 1e-3) * jnp.ones_like(t),
)


def published(name, network):
    """A reference's parameters in our layout."""
    found = safetensors.read_header(str(FOLDER / f"{name}.weights.safetensors"))
    abstract = jax.eval_shape(network.init, jax.random.key(0))
    return layouts.to_ours(abstract, lambda n: safetensors.read(n, found[n]))


def nats_at(monkeypatch, module, r, **options):
    """An objective's nll of the reference's x at its t and z, which it would draw itself."""
    z, t = jnp.asarray(r["xt"]), jnp.asarray(r["t"])
    made = processes.absorbing(LOG_LINEAR, V)._replace(corrupt=lambda keys, x, t: z)
    monkeypatch.setattr(module, "absorbing", lambda *_: made, raising=False)
    monkeypatch.setattr(processes, "absorbing", lambda *_: made)
    monkeypatch.setattr(module, "stratified_times", lambda *_: t, raising=False)
    monkeypatch.setattr(schedules, "stratified_times", lambda *_: t)
    objective = module.make(vocab_size=V, schedule=LOG_LINEAR, **options)
    batch = keys.number({"x": jnp.asarray(r["x0"])})
    return lambda params: objective.loss({"network": params}, batch, jax.random.key(0), train=False)


def test_sedd_reference(monkeypatch):
    """Log scores at all positions and the score entropies of the released SEDD."""
    r, network = np.load(FOLDER / "sedd_absorb.npz"), partial(dit.make, **SIZE)
    net = network(inputs=V + 1, outputs=V, time_input=True)
    params = published("sedd_absorb", net)
    z, sigma = r["xt"], r["sigma"]
    logits = net.head(params, net.trunk(params, z, jnp.asarray(sigma / 1000)))
    got = np.asarray(logits) - (np.log(np.expm1(sigma)) + math.log(V))[:, None, None]
    got = np.where(np.arange(V) == z[..., None], 0, got)  # pinned
    np.testing.assert_allclose(got, r["log_score"][..., :V], atol=1e-5)
    loss = nats_at(monkeypatch, sedd, r, network=network)(params).loss
    np.testing.assert_allclose(loss, r["loss_per_example"], rtol=1e-5)
    np.testing.assert_allclose(loss.mean(), r["loss_mean"], rtol=1e-5)


def test_mdlm_reference(monkeypatch):
    """MDLM without time conditioning tells its network sigma = 0; the mask's logit is there, too,
    for a network that is asked for it."""
    r, network = np.load(FOLDER / "mdlm_subs.npz"), partial(dit.make, **SIZE, told="t")
    net = network(inputs=V + 1, outputs=V + 1)
    params = published("mdlm_dit", net)
    logits = net.head(params, net.trunk(params, r["xt"]))
    np.testing.assert_allclose(logits, r["logits"], atol=1e-5)
    masked = r["xt"] == V
    fewer = network(inputs=V + 1, outputs=V)
    log_mu = jax.nn.log_softmax(fewer.head(params, fewer.trunk(params, r["xt"])))
    np.testing.assert_allclose(log_mu[masked], r["forward"][..., :V][masked], atol=1e-5)
    loss = nats_at(monkeypatch, md4, r, network=network, length=32)(params).loss
    np.testing.assert_allclose(loss / 32, r["loss_per_example_mean"], rtol=1e-5)
    np.testing.assert_allclose(loss.mean() / 32, r["loss_mean"], rtol=1e-5)


def test_autoregressive_reference():
    r = np.load(FOLDER / "mdlm_ar.npz")
    network = partial(dit.make, **SIZE, rows=V + 1)  # a row for the mask that is never seen
    net = network(inputs=V, outputs=V, causal=True)
    params = published("mdlm_ar", net)
    x = jnp.asarray(r["x0"])
    logits = net.head(params, net.trunk(params, x[:, :-1]))
    np.testing.assert_allclose(jax.nn.log_softmax(logits), r["log_probs"][..., :V], atol=1e-5)
    nats = -token_log_prob(logits, x[:, 1:])
    np.testing.assert_allclose(nats, r["nll_per_token"], rtol=1e-5)
    np.testing.assert_allclose(nats.mean(), r["loss_mean"], rtol=1e-5)
    # the objective, whose start is the token before the first one
    objective = ar.make(network=network, vocab_size=V, start=int(x[0, 0]))
    got = objective.token_nll({"network": params}, {"x": x[:1, 1:]})
    np.testing.assert_allclose(got, r["nll_per_token"][:1], rtol=1e-5)


def noisy(network, scale=0.3):
    """Parameters moved away from their special initial values."""
    leaves, tree = jax.tree.flatten(jax.jit(network.init)(jax.random.key(0)))
    moved = [
        leaf + scale * jax.random.normal(jax.random.key(i), leaf.shape)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, moved)


def test_causal_decode_equals_the_whole():
    network = TINY(causal=True, inputs=6, rows=7)
    params = noisy(network)
    tokens = jax.random.randint(jax.random.key(1), (3, 10), 0, 6)
    want = network.head(params, network.trunk(params, tokens))
    cache, rows, decode = network.cache(3, 10), [], jax.jit(network.decode)
    for at in range(10):
        logits, cache = decode(params, cache, tokens[:, at], at)
        rows.append(logits)
    np.testing.assert_allclose(jnp.stack(rows, 1), want, atol=2e-5)
    changed = network.head(params, network.trunk(params, tokens.at[:, 5].add(1) % 6))
    np.testing.assert_allclose(changed[:, :5], want[:, :5], atol=1e-6)
    assert np.abs(changed - want)[:, 5:].max() > 1e-2


def test_times_are_sigma_or_t():
    z, t = jnp.array([[1, 6, 3], [6, 6, 0]]), jnp.array([0.2, 0.9])
    params = noisy(TINY())
    sigma = -jnp.log(1 - 0.999 * t)
    by_sigma = TINY(time_input=True).trunk(params, z, sigma / 1000)
    by_t = TINY(time_input=True, told="t").trunk(params, z, t)
    np.testing.assert_allclose(by_sigma, by_t, atol=1e-5)
    none = TINY().trunk(params, z)
    assert np.abs(none - by_t).max() > 1e-2
    for told in dit.TOLD:
        zero = TINY(time_input=True, told=told).trunk(params, z, jnp.zeros(2))
        np.testing.assert_allclose(zero, none, atol=1e-5)


def test_the_mask_may_have_any_row():
    """Moving the mask's row, as MDLM's text8 has it at 4, changes nothing but the order."""
    last, other = TINY(), TINY(mask=4)
    params = noisy(last)
    order = [0, 1, 2, 3, 6, 4, 5]  # the rows where the mask stands at 4
    head = {"kernel": params["head"]["kernel"][:, np.array(order)]}
    head["bias"] = params["head"]["bias"][np.array(order)]
    moved = params | {"embedding": params["embedding"][np.array(order)], "head": head}
    z = jnp.arange(7)[None]
    want = last.head(params, last.trunk(params, z))
    assert want.shape == (1, 7, 6)
    np.testing.assert_allclose(other.head(moved, other.trunk(moved, z)), want, atol=1e-6)
    spare = TINY(inputs=4, outputs=3, rows=7)  # fewer ids: the mask is still the last row
    z = jnp.array([[0, 3, 2]])
    got, want = spare.trunk(params, z), last.trunk(params, jnp.array([[0, 6, 2]]))
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert spare.head(params, got).shape == (1, 3, 3)


def test_new_network_is_uniform_and_precision_changes_little():
    network = TINY(time_input=True)
    params = jax.jit(network.init)(jax.random.key(0))
    z, t = jnp.array([[1, 2, 6]]), jnp.array([1e-3])
    assert np.all(network.head(params, network.trunk(params, z, t)) == 0)
    params = noisy(network, 0.1)
    want = network.head(params, network.trunk(params, z, t))
    same = TINY(time_input=True, remat=True)
    np.testing.assert_allclose(same.head(params, same.trunk(params, z, t)), want, atol=1e-6)
    half = TINY(time_input=True, dtype="bfloat16")
    got = half.head(params, half.trunk(params, z, t))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=0.05)
    row_keys = keys.rows(jax.random.key(0), jnp.arange(1))
    dropped = network.trunk(params, z, t, row_keys)
    assert np.abs(dropped - network.trunk(params, z, t)).max() > 1e-3


def test_every_matrix_has_logical_axes_and_both_optimisers_take_them():
    network = TINY(width=32, heads=4, inputs=8, outputs=7, time_input=True)
    params = jax.jit(network.init)(jax.random.key(0))
    named = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        axes = parallel.logical_axes(dit.AXES, path)
        assert axes is not None or leaf.ndim < 3, parallel.name(path)
        if axes is not None:
            named.add(axes)
            assert len(axes) == leaf.ndim
    assert named == set(dit.AXES.values())
    optim.adamw(steps=1).transform.init(params)
    state = optim.muon(steps=1, axes=dit.AXES).transform.init(params)
    mesh = parallel.make_mesh(data=2, fsdp=2, tensor=2)
    rules = {"width": "fsdp", "heads": "tensor", "hidden": "tensor", "vocab": "tensor"}
    for tree in (params, state):
        for path, sharding in jax.tree_util.tree_leaves_with_path(
            parallel.shardings(mesh, tree, dit.AXES, rules)
        ):
            if parallel.name(path).endswith("blocks/up/kernel"):
                assert tuple(sharding.spec) == (None, "fsdp", "tensor")


@pytest.mark.parametrize(
    "options,word",
    [
        ({"width": 30, "heads": 4}, "multiple of 2 x heads"),
        ({"layers": 0}, "layers"),
        ({"told": "alpha"}, "sigma, t"),
        ({"dtype": "float16"}, "float32, bfloat16"),
        ({"dropout_rate": 1.0}, "dropout_rate"),
        ({"rows": 6}, "rows must be at least .* 7, got 6"),
        ({"mask": 7}, "mask"),
        ({"classes": 10}, "no labels"),
        ({"hidden": -1}, "hidden"),
    ],
)
def test_bad_options_are_named(options, word):
    with pytest.raises(ValueError, match=word):
        TINY(**options)

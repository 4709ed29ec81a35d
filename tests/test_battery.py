"""What every objective must pass; a new file in objectives/ is picked up without editing this."""

import importlib
import math
import pkgutil
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import diffusion_lm.objectives
from diffusion_lm import keys, optim, parallel, step
from diffusion_lm.networks import seq2seq, transformer

MODULES = {
    m.name: importlib.import_module(f"diffusion_lm.objectives.{m.name}")
    for m in pkgutil.iter_modules(diffusion_lm.objectives.__path__)
}
# Every objective, and each variant where it names some in VARIANTS.
CASES = [
    pytest.param(module, options, id="-".join((name, *options.values())))
    for name, module in MODULES.items()
    if hasattr(module, "make")
    for options in getattr(module, "VARIANTS", ({},))
]
# A named estimator is what the loss draws; nll has one of its own. Embeddings have no bound.
BOUNDS = [case for case in CASES if not hasattr(case.values[0], "NETWORK")] + [
    pytest.param(module, {}, id=f"{name}-nll")
    for name, module in MODULES.items()
    if hasattr(module, "ESTIMATORS")
]
SIZE = {"width": 16, "layers": 2, "heads": 2, "dropout_rate": 0.1}
TINY = {
    "transformer": partial(transformer.make, **SIZE),
    "seq2seq": partial(
        seq2seq.make, **SIZE, hidden=32, length=8, source_length=8, source_end=6, embedding_width=8
    ),
}


def tiny_objective(module, options):
    network = TINY[getattr(module, "NETWORK", "transformer")]
    return toy.objective(module, network, vocab_size=7, length=8, **options)


def exact(options):
    """The exact network of a case: of SEDD, that of its graph and parametrization."""
    return toy.exact_sedd_network(**options) if "graph" in options else toy.exact_network


def example(module, x):
    """The data of windows x int[B, 8]; of pairs, x ends with the end token and has a source."""
    x = np.array(x, np.int32)
    if getattr(module, "NETWORK", "") != "seq2seq":
        return {"x": x}
    x = np.minimum(x, 5)
    x[:, -1] = 6
    return {"x": x, "src": np.roll(x, 1, axis=1)}


def batch_of(x):
    return keys.number({"x": jnp.asarray(x, jnp.int32)})


def draws(objective, options, x, repeats=64, size=1024):
    """`repeats` independent batch means of the bound of one sequence x, in nats."""
    params = objective.init(jax.random.key(0))
    batch = batch_of(np.tile(x, (size, 1)))

    def bound(key):
        if "estimator" in options:
            return objective.loss(params, batch, key, train=False).loss.mean()
        return objective.nll(params, batch, key).mean()

    bound = jax.jit(bound)
    return np.array([bound(jax.random.key(i)) for i in range(repeats)], np.float64)


@pytest.mark.parametrize("module,options", BOUNDS)
def test_bound_of_the_exact_model_is_the_nll(module, options):
    """With the exact denoiser every bound averages to -log p(x); an exact nll equals it."""
    objective = toy.objective(module, exact(options), **options)
    if objective.nll is None:
        pytest.skip("no likelihood")
    for row in (0, 13, 25):
        got = draws(objective, options, toy.X[row], repeats=1 if objective.exact else 64)
        want = -math.log(toy.P_X[row])
        if objective.exact:
            assert abs(got[0] - want) < 1e-5
        else:
            error = got.std(ddof=1) / math.sqrt(len(got))
            assert 0 < error < 0.05
            assert abs(got.mean() - want) < 4 * error


@pytest.mark.parametrize("module,options", BOUNDS)
def test_zero_network_gives_log_v(module, options):
    objective = toy.objective(module, toy.zero_network, **options)
    if objective.nll is None:
        pytest.skip("no likelihood")
    got = draws(objective, options, toy.X[5], repeats=32)
    error = got.std(ddof=1) / math.sqrt(len(got))
    assert abs(got.mean() - toy.L * math.log(toy.V)) < 4 * error + 1e-5


@pytest.mark.parametrize("module,options", CASES)
def test_loss_has_the_contract(module, options):
    objective = tiny_objective(module, options)
    params = jax.jit(objective.init)(jax.random.key(0))
    assert isinstance(params, dict)
    loss = jax.jit(partial(objective.loss, train=True))
    out = loss(params, keys.number(example(module, np.zeros((4, 8)))), jax.random.key(1))
    chex.assert_shape([out.loss, out.tokens], (4,))
    chex.assert_type([out.loss, out.tokens], jnp.float32)
    if "nats_per_token" in out.metrics:
        assert float(out.tokens.sum()) == 32
    else:  # not a likelihood, as EDLM's contrast
        assert out.metrics
    chex.assert_tree_all_finite(out)


def losses(module, options, devices, microbatches, batch_size=16, steps=2):
    """The metrics of a few train steps on a mesh of `devices`, and the final parameters."""
    objective = tiny_objective(module, options)
    optimizer = optim.adamw(steps=10, learning_rate=1e-2, warmup=0)
    mesh = parallel.make_mesh(devices=jax.devices()[:devices])
    state = jax.jit(
        lambda: step.init_state(objective, optimizer, seed=0, ema=0.9),
        out_shardings=parallel.replicated(mesh),
    )()
    train = step.make_train_step(
        objective, optimizer, mesh=mesh, seed=0, microbatches=microbatches, ema=0.9
    )
    train = jax.jit(train, donate_argnums=0)
    x = np.random.default_rng(0).integers(0, 7, (batch_size, 8), np.int32)
    seen = []
    for _ in range(steps):
        state, metrics = train(state, parallel.global_batch(mesh, example(module, x)))
        seen.append([float(r.sum / r.count) for n, r in metrics.items() if n != "grad_norm"])
    return seen, jax.device_get(state.params)


@pytest.mark.parametrize("module,options", CASES)
def test_devices_and_microbatches_change_nothing(module, options):
    """Same masks, dropout and loss on 1, 2, 8 devices and for 1, 2 microbatches."""
    want, params = losses(module, options, 1, 1)
    layouts = [(2, 2), (8, 1)]
    for devices, microbatches in layouts:
        got, other = losses(module, options, devices, microbatches)
        np.testing.assert_allclose(got, want, rtol=2e-6)
        chex.assert_trees_all_close(other, params, atol=2e-5)


@pytest.mark.parametrize("module,options", CASES)
def test_learns_a_constant(module, options):
    """Twenty steps on a constant text bring the loss far under where it starts."""
    objective = tiny_objective(module, options)
    if not step.trained(objective, jax.eval_shape(objective.init, jax.random.key(0))):
        pytest.skip("nothing is trained")
    optimizer = optim.adamw(steps=60, learning_rate=2e-2, warmup=0)
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    state = jax.jit(lambda: step.init_state(objective, optimizer, seed=0, ema=0))()
    train = jax.jit(step.make_train_step(objective, optimizer, mesh=mesh, seed=0))
    batch = example(module, np.full((16, 8), 3))

    @jax.jit
    def loss(params):
        numbered = keys.number(batch)
        return objective.loss(params, numbered, jax.random.key(1), train=False).loss.mean()

    first = loss(state.params)
    for _ in range(20):
        state, _ = train(state, batch)
    assert float(optax.tree.norm(state.params)) < 1e3
    assert loss(state.params) < 0.7 * first


@pytest.mark.parametrize("module,options", CASES)
def test_loss_is_a_function_of_its_key(module, options):
    """The same key gives the same loss; rows of a batch share no noise."""
    objective = tiny_objective(module, options)
    params = jax.jit(objective.init)(jax.random.key(0))
    if objective.exact and not step.trained(objective, params):
        pytest.skip("there is no noise in it")
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(5), p.shape), params)
    batch = keys.number(example(module, np.tile(np.arange(8) % 7, (16, 1))))
    loss = jax.jit(partial(objective.loss, train=True))
    first, again, other = (
        np.asarray(loss(params, batch, jax.random.key(k)).loss) for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    # Rows without noise have loss 0, whatever the key: of RDM many.
    noisy = (first != 0) | (other != 0)
    assert noisy.sum() >= 12 and np.all((first != other)[noisy])
    assert len(np.unique(first[first != 0])) >= (first != 0).sum() - 2

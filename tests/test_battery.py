"""What every objective must pass; a new file in objectives/ is picked up without editing this."""

import functools
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
from diffusion_lm.objectives import md4

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


# Every test of a case has the same programs, and batches of as many rows: each is compiled once.
ROWS, SEED, EMA = 16, 0, 0.9
OPTIMIZER = optim.adamw(steps=60, learning_rate=1e-2, warmup=0)


@functools.cache
def _tiny(module, options):
    network = TINY[getattr(module, "NETWORK", "transformer")]
    objective = toy.objective(module, network, vocab_size=7, length=8, **dict(options))
    state = jax.jit(lambda: step.init_state(objective, OPTIMIZER, seed=SEED, ema=EMA))()
    return objective, jax.device_get(state), jax.jit(partial(objective.loss, train=True))


def tiny(module, options):
    """(objective with a tiny network, its train state as numpy, its compiled training loss)."""
    return _tiny(module, tuple(options.items()))


@functools.cache
def _train_step(module, options, devices, microbatches):
    mesh = parallel.make_mesh(devices=jax.devices()[:devices])
    objective = _tiny(module, options)[0]
    train = step.make_train_step(
        objective, OPTIMIZER, mesh=mesh, seed=SEED, microbatches=microbatches, ema=EMA
    )
    return mesh, jax.jit(train, donate_argnums=0)


def trained(module, options, x, steps, devices=1, microbatches=1):
    """The metrics of some train steps on the windows x, on so many devices, and the last state."""
    mesh, train = _train_step(module, tuple(options.items()), devices, microbatches)
    state = jax.device_put(tiny(module, options)[1], parallel.replicated(mesh))
    seen = []
    for _ in range(steps):
        state, metrics = train(state, parallel.global_batch(mesh, example(module, x)))
        seen.append([float(r.sum / r.count) for n, r in metrics.items() if n != "grad_norm"])
    return seen, jax.device_get(state)


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
    _, state, loss = tiny(module, options)
    assert isinstance(state.params, dict)
    batch = keys.number(example(module, np.zeros((ROWS, 8))))
    out = loss(state.params, batch, jax.random.key(1))
    chex.assert_shape([out.loss, out.tokens], (ROWS,))
    chex.assert_type([out.loss, out.tokens], jnp.float32)
    if "nats_per_token" in out.metrics:
        assert float(out.tokens.sum()) == 8 * ROWS
    else:  # not a likelihood, as EDLM's contrast
        assert out.metrics
    chex.assert_tree_all_finite(out)


@pytest.mark.parametrize("module,options", CASES)
def test_devices_and_microbatches_change_nothing(module, options):
    """Same masks, dropout and loss on 1, 2, 8 devices and for 1, 2 microbatches."""
    x = np.random.default_rng(0).integers(0, 7, (ROWS, 8), np.int32)
    want, state = trained(module, options, x, 2)
    for devices, microbatches in [(2, 2), (8, 1)]:
        got, other = trained(module, options, x, 2, devices, microbatches)
        np.testing.assert_allclose(got, want, rtol=2e-6)
        chex.assert_trees_all_close(other.params, state.params, atol=2e-5)


def test_exact_is_the_same_bit_for_bit_on_any_devices():
    """Fifty updates; without it the devices do differ, so that the comparison can fail."""
    x = np.random.default_rng(0).integers(0, 7, (50, ROWS, 8), np.int32)
    objective, first, _ = tiny(md4, {})

    def parameters(devices, exact):
        mesh = parallel.make_mesh(devices=jax.devices()[:devices])
        options = {"mesh": mesh, "seed": SEED, "microbatches": 8 if exact else 1, "exact": exact}
        train = parallel.jit(step.make_train_step(objective, OPTIMIZER, ema=EMA, **options), mesh)
        state = jax.device_put(first, parallel.replicated(mesh))
        for rows in x:
            state, _ = train(state, parallel.global_batch(mesh, {"x": rows}))
        return jax.device_get((state.params, state.opt_state, state.ema))

    want = parameters(1, True)
    for devices in (2, 4, 8):
        chex.assert_trees_all_equal(parameters(devices, True), want)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(parameters(8, False), parameters(1, False))


def test_exact_says_what_it_cannot_do():
    objective = tiny(md4, {})[0]
    for sizes, microbatches in [({}, 4), ({"data": 4, "fsdp": 2}, 8)]:
        mesh = parallel.make_mesh(**sizes)
        with pytest.raises(ValueError, match="data alone.*'fsdp': .* and . microbatches"):
            step.make_train_step(
                objective, OPTIMIZER, mesh=mesh, seed=0, microbatches=microbatches, exact=True
            )


@pytest.mark.parametrize("module,options", CASES)
def test_learns_a_constant(module, options):
    """Forty steps on a constant text bring the loss far under where it starts."""
    objective, state, loss = tiny(module, options)
    if not step.trained(objective, state.params):
        pytest.skip("nothing is trained")
    x = np.full((ROWS, 8), 3)
    _, new = trained(module, options, x, 40)
    assert float(optax.tree.norm(new.params)) < 1e3
    batch = keys.number(example(module, x))
    before, after = (loss(s.params, batch, jax.random.key(1)).loss.mean() for s in (state, new))
    assert after < 0.7 * before


@pytest.mark.parametrize("module,options", CASES)
def test_loss_is_a_function_of_its_key(module, options):
    """The same key gives the same loss; rows of a batch share no noise."""
    objective, state, loss = tiny(module, options)
    params = state.params
    if objective.exact and not step.trained(objective, params):
        pytest.skip("there is no noise in it")
    rng = np.random.default_rng(5)
    params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(p.dtype), params)
    batch = keys.number(example(module, np.tile(np.arange(8) % 7, (ROWS, 1))))
    first, again, other = (
        np.asarray(loss(params, batch, jax.random.key(k)).loss) for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    # Rows without noise have loss 0, whatever the key: of RDM many.
    noisy = (first != 0) | (other != 0)
    assert noisy.sum() >= 12 and np.all((first != other)[noisy])
    assert len(np.unique(first[first != 0])) >= (first != 0).sum() - 2

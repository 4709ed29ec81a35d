"""Starting as a bigram model."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_lm import bigram, keys, schedules
from diffusion_lm.networks import transformer
from diffusion_lm.objectives import ar, md4

V, L = 12, 16


class Windows(NamedTuple):
    tokens: np.ndarray


class Data(NamedTuple):
    """What bigram.start asks of the data: a Markov chain that mostly counts upwards."""

    vocab_size: int = V
    length: int = L

    def windows(self, split):
        rng = np.random.default_rng(0)
        x = [0]
        for _ in range(L * 2000 - 1):
            x.append((x[-1] + 1) % V if rng.random() < 0.9 else int(rng.integers(V // 2)))
        return Windows(np.array(x).reshape(-1, L))


def objective(kind):
    network = partial(transformer.make, width=32, heads=2, layers=2, shift=True)
    if kind == "ar":
        return ar.make(network=network, vocab_size=V, start=V - 1)
    return md4.make(network=network, vocab_size=V, length=L, schedule=schedules.linear())


@pytest.mark.parametrize("kind", ["ar", "md4"])
def test_start_is_far_better_than_unigram(kind):
    """Before any training; the chain's own entropy is about 0.6 nats a token."""
    made = objective(kind)
    params = jax.jit(made.init)(jax.random.key(0))
    begun = bigram.start(params, made, Data(), seed=0)
    assert jax.tree.structure(begun) == jax.tree.structure(params)
    tokens = Data().windows("train").tokens
    batch = keys.number({"x": jnp.asarray(tokens[-256:], jnp.int32)})
    nll = jax.jit(made.nll)
    before, after = (float(nll(p, batch, jax.random.key(1)).mean()) / L for p in (params, begun))
    counts = np.bincount(tokens.reshape(-1)) / tokens.size
    unigram = -(counts * np.log(counts)).sum()
    np.testing.assert_allclose(before, np.log(V), rtol=0.05)
    assert after < 0.75 * unigram


def test_neighbours_point_to_each_other():
    """A masked token between two known ones is predicted from both, one known one suffices."""
    made = objective("md4")
    begun = bigram.start(jax.jit(made.init)(jax.random.key(0)), made, Data(), seed=0)
    z = np.full((3, L), V, np.int32)
    z[0, 4], z[0, 6] = 7, 9
    z[1, 4] = 7
    z[2, 6] = 9
    denoiser = made.predict(begun)
    log_mu = denoiser.head(denoiser.trunk(jnp.asarray(z), jnp.full(3, 0.9)))
    assert np.all(np.argmax(log_mu[:, 5], axis=-1) == 8)
    assert log_mu[0, 5, 8] > max(log_mu[1, 5, 8], log_mu[2, 5, 8])


def test_factors_rebuild_positive_pmi():
    tokens = Data().windows("train").tokens.reshape(-1)
    u, w = bigram.factors(tokens, V, V - 1)
    pmi = u @ w.T
    up = pmi[np.arange(V - 1), np.arange(1, V)]
    # One of the V singular vectors is left out, and one pair with it.
    assert (up > 1.5).sum() >= V - 2 and np.median(pmi) < 0.1


def test_networks_that_cannot_are_refused():
    for options in ({}, {"shift": True, "tied": True}):
        network = transformer.make(inputs=5, outputs=4, width=16, heads=2, **options)
        params = {"network": jax.eval_shape(network.init, jax.random.key(0))}
        with pytest.raises(ValueError, match=r"network\.shift=True"):
            bigram.check(params)

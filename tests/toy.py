"""An enumerable world: V = 3 tokens, L = 3 positions, a joint p(x) given as a table.

Sums over all 27 sequences replace Monte Carlo, and `exact_network` is the exact denoiser (or, if
causal, the exact next-token predictor) in the shape of a `Network`, so objectives and samplers run
on it unchanged.
"""

import inspect
import itertools

import jax.numpy as jnp
import numpy as np

from diffusion_lm import schedules
from diffusion_lm.objectives import ar, md4
from diffusion_lm.types import Network

V, L = 3, 3
MASK = V
X = np.array(list(itertools.product(range(V), repeat=L)))  # [27, L]
P_X = np.random.default_rng(0).dirichlet(np.full(len(X), 0.5))  # p(x), far from independent


def conditionals(z):
    """log p(x^n | unmasked z) for every position n: [L, V]; numpy, from the table."""
    fits = np.all((z == MASK) | (X == z), axis=1)
    weight = np.where(fits, P_X, 0)
    total = np.array([[weight[X[:, n] == v].sum() for v in range(V)] for n in range(L)])
    return np.log(total / weight.sum() + 1e-30)


Z = np.array(list(itertools.product(range(V + 1), repeat=L)))  # [64, L], all latent states
DENOISER = np.stack([conditionals(z) for z in Z])  # [64, L, V]
PLACE = (V + 1) ** np.arange(L - 1, -1, -1)


def index(z):
    """Row of Z that holds z[..., L]."""
    return (z * PLACE).sum(-1)


def exact_network(*, inputs, outputs, causal=False, time_input=False):
    """Knows the table; has one unused parameter."""
    table = jnp.asarray(DENOISER, jnp.float32)

    def init(key):
        return {"unused": jnp.zeros(1)}

    def trunk(params, tokens, t=None, keys=None, label=None):
        if tokens.shape[1] != L:  # of anything but a sequence it knows nothing
            return jnp.zeros((*tokens.shape, V))
        if not causal:
            return table[index(tokens)] + 0 * params["unused"]
        position = jnp.arange(L)
        seen = jnp.concatenate([tokens[:, 1:], tokens[:, :1]], axis=1)  # input is shifted by one
        prefix = jnp.where(position[None, None, :] < position[None, :, None], seen[:, None], MASK)
        return table[index(prefix), position] + 0 * params["unused"]

    def head(params, h):
        return h

    def cache(batch, length):
        return jnp.full((batch, length), MASK, jnp.int32)

    def decode(params, seen, tokens, at, label=None):
        before = jnp.arange(L) == at - 1
        seen = jnp.where(before, tokens[:, None], seen)
        return table[index(seen), at], seen

    return Network(init, trunk, head, decode, cache)


def clean_given_others(z_BL, alpha_B):
    """p(x^n | z at the other positions) under the uniform graph, P(kept) alpha: f32[B, L, V]."""
    alpha = alpha_B[:, None, None]
    q_BXL = alpha * (z_BL[:, None] == X) + (1 - alpha) / V  # q(z^n | x^n) for all 27 x
    others_BXL = q_BXL.prod(-1, keepdims=True) / q_BXL
    p_X, is_v = jnp.asarray(P_X, jnp.float32), jnp.asarray(np.eye(V)[X], jnp.float32)
    mu_BLV = jnp.einsum("x,bxl,xlv->blv", p_X, others_BXL, is_v)
    return mu_BLV / mu_BLV.sum(-1, keepdims=True)


def exact_sedd_network(graph, parametrization):
    """A maker of the exact network of a SEDD model; it is told sigma / 1000."""

    def make(*, inputs, outputs, causal=False, time_input=True):
        exact = exact_network(inputs=inputs, outputs=outputs)

        def absorbing(params, z_BL, t_B=None, keys=None, label=None):
            return exact.trunk(params, z_BL) + (np.log(V) if parametrization == "score" else 0)

        def uniform(params, z_BL, t_B, keys=None, label=None):
            alpha_B = jnp.exp(-1000 * t_B)
            mu_BLV = clean_given_others(z_BL, alpha_B)
            if parametrization == "mean":
                return jnp.log(mu_BLV)
            alpha = alpha_B[:, None, None]
            p_BLV = alpha * mu_BLV + (1 - alpha) / V  # p(z^n = y | z at the other positions)
            log_s_BLV = jnp.log(p_BLV / jnp.take_along_axis(p_BLV, z_BL[..., None], axis=-1))
            known = (z_BL < V).all(1)[:, None, None]  # it has no mask, and must not be shown one
            return jnp.where(known, log_s_BLV, jnp.nan)

        return exact._replace(trunk=absorbing if graph == "absorbing" else uniform)

    return make


def zero_network(*, inputs, outputs, causal=False, time_input=False):
    """Predicts the uniform distribution."""
    network = exact_network(inputs=inputs, outputs=outputs, causal=causal, time_input=time_input)

    def trunk(params, tokens, t=None, keys=None, label=None):
        return jnp.zeros((*tokens.shape, outputs))

    return network._replace(trunk=trunk)


def objective(module, network, *, vocab_size=V, length=L, **options):
    """Builds an objective of any module, giving it what its signature asks for."""
    takes = inspect.signature(module.make).parameters
    same = {"vocab_size": vocab_size, "length": length}
    if "proposal" in takes:
        options = {"proposal": objective(md4, network, **same), **options}
    if options.get("energy", "nce") != "nce":
        options = {"ar": objective(ar, network, **same), **options}
    supplied = {
        "network": network,
        "vocab_size": vocab_size,
        "length": length,
        "schedule": schedules.linear(),
        "start": 0,
        "end": vocab_size - 1,
    }
    return module.make(**{k: v for k, v in supplied.items() if k in takes} | options)


def masked_patterns():
    """All 2^L mask patterns: bool[8, L]."""
    return np.array(list(itertools.product([False, True], repeat=L)))

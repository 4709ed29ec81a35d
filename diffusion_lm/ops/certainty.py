"""How sure a prediction is: what orders positions in samplers and in ordered likelihoods."""

import jax
import jax.numpy as jnp

from diffusion_lm.types import Array

KINDS = ("confidence", "margin", "entropy")


def certainty(log_probs: Array, kind: str) -> Array:
    """Larger is surer; f32[..., V] -> f32[...].

    "confidence": the largest probability; "margin": the largest minus the second (arXiv
    2502.06768); "entropy": minus the entropy in nats.
    """
    if kind == "confidence":
        return jnp.exp(log_probs.max(-1))
    if kind == "margin":
        top, _ = jax.lax.top_k(log_probs, 2)
        return jnp.exp(top[..., 0]) - jnp.exp(top[..., 1])
    if kind == "entropy":
        return -entropy(log_probs)
    raise ValueError(f"unknown certainty {kind!r}; choices: {', '.join(KINDS)}")


def entropy(log_probs: Array) -> Array:
    """Entropy in nats: normalised f32[..., V] -> f32[...]."""
    return -jnp.where(jnp.isneginf(log_probs), 0, jnp.exp(log_probs) * log_probs).sum(-1)

"""Log-probabilities of given tokens."""

import jax
import jax.numpy as jnp

from diffusion_lm.types import Array


def token_log_prob(logits: Array, tokens: Array) -> Array:
    """log softmax(logits)[tokens] in nats: f32[..., V], int[...] -> f32[...]."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)

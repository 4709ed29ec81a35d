"""Log-probabilities of given tokens, and what they are made of."""

import jax
import jax.numpy as jnp

from diffusion_lm.types import Array


def token_logit(logits: Array, tokens: Array) -> tuple[Array, Array]:
    """logits[tokens] and logsumexp(logits): f32[..., V], int[...] -> f32[...], f32[...]."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen, jax.nn.logsumexp(logits, axis=-1)


def token_log_prob(logits: Array, tokens: Array) -> Array:
    """log softmax(logits)[tokens] in nats: f32[..., V], int[...] -> f32[...]."""
    chosen, total = token_logit(logits, tokens)
    return chosen - total

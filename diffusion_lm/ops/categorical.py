"""Draws from categorical distributions."""

import jax
import jax.numpy as jnp

from diffusion_lm.types import Array


def draw(keys_B: Array, log_probs: Array) -> Array:
    """Exact draws, int32[B, ...] from log-probabilities f32[B, ..., V], one key a row.

    Plain float32 Gumbel noise tops out near 16, which cuts the tail and acts as a hidden
    temperature (arXiv 2409.02908); mode="high" spends more random bits and keeps the tail.
    """
    return jax.vmap(lambda key, row: jax.random.categorical(key, row, mode="high"))(
        keys_B, log_probs
    ).astype(jnp.int32)


def shape(log_probs: Array, *, temperature: float = 1.0, top_p: float = 1.0) -> Array:
    """Sharpens by temperature, then keeps the smallest set of tokens whose mass reaches top_p."""
    if temperature != 1.0:
        log_probs = jax.nn.log_softmax(log_probs / temperature, axis=-1)
    if top_p < 1.0:
        ordered = jnp.sort(log_probs, axis=-1, descending=True)
        before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
        # The first token always has 0 mass before it, so the set is never empty.
        last = jnp.sum(before < top_p, axis=-1, keepdims=True) - 1
        threshold = jnp.take_along_axis(ordered, last, axis=-1)
        log_probs = jnp.where(log_probs >= threshold, log_probs, -jnp.inf)
        log_probs = jax.nn.log_softmax(log_probs, axis=-1)
    return log_probs


def check(*, temperature: float, top_p: float) -> None:
    """Raises ValueError if a temperature or top_p makes no sense."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")

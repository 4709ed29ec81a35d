"""Draws from categorical distributions."""

import math

import jax
import jax.numpy as jnp

from diffusion_lm.types import Array

ONE_LEVEL = 256  # Up to this many tokens one Gumbel each is cheap, and blocks save nothing.


def draw(keys: Array, log_probs: Array) -> Array:
    """Exact draws int32[...] from log-probabilities f32[..., V] in nats, one key a draw: keys[...].

    log_probs need not be normalised; -inf is never drawn; each row needs one finite entry. A row
    may serve many keys, by broadcasting. A draw depends on its own key and row alone.

    The law is softmax(log_probs) to about 1e-6 of each token's probability, down to 1e-13: a block
    of about sqrt(V) tokens is drawn by its mass, then a token of that block, both by Gumbel-max.
    So a draw costs V exponentials but only 2 sqrt(V) Gumbels, and these can afford 64 random bits;
    plain float32 ones cut the tail and act as a hidden temperature (arXiv 2409.02908).
    """
    _check_keys(keys, log_probs)
    return jnp.vectorize(_draw_one, signature="(),(v)->()")(keys, log_probs)


def draw_several(keys: Array, log_probs: Array, number: int) -> tuple[Array, Array]:
    """`number` independent draws a key, and their log-probabilities: keys[...], f32[..., V] ->
    int32[..., number], f32[..., number]. The first draws are the same for any number."""
    fold = jnp.vectorize(jax.random.fold_in, signature="(),()->()")
    drawn = draw(fold(keys[..., None], jnp.arange(number)), log_probs[..., None, :])
    return drawn, jnp.take_along_axis(log_probs, drawn, axis=-1)


def _check_keys(keys: Array, log_probs: Array) -> None:
    """Raises ValueError where broadcasting would use a key twice."""
    if jnp.broadcast_shapes(keys.shape, log_probs.shape[:-1]) != keys.shape:
        raise ValueError(f"need a key a draw, got keys {keys.shape}, log_probs {log_probs.shape}")


def _draw_one(key: Array, log_probs: Array) -> Array:
    """One draw, int32[], from f32[V]."""
    vocab = log_probs.shape[-1]
    log_probs = log_probs - log_probs.max()  # Or a large offset would eat the noise's digits.
    if vocab <= ONE_LEVEL:
        return _gumbel_max(key, log_probs)
    width = math.isqrt(vocab - 1) + 1
    padded = jnp.pad(log_probs, (0, -vocab % width), constant_values=-jnp.inf)
    blocks = padded.reshape(-1, width)
    key_block, key_token = jax.random.split(key)
    block = _gumbel_max(key_block, jnp.log(jnp.exp(blocks).sum(-1)))
    return block * width + _gumbel_max(key_token, blocks[block])


def _gumbel_max(key: Array, log_probs: Array) -> Array:
    """One draw, int32[], from f32[V], with the noise of 64 bits an entry ("high" has 46)."""
    return jax.random.categorical(key, log_probs, mode="highest").astype(jnp.int32)


def draw_or_mask_float32(keys: Array, log_probs: Array, reveal: Array) -> Array:
    """MD4's released draw, to reproduce published figures only: int32[...], a token or V, the mask.

    A token with probability reveal f32[...], by log_probs f32[..., V] in nats, normalised; else the
    mask. One key a draw: keys[...]; the others may broadcast to it.

    One float32 Gumbel-max over V + 1 classes. Its noise has 23 bits and tops out near 16, so
    classes of probability below about 1e-7 are hardly ever drawn: a hidden temperature below 1
    (arXiv 2409.02908). Everything else should use `draw`.
    """
    _check_keys(keys, log_probs)

    def one(key, log_probs, reveal):
        classes = jnp.append(jnp.log(reveal) + log_probs, jnp.log1p(-reveal))
        return jax.random.categorical(key, classes, mode="low").astype(jnp.int32)

    return jnp.vectorize(one, signature="(),(v),()->()")(keys, log_probs, reveal)


def shape(log_probs: Array, *, temperature: float = 1.0, top_p: float = 1.0) -> Array:
    """Sharpens by temperature, then keeps the smallest set of tokens whose mass reaches top_p.

    Temperature 0 keeps the likeliest token alone; tokens as likely as the last of the set stay too.
    """
    if temperature == 0:
        best = jax.nn.one_hot(log_probs.argmax(-1), log_probs.shape[-1], dtype=bool)
        return jnp.where(best, 0.0, -jnp.inf)
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
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")

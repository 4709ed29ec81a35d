"""Randomness as a function of (seed, stream name, step, row of the global batch), nothing else."""

import zlib

import jax
import jax.numpy as jnp

from diffusion_lm.types import Array, Batch


def stream(seed: int, name: str, step: Array | int = 0) -> Array:
    """The key of a named stream at a step. Streams with different names share no noise."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(key, step)


def rows(key: Array, row_B: Array) -> Array:
    """One key for each row of the global batch: keys[B]."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(row_B)


def samples(seed: int, index_B: Array) -> Array:
    """The keys of samples, each a function of the seed and its index: keys[B]."""
    return rows(stream(seed, "sample"), index_B)


def rows_fold(keys_B: Array, data: Array | int) -> Array:
    """Folds one number into each of B keys: keys[B]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys_B)


def split(keys_B: Array, num: int) -> Array:
    """Splits each of B keys: keys[num, B]."""
    return jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(keys_B)


def places(keys_B: Array, length: int) -> Array:
    """One key for each position of each row: keys[B, L]."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(lambda key: fold(key, jnp.arange(length)))(keys_B)


def number(batch: Batch) -> Batch:
    """Adds "row" and "slot" (see types.Batch) to a *global* batch."""
    size = batch["x"].shape[0]
    row_B = jnp.arange(size, dtype=jnp.int32)
    return {**batch, "row": row_B, "slot": row_B.astype(jnp.float32) / size}

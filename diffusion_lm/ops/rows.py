"""Work at chosen positions only."""

import jax
import jax.numpy as jnp

from diffusion_lm.types import Array


def at_rows(fn, where_BL: Array, args, *, chunk: int):
    """fn(args) where `where_BL` is true, zeros elsewhere: a pytree of arrays [B, L, ...].

    args is a pytree of arrays [B, L, ...]; fn maps them at `chunk` positions, arrays [chunk, ...],
    to arrays [chunk, ...]. It runs ceil(chosen / chunk) times; the last chunk is filled up with the
    last position, whose results are dropped.
    """
    size, shape = where_BL.size, where_BL.shape
    chunk = min(chunk, size)
    padded = -(-size // chunk) * chunk
    (rows,) = jnp.nonzero(where_BL.reshape(-1), size=padded, fill_value=size)
    total = where_BL.sum()
    flat = jax.tree.map(lambda a: a.reshape(size, *a.shape[2:]), args)

    def take(mine):
        return jax.tree.map(lambda a: a[jnp.minimum(mine, size - 1)], flat)

    def step(carry):
        start, out = carry
        mine = jax.lax.dynamic_slice(rows, (start,), (chunk,))
        out = jax.tree.map(lambda o, g: o.at[mine].set(g, mode="drop"), out, fn(take(mine)))
        return start + chunk, out

    shapes = jax.eval_shape(lambda mine: fn(take(mine)), rows[:chunk])
    zeros = jax.tree.map(lambda a: jnp.zeros((size, *a.shape[1:]), a.dtype), shapes)
    _, out = jax.lax.while_loop(lambda c: c[0] < total, step, (jnp.int32(0), zeros))
    return jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]), out)


def top(score_BL: Array, where_BL: Array, number_B: Array) -> Array:
    """The `number_B` positions of each row with the largest scores among `where_BL`: bool[B, L].

    Exactly that many, if there are: of equal scores the leftmost come first. Ranks, not a
    threshold, which would take all that are equal to it.
    """
    score_BL = jnp.where(where_BL, jnp.maximum(score_BL, -1e30), -jnp.inf)
    rank_BL = jnp.argsort(jnp.argsort(-score_BL, axis=1, stable=True), axis=1)
    return where_BL & (rank_BL < number_B[:, None])

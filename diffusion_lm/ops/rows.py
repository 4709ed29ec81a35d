"""Work at chosen positions only."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from diffusion_lm.types import BATCH_AXES, Array, Params


def at_rows(fn: Callable, where_BL: Array, args: Any, *, chunk: int) -> Any:
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


SELDOM = "not_in_training"  # scope of a branch that no train step takes, for who counts work
ENTRIES = 2**22  # of logits that a device holds at once, if this leaves no more than
CHUNKS = 4  # chunks of D rows or more: each reads and writes the whole head and its gradient


def weighted(
    fn: Callable,
    params: Params,
    weight_BR: Array,
    h_BRD: Array,
    *about: Array,
    width: int,
    half_BR: Array | None = None,
) -> Array:
    """weight fn(params, h, *about): f32[B, R], where fn takes f[B, C, D] and arrays [B, C] to
    f32[B, C] by way of arrays [B, C, width], which are never there for all of R at once. With
    `half_BR`, 0 or 1, the sums over either half of R: f32[B, 2].

    Nor are they in the backward pass, or made again in it: the forward pass takes the gradient of
    the plain sum over B and R along. Another derivative is as right, but costs a second pass. What
    `about` holds is not differentiated for.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    shards = 1 if len(h_BRD) % shards else shards
    rows, length = len(h_BRD) // shards, h_BRD.shape[1]
    enough = -(-rows * length * width // ENTRIES), rows * length // h_BRD.shape[-1]
    chunks = max(1, min(CHUNKS, *enough, length))
    fn, used = _of_used(fn, params, h_BRD, *about)
    # With the head itself in parts over "tensor", the compiler places all of it.
    spread = shards > 1 and shards == mesh.size
    return _weighted(fn, chunks, spread, used, weight_BR, h_BRD, about, half_BR)


def _of_used(fn, params, *args):
    """(fn of those leaves of params that it uses, these leaves): gradients are theirs alone."""
    leaves, tree = jax.tree.flatten(params)
    jaxpr = jax.make_jaxpr(fn)(params, *args).jaxpr
    read = {id(v) for eqn in jaxpr.eqns for v in eqn.invars}
    uses = [id(v) in read for v in jaxpr.invars[: len(leaves)]]

    def of_used(used, *args):
        rest = iter(used)
        return fn(tree.unflatten([next(rest) if u else None for u in uses]), *args)

    return of_used, [leaf for leaf, u in zip(leaves, uses, strict=True) if u]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _weighted(fn, chunks, spread, used, weight_BR, h_BRD, about, half_BR):
    def one(used, weight_BC, h_BCD, *about):
        return None, fn(used, h_BCD, *about)

    values_BR = _over_chunks(one, chunks, spread, used, weight_BR, h_BRD, *about)[1]
    return _summed(weight_BR * values_BR, half_BR)


def _summed(values_BR, half_BR):
    if half_BR is None:
        return values_BR
    return jnp.stack([jnp.where(half_BR == i, values_BR, 0).sum(1) for i in range(2)], axis=1)


def _forward(fn, chunks, spread, used, weight_BR, h_BRD, about, half_BR):
    values_BR, *grads = _gradients(fn, chunks, spread, used, weight_BR, h_BRD, about)
    out = _summed(weight_BR * values_BR, half_BR)
    return out, (values_BR, grads, used, weight_BR, h_BRD, about, half_BR)


def _backward(fn, chunks, spread, residuals, g):
    values_BR, grads, used, weight_BR, h_BRD, about, half_BR = residuals
    g_BR = g if half_BR is None else jnp.take_along_axis(g, half_BR, axis=1)

    def scaled():
        return jax.tree.map(lambda a: (g[0, 0] * a).astype(a.dtype), grads)

    @jax.named_scope(SELDOM)
    def again():
        return _gradients(fn, chunks, spread, used, g_BR * weight_BR, h_BRD, about)[1:]

    # of a plain sum g is a constant, and the compiler drops what is not needed
    dused, dh_BRD = jax.lax.cond((g == g[0, 0]).all(), scaled, again)
    return dused, g_BR * values_BR, dh_BRD, None, None


_weighted.defvjp(_forward, _backward)


def _gradients(fn, chunks, spread, used, weight_BR, h_BRD, about):
    """[values f32[B, R], gradients of sum(weight values) by used and by h]."""

    def one(used, weight_BC, h_BCD, *about):
        values_BC, back = jax.vjp(lambda used, h: fn(used, h, *about), used, h_BCD)
        dused, dh_BCD = back(weight_BC)
        return dused, (values_BC, dh_BCD)

    dused, (values_BR, dh_BRD) = _over_chunks(one, chunks, spread, used, weight_BR, h_BRD, *about)
    return [values_BR, dused, dh_BRD]


def _over_chunks(one, chunks, spread, used, *columns):
    """(sum of the first results of `one(used, *columns)`, the others laid end to end) over chunks
    of the second axis of the columns. On a mesh each device has its own rows, and the sums are
    added up over devices once, after the last chunk. The last chunk is filled up with positions of
    weight 0, the first of the columns."""

    def own(used, *columns):
        rows, length = columns[0].shape

        def cut(a, mode):
            a = jnp.pad(a, [(0, 0), (0, -length % chunks)] + [(0, 0)] * (a.ndim - 2), mode)
            a = jnp.stack(jnp.split(a, chunks, axis=1))
            # as one row, since TPUs would lay out the logits of several anew
            return a.reshape(chunks, 1, -1, *a.shape[3:])

        def join(a):
            a = a.reshape(chunks, rows, -1, *a.shape[3:])
            return jnp.moveaxis(a, 0, 1).reshape(rows, -1, *a.shape[3:])[:, :length]

        def step(total, part):
            added, rest = one(used, *part)
            return jax.tree.map(jnp.add, total, added), rest

        parts = [cut(columns[0], "constant"), *(cut(a, "edge") for a in columns[1:])]
        if chunks == 1:
            total, rest = one(used, *(a[0] for a in parts))
            return total, jax.tree.map(lambda a: join(a[None]), rest)
        first = jax.eval_shape(one, used, *(a[0] for a in parts))[0]
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), first)
        total, rest = jax.lax.scan(step, zeros, parts)
        return total, jax.tree.map(join, rest)

    if not spread:
        return own(used, *columns)

    def on_device(used, *columns):
        total, rest = own(used, *columns)
        return jax.lax.psum(total, BATCH_AXES), rest

    rows = PartitionSpec(BATCH_AXES)
    return jax.shard_map(
        on_device,
        in_specs=(PartitionSpec(), *[rows] * len(columns)),
        out_specs=(PartitionSpec(), rows),
        check_vma=False,
    )(used, *columns)

"""Layers shared by the networks: norm, rotary attention, gated MLP, time embedding, dropout."""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_lm import keys
from diffusion_lm.ops.attention import attention
from diffusion_lm.ops.product import product
from diffusion_lm.types import Array


def dropout(h: Array, keys_B: Array | None, rate: float) -> Array:
    """Zeroes entries of h[B, ...] with probability `rate`; no keys means none are dropped."""
    if keys_B is None or rate == 0:
        return h
    keep = jax.vmap(lambda key, row: jax.random.bernoulli(key, 1 - rate, row.shape))(keys_B, h)
    return jnp.where(keep, h / (1 - rate), 0).astype(h.dtype)


def rotate(h_BLHK: Array, position_L: Array, base: float = 1e4) -> Array:
    """Rotary position embedding (arXiv 2104.09864), half-split pairs, angles in float32."""
    half = h_BLHK.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_LK = position_L[:, None].astype(jnp.float32) * frequency
    cos, sin = (jnp.stack(2 * [f(angle_LK)], axis=1)[:, None] for f in (jnp.cos, jnp.sin))
    pair = h_BLHK.reshape(*h_BLHK.shape[:-1], 2, half).astype(jnp.float32)
    sign = jnp.array([[-1.0], [1.0]])
    out = pair * cos + pair[..., ::-1, :] * (sign * sin)
    return out.reshape(h_BLHK.shape).astype(h_BLHK.dtype)


def project(h: Array, kernel: Array, dtype: jnp.dtype) -> Array:
    """h[B, L, D] times a kernel whose leading axes hold D and whose others are the output's."""
    lead, count = 0, 1
    while count < h.shape[-1]:
        count *= kernel.shape[lead]
        lead += 1
    h = h.astype(jnp.result_type(h, dtype))
    out = product(h.dtype, h, kernel.reshape(count, -1))
    return out.reshape(*h.shape[:-1], *kernel.shape[lead:])


@jax.custom_vjp
def lookup(table: Array, index: Array) -> Array:
    """table[index]."""
    return table[index]


def _lookup_backward(kept, g):
    """The zeros to add to are made of g, or they would be there all through the step."""
    table, index = kept
    return jnp.full_like(table, 0 * g.reshape(-1)[0]).at[index].add(g), None


lookup.defvjp(lambda table, index: (table[index], (table, index)), _lookup_backward)


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last axis, scale only, computed in float32."""

    kind: str
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, h: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (h.shape[-1],))
        out = h.astype(jnp.float32)
        if self.kind == "layer":
            out = out - out.mean(-1, keepdims=True)
        out = out * jax.lax.rsqrt(jnp.mean(out**2, -1, keepdims=True) + self.epsilon)
        return (out * scale).astype(h.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions; softmax in float32."""

    heads: int
    causal: bool
    qk_norm: bool
    dtype: jnp.dtype
    out_init: Callable | None = None

    @nn.compact
    def __call__(
        self, h_BLD: Array, position_L: Array, cache: tuple[Array, Array] | None = None
    ) -> tuple[Array, tuple[Array, Array] | None]:
        """Returns (out[B, L, D], cache). With a cache, L = 1 and position_L holds its place."""
        width = h_BLD.shape[-1]
        size = width // self.heads
        qkv = self.param("qkv", fan_in_of(1), (width, 3, self.heads, size))
        out = self.param("out", self.out_init or fan_in_of(2), (self.heads, size, width))
        q, k, v = (project(h_BLD, qkv[:, i], self.dtype) for i in range(3))
        if self.qk_norm:
            q, k = Norm("rms", name="q_norm")(q), Norm("rms", name="k_norm")(k)
        q, k = rotate(q, position_L), rotate(k, position_L)
        if cache is None:
            mixed = attention(q, k, v, causal=self.causal)
        else:
            at = position_L[0]
            k = jax.lax.dynamic_update_slice_in_dim(cache[0], k.astype(cache[0].dtype), at, 1)
            v = jax.lax.dynamic_update_slice_in_dim(cache[1], v.astype(cache[1].dtype), at, 1)
            cache = (k, v)
            seen = (jnp.arange(k.shape[1]) <= at)[None, None, None, :]
            mixed = jax.nn.dot_product_attention(q, k, v, mask=seen)
        return project(mixed.reshape(*mixed.shape[:2], width), out, self.dtype), cache


def shift(h_BLD: Array, taps: Array, before: int) -> Array:
    """Depthwise convolution over neighbours: sum_i taps[i] * h[l + i - before], zeros outside.

    `taps` is [K, D]; K - 1 - before of the neighbours lie to the right.
    """
    pad = (before, taps.shape[0] - 1 - before)
    padded = jnp.pad(h_BLD, ((0, 0), pad, (0, 0)))
    length = h_BLD.shape[1]
    taps = taps.astype(h_BLD.dtype)
    return sum(taps[i] * padded[:, i : i + length] for i in range(taps.shape[0]))


class GatedMLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(h)) * up(h))."""

    hidden: int
    dtype: jnp.dtype
    out_init: Callable | None = None

    @nn.compact
    def __call__(self, h: Array) -> Array:
        width = h.shape[-1]
        gate_up = self.param("gate_up", fan_in_of(1), (width, 2, self.hidden))
        down = self.param("down", self.out_init or fan_in_of(1), (self.hidden, width))
        gate, up = (project(h, gate_up[:, i], self.dtype) for i in range(2))
        return project(gated(gate, up), down, self.dtype)


@partial(jax.checkpoint, prevent_cse=False)
def gated(gate: Array, up: Array) -> Array:
    """silu(gate) up, computed in float32; the backward pass keeps no more than the two."""
    return (nn.silu(gate.astype(jnp.float32)) * up).astype(up.dtype)


def fan_in_of(num_axes: int) -> Callable[..., Array]:
    """An initialiser whose fan-in is the product of the first `num_axes` axes."""

    def init(key, shape, dtype=jnp.float32):
        scale = 1 / math.sqrt(math.prod(shape[:num_axes]))
        return scale * jax.random.normal(key, shape, dtype)

    return init


def time_features(t_B: Array, size: int = 256) -> Array:
    """Sinusoids of 1000 t, cosines first, wavelengths from 2 pi to 2 pi 10^4: f32[B, size]."""
    frequency = 1e4 ** (-jnp.arange(size // 2, dtype=jnp.float32) / (size // 2))
    angle = 1000 * t_B[:, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def row_keys(keys_B: Array | None, num: int) -> list:
    """Splits per-row keys for `num` uses; None stays None."""
    return [None] * num if keys_B is None else list(keys.split(keys_B, num))

"""Attention by the fused kernel that the platform has, else as XLA makes it."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from diffusion_lm.types import BATCH_AXES, Array

LANES = 128  # of a TPU; its kernel wants lengths that are multiples
BLOCK = 512  # positions of queries and of keys that its kernel holds at a time


def attention(q: Array, k: Array, v: Array, *, causal: bool) -> Array:
    """softmax(q k^T / sqrt(K)) v over whole sequences, softmax in float32: f[B, L, H, K] each.

    On TPUs splash attention, on GPUs cuDNN's for 16-bit types; neither holds [B, H, L, L].
    """
    if jax.default_backend() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16):
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
    if q.shape[1] % LANES or q.shape != k.shape:
        return plain(q, k, v, causal=causal)
    return jax.lax.platform_dependent(
        q, k, v, tpu=partial(_splash, causal=causal), default=partial(plain, causal=causal)
    )


def plain(q: Array, k: Array, v: Array, *, causal: bool) -> Array:
    """The same in products of matrices. On CPUs more than twice as fast, with its gradient, as what
    XLA makes of jax.nn.dot_product_attention."""
    return _plain(causal, q / math.sqrt(q.shape[-1]), k, v)


def _product(a: Array, b: Array, *, summed, heads) -> Array:
    """The sum over one axis of a and of b, for each head, in float32: [B, H, rest of a, rest of b].

    What of b comes first is summed or small: CPUs have fast products of rows by columns alone, and
    so no array of L by L needs to be transposed."""
    axes = tuple((i,) for i in summed), tuple((0, i) for i in heads)
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _rows(a: Array) -> Array:
    return jnp.swapaxes(a, 1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _plain(causal, q, k, v):
    return _plain_forward(causal, q, k, v)[0]


def _plain_forward(causal, q, k, v):
    """With e = exp(q k^T - its largest) and z = sum_j e: out = e v / z."""
    logits = _product(q, k, summed=(3, 3), heads=(2, 2))
    if causal:
        logits = jnp.where(jnp.tri(*logits.shape[-2:], dtype=bool), logits, -jnp.inf)
    e = jnp.exp(logits - logits.max(-1, keepdims=True))
    z = _rows(e.sum(-1, keepdims=True))
    e = e.astype(v.dtype)
    out = (_rows(_product(e, v, summed=(3, 1), heads=(1, 2))) / z).astype(v.dtype)
    return out, (q, k, v, e, z, out)


def _plain_backward(causal, kept, g):
    """d logits = softmax (g v^T - g . out)."""
    q, k, v, e, z, out = kept
    g = g / z
    share = _rows((g * out).sum(-1, keepdims=True))
    g = g.astype(v.dtype)
    d = (e * (_product(g, v, summed=(3, 3), heads=(2, 2)) - share)).astype(v.dtype)
    d_q = _rows(_product(d, k, summed=(3, 1), heads=(1, 2)))
    d_k, d_v = (
        jnp.moveaxis(_product(a, b, summed=(1, 2), heads=(2, 1)), 3, 1) for a, b in ((q, d), (g, e))
    )
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype)


_plain.defvjp(_plain_forward, _plain_backward)


def _splash(q, k, v, *, causal: bool, interpret: bool = False):
    """Splash attention, each device on its own rows and heads."""

    def own(q, k, v):
        length, heads = q.shape[1:3]
        kind = splash.CausalMask if causal else splash.FullMask
        mask = splash.MultiHeadMask([kind((length, length))] * heads)
        block = math.gcd(length, BLOCK)
        sizes = splash.BlockSizes(*[block] * 6, use_fused_bwd_kernel=True)
        kernel = splash.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)
        q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q / math.sqrt(q.shape[-1]), k, v))
        return jnp.swapaxes(jax.vmap(kernel)(q, k, v), 1, 2)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return own(q, k, v)
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    rows = None if q.shape[0] % shards else BATCH_AXES
    heads = None if q.shape[2] % mesh.shape["tensor"] else "tensor"
    spec = PartitionSpec(rows, None, heads, None)
    return jax.shard_map(own, in_specs=spec, out_specs=spec, check_vma=False)(q, k, v)

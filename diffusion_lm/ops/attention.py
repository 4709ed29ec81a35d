"""Attention by the fused kernel that the platform has, else as XLA makes it."""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from diffusion_lm.types import BATCH_AXES, Array

LANES = 128  # of a TPU; its kernel wants lengths that are multiples
BLOCK = 512  # positions of queries and of keys that its kernel holds at a time


def attention(q: Array, k: Array, v: Array, *, causal: bool) -> Array:
    """softmax(q k^T / sqrt(K)) v over whole sequences, in float32 inside: f[B, L, H, K] each.

    On TPUs splash attention, on GPUs cuDNN's for 16-bit types; neither holds [B, H, L, L].
    """
    plain = jax.nn.dot_product_attention
    if jax.default_backend() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16):
        return plain(q, k, v, is_causal=causal, implementation="cudnn")
    if q.shape[1] % LANES or q.shape != k.shape:
        return plain(q, k, v, is_causal=causal)
    return jax.lax.platform_dependent(
        q,
        k,
        v,
        tpu=lambda *qkv: _splash(*qkv, causal=causal),
        default=lambda *qkv: plain(*qkv, is_causal=causal),
    )


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

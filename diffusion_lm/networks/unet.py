"""The U-Net of VDM (arXiv 2107.00630) that MD4 (arXiv 2406.04329) trains on CIFAR-10.

It never leaves full resolution: residual blocks down, one attention over all pixels in the middle,
residual blocks up with skip connections.
"""

import jax
import jax.numpy as jnp

from diffusion_lm import keys
from diffusion_lm.networks import pixels
from diffusion_lm.networks.layers import Attention
from diffusion_lm.types import Network

AXES = pixels.AXES | {
    "attention/qkv": ("width", "stack", "heads", "head"),
    "attention/out": ("heads", "head", "width"),
}


def make(
    *,
    inputs: int,
    outputs: int,
    causal: bool = False,
    time_input: bool = False,
    classes: int = 0,
    shape: tuple[int, ...] | None = None,
    blocks: int = 4,
    width: int = 64,
    heads: int = 1,
    dropout_rate: float = 0.0,
    condition_width: int = 128,
    dtype: str = "float32",
    remat: bool = False,
) -> Network:
    """A U-Net over the L = H W C tokens of an image of `shape`, `inputs` ids, `outputs` classes.

    `blocks` residual blocks of `width` channels lead down, two with an attention of `heads` heads
    between them make the middle, blocks + 1 lead up. `dtype` is the compute type; parameters,
    norms and logits are float32. `remat` recomputes each block in the backward pass.
    """
    pixels.check(
        "unet",
        causal=causal,
        shape=shape,
        channels=("width", width),
        width=width,
        heads=heads,
        dropout_rate=dropout_rate,
        dtype=dtype,
        blocks=blocks,
        condition_width=condition_width,
    )
    compute = jnp.dtype(dtype)
    block = pixels.ResBlock(width, dropout_rate, compute)
    norm, zero = pixels.Norm(swish=False), jax.nn.initializers.zeros
    attention = Attention(heads, False, False, compute, zero)
    still = jnp.zeros(shape[0] * shape[1])  # no rotary positions: the convolutions know places

    def init(key, h, cond):
        key_pair, key_norm, key_attention = jax.random.split(key, 3)
        flat = h.reshape(1, -1, width)
        return {
            "pair": pixels.stacked(block, key_pair, 2, h, cond),
            "norm": norm.init(key_norm, h)["params"],
            "attention": attention.init(key_attention, flat, still)["params"],
        }

    def apply(params, h, cond, keys_B):
        def residual(h, index):
            mine = None if keys_B is None else keys.rows_fold(keys_B, index)
            weights = jax.tree.map(lambda a: a[index], params["pair"])
            return block.apply({"params": weights}, h, cond, mine)

        h = residual(h, 0)
        flat = norm.apply({"params": params["norm"]}, h).reshape(len(h), -1, width)
        mixed, _ = attention.apply({"params": params["attention"]}, flat, still)
        return residual(h + mixed.reshape(h.shape), 1)

    return pixels.network(
        pixels.Middle(init, apply),
        inputs=inputs,
        outputs=outputs,
        time_input=time_input,
        classes=classes,
        shape=shape,
        blocks=blocks,
        width=width,
        dropout_rate=dropout_rate,
        condition_width=condition_width,
        dtype=dtype,
        remat=remat,
    )

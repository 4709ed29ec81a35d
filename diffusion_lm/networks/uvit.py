"""A U-ViT (arXiv 2301.11093): convolutions at full resolution around a transformer on patches.

MD4 (arXiv 2406.04329) trains one on ImageNet 64 x 64. The transformer is a DiT (arXiv 2212.09748),
the blocks of transformer.py with adaLN-zero.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_lm import keys
from diffusion_lm.networks import pixels, transformer
from diffusion_lm.types import Network

AXES = (
    transformer.AXES
    | pixels.AXES
    | {
        "patch/kernel": ("channel", "width"),
        "unpatch/kernel": ("width", "channel"),
    }
)


def make(
    *,
    inputs: int,
    outputs: int,
    causal: bool = False,
    time_input: bool = False,
    classes: int = 0,
    shape: tuple[int, ...] | None = None,
    outer: int = 2,
    outer_width: int = 64,
    patch: int = 2,
    layers: int = 4,
    width: int = 256,
    heads: int = 4,
    dropout_rate: float = 0.0,
    condition_width: int = 128,
    dtype: str = "float32",
    remat: bool = False,
) -> Network:
    """A U-ViT over the L = H W C tokens of an image of `shape`, `inputs` ids, `outputs` classes.

    `outer` residual blocks of `outer_width` channels on each end (one more on the way up, and none
    with 0: then it is a DiT); between them squares of `patch` x `patch` pixels become the
    tokens of `layers` transformer layers of `width`, with learned embeddings of their places.
    `dtype` is the compute type; parameters, norms and logits are float32. `remat` recomputes each
    block and layer in the backward pass.
    """
    pixels.check(
        "uvit",
        causal=causal,
        shape=shape,
        channels=("outer_width", outer_width),
        width=width,
        heads=heads,
        dropout_rate=dropout_rate,
        dtype=dtype,
        layers=layers,
        patch=patch,
        condition_width=condition_width,
    )
    if outer < 0:
        raise ValueError(f"network.outer must not be negative, got {outer}")
    down, across, rest = shape[0] // patch, shape[1] // patch, (shape[0] % patch, shape[1] % patch)
    if rest != (0, 0):
        raise ValueError(f"network.patch {patch} does not divide images of {shape[0]} x {shape[1]}")
    compute = jnp.dtype(dtype)
    hidden = 32 * math.ceil(8 * width / 3 / 32)
    block = transformer.Block(heads, hidden, "rms", False, True, dropout_rate, compute)
    output = transformer.Output("rms")
    to_width = nn.Dense(width, dtype=compute)
    to_patch = nn.Dense(patch * patch * outer_width, dtype=compute)
    position = jnp.arange(down * across)

    def init(key, h, cond):
        key_in, key_place, key_blocks, key_output, key_out = jax.random.split(key, 5)
        tokens = jnp.zeros((1, 1, width), compute)
        init_block = jax.vmap(
            lambda key: block.init(key, tokens, position[:1], cond, None)["params"]
        )
        return {
            "patch": to_width.init(key_in, patches(h))["params"],
            "place": 0.02 * jax.random.normal(key_place, (down * across, width)),
            "blocks": init_block(jax.random.split(key_blocks, layers)),
            "output": output.init(key_output, tokens, cond)["params"],
            "unpatch": to_patch.init(key_out, tokens)["params"],
        }

    def patches(h):
        """[B, H, W, D] -> [B, patches, patch * patch * D]."""
        h = h.reshape(len(h), down, patch, across, patch, -1).swapaxes(2, 3)
        return h.reshape(len(h), down * across, -1)

    def joined(h):
        """The inverse of `patches`."""
        h = h.reshape(len(h), down, across, patch, patch, -1).swapaxes(2, 3)
        return h.reshape(len(h), down * patch, across * patch, -1)

    def apply(params, h, cond, keys_B):
        tokens = to_width.apply({"params": params["patch"]}, patches(h))
        tokens = tokens + params["place"].astype(compute)

        def layer(tokens, x):
            weights, index = x
            mine = None if keys_B is None else keys.rows_fold(keys_B, index)
            return block.apply({"params": weights}, tokens, position, cond, mine)[0], None

        layer = jax.checkpoint(layer) if remat else layer
        tokens, _ = jax.lax.scan(layer, tokens, (params["blocks"], jnp.arange(layers)))
        tokens = output.apply({"params": params["output"]}, tokens, cond)
        return h + joined(to_patch.apply({"params": params["unpatch"]}, tokens))

    return pixels.network(
        pixels.Middle(init, apply),
        inputs=inputs,
        outputs=outputs,
        time_input=time_input,
        classes=classes,
        shape=shape,
        blocks=outer,
        width=outer_width,
        dropout_rate=dropout_rate,
        condition_width=condition_width,
        dtype=dtype,
        remat=remat,
    )

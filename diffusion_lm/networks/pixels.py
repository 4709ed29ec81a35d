"""What the networks for images share: pixels in, residual convolution blocks around a middle, out.

Tokens int32[B, L], L = H W C in raster order, are embedded, the channels of a pixel side by side,
and convolved to h[B, H, W, D]; at the end a convolution gives each of the L tokens its h[D].
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_lm import keys
from diffusion_lm.networks.layers import dropout
from diffusion_lm.networks.transformer import condition_init, condition_of
from diffusion_lm.ops.product import product
from diffusion_lm.types import Array, Network, Params

# Logical axes of the parameters, as in transformer.AXES. The output of a convolution is its
# "width", so that Muon sees it as one matrix from all the inputs of a place.
_BLOCK = {
    "conv1/kernel": ("layers", "row", "column", "channel", "width"),
    "conv2/kernel": ("layers", "row", "column", "channel", "width"),
    "modulation/kernel": ("layers", "condition", "hidden"),
    "shortcut/kernel": ("layers", "channel", "width"),
}
AXES = {
    **{
        f"{place}/{name}": axes for place in ("down", "up", "pair") for name, axes in _BLOCK.items()
    },
    "enter/kernel": ("row", "column", "channel", "width"),
    "leave/kernel": ("row", "column", "channel", "width"),
    "embedding": ("vocab", "width"),
    "head/kernel": ("width", "vocab"),
}


class Middle(NamedTuple):
    """What lies between the two ends; shapes stay."""

    init: Callable  # (key, h[1, H, W, D], cond[1, C] | None) -> params
    apply: Callable  # (params, h[B, H, W, D], cond[B, C] | None, keys[B] | None) -> h


class Norm(nn.Module):
    """GroupNorm (arXiv 1803.08494) with up to 32 groups, in float32, then swish unless told not.

    Groups hold at least 4 channels: with one each the norm would take the condition, a constant
    of each channel, out again.
    """

    swish: bool = True

    @nn.compact
    def __call__(self, h: Array) -> Array:
        groups = math.gcd(32, h.shape[-1] // 4)
        a = nn.GroupNorm(groups, name="group")(h.astype(jnp.float32))
        return (nn.silu(a) if self.swish else a).astype(h.dtype)


class ResBlock(nn.Module):
    """h + conv(norm(conv(norm(h)) + condition)), starting as h (arXiv 2107.00630).

    Where h has not `width` channels, a linear map gives it as many.
    """

    width: int
    rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: Array, cond_BC: Array | None, keys_B: Array | None) -> Array:
        zero = nn.initializers.zeros
        out = nn.Conv(self.width, (3, 3), dtype=self.dtype, name="conv1")(Norm(name="norm1")(h))
        if cond_BC is not None:
            dense = nn.Dense(
                self.width, use_bias=False, kernel_init=zero, dtype=self.dtype, name="modulation"
            )
            out = out + dense(cond_BC)[:, None, None]
        out = dropout(Norm(name="norm2")(out), keys_B, self.rate)
        out = nn.Conv(self.width, (3, 3), kernel_init=zero, dtype=self.dtype, name="conv2")(out)
        if h.shape[-1] != self.width:
            h = nn.Dense(self.width, dtype=self.dtype, name="shortcut")(h)
        return h + out


def check(
    name: str,
    *,
    causal: bool,
    shape: tuple[int, ...] | None,
    channels: tuple[str, int],
    width: int,
    heads: int,
    dropout_rate: float,
    dtype: str,
    **positive: int,
) -> None:
    """Raises ValueError for what a network of images cannot be.

    `channels` are those of the residual blocks, after the name of their option; attention has
    `heads` heads in `width`; `positive` are other sizes.
    """
    if shape is None:
        raise ValueError(f"network {name!r} is for images, data of text wants 'transformer'")
    if causal:
        raise ValueError(f"network {name!r} is not causal, autoregression wants 'transformer'")
    positive |= {channels[0]: channels[1], "width": width, "heads": heads}
    for option, value in positive.items():
        if value < 1:
            raise ValueError(f"network.{option} must be positive, got {value}")
    if channels[1] % 4:
        raise ValueError(f"network.{channels[0]} must be a multiple of 4, got {channels[1]}")
    if width % (2 * heads):
        raise ValueError(
            f"network.width must be a multiple of 2 x heads, got width {width}, heads {heads}"
        )
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"unknown network.dtype {dtype!r}; choices: float32, bfloat16")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"network.dropout_rate must lie in [0, 1), got {dropout_rate}")


def network(
    middle: Middle,
    *,
    inputs: int,
    outputs: int,
    time_input: bool,
    classes: int,
    shape: tuple[int, ...],
    blocks: int,
    width: int,
    dropout_rate: float,
    condition_width: int,
    dtype: str,
    remat: bool,
) -> Network:
    """`blocks` residual blocks, the middle, and blocks + 1 residual blocks, each of which also sees
    what stood at its place on the way down; all between a first and a last convolution. With
    blocks = 0 only the middle stands between these."""
    height, breadth, channels = shape
    compute = jnp.dtype(dtype)
    block = ResBlock(width, dropout_rate, compute)
    enter = nn.Conv(width, (3, 3), dtype=compute)
    leave = nn.Conv(channels * width, (3, 3), dtype=compute)
    norm = Norm()
    ups = blocks + 1 if blocks else 0

    def init(key: Array):
        names = ("embed", "enter", "down", "middle", "up", "leave", "time", "label")
        key = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        cond = jnp.zeros((1, condition_width)) if time_input or classes else None
        one = jnp.zeros((1, height, breadth, channels * width), compute)
        h = one[..., :width]
        params = {
            "embedding": jax.random.normal(key["embed"], (inputs, width)) / math.sqrt(width),
            "enter": enter.init(key["enter"], one)["params"],
            "middle": middle.init(key["middle"], h, cond),
            "norm": norm.init(key["leave"], h)["params"],
            "leave": leave.init(key["leave"], h)["params"],
            "head": {"kernel": jnp.zeros((width, outputs)), "bias": jnp.zeros(outputs)},
        }
        if blocks:
            params["down"] = stacked(block, key["down"], blocks, h, cond)
            params["up"] = stacked(block, key["up"], ups, one_and_one(h, h), cond)
        return params | condition_init(
            key["time"], key["label"], condition_width, time_input, classes
        )

    def trunk(params, tokens_BL, t_B=None, keys_B=None, label_B=None):
        """Tokens int32[B, L], times f32[B], dropout keys[B], labels int32[B] -> h[B, L, D]."""
        size = len(tokens_BL)
        cond = condition_of(params, t_B, label_B, size, condition_width)
        h = params["embedding"][tokens_BL] * math.sqrt(width)
        h = h.astype(compute).reshape(size, height, breadth, channels * width)
        h = enter.apply({"params": params["enter"]}, h)

        def step(h, weights, index):
            mine = None if keys_B is None else keys.rows_fold(keys_B, index)
            return block.apply({"params": weights}, h, cond, mine)

        step = jax.checkpoint(step) if remat else step
        if blocks:

            def down(h, x):
                h = step(h, *x)
                return h, h

            first = h
            h, skips = jax.lax.scan(down, h, (params["down"], jnp.arange(blocks)))
            skips = jnp.concatenate([first[None], skips])[::-1]
        mine = None if keys_B is None else keys.rows_fold(keys_B, blocks)
        h = middle.apply(params["middle"], h, cond, mine)
        if blocks:

            def up(h, x):
                skip, weights, index = x
                return step(one_and_one(h, skip), weights, index), None

            h, _ = jax.lax.scan(up, h, (skips, params["up"], blocks + 1 + jnp.arange(ups)))
        h = leave.apply({"params": params["leave"]}, norm.apply({"params": params["norm"]}, h))
        return h.reshape(size, -1, width)

    def head(params, h):
        """h[..., D] -> logits f32[..., V], accumulated in float32."""
        return product(jnp.float32, h, params["head"]["kernel"], params["head"]["bias"])

    return Network(init, trunk, head)


def one_and_one(h: Array, other: Array) -> Array:
    """Both, one after the other along the last axis."""
    return jnp.concatenate([h, other], axis=-1)


def stacked(block: nn.Module, key: Array, number: int, *inputs) -> Params:
    """The parameters of `number` such blocks, along a first axis."""
    init = jax.vmap(lambda key: block.init(key, *inputs, None)["params"])
    return init(jax.random.split(key, number))

"""GPT-2's network, to the letter, so that its published weights run here and ours there.

Pre-norm blocks with LayerNorms, biases everywhere, learned positions, a tanh GELU, and the
embedding as the head.
"""

import math

import jax
import jax.numpy as jnp

from diffusion_lm import keys
from diffusion_lm.networks.layers import Norm, dropout, project, row_keys
from diffusion_lm.ops.attention import attention
from diffusion_lm.ops.product import product
from diffusion_lm.types import Array, Network

# Logical axes of every parameter, see transformer.py.
AXES = {
    "blocks/qkv/kernel": ("layers", "width", "stack", "heads", "head"),
    "blocks/out/kernel": ("layers", "heads", "head", "width"),
    "blocks/up/kernel": ("layers", "width", "hidden"),
    "blocks/down/kernel": ("layers", "hidden", "width"),
    "embedding": ("vocab", "width"),
    "place": ("length", "width"),
}


def make(
    *,
    inputs: int,
    outputs: int,
    causal: bool = False,
    time_input: bool = False,
    classes: int = 0,
    shape: tuple[int, ...] | None = None,
    length: int = 1,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    hidden: int = 0,
    positions: int = 1024,
    rows: int = 0,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
    remat: bool = False,
) -> Network:
    """The network over `inputs` token ids with `outputs` classes, on at most `positions` tokens.

    `rows` is how many rows the embedding has (0: as many as inputs); `hidden` is the width of the
    MLP (0: 4 x width). `dropout_rate` is for the embeddings and the branches; attention drops
    nothing. `dtype` is that of the matrix products; the residual stream, norms, softmax and logits
    are float32. `remat` recomputes each layer in the backward pass.
    """
    if not causal or time_input or classes or shape:
        raise ValueError(
            "network 'gpt2' predicts the next token of a text: it takes objective 'ar', and no "
            "time, labels or images"
        )
    positive = {"layers": layers, "width": width, "heads": heads, "positions": positions}
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"network.{name} must be positive, got {value}")
    if width % heads:
        raise ValueError(
            f"network.width must be a multiple of heads, got width {width}, heads {heads}"
        )
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"unknown network.dtype {dtype!r}; choices: float32, bfloat16")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"network.dropout_rate must lie in [0, 1), got {dropout_rate}")
    if hidden < 0:
        raise ValueError(f"network.hidden must not be negative, got {hidden}")
    rows = rows or inputs
    if rows < inputs:
        raise ValueError(
            f"network.rows must be at least the number of token ids, {inputs}, got {rows}"
        )
    hidden, size, compute = hidden or 4 * width, width // heads, jnp.dtype(dtype)
    norm = Norm("layer")

    def placed(number: int) -> int:
        if number > positions:  # a gather would take the last one for all that follow, silently
            raise ValueError(f"network 'gpt2' has {positions} positions, got {number} tokens")
        return number

    placed(length)

    def init(key: Array):
        """As GPT-2's: normal of deviation 0.02, less for what adds to the residual stream."""
        drawn = iter(jax.random.split(key, 6))

        def normal(*shape, std=0.02):
            return std * jax.random.normal(next(drawn), shape)

        def layer_norm(*stack):
            return {"scale": jnp.ones((*stack, width)), "bias": jnp.zeros((*stack, width))}

        def dense(kernel, *bias):
            return {"kernel": kernel, "bias": jnp.zeros((layers, *bias))}

        less = 0.02 / math.sqrt(2 * layers)
        return {
            "embedding": normal(rows, width),
            "place": normal(positions, width, std=0.01),
            "blocks": {
                "norm1": layer_norm(layers),
                "qkv": dense(normal(layers, width, 3, heads, size), 3, heads, size),
                "out": dense(normal(layers, heads, size, width, std=less), width),
                "norm2": layer_norm(layers),
                "up": dense(normal(layers, width, hidden), hidden),
                "down": dense(normal(layers, hidden, width, std=less), width),
            },
            "output": layer_norm(),
        }

    def normed(weights, h):
        out = norm.apply({"params": {"scale": weights["scale"]}}, h) + weights["bias"]
        return out.astype(compute)

    def dense(weights, h):
        return project(h, weights["kernel"], compute) + weights["bias"].astype(compute)

    def attend(weights, h_BLD, cache, at):
        qkv = dense(weights["qkv"], h_BLD)
        q, k, v = (qkv[:, :, i] for i in range(3))
        if cache is None:
            mixed = attention(q, k, v, causal=True)
        else:
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), at, 1)
                for old, new in zip(cache, (k, v), strict=True)
            )
            cache = k, v
            seen = (jnp.arange(k.shape[1]) <= at)[None, None, None, :]
            mixed = jax.nn.dot_product_attention(q, k, v, mask=seen)
        return dense(weights["out"], mixed.reshape(h_BLD.shape)), cache

    def block(weights, h_BLD, keys_B, cache=None, at=None):
        key1, key2 = row_keys(keys_B, 2)
        a, cache = attend(weights, normed(weights["norm1"], h_BLD), cache, at)
        h_BLD = h_BLD + dropout(a, key1, dropout_rate)
        m = dense(weights["up"], normed(weights["norm2"], h_BLD))
        m = dense(weights["down"], jax.nn.gelu(m, approximate=True))
        return h_BLD + dropout(m, key2, dropout_rate), cache

    def trunk(params, tokens_BL, t_B=None, keys_B=None, given=None):
        """Tokens int32[B, L], dropout keys[B] -> h[B, L, D]."""
        place_LD = params["place"][: placed(tokens_BL.shape[1])]
        first = None if keys_B is None else keys.rows_fold(keys_B, layers)
        h = dropout(params["embedding"][tokens_BL] + place_LD, first, dropout_rate)

        def layer(h, x):
            weights, index = x
            mine = None if keys_B is None else keys.rows_fold(keys_B, index)
            return block(weights, h, mine)[0], None

        layer = jax.checkpoint(layer) if remat else layer
        h, _ = jax.lax.scan(layer, h, (params["blocks"], jnp.arange(layers)))
        return normed(params["output"], h)

    def head(params, h):
        """h[..., D] -> logits f32[..., outputs], accumulated in float32."""
        return product(jnp.float32, h, params["embedding"][:outputs].T)

    def cache(batch, length):
        shape = (layers, batch, placed(length), heads, size)
        return jnp.zeros(shape, compute), jnp.zeros(shape, compute)

    def decode(params, cache, tokens_B, at, given=None):
        """One token a row at position `at`: (logits f32[B, V], cache)."""
        h = (params["embedding"][tokens_B] + params["place"][at])[:, None]

        def layer(h, x):
            weights, mine = x
            return block(weights, h, None, mine, at)

        h, cache = jax.lax.scan(layer, h, (params["blocks"], cache))
        return head(params, normed(params["output"], h)[:, 0]), cache

    return Network(init, trunk, head, decode, cache)

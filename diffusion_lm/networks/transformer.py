"""One transformer for all token models: causal or bidirectional, with or without time input."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_lm import keys
from diffusion_lm.networks.layers import (
    Attention,
    GatedMLP,
    Norm,
    dropout,
    lookup,
    row_keys,
    time_features,
)
from diffusion_lm.networks.layers import shift as layers_shift
from diffusion_lm.ops.product import product
from diffusion_lm.types import Array, Network

# Logical axes of every parameter, by the last names of its path; a rules table in the config maps
# them to mesh axes, and Muon finds in them which axes are a matrix. Unnamed parameters are small.
AXES = {
    "blocks/attention/qkv": ("layers", "width", "stack", "heads", "head"),
    "blocks/attention/out": ("layers", "heads", "head", "width"),
    "blocks/mlp/gate_up": ("layers", "width", "stack", "hidden"),
    "blocks/mlp/down": ("layers", "hidden", "width"),
    "blocks/modulation/kernel": ("layers", "condition", "hidden"),
    "embedding": ("vocab", "width"),
    "place": ("length", "width"),
    "head/kernel": ("width", "vocab"),
}


class Block(nn.Module):
    """Pre-norm attention and gated MLP; adaLN-zero (arXiv 2212.09748) if a condition is given."""

    heads: int
    hidden: int
    norm: str
    causal: bool
    qk_norm: bool
    rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        h_BLD: Array,
        position_L: Array,
        cond_BC: Array | None,
        keys_B: Array | None,
        cache: tuple[Array, Array] | None = None,
    ) -> tuple[Array, tuple[Array, Array] | None]:
        width = h_BLD.shape[-1]
        scale1 = scale2 = shift1 = shift2 = 0.0
        gate1 = gate2 = 1.0
        zero = nn.initializers.zeros
        if cond_BC is not None:
            out = nn.Dense(6 * width, kernel_init=zero, dtype=self.dtype, name="modulation")(
                cond_BC
            )
            shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(out[:, None], 6, axis=-1)
        key1, key2 = row_keys(keys_B, 2)
        a = Norm(self.norm, name="norm1")(h_BLD) * (1 + scale1) + shift1
        # Layers start as the identity: by adaLN's zero gates, else by zero output matrices.
        start = zero if cond_BC is None else None
        attend = Attention(
            self.heads, self.causal, self.qk_norm, self.dtype, start, name="attention"
        )
        a, cache = attend(a, position_L, cache)
        h_BLD = h_BLD + gate1 * dropout(a, key1, self.rate)
        m = Norm(self.norm, name="norm2")(h_BLD) * (1 + scale2) + shift2
        m = GatedMLP(self.hidden, self.dtype, start, name="mlp")(m)
        return h_BLD + gate2 * dropout(m, key2, self.rate), cache


class Condition(nn.Module):
    """Time in [0, 1] -> a condition vector."""

    width: int

    @nn.compact
    def __call__(self, t_B: Array) -> Array:
        c = nn.silu(nn.Dense(self.width, name="in")(time_features(t_B)))
        return nn.silu(nn.Dense(self.width, name="out")(c))


def condition_init(
    key_time: Array, key_label: Array, width: int, time_input: bool, classes: int
) -> dict:
    """The parameters of `condition_of`: "condition" for the time, "label" for the classes."""
    params = {}
    if time_input:
        params["condition"] = Condition(width).init(key_time, jnp.zeros((1,)))["params"]
    if classes:
        params["label"] = jax.random.normal(key_label, (classes + 1, width))
    return params


def condition_of(
    params: dict, t_B: Array | None, label_B: Array | None, size: int, width: int
) -> Array | None:
    """The condition of B = size rows, f32[B, C]; None for a network of neither time nor labels."""
    parts = []
    if "condition" in params:
        parts.append(Condition(width).apply({"params": params["condition"]}, t_B))
    if "label" in params:
        unknown = params["label"].shape[0] - 1
        parts.append(params["label"][jnp.full(size, unknown) if label_B is None else label_B])
    return sum(parts) if parts else None


class Output(nn.Module):
    """The final norm, modulated by the condition if there is one."""

    norm: str

    @nn.compact
    def __call__(self, h_BLD: Array, cond_BC: Array | None) -> Array:
        h = Norm(self.norm, name="norm")(h_BLD)
        if cond_BC is None:
            return h
        zero = nn.initializers.zeros
        out = nn.Dense(2 * h.shape[-1], kernel_init=zero, name="modulation")(cond_BC)
        shift, scale = jnp.split(out[:, None], 2, axis=-1)
        return (h * (1 + scale) + shift).astype(h.dtype)


def make(
    *,
    inputs: int,
    outputs: int,
    causal: bool = False,
    time_input: bool = False,
    classes: int = 0,
    shape: tuple[int, ...] | None = None,
    layers: int = 4,
    width: int = 256,
    heads: int = 4,
    hidden: int = 0,
    norm: str = "rms",
    qk_norm: bool = False,
    tied: bool = False,
    shift: bool = False,
    dropout_rate: float = 0.0,
    condition_width: int = 128,
    dtype: str = "float32",
    remat: bool = False,
) -> Network:
    """A transformer over `inputs` token ids with `outputs` classes.

    `shift` mixes each embedding with its two neighbours (the two before it, if causal) by a learned
    depthwise convolution. `hidden` is the width of the gated MLP (0: 8/3 of the width, rounded up
    to 32). `tied` uses the input embedding as the head; an untied head starts at zero, so a new
    network predicts the uniform distribution. `dtype` is the compute type; parameters, norms,
    softmax and logits are float32. `remat` recomputes each layer in the backward pass. With a
    `shape` (of images) every position has a learned embedding, since there, unlike in windows of
    text, places differ; with `classes` a label joins the time in conditioning every layer.
    """
    positive = {"layers": layers, "width": width, "heads": heads, "inputs": inputs}
    positive["condition_width"] = condition_width
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"network.{name} must be positive, got {value}")
    if width % (2 * heads):
        raise ValueError(
            f"network.width must be a multiple of 2 x heads (rotary pairs), got width {width}, "
            f"heads {heads}"
        )
    if norm not in ("rms", "layer"):
        raise ValueError(f"unknown network.norm {norm!r}; choices: rms, layer")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"unknown network.dtype {dtype!r}; choices: float32, bfloat16")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"network.dropout_rate must lie in [0, 1), got {dropout_rate}")
    if hidden < 0:
        raise ValueError(f"network.hidden must not be negative, got {hidden}")
    hidden = hidden or 32 * math.ceil(8 * width / 3 / 32)
    compute = jnp.dtype(dtype)
    before = 2 if causal else 1
    block = Block(heads, hidden, norm, causal, qk_norm, dropout_rate, compute)
    output = Output(norm)

    def init(key: Array):
        key_embed, key_block, key_cond, key_out, key_label, key_place = jax.random.split(key, 6)
        h, position = jnp.zeros((1, 1, width)), jnp.arange(1)
        cond = jnp.zeros((1, condition_width)) if time_input or classes else None

        def init_block(key):
            return block.init(key, h.astype(compute), position, cond, None)["params"]

        params = {
            "embedding": jax.random.normal(key_embed, (inputs, width)) / math.sqrt(width),
            "blocks": jax.vmap(init_block)(jax.random.split(key_block, layers)),
            "output": output.init(key_out, h, cond)["params"],
        }
        if not tied:
            params["head"] = {"kernel": jnp.zeros((width, outputs)), "bias": jnp.zeros(outputs)}
        if shift:
            params["shift"] = {"taps": jnp.zeros((3, width)).at[before].set(1.0)}
        params |= condition_init(key_cond, key_label, condition_width, time_input, classes)
        if shape:
            scale = 1 / math.sqrt(width)
            params["place"] = scale * jax.random.normal(key_place, (math.prod(shape), width))
        return params

    def embed(params, tokens, places):
        h = lookup(params["embedding"], tokens)
        if shape:
            h = h + params["place"][places]
        # sqrt(width) keeps unit variance at the input while the tied head sees small weights.
        return (h * math.sqrt(width)).astype(compute)

    def mix(params, h):
        return layers_shift(h, params["shift"]["taps"], before) if shift else h

    def trunk(params, tokens_BL, t_B=None, keys_B=None, label_B=None):
        """Tokens int32[B, L], times f32[B], dropout keys[B], labels int32[B] -> h[B, L, D]."""
        cond = condition_of(params, t_B, label_B, len(tokens_BL), condition_width)
        position = jnp.arange(tokens_BL.shape[1])
        first = None if keys_B is None else keys.rows_fold(keys_B, layers)
        h = dropout(mix(params, embed(params, tokens_BL, position)), first, dropout_rate)

        def layer(h, x):
            weights, index = x
            mine = None if keys_B is None else keys.rows_fold(keys_B, index)
            return block.apply({"params": weights}, h, position, cond, mine)[0], None

        layer = jax.checkpoint(layer) if remat else layer
        h, _ = jax.lax.scan(layer, h, (params["blocks"], jnp.arange(layers)))
        return output.apply({"params": params["output"]}, h, cond)

    def head(params, h):
        """h[..., D] -> logits f32[..., V], accumulated in float32."""
        kernel = params["embedding"][:outputs].T if tied else params["head"]["kernel"]
        bias = None if tied else params["head"]["bias"]
        return product(jnp.float32, h.astype(compute), kernel, bias)

    def cache(batch, length):
        shape = (layers, batch, length, heads, width // heads)
        attention = jnp.zeros(shape, compute), jnp.zeros(shape, compute)
        return jnp.zeros((batch, 2, width), compute), attention  # the last two embeddings

    def decode(params, cache, tokens_B, at, label_B=None):
        """One token a row at position `at`: (logits f32[B, V], cache)."""
        last, cache = cache
        cond = condition_of(params, None, label_B, len(tokens_B), condition_width)
        new = embed(params, tokens_B[:, None], jnp.asarray(at)[None])
        window = jnp.concatenate([last, new], axis=1)
        h = mix(params, window)[:, 2:]

        def layer(h, x):
            weights, mine = x
            position = jnp.asarray(at)[None]
            return block.apply({"params": weights}, h, position, cond, None, mine)

        h, cache = jax.lax.scan(layer, h, (params["blocks"], cache))
        h = output.apply({"params": params["output"]}, h, cond)
        return head(params, h[:, 0]), (window[:, 1:], cache)

    if not causal:
        return Network(init, trunk, head)
    return Network(init, trunk, head, decode, cache)

"""An encoder and a decoder (arXiv 1706.03762), causal or not, over tokens or over vectors.

The source is encoded once: what a decoder attends to, the keys and values of every layer, is a
Memory. Places are learned embeddings, since between two texts absolute places matter; a network
that is not causal also predicts the length of the target from the mean of the encoded source, as a
difference of up to 128 tokens.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from diffusion_lm import keys
from diffusion_lm.networks.layers import dropout, fan_in_of, project, row_keys, time_features
from diffusion_lm.ops.product import product
from diffusion_lm.types import Array, Memory, Network

LENGTHS = 256  # classes of target - source, in -128 .. 127; the ends stand for all beyond

_ATTENTION = {
    "q": ("layers", "width", "heads", "head"),
    "kv": ("layers", "width", "stack", "heads", "head"),
    "out": ("layers", "heads", "head", "width"),
}
_MLP = {"up": ("layers", "width", "hidden"), "down": ("layers", "hidden", "width")}
# Logical axes, as in transformer.AXES.
AXES = {
    **{f"encoder/self/{name}": axes for name, axes in _ATTENTION.items()},
    **{f"decoder/self/{name}": axes for name, axes in _ATTENTION.items()},
    **{f"decoder/cross/{name}": axes for name, axes in _ATTENTION.items()},
    **{
        f"{side}/mlp/{name}": axes for side in ("encoder", "decoder") for name, axes in _MLP.items()
    },
    "embedding": ("vocab", "width"),
    "source_embedding": ("vocab", "width"),
    "place": ("length", "width"),
    "source_place": ("length", "width"),
}


def make(
    *,
    inputs: int,
    outputs: int,
    causal: bool = False,
    time_input: bool = False,
    vectors: int = 0,
    length: int,
    source_length: int | None,
    source_ids: int = 0,
    source_end: int = 0,
    layers: int = 2,
    width: int = 128,
    heads: int = 4,
    hidden: int = 512,
    embedding_width: int = 0,
    post_norm: bool = False,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
) -> Network:
    """`layers` of encoder and as many of decoder, over `inputs` token ids with `outputs` classes.

    Of sources, `source_end` is the id that fills them up; `source_ids` is the size of a vocabulary
    of their own (0: they share the targets'). The embedding E, of `embedding_width` (0: `width`),
    is also the head: logits = h E^T. With `vectors`, the decoder takes f32[B, L, vectors x E's
    width] in place of tokens and its h is of E's width: diffusion on embeddings. `post_norm`
    normalises after each residual sum, as the papers of 2017 to 2022 do, else before. `dtype` is
    the compute type; parameters, norms, softmax and logits are float32.
    """
    if source_length is None:
        raise ValueError("network 'seq2seq' is for pairs (config.data.name='pairs')")
    positive = {"layers": layers, "width": width, "heads": heads, "hidden": hidden}
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"network.{name} must be positive, got {value}")
    if width % heads:
        raise ValueError(f"network.width {width} is not a multiple of network.heads {heads}")
    if width % 2 and time_input:
        raise ValueError(f"network.width must be even for an input of time, got {width}")
    if embedding_width < 0:
        raise ValueError(f"network.embedding_width must not be negative, got {embedding_width}")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"unknown network.dtype {dtype!r}; choices: float32, bfloat16")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"network.dropout_rate must lie in [0, 1), got {dropout_rate}")
    size, embedded = width // heads, embedding_width or width
    compute = jnp.dtype(dtype)
    narrow = vectors > 0 or embedded != width  # E is not what the layers work on

    def attention_init(key):
        key_q, key_kv, key_out = jax.random.split(key, 3)
        out = fan_in_of(2)(key_out, (heads, size, width)) if post_norm else 0
        return {
            "norm": jnp.ones(width),
            "q": fan_in_of(1)(key_q, (width, heads, size)),
            "kv": fan_in_of(1)(key_kv, (width, 2, heads, size)),
            "out": out + jnp.zeros((heads, size, width)),  # before norms: layers start as h -> h
        }

    def layer_init(key, cross):
        key_self, key_cross, key_up, key_down = jax.random.split(key, 4)
        down = fan_in_of(1)(key_down, (hidden, width)) if post_norm else 0
        mlp = {"norm": jnp.ones(width), "up": fan_in_of(1)(key_up, (width, hidden))}
        mlp["down"] = down + jnp.zeros((hidden, width))
        weights = {"self": attention_init(key_self), "mlp": mlp}
        return weights | ({"cross": attention_init(key_cross)} if cross else {})

    def init(key: Array):
        names = ("embed", "source", "place", "source_place", "encoder", "decoder")
        names += ("enter", "enter_source", "leave", "time")
        key = dict(zip(names, jax.random.split(key, len(names)), strict=True))

        def normal(name, *shape):
            return jax.random.normal(key[name], shape) / math.sqrt(shape[-1])

        params = {
            "embedding": normal("embed", inputs, embedded),
            "place": normal("place", length, width),
            "source_place": normal("source_place", source_length, width),
            "encoder": jax.vmap(partial(layer_init, cross=False))(
                jax.random.split(key["encoder"], layers)
            ),
            "decoder": jax.vmap(partial(layer_init, cross=True))(
                jax.random.split(key["decoder"], layers)
            ),
            "norm": {"encoder": jnp.ones(width), "decoder": jnp.ones(width)},
        }
        if source_ids:
            params["source_embedding"] = normal("source", source_ids, embedded)
        if narrow:
            entering = (max(vectors, 1) * embedded, width)
            params["enter"] = {"kernel": fan_in_of(1)(key["enter"], entering)}
            params["enter_source"] = {
                "kernel": fan_in_of(1)(key["enter_source"], (embedded, width))
            }
            params["leave"] = {"kernel": fan_in_of(1)(key["leave"], (width, embedded))}
        if time_input:
            params["time"] = {"kernel": fan_in_of(1)(key["time"], (width, width))}
        if not causal:
            params["length"] = {"kernel": jnp.zeros((width, LENGTHS))}
        return params

    def heads_of(weights, name, h):
        return project(h, weights[name], compute)

    def joined(mixed, weights):
        return project(mixed.reshape(*mixed.shape[:2], width), weights["out"], compute)

    def residual(h, weights, key_B, change):
        """h + change(h), the norm before or after."""
        if post_norm:
            return norm(h + dropout(change(h), key_B, dropout_rate), weights["norm"])
        return h + dropout(change(norm(h, weights["norm"])), key_B, dropout_rate)

    def feed(weights):
        return lambda h: project(
            jax.nn.relu(project(h, weights["up"], compute)), weights["down"], compute
        )

    def itself(weights, shown_BL, cause):
        """Self-attention over the places that are shown."""

        def change(h):
            kv = heads_of(weights, "kv", h)
            return joined(
                attend(heads_of(weights, "q", h), kv[:, :, 0], kv[:, :, 1], shown_BL, cause),
                weights,
            )

        return change

    def across(weights, k, v, shown_BS):
        def change(h):
            return joined(attend(heads_of(weights, "q", h), k, v, shown_BS, False), weights)

        return change

    def finish(params, side, h):
        return h if post_norm else norm(h, params["norm"][side])

    def encode(params, src_BS, keys_B=None):
        """The Memory of sources int32[B, S]."""
        shown_BS, places = src_BS != source_end, params["source_place"][: src_BS.shape[1]]
        table = params["source_embedding" if source_ids else "embedding"]
        h = table[src_BS] * math.sqrt(embedded)
        if narrow:
            h = h @ params["enter_source"]["kernel"]
        keys_B = None if keys_B is None else keys.rows_fold(keys_B, 0)
        first = None if keys_B is None else keys.rows_fold(keys_B, layers)
        h = dropout((h + places * math.sqrt(width)).astype(compute), first, dropout_rate)

        def layer(h, x):
            weights, index = x
            mine = None if keys_B is None else keys.rows_fold(keys_B, index)
            key1, key2 = row_keys(mine, 2)
            h = residual(h, weights["self"], key1, itself(weights["self"], shown_BS, False))
            return residual(h, weights["mlp"], key2, feed(weights["mlp"])), None

        h, _ = jax.lax.scan(layer, h, (params["encoder"], jnp.arange(layers)))
        h = finish(params, "encoder", h)
        kv = jax.vmap(lambda weights: project(h, weights, compute))(
            params["decoder"]["cross"]["kv"]
        )
        return Memory(kv[:, :, :, 0], kv[:, :, :, 1], shown_BS, log_lengths(params, h, shown_BS))

    def log_lengths(params, h, shown_BS):
        """log p(length of the target), f32[B, L]; lengths run from 1 to L - 1."""
        if causal:
            return None
        shown_BS1 = shown_BS[..., None]
        h = h.astype(jnp.float32)
        mean_BD = (h * shown_BS1).sum(1) / jnp.maximum(shown_BS1.sum(1), 1)
        logits_BC = mean_BD @ params["length"]["kernel"]
        difference_BL = jnp.arange(length) - shown_BS.sum(1)[:, None] + LENGTHS // 2
        at_BL = jnp.clip(difference_BL, 0, LENGTHS - 1)
        logits_BL = jnp.take_along_axis(logits_BC, at_BL, axis=1)
        return jax.nn.log_softmax(jnp.where(jnp.arange(length) == 0, -jnp.inf, logits_BL))

    def embed(params, z, first):
        """Tokens int[B, L] or vectors f32[B, L, ...], at places from `first` on: h[B, L, D]."""
        h = z if vectors else params["embedding"][z] * math.sqrt(embedded)
        if narrow:
            h = h @ params["enter"]["kernel"]
        places = jax.lax.dynamic_slice_in_dim(params["place"], first, z.shape[1])
        return h + places * math.sqrt(width)

    def trunk(params, z, t_B=None, keys_B=None, memory: Memory | None = None):
        """Tokens int32[B, L] or vectors, times f32[B], dropout keys[B], Memory -> h[B, L, E]."""
        if memory is None:
            raise ValueError(
                "network 'seq2seq' was given no source: config.objective.name must be one for "
                "pairs (difformer, rdm or ar) and config.data.name 'pairs'"
            )
        h = embed(params, z, 0)
        if time_input:
            h = h + (time_features(t_B, width) @ params["time"]["kernel"])[:, None]
        keys_B = None if keys_B is None else keys.rows_fold(keys_B, 1)
        first = None if keys_B is None else keys.rows_fold(keys_B, layers)
        h = dropout(h.astype(compute), first, dropout_rate)

        def layer(h, x):
            weights, k, v, index = x
            mine = None if keys_B is None else keys.rows_fold(keys_B, index)
            key1, key2, key3 = row_keys(mine, 3)
            h = residual(h, weights["self"], key1, itself(weights["self"], memory.target, causal))
            cross = across(weights["cross"], k, v, memory.shown)
            h = residual(h, weights["cross"], key2, cross)
            return residual(h, weights["mlp"], key3, feed(weights["mlp"])), None

        stack = (params["decoder"], memory.keys, memory.values, jnp.arange(layers))
        h, _ = jax.lax.scan(layer, h, stack)
        return leave(params, h)

    def leave(params, h):
        h = finish(params, "decoder", h)
        return h @ params["leave"]["kernel"].astype(compute) if narrow else h

    def head(params, h):
        """h[..., E] -> logits f32[..., V], accumulated in float32."""
        return product(jnp.float32, h, params["embedding"][:outputs].T)

    def cache(batch, length):
        empty = jnp.zeros((layers, batch, length, heads, size), compute)
        return empty, empty

    def decode(params, cache, tokens_B, at, memory: Memory):
        """One token a row at position `at`: (logits f32[B, V], cache)."""
        h = embed(params, tokens_B[:, None], at).astype(compute)

        def layer(h, x):
            weights, k, v, past = x
            place, new = weights["self"], None

            def change(h):
                nonlocal new
                kv = heads_of(place, "kv", h)
                new = tuple(
                    jax.lax.dynamic_update_slice_in_dim(old, kv[:, :, i], at, 1)
                    for i, old in enumerate(past)
                )
                seen = jnp.broadcast_to(jnp.arange(past[0].shape[1]) <= at, past[0].shape[:2])
                return joined(attend(heads_of(place, "q", h), *new, seen, False), place)

            h = residual(h, place, None, change)
            h = residual(h, weights["cross"], None, across(weights["cross"], k, v, memory.shown))
            return residual(h, weights["mlp"], None, feed(weights["mlp"])), new

        h, cache = jax.lax.scan(layer, h, (params["decoder"], memory.keys, memory.values, cache))
        return head(params, leave(params, h)[:, 0]), cache

    if not causal:
        return Network(init, trunk, head, encode=encode)
    return Network(init, trunk, head, decode, cache, encode)


def norm(h: Array, scale: Array) -> Array:
    """LayerNorm over the last axis, scale only, in float32."""
    out = h.astype(jnp.float32)
    out = out - out.mean(-1, keepdims=True)
    out = out * jax.lax.rsqrt(jnp.mean(out**2, -1, keepdims=True) + 1e-5)
    return (out * scale).astype(h.dtype)


def attend(q: Array, k: Array, v: Array, shown: Array | None, causal: bool) -> Array:
    """Attention of q[B, L, H, K] to the places of k, v [B, S, H, K] that are shown, bool[B, S]."""
    mask = None if shown is None else shown[:, None, None, :]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)

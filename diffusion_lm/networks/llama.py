"""LLaMA's network (arXiv 2302.13971), to the letter, so that published weights run here and ours
there: of SmolLM2, for one.

Pre-norm blocks with RMSNorm, half-split rotary positions, attention in which groups of heads share
keys and values (arXiv 2305.13245), a SwiGLU MLP, no biases. Not causal, it is a denoiser that needs
no time, for masked diffusion.

Two things make a denoiser of an autoregressive model's weights (DiffuLLaMA, arXiv 2410.17891, and
Dream, arXiv 2508.15487): `shifted`, in which a token is read off the position before it, as the
weights know it, that of the first one off a start token; and `anneal_steps`, over which attention
becomes bidirectional: at step k each pair of a token and a later one is let through with
probability k / anneal_steps, drawn anew for each row.
"""

import math

import jax
import jax.numpy as jnp

from diffusion_lm import keys
from diffusion_lm.networks.layers import Norm, dropout, project, rotate, row_keys
from diffusion_lm.ops.product import product
from diffusion_lm.types import Array, Network

# Logical axes of every parameter, see transformer.py.
AXES = {
    "blocks/q": ("layers", "width", "heads", "head"),
    "blocks/k": ("layers", "width", "heads", "head"),
    "blocks/v": ("layers", "width", "heads", "head"),
    "blocks/out": ("layers", "heads", "head", "width"),
    "blocks/gate": ("layers", "width", "hidden"),
    "blocks/up": ("layers", "width", "hidden"),
    "blocks/down": ("layers", "hidden", "width"),
    "embedding": ("vocab", "width"),
    "head": ("width", "vocab"),
}


def make(
    *,
    inputs: int,
    outputs: int,
    causal: bool = False,
    time_input: bool = False,
    classes: int = 0,
    shape: tuple[int, ...] | None = None,
    start: int = 0,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    kv_heads: int = 0,
    hidden: int = 0,
    rotary_base: float = 1e4,
    epsilon: float = 1e-5,
    tied: bool = True,
    rows: int = 0,
    shifted: bool = False,
    anneal_steps: int = 0,
    dropout_rate: float = 0.0,
    dtype: str = "float32",
    remat: bool = False,
) -> Network:
    """The network over `inputs` token ids with `outputs` classes.

    `kv_heads` is how many heads keys and values have (0: as many as queries), `hidden` the width
    of the MLP (0: 8/3 of the width, rounded up to 32), `epsilon` that of the norms. `tied` uses the
    embedding as the head; `rows` is how many rows both have (0: as many as inputs). `dropout_rate`
    is for the embeddings and the branches. `shifted` and `anneal_steps` (0: none) are for
    denoisers, see above; `start` is the start token. `dtype` is that of the matrix products; the
    residual stream, norms, softmax and logits are float32. `remat` recomputes each layer in the
    backward pass.
    """
    if time_input or classes or shape:
        raise ValueError("network 'llama' takes no time, labels or images; 'transformer' does")
    kv_heads, hidden = kv_heads or heads, hidden or 32 * math.ceil(8 * width / 3 / 32)
    positive = {"layers": layers, "width": width, "heads": heads, "kv_heads": kv_heads}
    positive |= {"hidden": hidden, "rotary_base": rotary_base, "epsilon": epsilon}
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"network.{name} must be positive, got {value}")
    if width % (2 * heads) or heads % kv_heads:
        raise ValueError(
            "network.width must be a multiple of 2 x heads (rotary pairs), and heads of kv_heads; "
            f"got width {width}, heads {heads}, kv_heads {kv_heads}"
        )
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"unknown network.dtype {dtype!r}; choices: float32, bfloat16")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"network.dropout_rate must lie in [0, 1), got {dropout_rate}")
    if causal and (shifted or anneal_steps):
        raise ValueError(
            "network.shifted and network.anneal_steps make a denoiser of an autoregressive model; "
            f"this one is autoregressive itself, got {shifted} and {anneal_steps}"
        )
    if anneal_steps < 0:
        raise ValueError(f"network.anneal_steps must be 0 (none) or more, got {anneal_steps}")
    rows = rows or inputs
    if rows < inputs:
        raise ValueError(
            f"network.rows must be at least the number of token ids, {inputs}, got {rows}"
        )
    size, compute = width // heads, jnp.dtype(dtype)
    norm = Norm("rms", epsilon)

    def init(key: Array):
        """Normal of deviation 0.02, as published; less for what adds to the residual stream."""
        drawn = iter(jax.random.split(key, 9))

        def normal(*shape, std=0.02):
            return std * jax.random.normal(next(drawn), shape)

        less = 0.02 / math.sqrt(2 * layers)
        params = {
            "embedding": normal(rows, width),
            "blocks": {
                "norm1": {"scale": jnp.ones((layers, width))},
                "q": normal(layers, width, heads, size),
                "k": normal(layers, width, kv_heads, size),
                "v": normal(layers, width, kv_heads, size),
                "out": normal(layers, heads, size, width, std=less),
                "norm2": {"scale": jnp.ones((layers, width))},
                "gate": normal(layers, width, hidden),
                "up": normal(layers, width, hidden),
                "down": normal(layers, hidden, width, std=less),
            },
            "output": {"scale": jnp.ones(width)},
        }
        return params if tied else params | {"head": normal(width, rows)}

    def normed(weights, h):
        return norm.apply({"params": weights}, h).astype(compute)

    def seen_while_annealing(keys_B, step_B, length):
        """bool[B, 1, L, L]: what comes before, and of what comes after a growing share."""
        share_B = step_B / anneal_steps
        keys_B = keys.rows_fold(keys_B, layers + 1)
        u_BLL = jax.vmap(lambda key: jax.random.uniform(key, (length, length)))(keys_B)
        return (jnp.tri(length, dtype=bool) | (u_BLL < share_B[:, None, None]))[:, None]

    def attend(weights, h_BLD, position_L, cache, seen):
        q, k, v = (project(h_BLD, weights[name], compute) for name in "qkv")
        q, k = (rotate(a, position_L, rotary_base) for a in (q, k))
        if cache is None:
            mixed = jax.nn.dot_product_attention(q, k, v, mask=seen, is_causal=causal)
        else:
            at = position_L[0]
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), at, 1)
                for old, new in zip(cache, (k, v), strict=True)
            )
            cache = k, v
            seen = (jnp.arange(k.shape[1]) <= at)[None, None, None, :]
            mixed = jax.nn.dot_product_attention(q, k, v, mask=seen)
        return project(mixed.reshape(h_BLD.shape), weights["out"], compute), cache

    def block(weights, h_BLD, position_L, keys_B, cache=None, seen=None):
        key1, key2 = row_keys(keys_B, 2)
        a, cache = attend(weights, normed(weights["norm1"], h_BLD), position_L, cache, seen)
        h_BLD = h_BLD + dropout(a, key1, dropout_rate)
        m = normed(weights["norm2"], h_BLD)
        gate, up = (project(m, weights[name], compute) for name in ("gate", "up"))
        m = project(jax.nn.silu(gate) * up, weights["down"], compute)
        return h_BLD + dropout(m, key2, dropout_rate), cache

    def trunk(params, tokens_BL, t_B=None, keys_B=None, given=None):
        """Tokens int32[B, L], dropout keys[B], steps int32[B] or None -> h[B, L, D]."""
        if shifted:
            tokens_BL = jnp.pad(tokens_BL, ((0, 0), (1, 0)), constant_values=start)
        annealing = anneal_steps and given is not None and keys_B is not None
        seen = seen_while_annealing(keys_B, given, tokens_BL.shape[1]) if annealing else None
        position = jnp.arange(tokens_BL.shape[1])
        first = None if keys_B is None else keys.rows_fold(keys_B, layers)
        h = dropout(params["embedding"][tokens_BL], first, dropout_rate)

        def layer(h, x):
            weights, index = x
            mine = None if keys_B is None else keys.rows_fold(keys_B, index)
            return block(weights, h, position, mine, seen=seen)[0], None

        layer = jax.checkpoint(layer) if remat else layer
        h, _ = jax.lax.scan(layer, h, (params["blocks"], jnp.arange(layers)))
        return normed(params["output"], h[:, :-1] if shifted else h)

    def head(params, h):
        """h[..., D] -> logits f32[..., outputs], accumulated in float32."""
        kernel = params["embedding"][:outputs].T if tied else params["head"][:, :outputs]
        return product(jnp.float32, h, kernel)

    def cache(batch, length):
        shape = (layers, batch, length, kv_heads, size)
        return jnp.zeros(shape, compute), jnp.zeros(shape, compute)

    def decode(params, cache, tokens_B, at, given=None):
        """One token a row at position `at`: (logits f32[B, V], cache)."""
        position = jnp.asarray(at)[None]

        def layer(h, x):
            weights, mine = x
            return block(weights, h, position, None, mine)

        h = params["embedding"][tokens_B[:, None]]
        h, cache = jax.lax.scan(layer, h, (params["blocks"], cache))
        return head(params, normed(params["output"], h)[:, 0]), cache

    if causal:
        return Network(init, trunk, head, decode, cache)
    return Network(init, trunk, head, anneals=anneal_steps > 0)

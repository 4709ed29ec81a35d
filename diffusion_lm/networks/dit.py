"""The transformer of SEDD (arXiv 2310.16834) and MDLM (arXiv 2406.07524), to the letter, so that
their published weights run here and ours there.

Pre-norm blocks, LayerNorm without bias, half-split rotary positions, a GELU MLP with biases. Each
block and the output are modulated by sigma, the amount of noise (adaLN, arXiv 2212.09748); MDLM's
autoregressive network is the same without that, and causal.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_lm import keys
from diffusion_lm.networks.layers import Attention, Norm, dropout, project, row_keys
from diffusion_lm.networks.transformer import Condition
from diffusion_lm.ops.product import product
from diffusion_lm.types import Array, Network

# Logical axes of every parameter, see transformer.py.
AXES = {
    "blocks/attention/qkv": ("layers", "width", "stack", "heads", "head"),
    "blocks/attention/out": ("layers", "heads", "head", "width"),
    "blocks/up/kernel": ("layers", "width", "hidden"),
    "blocks/down/kernel": ("layers", "hidden", "width"),
    "blocks/modulation/kernel": ("layers", "condition", "hidden"),
    "embedding": ("vocab", "width"),
    "head/kernel": ("width", "vocab"),
}
TOLD = ("sigma", "t")
LOG_LINEAR = 1e-3  # eps of the log-linear noise, sigma = -log(1 - (1 - eps) t)
FEATURES = 256  # of sigma, see layers.time_features


def make(
    *,
    inputs: int,
    outputs: int,
    causal: bool = False,
    time_input: bool = False,
    classes: int = 0,
    shape: tuple[int, ...] | None = None,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    hidden: int = 0,
    condition_width: int = 128,
    dropout_rate: float = 0.1,
    rows: int = 0,
    mask: int | None = None,
    told: str = "sigma",
    dtype: str = "float32",
    remat: bool = False,
) -> Network:
    """The network over `inputs` token ids with `outputs` classes.

    `rows` is how many rows the embedding and the head have (0: as many as inputs). Published
    weights have one for the mask in both, also where it is never predicted or never seen; `mask`
    says which it is (none: the last). It is kept, for the way back, but a logit of it is not made.

    Without `time_input` a network that is not causal is told sigma = 0, as MDLM's is. With it,
    `told` says what the times are: "sigma", in thousandths, which is what SEDD's objective tells;
    or "t", made into the sigma of log-linear noise, for objectives that tell the time.

    `hidden` is the width of the MLP (0: 4 x width). `dtype` is that of the matrix products; the
    residual stream, norms, modulation, softmax and logits are float32. `remat` recomputes each
    layer in the backward pass.
    """
    positive = {
        "layers": layers,
        "width": width,
        "heads": heads,
        "condition_width": condition_width,
    }
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"network.{name} must be positive, got {value}")
    if width % (2 * heads):
        raise ValueError(
            f"network.width must be a multiple of 2 x heads (rotary pairs), got width {width}, "
            f"heads {heads}"
        )
    for name, given, choices in (("told", told, TOLD), ("dtype", dtype, ("float32", "bfloat16"))):
        if given not in choices:
            raise ValueError(f"unknown network.{name} {given!r}; choices: {', '.join(choices)}")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"network.dropout_rate must lie in [0, 1), got {dropout_rate}")
    if hidden < 0:
        raise ValueError(f"network.hidden must not be negative, got {hidden}")
    if classes or shape:
        raise ValueError("network 'dit' takes no labels and no images; 'transformer' does")
    rows = rows or inputs
    if rows < inputs:
        raise ValueError(
            f"network.rows must be at least the number of token ids (the mask's too), {inputs}, "
            f"got {rows}"
        )
    if mask is not None and not 0 <= mask < rows:
        raise ValueError(f"network.mask must lie in [0, rows = {rows}), got {mask}")
    hidden, size, compute = hidden or 4 * width, width // heads, jnp.dtype(dtype)
    # The row of each of our ids, of which the mask, if it is one of them, is the last.
    last = rows - 1 if mask is None else mask
    row = np.delete(np.arange(rows), last)
    row = np.append(row[: inputs - 1], last) if inputs > outputs else np.append(row, last)[:inputs]
    moved = bool((row != np.arange(inputs)).any())
    attend = Attention(heads, causal, False, compute)
    norm = Norm("layer")

    def init(key: Array):
        """As the released code: uniform of deviation sqrt(1 / (3 fan-in)); zeros last and for
        adaLN, so that a new network predicts the uniform distribution."""
        drawn = iter(jax.random.split(key, 12))

        def uniform(fan, *shape):
            bound = 1 / math.sqrt(fan)
            return jax.random.uniform(next(drawn), shape, minval=-bound, maxval=bound)

        def dense(into, out, *stack):
            return {"kernel": uniform(into, *stack, into, out), "bias": uniform(into, *stack, out)}

        def zeros(into, out, *stack):
            return {"kernel": jnp.zeros((*stack, into, out)), "bias": jnp.zeros((*stack, out))}

        params = {
            "embedding": uniform(width, rows, width),
            "blocks": {
                "norm1": {"scale": jnp.ones((layers, width))},
                "attention": {
                    "qkv": uniform(width, layers, width, 3, heads, size),
                    "out": uniform(width, layers, heads, size, width),
                },
                "norm2": {"scale": jnp.ones((layers, width))},
                "up": dense(width, hidden, layers),
                "down": dense(hidden, width, layers),
            },
            "output": {"norm": {"scale": jnp.ones(width)}},
            "head": zeros(width, rows),
        }
        if not causal:
            params["condition"] = {
                "in": dense(FEATURES, condition_width),
                "out": dense(condition_width, condition_width),
            }
            params["blocks"]["modulation"] = zeros(condition_width, 6 * width, layers)
            params["output"]["modulation"] = zeros(condition_width, 2 * width)
        return params

    def embed(params, tokens):
        return params["embedding"][jnp.asarray(row)[tokens] if moved else tokens]

    def condition_of(params, t_B):
        """f32[B or 1, C]; None if causal."""
        if causal:
            return None
        time_B = jnp.zeros(1) if t_B is None or not time_input else t_B
        if told == "t":
            time_B = -jnp.log1p(-(1 - LOG_LINEAR) * time_B) / 1000
        return Condition(condition_width).apply({"params": params["condition"]}, time_B)

    def modulation(weights, cond, parts):
        """(shift, scale, gate, ...) f32[B or 1, 1, D]; the identity if there is no condition."""
        if cond is None:
            return ((0.0, 0.0, 1.0) * 2)[:parts]
        out = cond @ weights["modulation"]["kernel"] + weights["modulation"]["bias"]
        return jnp.split(out[:, None], parts, axis=-1)

    def normed(weights, h, shift, scale):
        out = norm.apply({"params": weights}, h) * (1 + scale) + shift
        return out.astype(compute)

    def block(weights, h_BLD, position_L, cond, keys_B, cache=None):
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation(weights, cond, 6)
        key1, key2 = row_keys(keys_B, 2)
        a = normed(weights["norm1"], h_BLD, shift1, scale1)
        a, cache = attend.apply({"params": weights["attention"]}, a, position_L, cache)
        h_BLD = h_BLD + gate1 * dropout(a, key1, dropout_rate)
        m = normed(weights["norm2"], h_BLD, shift2, scale2)
        for name in ("up", "down"):
            bias = weights[name]["bias"].astype(compute)
            m = project(m, weights[name]["kernel"], compute) + bias
            m = jax.nn.gelu(m, approximate=True) if name == "up" else m
        return h_BLD + gate2 * dropout(m, key2, dropout_rate), cache

    def output(params, h_BLD, cond):
        return normed(params["output"]["norm"], h_BLD, *modulation(params["output"], cond, 2))

    def trunk(params, tokens_BL, t_B=None, keys_B=None, given=None):
        """Tokens int32[B, L], times f32[B] (see `told`), dropout keys[B] -> h[B, L, D]."""
        cond = condition_of(params, t_B)
        position = jnp.arange(tokens_BL.shape[1])

        def layer(h, x):
            weights, index = x
            mine = None if keys_B is None else keys.rows_fold(keys_B, index)
            return block(weights, h, position, cond, mine)[0], None

        layer = jax.checkpoint(layer) if remat else layer
        h, _ = jax.lax.scan(layer, embed(params, tokens_BL), (params["blocks"], jnp.arange(layers)))
        return output(params, h, cond)

    def head(params, h):
        """h[..., D] -> logits f32[..., outputs], accumulated in float32."""
        kernel, bias = params["head"]["kernel"], params["head"]["bias"]
        if moved:
            kernel, bias = kernel[:, row[:outputs]], bias[row[:outputs]]
        elif outputs < rows:
            kernel, bias = kernel[:, :outputs], bias[:outputs]
        return product(jnp.float32, h, kernel, bias)

    def cache(batch, length):
        shape = (layers, batch, length, heads, size)
        return jnp.zeros(shape, compute), jnp.zeros(shape, compute)

    def decode(params, cache, tokens_B, at, given=None):
        """One token a row at position `at`: (logits f32[B, V], cache)."""
        position = jnp.asarray(at)[None]

        def layer(h, x):
            weights, mine = x
            return block(weights, h, position, None, None, mine)

        h, cache = jax.lax.scan(layer, embed(params, tokens_B[:, None]), (params["blocks"], cache))
        return head(params, output(params, h, None)[:, 0]), cache

    if not causal:
        return Network(init, trunk, head)
    return Network(init, trunk, head, decode, cache)

"""Difformer: diffusion on the embeddings of tokens (arXiv 2212.09412), with a source to write from.

With E[v] the learned embedding of token v, of width D, shared by source, target and output:

  clean            z_0 = sqrt(D) E[x]
  noise rescaling  z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) F eps             (section 3.3)
  its twin         z_t = sqrt(abar'_t) z_0 + sqrt(1 - abar'_t) eps, which preserves variance at the
                   same log SNR, with abar' = abar / (F^2 - (F^2 - 1) abar)
  schedules        sqrt: abar = 1 - sqrt(t + 1e-4)
                   cosine: abar = (cos(pi/2 (t + .008) / 1.008) / cos(pi/2 .008 / 1.008))^2
                   linear: abar = prod (1 - beta), beta from 1e-4 to .02 in 1000 steps
  prediction       zhat(z_t, t, source) of z_0; p(token) = softmax(zhat E^T)
  loss             |zhat - z_0|^2 / D + CE(zhat E^T, x) + 0.1 CE(length)       (eq. 4 to 6)

The cross entropy on the prediction is the *anchor* loss; with the clean z_0 in place of zhat it is
the *rounding* loss of earlier work. z_0 in the first term is not detached: alone, that term is
least where all embeddings are one point, and they collapse. In half of the examples the network is
shown a prediction of its own (self-conditioning, arXiv 2208.04202), through which no gradient goes.

"paper" and "released scripts" are configs (configs/difformer_iwslt14.py and :released): the scripts
train with F = 4 and decode with F = 1 without saying so (here `train_F`, and the sampler's
`decode_F`). Their --embed-norm normalises the decoder's hidden state, not z_0, and is left out.

There is no likelihood. A bound can be written down, with 1/2 |zhat - z_0|^2 integrated over -d SNR,
but it is not what is trained, and would measure how finely the network regresses more than what it
knows of the text: at F = 4 the SNR falls from 6.2 to 0, so an error of a tenth of a standard
deviation in each of 128 dimensions, which changes no token, costs 1/2 128 0.01 6.2 = 4 nats a
token. Quality is measured on texts (evaluators/translation.py), the health of the embeddings by
evaluators/embeddings.py.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_lm import keys
from diffusion_lm.ops.cross_entropy import NEVER, smoothed_nats
from diffusion_lm.schedules import stratified_times
from diffusion_lm.types import Array, Embedder, LossOutput, Network, Objective, Params, ratio

ANCHORS = ("anchor", "rounding", "none")
NOISES = ("sqrt", "linear", "cosine")
NETWORK = "seq2seq"


def make(
    *,
    network: Callable[..., Network],
    vocab_size: int,
    length: int,
    end: int,
    anchoring: str = "anchor",
    train_F: float = 4.0,
    preserving: bool = False,
    noise: str = "sqrt",
    self_conditioning: bool = True,
    label_smoothing: float = 0.1,
    length_weight: float = 0.1,
) -> Objective:
    """Difformer on pairs: x int32[B, L] with ids below V, filled up with `end`; src int32[B, S].

    `anchoring` says which cross entropy is added to the mean squared error: "anchor", "rounding" or
    "none". `train_F` is the factor F on the noise, `preserving` takes the variance-preserving twin.
    The loss is a mean over the target's tokens; that of its length is weighted by their number.
    """
    if anchoring not in ANCHORS:
        raise ValueError(
            f"unknown objective.anchoring {anchoring!r}; choices: {', '.join(ANCHORS)}"
        )
    if not train_F > 0:
        raise ValueError(f"objective.train_F must be positive, got {train_F}")
    if noise not in NOISES:
        raise ValueError(f"unknown objective.noise {noise!r}; choices: {', '.join(NOISES)}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"objective.label_smoothing must lie in [0, 1), got {label_smoothing}")
    if not length_weight >= 0:
        raise ValueError(f"objective.length_weight must be 0 or more, got {length_weight}")
    net = network(
        inputs=vocab_size,
        outputs=vocab_size,
        causal=False,
        time_input=True,
        vectors=2 if self_conditioning else 1,
    )

    def init(key):
        return {"network": net.init(key)}

    def levels(t, F):
        return noise_levels(noise, t, F, preserving)

    def predicted(params, z_BLE, before_BLE, t_B, memory, keys_B):
        """zhat[B, L, E] in float32."""
        seen = jnp.concatenate([z_BLE, before_BLE], axis=-1) if self_conditioning else z_BLE
        return net.trunk(params["network"], seen, t_B, keys_B, memory).astype(jnp.float32)

    def loss(params, batch, key, *, train):
        x_BL, shown_BL = batch["x"], batch["x"] != end
        key_t, key_rows = jax.random.split(key)
        keys_noise, keys_net, keys_self = keys.split(keys.rows(key_rows, batch["row"]), 3)
        dropped = keys_net if train else None
        memory = net.encode(params["network"], batch["src"], dropped)
        memory = memory._replace(target=shown_BL)
        t_B = stratified_times(key_t, batch["slot"])
        z_0 = clean(params["network"], x_BL)
        signal_B, noise_B = levels(t_B, train_F)
        eps = jax.vmap(lambda key: jax.random.normal(key, z_0.shape[1:]))(keys_noise)
        z_BLE = signal_B[:, None, None] * z_0 + noise_B[:, None, None] * eps
        before = jnp.zeros_like(z_BLE)
        if self_conditioning:
            first = jax.lax.stop_gradient(predicted(params, z_BLE, before, t_B, memory, dropped))
            half_B = jax.vmap(jax.random.bernoulli)(keys_self)
            before = jnp.where(half_B[:, None, None], first, before)
        z_hat = predicted(params, z_BLE, before, t_B, memory, dropped)
        square_BL = ((z_hat - z_0) ** 2).mean(-1)
        logits_BLV = net.head(params["network"], z_0 if anchoring == "rounding" else z_hat)
        _, entropy_BL = smoothed_nats(logits_BLV, x_BL, label_smoothing)
        nats_BL = square_BL + (0 if anchoring == "none" else entropy_BL)
        n_B = shown_BL.sum(1)
        length_B = -jnp.take_along_axis(memory.length, n_B[:, None], axis=1)[:, 0]
        total_B = jnp.where(shown_BL, nats_BL, 0).sum(1) + length_weight * n_B * length_B
        right_BL = net.head(params["network"], z_hat).argmax(-1) == x_BL
        tokens_B = n_B.astype(jnp.float32)
        metrics = {
            "loss": ratio(total_B, tokens_B),
            "square": ratio(jnp.where(shown_BL, square_BL, 0), tokens_B),
            "accuracy": ratio(jnp.where(shown_BL, right_BL, False).astype(jnp.float32), tokens_B),
            "length_accuracy": ratio((memory.length.argmax(1) == n_B).astype(jnp.float32)),
        }
        return LossOutput(total_B, tokens_B, metrics)

    def predict(params, cond):
        """An Embedder for sources and lengths of targets; z is seen only up to these."""
        memory = net.encode(params["network"], cond["src"])
        memory = memory._replace(target=jnp.arange(length) < cond["length"][:, None])

        def denoise(z_BLE, before_BLE, t_B):
            return predicted(params, z_BLE, before_BLE, t_B, memory, None)

        def log_prob(z_hat):  # lengths are given, so the end is no token of a target
            return jax.nn.log_softmax(net.head(params["network"], z_hat).at[..., end].set(NEVER))

        width = params["network"]["embedding"].shape[-1]
        return Embedder(denoise, log_prob, levels, train_F, width)

    def lengths(params, src_BS):
        return net.encode(params["network"], src_BS).length

    return Objective(init, loss, None, predict, None, ("gaussian",), lengths=lengths)


def clean(weights: Params, x: Array) -> Array:
    """z_0 = sqrt(D) E[x]: f32[..., D]."""
    table = weights["embedding"]
    return math.sqrt(table.shape[-1]) * table[x]


def noise_levels(noise: str, t: Array, F: float | Array, preserving: bool) -> tuple[Array, Array]:
    """(signal, noise) of z_t = signal z_0 + noise eps."""
    if noise == "sqrt":
        abar = 1 - jnp.sqrt(jnp.minimum(t + 1e-4, 1.0))
    elif noise == "cosine":
        abar = (
            jnp.cos(math.pi / 2 * (t + 0.008) / 1.008) / math.cos(math.pi / 2 * 0.008 / 1.008)
        ) ** 2
    else:  # the sum of -log(1 - beta) over 1000 t steps, as an integral
        beta = 1e-4 + (0.02 - 1e-4) * t

        def primitive(b):  # of log(1 - b)
            return -(1 - b) * jnp.log1p(-b) - b

        abar = jnp.exp(1000 * (primitive(beta) - primitive(1e-4)) / (0.02 - 1e-4))
    abar = jnp.clip(abar, 0.0, 1.0)
    if preserving:
        abar = abar / (F**2 - (F**2 - 1) * abar)
        F = 1.0
    return jnp.sqrt(abar), F * jnp.sqrt(1 - abar)

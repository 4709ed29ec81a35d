"""The autoregressive baseline: -log p(x) = - sum_n log p(x^n | x^{<n}), exact.

The first token is predicted from a start token, the id of the end of a document. With a source, all
is conditioned on it, and a target counts up to and with the first end token.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_lm import keys
from diffusion_lm.ops import rows
from diffusion_lm.ops.cross_entropy import smoothed_nats, token_log_prob
from diffusion_lm.types import Decoder, LossOutput, Network, Objective, ratio


def make(
    *, network: Callable[..., Network], vocab_size: int, start: int, label_smoothing: float = 0.0
) -> Objective:
    """Next-token prediction on windows x: int32[B, L] with ids below V, or on targets, with the
    label smoothing (0: none) that translation models are trained with.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"objective.label_smoothing must lie in [0, 1), got {label_smoothing}")
    net = network(inputs=vocab_size, outputs=vocab_size, causal=True, time_input=False)

    def init(key):
        return {"network": net.init(key)}

    def given(params, batch, keys_drop):
        """What the network is conditioned on: a source, a label, or nothing."""
        if net.encode is None:
            return batch.get("label")
        return net.encode(params["network"], batch["src"], keys_drop)

    def trunk(params, batch, keys_drop):  # f[B, L, D]
        x_BL = batch["x"]
        before_BL = jnp.concatenate([jnp.full_like(x_BL[:, :1], start), x_BL[:, :-1]], axis=1)
        condition = given(params, batch, keys_drop)
        return net.trunk(params["network"], before_BL, None, keys_drop, condition)

    def counted(batch):
        """The tokens that are scored: bool[B, L]; of a target the first end token is the last."""
        x_BL = batch["x"]
        if net.encode is None:
            return jnp.ones(x_BL.shape, bool)
        return jnp.arange(x_BL.shape[1]) <= (x_BL != start).sum(1, keepdims=True)

    def nats(params, h, x):
        return -token_log_prob(net.head(params, h), x)

    def counted_nats(params, batch, keys_drop):
        """-log p(x^n | x^{<n}): f32[B, L] nats, 0 where a token is not counted."""
        h_BLD, weight_BL = trunk(params, batch, keys_drop), counted(batch).astype(jnp.float32)
        return rows.weighted(
            nats, params["network"], weight_BL, h_BLD, batch["x"], width=vocab_size
        )

    def loss(params, batch, key, *, train):
        keys_drop, counted_BL = keys.rows(key, batch["row"]) if train else None, counted(batch)
        if label_smoothing:
            logits_BLV = net.head(params["network"], trunk(params, batch, keys_drop))
            both = smoothed_nats(logits_BLV, batch["x"], label_smoothing)
            nats_BL, smooth_BL = (jnp.where(counted_BL, nats, 0) for nats in both)
        else:
            nats_BL = smooth_BL = counted_nats(params, batch, keys_drop)
        tokens_B = counted_BL.sum(1).astype(jnp.float32)
        metrics = {"nats_per_token": ratio(nats_BL, tokens_B)}
        return LossOutput(smooth_BL.sum(1), tokens_B, metrics)

    def token_nll(params, batch):
        """-log p(x^n | x^{<n}): f32[B, L] nats, 0 behind the end of a target."""
        return counted_nats(params, batch, None)

    def nll(params, batch, key=None):
        """-log p(x): f32[B] nats per example."""
        return token_nll(params, batch).sum(1)

    def features(params, batch):
        """The trunk's state at the token x^last, before which no start token stands: f32[B, D]."""
        condition = given(params, batch, None)
        h_BLD = net.trunk(params["network"], batch["x"], None, None, condition)
        at_B11 = batch["last"][:, None, None]
        return jnp.take_along_axis(h_BLD, at_B11, axis=1)[:, 0].astype(jnp.float32)

    def predict(params, cond=None):
        """A Decoder: log p of the next token, one position at a time."""
        condition = None if cond is None else given(params, cond, None)

        def step(cache, token_B, at):
            logits_BV, cache = net.decode(params["network"], cache, token_B, at, condition)
            return jax.nn.log_softmax(logits_BV), cache

        return Decoder(net.cache, step, start)

    families = ("autoregressive",)
    return Objective(
        init, loss, nll, predict, None, families, True, token_nll=token_nll, features=features
    )

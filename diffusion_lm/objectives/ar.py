"""The autoregressive baseline: -log p(x) = - sum_n log p(x^n | x^{<n}), exact.

The first token is predicted from a start token, the id of the end of a document.
"""

import jax
import jax.numpy as jnp

from diffusion_lm import keys
from diffusion_lm.ops.cross_entropy import token_log_prob
from diffusion_lm.types import Decoder, LossOutput, Objective, ratio


def make(*, network, vocab_size: int, start: int) -> Objective:
    """Next-token prediction on windows x: int32[B, L] with ids below V."""
    net = network(inputs=vocab_size, outputs=vocab_size, causal=True, time_input=False)

    def init(key):
        return {"network": net.init(key)}

    def nats(params, batch, keys_drop):  # f32[B, L]
        x_BL = batch["x"]
        before_BL = jnp.concatenate([jnp.full_like(x_BL[:, :1], start), x_BL[:, :-1]], axis=1)
        h_BLD = net.trunk(params["network"], before_BL, None, keys_drop, batch.get("label"))
        return -token_log_prob(net.head(params["network"], h_BLD), x_BL)

    def loss(params, batch, key, *, train):
        keys_drop = keys.rows(key, batch["row"]) if train else None
        nats_B = nats(params, batch, keys_drop).sum(1)
        tokens_B = jnp.full(nats_B.shape, batch["x"].shape[1], jnp.float32)
        return LossOutput(nats_B, tokens_B, {"nats_per_token": ratio(nats_B, tokens_B)})

    def token_nll(params, batch):
        """-log p(x^n | x^{<n}): f32[B, L] nats."""
        return nats(params, batch, None)

    def nll(params, batch, key=None):
        """-log p(x): f32[B] nats per example."""
        return token_nll(params, batch).sum(1)

    def predict(params, cond=None):
        """A Decoder: log p of the next token, one position at a time."""
        label_B = None if cond is None else cond["label"]

        def step(cache, token_B, at):
            logits_BV, cache = net.decode(params["network"], cache, token_B, at, label_B)
            return jax.nn.log_softmax(logits_BV), cache

        return Decoder(net.cache, step, start)

    families = ("autoregressive",)
    return Objective(init, loss, nll, predict, None, families, exact=True, token_nll=token_nll)

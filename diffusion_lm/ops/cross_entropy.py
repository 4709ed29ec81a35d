"""Log-probabilities of given tokens, and what they are made of."""

import jax
import jax.numpy as jnp

from diffusion_lm.types import Array

NEVER = -1e9  # the logit of what cannot be; finite, so that p log p of it is 0


def token_logit(logits: Array, tokens: Array) -> tuple[Array, Array]:
    """logits[tokens] and logsumexp(logits): f32[..., V], int[...] -> f32[...], f32[...]."""
    logits = logits.astype(jnp.float32)
    return _pick(logits, tokens), jax.nn.logsumexp(logits, axis=-1)


@jax.custom_jvp
def _pick(logits, tokens):
    return jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]


@_pick.defjvp
def _pick_jvp(primals, tangents):
    """The transpose of a gather is a scatter, on CPUs at once in the softmax's; elsewhere it would
    read and write all logits, and a choice is merged instead."""
    logits, tokens = primals

    def chosen(tangent, tokens):
        hot = tokens[..., None] == jnp.arange(tangent.shape[-1])
        return jnp.where(hot, tangent, 0).sum(-1)

    out = jax.lax.platform_dependent(tangents[0], tokens, cpu=_pick.fun, default=chosen)
    return _pick(logits, tokens), out


def smoothed_nats(logits: Array, tokens: Array, share: float) -> tuple[Array, Array]:
    """-log softmax(logits)[tokens], and the same with label smoothing: 1 - share of it and share of
    the mean over all V classes. f32[..., V], int[...] -> f32[...], f32[...], nats."""
    chosen, total = token_logit(logits, tokens)
    nats = total - chosen
    return nats, (1 - share) * nats + share * (total - logits.astype(jnp.float32).mean(-1))


def token_log_prob(logits: Array, tokens: Array) -> Array:
    """log softmax(logits)[tokens] in nats: f32[..., V], int[...] -> f32[...]."""
    chosen, total = token_logit(logits, tokens)
    return chosen - total

"""Left-to-right sampling with a key-value cache: a network call of one token for each position."""

import jax
import jax.numpy as jnp

from diffusion_lm import keys, samplers
from diffusion_lm.ops import categorical
from diffusion_lm.samplers import masked
from diffusion_lm.types import Objective, Sampler, Samples

SERVES = ("autoregressive",)


def make(*, objective: Objective, temperature: float = 1.0, top_p: float = 1.0) -> Sampler:
    """Samples tokens in order. A token that is given is clamped, and conditions only what follows:
    infilling a span with text behind it is not exact, and `diffusion_lm.sample` refuses it. With a
    source, a row ends with its first end token, and the calls when all rows have."""
    samplers.check("autoregressive", objective)
    categorical.check(temperature=temperature, top_p=top_p)

    def sample(params, keys_B, prompt_BL, free_BL, cond=None, traced=False):
        decoder = objective.predict(params, cond)
        size, length = prompt_BL.shape

        ends = cond is not None and "src" in cond

        def step(carry):
            tokens_BL, cache, at, score_B, done_B, prob_BL = carry
            before_B = jnp.where(at > 0, tokens_BL[:, at - 1], decoder.start)
            log_p, cache = decoder.step(cache, before_B, at)
            shaped = categorical.shape(log_p, temperature=temperature, top_p=top_p)
            drawn_B = categorical.draw(keys.rows_fold(keys_B, at), shaped)
            open_B = free_BL[:, at] & ~done_B
            token_B = jnp.where(free_BL[:, at], drawn_B, tokens_BL[:, at])
            if ends:
                token_B = jnp.where(done_B, decoder.start, token_B)
                done_B = done_B | (token_B == decoder.start)
            own_B = jnp.take_along_axis(log_p, token_B[:, None], axis=1)[:, 0]
            score_B = score_B + jnp.where(open_B, own_B, 0)
            prob_BL = prob_BL.at[:, at].set(jnp.where(open_B, jnp.exp(own_B), jnp.nan))
            return tokens_BL.at[:, at].set(token_B), cache, at + 1, score_B, done_B, prob_BL

        end = (free_BL * jnp.arange(1, length + 1)).max()  # nothing is to be written from there on
        zeros = jnp.zeros(size)
        carry = prompt_BL, decoder.cache(size, length), jnp.int32(0), zeros, zeros > 0
        carry = *carry, jnp.full(prompt_BL.shape, jnp.nan)
        tokens_BL, _, calls, score_B, _, prob_BL = jax.lax.while_loop(
            lambda c: (c[2] < end) & ~c[4].all(), step, carry
        )
        steps_L = jnp.arange(length)
        trace = masked.trace_of(prompt_BL, tokens_BL, steps_L, prob_BL) if traced else None
        return Samples(tokens_BL, calls, score=score_B, trace=trace)

    return Sampler(sample)

"""Left-to-right sampling with a key-value cache: L network calls of one token each."""

import jax
import jax.numpy as jnp

from diffusion_lm import keys
from diffusion_lm.ops import categorical
from diffusion_lm.types import Objective, Sampler, Samples


def make(*, objective: Objective, temperature: float = 1.0, top_p: float = 1.0) -> Sampler:
    """Samples tokens in order. A token that is given is clamped, and conditions only what follows:
    infilling a span with text behind it is not exact, and `diffusion_lm.sample` refuses it."""
    if objective.process is not None:
        raise ValueError(
            "the autoregressive sampler needs an autoregressive model; a masked diffusion model is "
            "served by: ancestral"
        )
    categorical.check(temperature=temperature, top_p=top_p)

    def sample(params, keys_B, prompt_BL, free_BL):
        decoder = objective.predict(params, None)
        size, length = prompt_BL.shape

        def step(carry, at):
            token_B, cache = carry
            log_p, cache = decoder.step(cache, token_B, at)
            log_p = categorical.shape(log_p, temperature=temperature, top_p=top_p)
            drawn_B = categorical.draw(keys.rows_fold(keys_B, at), log_p)
            token_B = jnp.where(free_BL[:, at], drawn_B, prompt_BL[:, at])
            return (token_B, cache), token_B

        start_B = jnp.full((size,), decoder.start, jnp.int32)
        carry = (start_B, decoder.cache(size, length))
        _, tokens_LB = jax.lax.scan(step, carry, jnp.arange(length))
        return Samples(tokens_LB.T, jnp.int32(length))

    return Sampler(sample)

"""Routed decoding (RDM, arXiv 2302.05737, algorithm 2), for any masked denoiser.

Each step predicts all noisy positions, then ranks *all* positions by the log-probability of the
token drawn there; the k lowest are noise for the next step, even if they were not before. k falls
from almost all to none. A heuristic: nothing is promised about the law, only that exactly k
positions are noise after a step and none at the end.

A masked denoiser says nothing about the tokens it sees, so a token that stays keeps the score it
was drawn with.
"""

import jax
import jax.numpy as jnp

from diffusion_lm import keys, samplers
from diffusion_lm.samplers import masked
from diffusion_lm.types import Objective, Sampler, Samples

SERVES = ("masked",)
RATES = ("cosine", "linear")


def make(
    *,
    objective: Objective,
    num_steps: int = 16,
    rate: str = "cosine",
    score_noise: float = 0.0,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Sampler:
    """`num_steps` calls; after call i of S, floor(N rate(i / S)) of N free positions are noise.

    `rate` is "cosine", cos(pi/2 i/S), or "linear", 1 - i/S. `score_noise` adds Gumbel noise, times
    that and the rate, to the scores.
    """
    samplers.check("routing", objective)
    masked.steps_option(num_steps)
    if rate not in RATES:
        raise ValueError(f"unknown sampler.rate {rate!r}; choices: {', '.join(RATES)}")
    if not score_noise >= 0:
        raise ValueError(f"sampler.score_noise must be 0 or more, got {score_noise}")
    drawing = masked.drawing(temperature=temperature, top_p=top_p)

    def sample(params, keys_B, prompt_BL, free_BL, cond=None):
        process, denoiser = objective.process(params), objective.predict(params, cond)
        number_B = free_BL.sum(1)

        def step(carry, i):  # i = 1 .. num_steps
            z_BL, score_BL, calls = carry
            noisy_BL = free_BL & (z_BL == process.mask)
            share = 1 - i / num_steps if rate == "linear" else jnp.cos(jnp.pi / 2 * i / num_steps)
            keys_draw, keys_score = keys.split(keys.rows_fold(keys_B, i), 2)

            def run(z_BL, score_BL):
                h = denoiser.trunk(z_BL, masked.time_at(process, z_BL))
                new = drawing.at(denoiser, h, noisy_BL, keys_draw, rows=z_BL.size)
                z_BL = jnp.where(noisy_BL, new.token, z_BL)
                return z_BL, jnp.where(noisy_BL, new.log_prob, score_BL)

            needed = noisy_BL.any()
            z_BL, score_BL = jax.lax.cond(needed, run, lambda *a: a, z_BL, score_BL)
            noise_BL = -jnp.log(-jnp.log(masked.uniforms(keys_score, z_BL.shape[1]) + 1e-20))
            ranked_BL = score_BL + score_noise * share * noise_BL
            # Where N rate is whole, float32 may fall short of it, by less than this.
            back_B = jnp.where(i == num_steps, 0, jnp.floor(number_B * share + 1e-3)).astype(int)
            again_BL = masked.top(-ranked_BL, free_BL, back_B)
            z_BL = jnp.where(again_BL, process.mask, z_BL)
            return (z_BL, score_BL, calls + needed * denoiser.calls), None

        z_BL = jnp.where(free_BL, process.mask, prompt_BL)
        carry = z_BL, jnp.zeros(z_BL.shape), jnp.int32(0)
        (z_BL, _, calls), _ = jax.lax.scan(step, carry, jnp.arange(1, num_steps + 1))
        return Samples(z_BL, calls)

    return Sampler(sample)

"""Routed decoding (RDM, arXiv 2302.05737, algorithm 2), for any masked or multinomial denoiser.

Each step predicts all noisy positions, then ranks *all* positions by the log-probability of the
token that stands there; the k lowest are noise for the next step, even if they were not before. k
falls from almost all to none. A heuristic: nothing is promised about the law, only that exactly k
positions are noise after a step and none at the end.

  masked       noise is the mask. A masked denoiser says nothing about the tokens it sees, so a
               token that stays keeps the score it was drawn with.
  multinomial  noise is a uniform token, so which positions are noise is carried along. The denoiser
               says something about every token, so one that stays is scored anew in each step.

The released code differs: it ranks a token that stays by the probability of what would be drawn in
its place; it compares scores with a threshold, which takes more than k where they are equal or near
0, in the last step too; and its uniform noise often leaves a token as it is. Its mode "cond", where
a token that stays becomes noise only if it would be drawn again with a lower score, is left out: k
would be no more than a bound.
"""

import jax
import jax.numpy as jnp

from diffusion_lm import keys, samplers
from diffusion_lm.ops.rows import at_rows, top
from diffusion_lm.samplers import masked
from diffusion_lm.schedules import time_of
from diffusion_lm.types import Objective, Sampler, Samples, Trace

SERVES = ("masked", "multinomial")
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
    that and the rate, to the ranks. The score of a sample is the sum of those of its free
    positions.
    """
    samplers.check("routing", objective)
    masked.steps_option(num_steps)
    if rate not in RATES:
        raise ValueError(f"unknown sampler.rate {rate!r}; choices: {', '.join(RATES)}")
    if not score_noise >= 0:
        raise ValueError(f"sampler.score_noise must be 0 or more, got {score_noise}")
    drawing = masked.drawing(temperature=temperature, top_p=top_p)

    def sample(params, keys_B, prompt_BL, free_BL, cond=None, traced=False):
        process, denoiser = objective.process(params), objective.predict(params, cond)
        length = prompt_BL.shape[1]
        # Without a mask to stand for it, what stays unknown is drawn as well, and forgotten.
        unknown_BL = ~free_BL & (prompt_BL == process.vocab_size) & (process.mask is None)
        open_BL = free_BL | unknown_BL
        number_B = open_BL.sum(1)

        def shown(z_BL):
            return jnp.where(unknown_BL, prompt_BL, z_BL)

        def step(carry, i):  # i = 1 .. num_steps
            z_BL, noisy_BL, score_BL, calls = carry
            share = 1 - i / num_steps if rate == "linear" else jnp.cos(jnp.pi / 2 * i / num_steps)
            keys_draw, keys_score, keys_noise = keys.split(keys.rows_fold(keys_B, i), 3)

            def run(z_BL, score_BL):
                told_BL = noisy_BL if process.mask is None else z_BL == process.mask
                h = denoiser.trunk(z_BL, time_of(process.schedule, told_BL.mean(1)))
                new = drawing.at(denoiser, h, noisy_BL, keys_draw, rows=z_BL.size)
                z_BL = jnp.where(noisy_BL, new.token, z_BL)
                score_BL = jnp.where(noisy_BL, new.log_prob, score_BL)
                if process.mask is None:
                    # Not in rows that are done: what else is in the batch must not matter.
                    stay_BL = open_BL & ~noisy_BL & noisy_BL.any(1, keepdims=True)
                    score_BL = jnp.where(stay_BL, scores(h, z_BL, stay_BL), score_BL)
                return z_BL, score_BL

            def scores(h, z_BL, where_BL):
                """log p of the tokens of z at the positions `where_BL`: f32[B, L]."""

                def one(args):
                    h, z_R = args
                    return jnp.take_along_axis(denoiser.head(h), z_R[:, None], axis=1)[:, 0]

                chunk = masked.chunk(denoiser, h, z_BL.size)
                return at_rows(one, where_BL, (h, z_BL), chunk=chunk)

            needed = noisy_BL.any()
            z_BL, score_BL = jax.lax.cond(needed, run, lambda *a: a, z_BL, score_BL)
            gumbel_BL = -jnp.log(-jnp.log(masked.uniforms(keys_score, length) + 1e-20))
            ranked_BL = score_BL + score_noise * share * gumbel_BL
            # Where N rate is whole, float32 may fall short of it, by less than this.
            back_B = jnp.where(i == num_steps, 0, jnp.floor(number_B * share + 1e-3)).astype(int)
            again_BL = top(-ranked_BL, open_BL, back_B)
            z_BL = jnp.where(again_BL, process.prior(keys_noise, length), z_BL)
            kept_BL = noisy_BL & ~again_BL & free_BL
            seen = shown(z_BL), jnp.where(kept_BL, jnp.exp(score_BL), jnp.nan)
            seen = seen if traced else None
            return (z_BL, again_BL, score_BL, calls + needed * denoiser.calls), seen

        noise_BL = process.prior(keys.rows_fold(keys_B, 0), length)
        start_BL = jnp.where(open_BL, noise_BL, prompt_BL)
        carry = start_BL, open_BL, jnp.zeros(start_BL.shape), jnp.int32(0)
        (z_BL, _, score_BL, calls), seen = jax.lax.scan(step, carry, jnp.arange(1, num_steps + 1))
        trace = Trace(*seen, shown(start_BL)) if traced else None
        score_B = jnp.where(free_BL, score_BL, 0).sum(1)  # 0 where nothing was free
        return Samples(shown(z_BL), calls, score=score_B, trace=trace)

    return Sampler(sample)

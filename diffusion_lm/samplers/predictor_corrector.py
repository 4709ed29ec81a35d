"""Predictor-corrector sampling of masked diffusion (after arXiv 2205.14987, section 4.4).

The predictor is an ancestral step from t to s. A corrector step leaves the marginal at s what it
is: it hides tokens as the forward process does from s to t, each with probability
1 - alpha_t / alpha_s, and takes the step from t to s again. So a token drawn beside others, without
seeing them, can be drawn anew with them in sight. The law is that of the product kernels in turn.
"""

import jax
import jax.numpy as jnp

from diffusion_lm import keys, samplers
from diffusion_lm.processes import reveal_prob
from diffusion_lm.samplers import masked
from diffusion_lm.schedules import grid as time_grid
from diffusion_lm.types import Objective, Sampler, Samples, Trace

SERVES = ("masked",)


def make(
    *,
    objective: Objective,
    num_steps: int = 32,
    corrector_steps: int = 1,
    grid: str = "cosine",
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Sampler:
    """`num_steps` predictor steps, each but the first with `corrector_steps` of the corrector after
    it (the first starts from noise alone, and a corrector would return there)."""
    samplers.check("predictor_corrector", objective)
    masked.steps_option(num_steps)
    if corrector_steps < 0:
        raise ValueError(f"sampler.corrector_steps must be 0 or more, got {corrector_steps}")
    drawing = masked.drawing(temperature=temperature, top_p=top_p)
    time = time_grid(grid, num_steps)

    def sample(params, keys_B, prompt_BL, free_BL, cond=None, traced=False):
        process, denoiser = objective.process(params), objective.predict(params, cond)
        schedule, length = process.schedule, prompt_BL.shape[1]

        def step(carry, count):  # every step from t to s; all but the first at a time hide first
            z_BL, calls = carry
            i = num_steps - (count + corrector_steps) // (1 + corrector_steps)
            correcting = (count + corrector_steps) % (1 + corrector_steps) > 0
            correcting = (count > 0) & correcting
            t, s = time(i.astype(jnp.float32)), time(i.astype(jnp.float32) - 1)
            alpha_s = jnp.where(i == 1, 1.0, schedule.alpha(s))
            reveal = jnp.where(i == 1, 1.0, reveal_prob(schedule, t, s))
            hide = jnp.where(correcting, 1 - schedule.alpha(t) / alpha_s, 0.0)
            keys_hide, keys_show, keys_what = keys.split(keys.rows_fold(keys_B, count), 3)
            hide_BL = free_BL & (masked.uniforms(keys_hide, length) < hide)
            z_BL = jnp.where(hide_BL, process.mask, z_BL)
            reveal_BL = free_BL & (z_BL == process.mask)
            reveal_BL &= masked.uniforms(keys_show, length) < reveal

            def run(z_BL):
                h = denoiser.trunk(z_BL, masked.time_of_step(process, z_BL, free_BL, t))
                rows = 2 * z_BL.size // num_steps
                new = drawing.at(denoiser, h, reveal_BL, keys_what, rows=rows)
                return masked.shown(new, reveal_BL, z_BL)

            needed = reveal_BL.any()
            z_BL, prob_BL = jax.lax.cond(needed, run, masked.unchanged, z_BL)
            seen = (z_BL, prob_BL) if traced else None
            return (z_BL, calls + needed * denoiser.calls), seen

        start_BL = jnp.where(free_BL, process.mask, prompt_BL)
        steps = jnp.arange(1 + (num_steps - 1) * (1 + corrector_steps))
        carry, seen = jax.lax.scan(step, (start_BL, jnp.int32(0)), steps)
        return Samples(*carry, trace=Trace(*seen, start_BL) if traced else None)

    return Sampler(sample)

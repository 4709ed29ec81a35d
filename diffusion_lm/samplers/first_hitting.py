"""First-hitting sampling of masked diffusion (arXiv 2409.02908).

In continuous time positions are revealed one by one, at times that do not depend on the network:
with one uniform number u a position, when 1 - alpha_t falls to u. So the times are drawn
beforehand and the network is called once per token, at the time of the token. With an exact
denoiser the law is p(x) itself: there are no steps to make an error.
"""

import jax
import jax.numpy as jnp

from diffusion_lm import keys, samplers
from diffusion_lm.samplers import masked
from diffusion_lm.schedules import time_of
from diffusion_lm.types import Objective, Sampler, Samples

SERVES = ("masked",)


def make(*, objective: Objective, temperature: float = 1.0, top_p: float = 1.0) -> Sampler:
    """Samples with one network call for each token of the row that has most to fill."""
    samplers.check("first_hitting", objective)
    drawing = masked.drawing(temperature=temperature, top_p=top_p)

    def sample(params, keys_B, prompt_BL, free_BL, cond=None, traced=False):
        process, denoiser = objective.process(params), objective.predict(params, cond)
        keys_when, keys_what = keys.split(keys_B, 2)
        u_BL = masked.uniforms(keys_when, prompt_BL.shape[1])
        place_L = jnp.arange(prompt_BL.shape[1])

        def waiting(z_BL):
            return free_BL & (z_BL == process.mask)

        def step(carry):
            z_BL, calls, step_BL, prob_BL = carry
            when_BL = jnp.where(waiting(z_BL), u_BL, -1.0)
            next_B, t_B = when_BL.argmax(1), time_of(process.schedule, when_BL.max(1))
            t_B = masked.time_of_step(process, z_BL, free_BL, t_B)
            reveal_BL = waiting(z_BL) & (place_L == next_B[:, None])
            h = denoiser.trunk(z_BL, t_B)
            # A place is drawn once, so its row's key serves for all steps.
            new = drawing.at(denoiser, h, reveal_BL, keys_what, rows=z_BL.shape[0])
            step_BL = jnp.where(reveal_BL, calls // denoiser.calls, step_BL)
            prob_BL = jnp.where(reveal_BL, jnp.exp(new.log_prob), prob_BL)
            z_BL = jnp.where(reveal_BL, new.token, z_BL)
            return z_BL, calls + denoiser.calls, step_BL, prob_BL

        start_BL = jnp.where(free_BL, process.mask, prompt_BL)
        carry = start_BL, jnp.int32(0), jnp.full(start_BL.shape, -1), jnp.zeros(start_BL.shape)
        z_BL, calls, *when = jax.lax.while_loop(lambda c: waiting(c[0]).any(), step, carry)
        trace = masked.trace_of(start_BL, z_BL, *when) if traced else None
        return Samples(z_BL, calls, trace=trace)

    return Sampler(sample)

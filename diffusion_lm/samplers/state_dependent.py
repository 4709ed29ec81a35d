"""Ancestral sampling under schedules that depend on the token (GenMD4, arXiv 2406.04329).

From t to s a masked position becomes token v with probability r_v mu_v(z_t, t),
r_v = (alpha_{s,v} - alpha_{t,v}) / (1 - alpha_{t,v}), and stays masked with the rest. So whether it
is revealed depends on the prediction, and cannot be drawn beforehand. The law is the product kernel
of T steps.

To be masked for long says something about a token. So a position that is to stay unknown cannot be
left masked, as elsewhere: it is drawn like all others, and forgotten at the end.
"""

import jax
import jax.numpy as jnp

from diffusion_lm import keys, samplers
from diffusion_lm.samplers import masked
from diffusion_lm.schedules import grid as time_grid
from diffusion_lm.types import Objective, Sampler, Samples, Trace

SERVES = ("state_dependent",)


def make(
    *,
    objective: Objective,
    num_steps: int = 64,
    grid: str = "cosine",
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Sampler:
    """Samples in `num_steps` steps; the last, to t = 0, reveals all that is left."""
    samplers.check("state_dependent", objective)
    masked.steps_option(num_steps)
    drawing = masked.drawing(temperature=temperature, top_p=top_p)
    time = time_grid(grid, num_steps)

    def sample(params, keys_B, prompt_BL, free_BL, cond=None, traced=False):
        process, denoiser = objective.process(params), objective.predict(params, cond)
        mask_prob = process.schedule.mask_prob

        def told(z_BL, prob_BL):
            return jnp.where(free_BL, z_BL, prompt_BL), jnp.where(free_BL, prob_BL, jnp.nan)

        def step(carry, i):  # i = num_steps .. 1, from t(i) to s = t(i - 1)
            z_BL, calls = carry
            t, s = time(i.astype(jnp.float32)), time(i.astype(jnp.float32) - 1)
            masked_t, masked_s = mask_prob(t[None])[0], mask_prob(s[None])[0]
            # A large exponent can underflow: then a token is masked no more.
            stay_V = jnp.where(masked_t > 0, masked_s / masked_t, 0.0)
            shown_V = jnp.where(i == 1, 1.0, 1 - stay_V)
            open_BL = z_BL == process.mask
            keys_whether, keys_what = keys.split(keys.rows_fold(keys_B, i), 2)

            def tilted(log_p):  # log r_v mu_v; their exponentials sum to P(revealed)
                return drawing.shape(log_p) + jnp.log(shown_V)

            def run(z_BL):
                h = denoiser.trunk(z_BL, jnp.full(z_BL.shape[:1], t))
                log_total_BL = masked.measure(
                    denoiser, h, open_BL, lambda log_p: jax.nn.logsumexp(tilted(log_p), axis=-1)
                )
                u_BL = masked.uniforms(keys_whether, z_BL.shape[1])
                reveal_BL = open_BL & ((u_BL < jnp.exp(log_total_BL)) | (i == 1))
                rows = 2 * z_BL.size // num_steps
                new = drawing.at(denoiser, h, reveal_BL, keys_what, rows=rows, shape=tilted)
                return masked.shown(new, reveal_BL, z_BL)

            needed = open_BL.any()
            z_BL, prob_BL = jax.lax.cond(needed, run, masked.unchanged, z_BL)
            return (z_BL, calls + needed * denoiser.calls), told(z_BL, prob_BL) if traced else None

        start_BL, steps = jnp.where(free_BL, process.mask, prompt_BL), jnp.arange(num_steps, 0, -1)
        (z_BL, calls), seen = jax.lax.scan(step, (start_BL, jnp.int32(0)), steps)
        trace = Trace(*seen, start_BL) if traced else None
        return Samples(jnp.where(free_BL, z_BL, prompt_BL), calls, trace=trace)

    return Sampler(sample)

"""Remasking (ReMDM, arXiv 2503.00307): a token that was revealed may be hidden again.

From t to s, with any 0 <= sigma <= sigma_max = min(1, (1 - alpha_s) / alpha_t):

    z_t = x:    masked with probability sigma, else kept
    z_t = mask: revealed with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)

which leaves the marginals q(z_s | x) what they were. "cap" takes sigma = min(eta, sigma_max),
"rescale" sigma = eta sigma_max, and with these the law is the product kernel of T steps.
"confidence" shares eta sigma_max out over the revealed tokens by softmax(-probability with which
each was drawn) and reveals as without remasking: a heuristic.
"""

import jax
import jax.numpy as jnp

from diffusion_lm import keys, samplers
from diffusion_lm.processes import reveal_prob
from diffusion_lm.samplers import masked
from diffusion_lm.schedules import grid as time_grid
from diffusion_lm.types import Objective, Sampler, Samples, Trace

SERVES = ("masked",)
STRATEGIES = ("cap", "rescale", "confidence")


def make(
    *,
    objective: Objective,
    num_steps: int = 64,
    grid: str = "cosine",
    strategy: str = "cap",
    eta: float = 0.02,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Sampler:
    """Samples in `num_steps` steps, remasking with strength `eta` in [0, 1]; 0 is ancestral."""
    samplers.check("remasking", objective)
    masked.steps_option(num_steps)
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown sampler.strategy {strategy!r}; choices: {', '.join(STRATEGIES)}")
    if not 0 <= eta <= 1:
        raise ValueError(f"sampler.eta must lie in [0, 1], got {eta}")
    drawing = masked.drawing(temperature=temperature, top_p=top_p)
    time = time_grid(grid, num_steps)

    def sample(params, keys_B, prompt_BL, free_BL, cond=None, traced=False):
        process, denoiser = objective.process(params), objective.predict(params, cond)
        schedule, length = process.schedule, prompt_BL.shape[1]

        def step(carry, i):  # i = num_steps .. 1, from t(i) to s = t(i - 1)
            z_BL, prob_BL, calls = carry
            t, s = time(i.astype(jnp.float32)), time(i.astype(jnp.float32) - 1)
            masked_t, alpha_t = schedule.mask_prob(t), schedule.alpha(t)
            masked_s = jnp.where(i == 1, 0.0, schedule.mask_prob(s))
            sigma_max = jnp.minimum(1.0, masked_s / jnp.maximum(alpha_t, 1e-12))
            hidden_BL = free_BL & (z_BL == process.mask)
            shown_BL = free_BL & (z_BL != process.mask)
            if strategy == "cap":
                hide = show = jnp.minimum(eta, sigma_max)
            elif strategy == "rescale":
                hide = show = eta * sigma_max
            else:
                weight_BL = jax.nn.softmax(jnp.where(shown_BL, -prob_BL, -1e30), axis=1)
                hide, show = eta * sigma_max * weight_BL, 0.0
            reveal = reveal_prob(schedule, t, s) + show * alpha_t / masked_t
            reveal = jnp.where(i == 1, 1.0, reveal)
            keys_whether, keys_what = keys.split(keys.rows_fold(keys_B, i), 2)
            u_BL = masked.uniforms(keys_whether, length)
            hide_BL, reveal_BL = shown_BL & (u_BL < hide), hidden_BL & (u_BL < reveal)

            def run(z_BL, prob_BL):
                h = denoiser.trunk(z_BL, masked.time_of_step(process, z_BL, free_BL, t))
                rows = 2 * z_BL.size // num_steps
                new = drawing.at(denoiser, h, reveal_BL, keys_what, rows=rows)
                z_BL = jnp.where(reveal_BL, new.token, z_BL)
                return z_BL, jnp.where(reveal_BL, jnp.exp(new.log_prob), prob_BL)

            needed = reveal_BL.any()
            z_BL, prob_BL = jax.lax.cond(needed, run, lambda *a: a, z_BL, prob_BL)
            z_BL = jnp.where(hide_BL, process.mask, z_BL)
            seen = (z_BL, jnp.where(reveal_BL, prob_BL, jnp.nan)) if traced else None
            return (z_BL, prob_BL, calls + needed * denoiser.calls), seen

        start_BL = jnp.where(free_BL, process.mask, prompt_BL)
        carry = start_BL, jnp.zeros(start_BL.shape), jnp.int32(0)
        (z_BL, _, calls), seen = jax.lax.scan(step, carry, jnp.arange(num_steps, 0, -1))
        return Samples(z_BL, calls, trace=Trace(*seen, start_BL) if traced else None)

    return Sampler(sample)

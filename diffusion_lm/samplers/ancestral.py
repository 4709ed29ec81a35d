"""Ancestral sampling of masked diffusion (MD4, arXiv 2406.04329).

Between t and s a masked position is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t),
whatever the network says, and then drawn from mu(z_t, t). So *when* each position is revealed is
drawn before the first network call, one uniform number u a position: it is masked at t while
u < 1 - alpha_t. Then *what* is drawn from V classes: the mask is never one of them, so no tail is
lost (arXiv 2409.02908). The law is that of the textbook loop: the product kernel of T steps.
"""

import jax
import jax.numpy as jnp

from diffusion_lm import keys, samplers
from diffusion_lm.ops import categorical
from diffusion_lm.ops.rows import at_rows
from diffusion_lm.processes import reveal_prob
from diffusion_lm.samplers import masked
from diffusion_lm.schedules import grid as time_grid
from diffusion_lm.types import Objective, Sampler, Samples, Trace

SERVES = ("masked",)


def make(
    *,
    objective: Objective,
    num_steps: int = 64,
    grid: str = "cosine",
    temperature: float = 1.0,
    top_p: float = 1.0,
    draw: str = "exact",
) -> Sampler:
    """Samples in `num_steps` steps on a "uniform" or "cosine" grid of times.

    The network runs only at steps that reveal something in some row, the head and the draw only at
    revealed positions. The last step, to t = 0, reveals all that is left. With `draw`
    "float32_with_mask", as in the released code, every step draws every masked position from V + 1
    classes, the mask among them, by float32 Gumbel noise. It is slower and cuts the tail; it is
    there to reproduce published figures.
    """
    samplers.check("ancestral", objective)
    masked.steps_option(num_steps)
    if draw not in ("exact", "float32_with_mask"):
        raise ValueError(f"unknown sampler.draw {draw!r}; choices: exact, float32_with_mask")
    drawing = masked.drawing(temperature=temperature, top_p=top_p)
    time = time_grid(grid, num_steps)

    def run(step, process, prompt_BL, free_BL, traced):
        """Samples by `step`: ((z, calls), i) -> ((z, calls), probabilities of what is drawn)."""

        def both(carry, i):
            carry, prob_BL = step(carry, i)
            return carry, (carry[0], prob_BL) if traced else None

        start_BL = jnp.where(free_BL, process.mask, prompt_BL)
        steps = jnp.arange(num_steps, 0, -1)
        carry, seen = jax.lax.scan(both, (start_BL, jnp.int32(0)), steps)
        return Samples(*carry, trace=Trace(*seen, start_BL) if traced else None)

    def sample(params, keys_B, prompt_BL, free_BL, cond=None, traced=False):
        process, denoiser = objective.process(params), objective.predict(params, cond)
        mask_prob = process.schedule.mask_prob
        keys_when, keys_what = keys.split(keys_B, 2)
        u_BL = masked.uniforms(keys_when, prompt_BL.shape[1])
        rows = 2 * prompt_BL.size // num_steps

        def step(carry, i):  # i = num_steps .. 1, from t(i) to s = t(i - 1)
            z_BL, calls = carry
            t, s = time(i.astype(jnp.float32)), time(i.astype(jnp.float32) - 1)
            hidden_until = jnp.where(i == 1, 0.0, mask_prob(s))
            reveal_BL = free_BL & (z_BL == process.mask) & (u_BL >= hidden_until)

            def reveal(z_BL):
                h = denoiser.trunk(z_BL, masked.time_of_step(process, z_BL, free_BL, t))
                keys_i = keys.rows_fold(keys_what, i)
                new = drawing.at(denoiser, h, reveal_BL, keys_i, rows=rows)
                return masked.shown(new, reveal_BL, z_BL)

            needed = reveal_BL.any()
            z_BL, prob_BL = jax.lax.cond(needed, reveal, masked.unchanged, z_BL)
            return (z_BL, calls + needed * denoiser.calls), prob_BL

        return run(step, process, prompt_BL, free_BL, traced)

    def sample_with_mask(params, keys_B, prompt_BL, free_BL, cond=None, traced=False):
        process, denoiser = objective.process(params), objective.predict(params, cond)

        def step(carry, i):
            z_BL, calls = carry
            t, s = time(i.astype(jnp.float32)), time(i.astype(jnp.float32) - 1)
            reveal = jnp.where(i == 1, 1.0, reveal_prob(process.schedule, t, s))
            h = denoiser.trunk(z_BL, masked.time_of_step(process, z_BL, free_BL, t))
            open_BL = free_BL & (z_BL == process.mask)

            def one(args):
                h, keys_R = args
                log_p = denoiser.head(h)
                token_R = categorical.draw_or_mask_float32(keys_R, drawing.shape(log_p), reveal)
                place_R = jnp.minimum(token_R, process.vocab_size - 1)[:, None]
                return masked.Drawn(token_R, jnp.take_along_axis(log_p, place_R, axis=1)[:, 0])

            keys_BL = keys.places(keys.rows_fold(keys_B, i), z_BL.shape[1])
            new = at_rows(one, open_BL, (h, keys_BL), chunk=masked.chunk(denoiser, h, z_BL.size))
            z_BL, prob_BL = masked.shown(new, open_BL, z_BL)
            prob_BL = jnp.where(z_BL == process.mask, jnp.nan, prob_BL)
            return (z_BL, calls + denoiser.calls), prob_BL

        return run(step, process, prompt_BL, free_BL, traced)

    return Sampler(sample if draw == "exact" else sample_with_mask)

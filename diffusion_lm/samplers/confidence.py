"""Fixed counts of tokens a step, at random places or where the network is surest.

MaskGIT (arXiv 2202.04200), LLaDA (arXiv 2502.09992) and Dream fill the surest positions first;
the margin is that of arXiv 2502.06768. The order is a heuristic: with several tokens a step the law
is nobody's. Two cases are exact. "random" places are those of masked diffusion itself: with one
token a step the law is p(x). And since every order but "drawn" looks only at predictions, not at
what was drawn from them, with one token a step its law is p(x) as well.
"""

from functools import partial

import jax
import jax.numpy as jnp

from diffusion_lm import keys, samplers
from diffusion_lm.ops.certainty import KINDS, certainty
from diffusion_lm.ops.rows import top
from diffusion_lm.samplers import masked
from diffusion_lm.types import Objective, Sampler, Samples, Trace

SERVES = ("masked",)
ORDERS = ("random", "drawn", *KINDS)


def make(
    *,
    objective: Objective,
    num_steps: int = 64,
    order: str = "confidence",
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Sampler:
    """Fills ceil(masked / steps left) positions a step, so all rows end after `num_steps` calls.

    `order`: "random"; "confidence", "margin" or "entropy" of the prediction; or "drawn", the
    probability of the token that was drawn there, which is LLaDA's rule (MaskGIT's adds noise) and
    prefers likely tokens beyond what the model says. Certainty is that of the prediction itself,
    before temperature and top_p.
    """
    samplers.check("confidence", objective)
    masked.steps_option(num_steps)
    if order not in ORDERS:
        raise ValueError(f"unknown sampler.order {order!r}; choices: {', '.join(ORDERS)}")
    drawing = masked.drawing(temperature=temperature, top_p=top_p)

    def sample(params, keys_B, prompt_BL, free_BL, cond=None, traced=False):
        process, denoiser = objective.process(params), objective.predict(params, cond)
        keys_when, keys_what = keys.split(keys_B, 2)
        u_BL = masked.uniforms(keys_when, prompt_BL.shape[1])

        def step(carry, left):
            z_BL, calls = carry
            open_BL = free_BL & (z_BL == process.mask)
            number_B = -(-open_BL.sum(1) // left)

            def run(z_BL):
                h = denoiser.trunk(z_BL, masked.time_at(process, z_BL))
                keys_i = keys.rows_fold(keys_what, left)
                if order == "drawn":
                    new = drawing.at(denoiser, h, open_BL, keys_i, rows=z_BL.size)
                    reveal_BL = top(new.log_prob, open_BL, number_B)
                    return masked.shown(new, reveal_BL, z_BL)
                score_BL = u_BL
                if order != "random":
                    score_BL = masked.measure(denoiser, h, open_BL, partial(certainty, kind=order))
                reveal_BL = top(score_BL, open_BL, number_B)
                rows = 2 * z_BL.size // num_steps
                new = drawing.at(denoiser, h, reveal_BL, keys_i, rows=rows)
                return masked.shown(new, reveal_BL, z_BL)

            needed = open_BL.any()
            z_BL, prob_BL = jax.lax.cond(needed, run, masked.unchanged, z_BL)
            seen = (z_BL, prob_BL) if traced else None
            return (z_BL, calls + needed * denoiser.calls), seen

        start_BL, steps = jnp.where(free_BL, process.mask, prompt_BL), jnp.arange(num_steps, 0, -1)
        carry, seen = jax.lax.scan(step, (start_BL, jnp.int32(0)), steps)
        return Samples(*carry, trace=Trace(*seen, start_BL) if traced else None)

    return Sampler(sample)

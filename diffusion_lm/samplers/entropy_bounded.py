"""Entropy-bounded sampling (EB-sampler, arXiv 2505.24857): as many tokens a call as are safe.

Drawing a set U of positions at once, independently, errs by their dependence: KL(joint || product)
= sum_U H - H(U) <= sum_U H - max_U H, H the entropies of the predictions. So each call fills the
largest set of surest positions for which that is at most gamma. With gamma = 0 positions are filled
one by one (and together only where the prediction is certain), and the law is p(x).
"""

import jax
import jax.numpy as jnp

from diffusion_lm import keys, samplers
from diffusion_lm.ops.certainty import KINDS, certainty
from diffusion_lm.ops.rows import top
from diffusion_lm.samplers import masked
from diffusion_lm.types import Objective, Sampler, Samples

SERVES = ("masked",)


def make(
    *,
    objective: Objective,
    gamma: float = 0.1,
    order: str = "entropy",
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Sampler:
    """Fills positions in the `order` of ops/certainty.py, `gamma` nats of error bound a call.

    The number of calls adapts, from 1 to the number of tokens of the row that has most to fill.
    """
    samplers.check("entropy_bounded", objective)
    if not gamma >= 0:
        raise ValueError(f"sampler.gamma must be 0 or more nats, got {gamma}")
    if order not in KINDS:
        raise ValueError(f"unknown sampler.order {order!r}; choices: {', '.join(KINDS)}")
    drawing = masked.drawing(temperature=temperature, top_p=top_p)

    def sample(params, keys_B, prompt_BL, free_BL, cond=None, traced=False):
        process, denoiser = objective.process(params), objective.predict(params, cond)

        def waiting(z_BL):
            return free_BL & (z_BL == process.mask)

        def of(log_p):
            return certainty(log_p, order), -certainty(log_p, "entropy")

        def step(carry):
            z_BL, calls, step_BL, prob_BL = carry
            open_BL = waiting(z_BL)
            h = denoiser.trunk(z_BL, masked.time_at(process, z_BL))
            sure_BL, entropy_BL = masked.measure(denoiser, h, open_BL, of)
            order_BL = jnp.argsort(jnp.where(open_BL, -sure_BL, jnp.inf), axis=1, stable=True)
            ordered_BL = jnp.take_along_axis(
                jnp.where(open_BL, entropy_BL, jnp.inf), order_BL, axis=1
            )
            largest_BL = jax.lax.cummax(ordered_BL, axis=1)
            error_BL = jnp.cumsum(ordered_BL, axis=1) - largest_BL
            # The first position has no error, whatever the rounding of the sum says.
            number_B = jnp.maximum(jnp.sum(error_BL <= gamma, axis=1), 1)
            reveal_BL = top(sure_BL, open_BL, number_B)
            keys_i = keys.rows_fold(keys_B, calls)
            new = drawing.at(denoiser, h, reveal_BL, keys_i, rows=z_BL.shape[0])
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

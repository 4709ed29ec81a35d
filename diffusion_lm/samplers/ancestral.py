"""Ancestral sampling of masked diffusion (MD4, arXiv 2406.04329, section 3; algorithm 2).

Between t and s a masked position is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t),
whatever the network says, and then drawn from mu(z_t, t). So *when* each position is revealed is
drawn before the first network call, one uniform number u a position: it is masked at t while
u < 1 - alpha_t. Then *what* is drawn from V classes: the mask is never one of them, so no tail is
lost (arXiv 2409.02908). The law is that of the textbook loop.
"""

import jax
import jax.numpy as jnp

from diffusion_lm import keys
from diffusion_lm.ops import categorical
from diffusion_lm.schedules import grid as time_grid
from diffusion_lm.types import Objective, Sampler, Samples


def make(
    *,
    objective: Objective,
    num_steps: int = 64,
    grid: str = "cosine",
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Sampler:
    """Samples in `num_steps` steps on a "uniform" or "cosine" grid of times.

    The network runs only at steps that reveal something in some row. The last step, to t = 0,
    reveals all that is left.
    """
    if num_steps < 1:
        raise ValueError(f"sampler.num_steps must be at least 1, got {num_steps}")
    if objective.process is None:
        raise ValueError(
            "the ancestral sampler needs a diffusion model; an autoregressive one is served by: "
            "autoregressive"
        )
    categorical.check(temperature=temperature, top_p=top_p)
    time = time_grid(grid, num_steps)

    def sample(params, keys_B, prompt_BL, free_BL):
        process, predict = objective.process(params), objective.predict(params, None)
        mask_prob = process.schedule.mask_prob
        keys_when, keys_what = keys.split(keys_B, 2)
        u_BL = jax.vmap(lambda key: jax.random.uniform(key, prompt_BL.shape[1:]))(keys_when)

        def step(carry, i):  # i = num_steps .. 1, from t(i) to s = t(i - 1)
            z_BL, calls = carry
            t, s = time(i.astype(jnp.float32)), time(i.astype(jnp.float32) - 1)
            hidden_until = jnp.where(i == 1, 0.0, mask_prob(s))
            reveal_BL = free_BL & (z_BL == process.mask) & (u_BL >= hidden_until)

            def run(z_BL):
                log_mu = predict(z_BL, jnp.full(z_BL.shape[:1], t))
                log_mu = categorical.shape(log_mu, temperature=temperature, top_p=top_p)
                drawn_BL = categorical.draw(keys.rows_fold(keys_what, i), log_mu)
                return jnp.where(reveal_BL, drawn_BL, z_BL)

            needed = reveal_BL.any()
            return (jax.lax.cond(needed, run, lambda z: z, z_BL), calls + needed), None

        z_BL = jnp.where(free_BL, process.mask, prompt_BL)
        steps = jnp.arange(num_steps, 0, -1)
        (z_BL, calls), _ = jax.lax.scan(step, (z_BL, jnp.int32(0)), steps)
        return Samples(z_BL, calls)

    return Sampler(sample)

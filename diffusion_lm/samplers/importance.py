"""Parallel importance sampling for energies over a masked denoiser (EDLM, arXiv 2410.21357).

A step at time t draws k whole candidates X from mu(. | z) at once, takes one of them with weights
softmax(-E(X, z) / energy_temperature), and shows of it what the forward process keeps until s. So
tokens that are shown together agree. As k grows, the candidate's law tends to p(x | z) ~ mu e^-E,
at the rate 1/k. Outside the window, at t < 1 - window, one candidate is taken as it is.

Which positions a step shows does not depend on any network, and is drawn beforehand:
  ancestral      as in ancestral.py, T steps on a grid of times
  first_hitting  as in first_hitting.py, one position a step, at its own time. Here an exact
                 denoiser needs no correction, and a few candidates make it worse
"""

from functools import partial

import jax
import jax.numpy as jnp

from diffusion_lm import keys, samplers
from diffusion_lm.ops import categorical
from diffusion_lm.ops.rows import at_rows
from diffusion_lm.samplers import masked
from diffusion_lm.schedules import grid as time_grid
from diffusion_lm.schedules import time_of
from diffusion_lm.types import Objective, Sampler, Samples, Trace

SERVES = ("energy",)
ORDERS = ("ancestral", "first_hitting")


def make(
    *,
    objective: Objective,
    num_steps: int = 64,
    candidates: int = 4,
    window: float = 1.0,
    energy_temperature: float = 1.0,
    order: str = "ancestral",
    grid: str = "cosine",
    at_once: int = 0,
) -> Sampler:
    """Samples with `candidates` a step for t in [1 - window, 1].

    `num_steps` and `grid` are for the ancestral order. `at_once` candidates are scored together (0:
    all), to bound memory; the samples are the same. A step counts the proposal's network calls and
    one call of the energy's for each candidate.
    """
    samplers.check("importance", objective)
    masked.steps_option(num_steps)
    for name, given, least in (("candidates", candidates, 1), ("at_once", at_once, 0)):
        if given < least:
            raise ValueError(f"sampler.{name} must be at least {least}, got {given}")
    if not 0 <= window <= 1:
        raise ValueError(f"sampler.window must lie in [0, 1], got {window}")
    if not energy_temperature > 0:
        raise ValueError(f"sampler.energy_temperature must be positive, got {energy_temperature}")
    if order not in ORDERS:
        raise ValueError(f"unknown sampler.order {order!r}; choices: {', '.join(ORDERS)}")
    time = time_grid(grid, num_steps)

    def sample(params, keys_B, prompt_BL, free_BL, cond=None, traced=False):
        process, denoiser = objective.process(params), objective.predict(params, cond)
        schedule, (size, length) = process.schedule, prompt_BL.shape
        keys_when, keys_what = keys.split(keys_B, 2)
        u_BL = masked.uniforms(keys_when, length)

        def ancestral(z_BL, i):
            """Times t[B] and what is shown between t(i) and t(i - 1), for i = num_steps .. 1."""
            t, s = time(i.astype(jnp.float32)), time(i.astype(jnp.float32) - 1)
            hidden_until = jnp.where(i == 1, 0.0, schedule.mask_prob(s))
            t_B = masked.time_of_step(process, z_BL, free_BL, t)
            return jnp.full(size, t), t_B, u_BL >= hidden_until

        def first_hitting(z_BL, i):
            when_BL = jnp.where(free_BL & (z_BL == process.mask), u_BL, -1.0)
            t_B = time_of(schedule, when_BL.max(1))
            told_B = masked.time_of_step(process, z_BL, free_BL, t_B)
            return t_B, told_B, jnp.arange(length) == when_BL.argmax(1)[:, None]

        def pick(z_BL, h, t_B, keys_B, where_BL, number, weigh_B):
            """One of `number` candidates a row, by its energy where `weigh_B`, else the first:
            what is drawn at `where_BL`, and the effective sample size f32[B]."""

            def one(args):
                h, keys_R = args
                return categorical.draw_several(keys_R, denoiser.head(h), number)

            keys_x, keys_which = keys.split(keys_B, 2)
            shown = z_BL.size // num_steps if order == "ancestral" else size
            chunk = masked.chunk(denoiser, h, 2 * shown if number == 1 else z_BL.size)
            args = h, keys.places(keys_x, length)
            draw_BLK, log_mu_BLK = at_rows(one, where_BL, args, chunk=chunk)
            if number == 1:
                return masked.Drawn(draw_BLK[..., 0], log_mu_BLK[..., 0]), jnp.full(size, jnp.nan)

            def log_weight(args):
                x_BL, log_mu_B = args
                x_BL = jnp.where(where_BL, x_BL, z_BL)
                return -denoiser.energy(z_BL, x_BL, t_B, log_mu_B) / energy_temperature

            each = jnp.moveaxis(draw_BLK, -1, 0), log_mu_BLK.sum(1).T
            log_w_BK = jax.lax.map(log_weight, each, batch_size=at_once or number).T
            which_B = jnp.where(weigh_B, categorical.draw(keys_which, log_w_BK), 0)
            effective_B = 1 / (jax.nn.softmax(log_w_BK) ** 2).sum(1)
            new = jax.tree.map(
                lambda a: jnp.take_along_axis(a, which_B[:, None, None], axis=2)[..., 0],
                masked.Drawn(draw_BLK, log_mu_BLK),
            )
            return new, jnp.where(weigh_B, effective_B, jnp.nan)

        def step(carry, i):
            z_BL, calls = carry
            t_B, told_B, shown_BL = (ancestral if order == "ancestral" else first_hitting)(z_BL, i)
            hidden_BL = z_BL == process.mask
            reveal_BL = free_BL & hidden_BL & shown_BL
            weigh_B = reveal_BL.any(1) & (t_B >= 1 - window)

            def run(number, z_BL):
                h = denoiser.trunk(z_BL, told_B)
                where_BL = reveal_BL if number == 1 else hidden_BL
                keys_i = keys.rows_fold(keys_what, i)
                new, effective_B = pick(z_BL, h, told_B, keys_i, where_BL, number, weigh_B)
                return *masked.shown(new, reveal_BL, z_BL), effective_B

            def rest(z_BL):
                return *masked.unchanged(z_BL), jnp.full(size, jnp.nan)

            ways = [rest, partial(run, 1)]
            costs = [0, denoiser.calls]
            if candidates > 1:
                ways.append(partial(run, candidates))
                costs.append(denoiser.calls + candidates)
            way = jnp.minimum(reveal_BL.any().astype(int) + weigh_B.any(), len(ways) - 1)
            z_BL, prob_BL, effective_B = jax.lax.switch(way, ways, z_BL)
            seen = (z_BL, prob_BL) if traced else None
            return (z_BL, calls + jnp.array(costs)[way]), (effective_B, seen)

        steps = jnp.arange(num_steps if order == "ancestral" else length, 0, -1)
        start_BL = jnp.where(free_BL, process.mask, prompt_BL)
        carry, (effective, seen) = jax.lax.scan(step, (start_BL, jnp.int32(0)), steps)
        return Samples(*carry, effective, trace=Trace(*seen, start_BL) if traced else None)

    return Sampler(sample)

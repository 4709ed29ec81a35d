"""Sampling by scores, under absorbing and uniform noise (SEDD, arXiv 2310.16834, section 4).

A step from t to s draws each position by itself, given z, from

  Tweedie (the paper's analytic step)
    p(y) ~ ( exp(-dsigma Q) s(z, t) )_y  exp(dsigma Q)(y -> z),  dsigma = sigma_t - sigma_s
      absorbing, z the mask: s_y (e^dsigma - 1) for a token y, and the mask has the rest
      uniform: ( s_y - (1 - k) mean_v s_v ) ( k 1[y = z] + (1 - k)/V ),  k = e^-dsigma
  Euler
    p(y) = (t - s) sigma'(t) Q(y, z) s_y(z, t) for y != z, and z has the rest

What is negative counts as 0: it may be where scores are not exact, and Euler's rest where steps are
long (under uniform noise near t = 1: with fewer than about a thousand). The last step, to t = 0, is
a Tweedie step to the clean token in both, without the mask. With exact scores the law is the
product of the steps of single positions.

A corrector step leaves the marginal at s what it is: it brings noise as from s to t, and takes the
step from t to s again. Under uniform noise it lets a written token change late.

What is given stands clean beside noise. Under absorbing noise that is exact. Under uniform noise it
is a heuristic, as the network takes every token it sees for noise with some probability: on the
enumerated toy of the tests, with one of three tokens given and 100 steps, the total variation is
0.05 to 0.06, and 0.02 to 0.03 with two corrector steps (absorbing: under 0.01).

The probabilities of a trace are those of tokens that a step changed, p_t(token | all other
positions): the scores, normalised.
"""

from functools import partial

import jax
import jax.numpy as jnp

from diffusion_lm import keys, samplers
from diffusion_lm.ops import categorical
from diffusion_lm.ops.rows import at_rows
from diffusion_lm.processes import kept_and_lost, replaced
from diffusion_lm.samplers import masked
from diffusion_lm.schedules import grid as time_grid
from diffusion_lm.types import Array, Objective, Sampler, Samples, Trace

SERVES = ("score",)
RULES = ("tweedie", "euler")


def make(
    *,
    objective: Objective,
    num_steps: int = 64,
    rule: str = "tweedie",
    corrector_steps: int = 0,
    grid: str = "uniform",
) -> Sampler:
    """`num_steps` steps by a `rule`, each but the first with `corrector_steps` of the corrector
    after it (the first starts from noise alone)."""
    samplers.check("score", objective)
    masked.steps_option(num_steps)
    if rule not in RULES:
        raise ValueError(f"unknown sampler.rule {rule!r}; choices: {', '.join(RULES)}")
    if corrector_steps < 0:
        raise ValueError(f"sampler.corrector_steps must be 0 or more, got {corrector_steps}")
    time = time_grid(grid, num_steps)

    def sample(params, keys_B, prompt_BL, free_BL, cond=None, traced=False):
        process, denoiser = objective.process(params), objective.predict(params, cond)
        schedule, length, vocab_size = process.schedule, prompt_BL.shape[1], process.vocab_size
        absorbing = process.mask is not None
        keys_start, keys_steps = keys.split(keys_B, 2)
        # Without a mask to stand for it, what stays unknown is drawn as well, and forgotten.
        open_BL = free_BL if absorbing else free_BL | (prompt_BL == vocab_size)
        z_BL = jnp.where(open_BL, process.prior(keys_start, length), prompt_BL)

        def step(carry, count):
            z_BL, calls = carry
            i = num_steps - (count + corrector_steps) // (1 + corrector_steps)
            correcting = (count > 0) & ((count + corrector_steps) % (1 + corrector_steps) > 0)
            # At t = 1 itself scores may be 0, or tell nothing.
            t = jnp.minimum(time(i.astype(jnp.float32)), 1 - 1e-6)
            s, last = jnp.minimum(time(i.astype(jnp.float32) - 1), t), i == 1
            kept, lost = kept_and_lost(schedule, t, s)
            kept = jnp.where(last, schedule.alpha(t), kept)
            lost = jnp.where(last, schedule.mask_prob(t), lost)
            jump = -(t - s) * schedule.dalpha(t) / schedule.alpha(t)
            jump = jump if absorbing else jump / vocab_size
            keys_noise, keys_draw = keys.split(keys.rows_fold(keys_steps, count), 2)
            noise = jnp.where(correcting, lost, 0.0)
            if absorbing:
                hit_BL = masked.uniforms(keys_noise, length) < noise
                noisy_BL = jnp.where(hit_BL, process.mask, z_BL)
            else:
                lost_B = jnp.broadcast_to(noise, z_BL.shape[:1])
                noisy_BL = replaced(keys_noise, z_BL, lost_B, vocab_size)
            z_BL = jnp.where(open_BL, noisy_BL, z_BL)
            move_BL = open_BL & (z_BL == process.mask) if absorbing else open_BL

            def run(z_BL):
                t_B = jnp.broadcast_to(t, z_BL.shape[:1])
                told_B = masked.time_of_step(process, z_BL, free_BL, t) if absorbing else t_B
                h = denoiser.trunk(z_BL, told_B)

                def one(args):
                    h, z_R, keys_R = args
                    log_s = denoiser.score(h, z_R, jnp.broadcast_to(t, z_R.shape))
                    own = jnp.arange(log_s.shape[-1]) == z_R[:, None]
                    analytic = partial(tweedie, absorbing=absorbing, kept=kept, lost=lost)
                    if rule == "tweedie":
                        log_p = analytic(log_s, own)
                    else:
                        log_p = jax.lax.cond(last, analytic, partial(euler, jump=jump), log_s, own)
                    if absorbing:
                        log_p = jnp.where(last & own, -jnp.inf, log_p)
                    token_R = categorical.draw(keys_R, log_p)
                    known_R = believed(log_s, token_R, vocab_size) if traced else log_p[:, 0]
                    return masked.Drawn(token_R, known_R)

                args = h, z_BL, keys.places(keys_draw, length)
                chunk = masked.rows_at_once(vocab_size, z_BL.size)
                return masked.shown(at_rows(one, move_BL, args, chunk=chunk), move_BL, z_BL)

            needed, before_BL = move_BL.any(), z_BL
            z_BL, prob_BL = jax.lax.cond(needed, run, masked.unchanged, z_BL)
            new_BL = free_BL & (z_BL != before_BL)
            seen = jnp.where(free_BL, z_BL, prompt_BL), jnp.where(new_BL, prob_BL, jnp.nan)
            return (z_BL, calls + needed * denoiser.calls), seen if traced else None

        steps = jnp.arange(1 + (num_steps - 1) * (1 + corrector_steps))
        start_BL = jnp.where(free_BL, z_BL, prompt_BL)
        (z_BL, calls), seen = jax.lax.scan(step, (z_BL, jnp.int32(0)), steps)
        trace = Trace(*seen, start_BL) if traced else None
        return Samples(jnp.where(free_BL, z_BL, prompt_BL), calls, trace=trace)

    return Sampler(sample)


def believed(log_s: Array, token_R: Array, vocab_size: int) -> Array:
    """log p_t(token | all other positions), f32[R], from log scores f32[R, S]; what it gives for
    the mask means nothing."""
    log_p = jax.nn.log_softmax(log_s[:, :vocab_size])
    token_R = jnp.minimum(token_R, vocab_size - 1)
    return jnp.take_along_axis(log_p, token_R[:, None], axis=1)[:, 0]


def tweedie(log_s: Array, own: Array, *, absorbing: bool, kept: Array, lost: Array) -> Array:
    """log p(y) of the analytic step up to a constant: f32[R, S] from log scores f32[R, S].

    `own` bool[R, S] is true at y = z. `kept` = alpha_t / alpha_s, `lost` = 1 - kept.
    """
    if absorbing:
        return euler(log_s, own, jump=lost / kept)
    scores = jnp.exp(log_s - log_s.max(-1, keepdims=True))
    before = scores - lost * scores.mean(-1, keepdims=True)
    there = jnp.where(own, kept, 0) + lost / scores.shape[-1]
    return jnp.log(jnp.maximum(before, 0) * there)


def euler(log_s: Array, own: Array, *, jump: Array) -> Array:
    """log p(y): jump s_y for y != z, and for y = z the rest, if any: f32[R, S]."""
    log_moves = jnp.where(own, -jnp.inf, log_s + jnp.log(jump))
    rest = 1 - jnp.exp(log_moves).sum(-1, keepdims=True)
    return jnp.where(own, jnp.log(jnp.maximum(rest, 0)), log_moves)

"""What the samplers of masked diffusion share: predictions and draws at chosen positions."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_lm.ops import categorical
from diffusion_lm.ops.rows import at_rows
from diffusion_lm.schedules import time_of
from diffusion_lm.types import Array, Denoiser, Process, Trace

MOST_ENTRIES = 2**26  # of log-probabilities held at once


class Drawn(NamedTuple):
    """[B, L] arrays, 0 where nothing was asked for."""

    token: Array  # int32, drawn from the prediction shaped by temperature and top_p
    log_prob: Array  # f32, of that token in the prediction itself, nats


class Draw(NamedTuple):
    """How tokens are drawn from predictions."""

    temperature: float
    top_p: float

    def shape(self, log_probs: Array) -> Array:
        """log p f32[..., V] sharpened by temperature and top_p (ops/categorical.py)."""
        return categorical.shape(log_probs, temperature=self.temperature, top_p=self.top_p)

    def at(
        self,
        denoiser: Denoiser,
        h: Any,
        where_BL: Array,
        keys_B: Array,
        *,
        rows: int,
        shape: Callable[[Array], Array] | None = None,
    ) -> Drawn:
        """Runs the head and draws at the positions `where_BL` only, about `rows` at a time, from
        what `shape` (if None, this one's) makes of a prediction.

        The noise of a position is a function of its row's key and its place.
        """

        def one(args):
            h, keys_R, place_R = args
            log_p = denoiser.head(h)
            keys_R = jax.vmap(jax.random.fold_in)(keys_R, place_R)
            token_R = categorical.draw(keys_R, (shape or self.shape)(log_p))
            return Drawn(token_R, jnp.take_along_axis(log_p, token_R[:, None], axis=1)[:, 0])

        keys_BL = jnp.broadcast_to(keys_B[:, None], where_BL.shape)
        place_BL = jnp.broadcast_to(jnp.arange(where_BL.shape[1]), where_BL.shape)
        return at_rows(one, where_BL, (h, keys_BL, place_BL), chunk=chunk(denoiser, h, rows))


def shown(new: Drawn, where_BL: Array, z_BL: Array) -> tuple[Array, Array]:
    """z with what was drawn at `where_BL`; and the probability of that, NaN elsewhere."""
    return (
        jnp.where(where_BL, new.token, z_BL),
        jnp.where(where_BL, jnp.exp(new.log_prob), jnp.nan),
    )


def unchanged(z_BL: Array) -> tuple[Array, Array]:
    """What `shown` is of a step that draws nothing."""
    return z_BL, jnp.full(z_BL.shape, jnp.nan)


def trace_of(start_BL: Array, tokens_BL: Array, step_BL: Array, prob_BL: Array) -> Trace:
    """The Trace of at most L steps, counted from 0, each position drawn once, in `step_BL`."""
    number_TBL = jnp.arange(start_BL.shape[1])[:, None, None]
    return Trace(
        jnp.where(number_TBL < step_BL, start_BL, tokens_BL),
        jnp.where(number_TBL == step_BL, prob_BL, jnp.nan),
        start_BL,
    )


def measure(denoiser: Denoiser, h: Any, where_BL: Array, of: Callable[[Array], Any]) -> Any:
    """`of(log p)`, arrays [R] from f32[R, V], at the positions `where_BL`; 0 elsewhere: [B, L]."""
    return at_rows(
        lambda h: of(denoiser.head(h)), where_BL, h, chunk=chunk(denoiser, h, where_BL.size)
    )


def chunk(denoiser: Denoiser, h: Any, rows: int) -> int:
    """How many positions the head of a Denoiser runs at in one go."""
    return rows_at_once(jax.eval_shape(denoiser.head, h).shape[-1], rows)


def rows_at_once(vocab_size: int, rows: int) -> int:
    """A power of two of at least `rows`, within what memory allows."""
    wanted = 1 << max(3, math.ceil(math.log2(max(rows, 1))))
    return min(wanted, max(8, MOST_ENTRIES // vocab_size))


def drawing(*, temperature: float, top_p: float) -> Draw:
    """A Draw; raises ValueError for values that make no sense."""
    categorical.check(temperature=temperature, top_p=top_p)
    return Draw(temperature, top_p)


def steps_option(num_steps: int) -> None:
    """Raises ValueError for a number of steps below 1."""
    if num_steps < 1:
        raise ValueError(f"sampler.num_steps must be at least 1, got {num_steps}")


def time_at(process: Process, z_BL: Array) -> Array:
    """The time at which as large a share of positions is masked as in z: f32[B]."""
    return time_of(process.schedule, (z_BL == process.mask).mean(1))


def time_of_step(process: Process, z_BL: Array, free_BL: Array, t: Array) -> Array:
    """The time a network is told at step t: f32[B]. Where positions are given or stay unknown, z
    has another share of masks than training had at t: then it is the time of that share."""
    return jnp.where(free_BL.all(1), t, time_at(process, z_BL))


def uniforms(keys_B: Array, length: int) -> Array:
    """f32[B, L] on [0, 1), each row from its own key."""
    return jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys_B)

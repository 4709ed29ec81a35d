"""Noise schedules of masked diffusion and the sampling of times.

Each schedule function is a `make`: keyword-only, returning a `Schedule`. Shapes follow MD4
(arXiv 2406.04329, table 1). All are fitted affinely to alpha(0) = 1 - eps and alpha(1) = 0: eps
keeps the weight -alpha'/(1 - alpha) finite at t = 0 and is paid for exactly by the reconstruction
term, while alpha(1) = 0 makes the prior term exactly 0. (The released code takes alpha(1) = eps and
leaves that term out.)
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_lm.types import Array, Schedule


def _fit(alpha, mask_prob, dalpha, eps: float) -> Schedule:
    """Maps a schedule from alpha(0) = 1, alpha(1) = 0 to alpha(0) = 1 - eps."""
    if not 0 < eps < 0.1:
        raise ValueError(f"schedule.eps must lie in (0, 0.1), got {eps}")
    return Schedule(
        alpha=lambda t: (1 - eps) * alpha(t),
        mask_prob=lambda t: eps + (1 - eps) * mask_prob(t),
        dalpha=lambda t: (1 - eps) * dalpha(t),
    )


def lifted(schedule: Schedule, last: float) -> Schedule:
    """The schedule mapped from alpha(1) = 0 to alpha(1) = last."""
    return Schedule(
        alpha=lambda t: last + (1 - last) * schedule.alpha(t),
        mask_prob=lambda t: (1 - last) * schedule.mask_prob(t),
        dalpha=lambda t: (1 - last) * schedule.dalpha(t),
    )


def linear(*, eps: float = 1e-4) -> Schedule:
    """alpha = 1 - t."""
    return _fit(lambda t: 1 - t, lambda t: t, lambda t: -jnp.ones_like(t), eps)


def polynomial(*, power: float = 2.0, eps: float = 1e-4) -> Schedule:
    """alpha = 1 - t^power."""
    if power < 1:  # below 1 the slope at t = 0 is infinite
        raise ValueError(f"schedule.power must be at least 1, got {power}")
    return _fit(
        lambda t: -jnp.expm1(power * jnp.log(t)),
        lambda t: t**power,
        lambda t: -power * t ** (power - 1),
        eps,
    )


def cosine(*, eps: float = 1e-4) -> Schedule:
    """alpha = 1 - cos(pi/2 (1 - t))."""
    half = math.pi / 2
    return _fit(
        lambda t: 2 * jnp.sin(half / 2 * (1 - t)) ** 2,
        lambda t: jnp.sin(half * t),
        lambda t: -half * jnp.sin(half * (1 - t)),
        eps,
    )


def geometric(*, minimum: float = 1e-5, maximum: float = 20.0, eps: float = 1e-4) -> Schedule:
    """alpha = exp(-sigma), sigma = minimum^(1-t) maximum^t, then fitted to [1, 0]."""
    if not 0 < minimum < maximum:
        raise ValueError(f"schedule needs 0 < minimum < maximum, got {minimum} and {maximum}")
    rate = math.log(maximum / minimum)
    first, last = math.exp(-minimum), math.exp(-maximum)

    def growth(t):  # sigma(t) - sigma(0)
        return minimum * jnp.expm1(rate * t)

    def mask_prob(t):
        return -first * jnp.expm1(-growth(t)) / (first - last)

    def alpha(t):
        rest = maximum * -jnp.expm1(-rate * (1 - t))  # sigma(1) - sigma(t)
        return jnp.exp(-minimum - growth(t)) * -jnp.expm1(-rest) / (first - last)

    def dalpha(t):
        sigma = minimum + growth(t)
        return -rate * sigma * jnp.exp(-sigma) / (first - last)

    return _fit(alpha, mask_prob, dalpha, eps)


def independent_times(keys_B: Array) -> Array:
    """t[B] uniform on [0, 1), one independent draw a row."""
    return jax.vmap(jax.random.uniform)(keys_B)


def stratified_times(key: Array, slot_B: Array) -> Array:
    """t[B] = (u + i/B) mod 1 over the global batch, one u for all: low-discrepancy times.

    Each t alone is uniform on [0, 1); together they are evenly spread (VDM, arXiv 2107.00630).
    """
    return (jax.random.uniform(key) + slot_B) % 1.0


def grid(shape: str, num_steps: int) -> Callable[[Array], Array]:
    """The time t(i) of sampling step i = num_steps..0: t(num_steps) = 1, t(0) = 0.

    "uniform" is i/T; "cosine" is cos(pi/2 (1 - i/T)), MD4's sampling grid.
    """
    if shape not in ("uniform", "cosine"):
        raise ValueError(f"unknown grid {shape!r}; choices: uniform, cosine")
    if shape == "uniform":
        return lambda i: i / num_steps
    # sin instead of cos keeps t(0) = 0 exact.
    return lambda i: jnp.sin(math.pi / 2 * i / num_steps)


def time_of(schedule: Schedule, mask_prob: Array) -> Array:
    """The time at which P(masked) is `mask_prob`, clipped to [0, 1]; by bisection, any shape."""

    def halve(_, interval):
        low, high = interval
        middle = (low + high) / 2
        early = schedule.mask_prob(middle) < mask_prob
        return jnp.where(early, middle, low), jnp.where(early, high, middle)

    zeros = jnp.zeros_like(mask_prob)
    low, high = jax.lax.fori_loop(0, 30, halve, (zeros, zeros + 1))
    return (low + high) / 2

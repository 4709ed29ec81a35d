"""Optimisers, by name. Each is an optax chain: clip by global norm, then AdamW or Muon."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers
from optax.contrib import muon as optax_muon

from diffusion_lm import parallel
from diffusion_lm.types import Optimizer, Params

DECAYS = ("constant", "linear", "cosine", "inverse_sqrt")


def learning_rate_schedule(
    peak: float,
    decay: str,
    warmup: int,
    steps: int,
    cooldown: float,
    option: str = "learning_rate",
) -> optax.Schedule:
    """Linear warm-up from 0, then `decay`; "linear" stays at the peak until the last fraction
    `cooldown` of the run and then falls to 0 (cooldown = 1: it falls from the start)."""
    if decay not in DECAYS:
        raise ValueError(f"unknown optimizer.decay {decay!r}; choices: {', '.join(DECAYS)}")
    if not 0 < peak < float("inf"):
        raise ValueError(f"optimizer.{option} must be positive, got {peak}")
    if warmup < 0:
        raise ValueError(f"optimizer.warmup must not be negative, got {warmup}")
    if not 0 < cooldown <= 1:
        raise ValueError(f"optimizer.cooldown must lie in (0, 1], got {cooldown}")
    rest = max(steps - warmup, 1)

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum((step + 1) / max(warmup, 1), 1.0)
        done = jnp.clip((step - warmup) / rest, 0, 1)
        if decay == "constant":
            fall = 1.0
        elif decay == "linear":
            fall = jnp.minimum(1.0, (1 - done) / cooldown)
        elif decay == "cosine":
            fall = 0.5 * (1 + jnp.cos(jnp.pi * done))
        else:
            fall = jnp.sqrt(max(warmup, 1) / jnp.maximum(step + 1, max(warmup, 1)))
        return peak * rise * fall

    return rate


def _decayed(params):
    """Weight decay touches matrices, not embeddings, scales, biases and taps."""
    spared = ("embedding", "place", "label", "scale", "bias", "taps", "norm")
    spared += ("source_embedding", "source_place")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim >= 2 and parallel.name(path[-1:]) not in spared, params
    )


def _check_rates(**rates: float) -> None:
    for name, value in rates.items():
        if not 0 <= value < 1:
            raise ValueError(f"optimizer.{name} must lie in [0, 1), got {value}")


def _clipped(clip: float, weight_decay: float, transform):
    if not weight_decay >= 0:
        raise ValueError(f"optimizer.weight_decay must not be negative, got {weight_decay}")
    if not clip >= 0:
        raise ValueError(f"optimizer.clip must be positive, or 0 for none, got {clip}")
    return optax.chain(optax.clip_by_global_norm(clip), transform) if clip else transform


def adamw(
    *,
    steps: int,
    learning_rate: float = 3e-4,
    decay: str = "cosine",
    warmup: int = 2000,
    cooldown: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    clip: float = 0.0,
) -> Optimizer:
    """AdamW (arXiv 1711.05101)."""
    _check_rates(b1=b1, b2=b2)
    rate = learning_rate_schedule(learning_rate, decay, warmup, steps, cooldown)
    transform = optax.adamw(rate, b1, b2, weight_decay=weight_decay, mask=_decayed)
    return Optimizer(_clipped(clip, weight_decay, transform), rate)


def muon_dimensions(axes: dict, params: Params) -> Any:
    """Which axes of each parameter form the matrix that Muon orthogonalises; None means Adam.

    Matrices live inside the layers and lead from or to the width; "layers" and "stack" (q, k, v)
    are batches of them.
    """

    def of(path, leaf):
        names = parallel.logical_axes(axes, path)
        if names is None or "layers" not in names or "width" not in names:
            return None
        width = names.index("width")
        others = [i for i, n in enumerate(names) if n not in ("layers", "stack", "width")]
        if width > min(others):
            return MuonDimensionNumbers(tuple(others), (width,))
        return MuonDimensionNumbers((width,), tuple(others))

    return jax.tree_util.tree_map_with_path(of, params)


def muon(
    *,
    steps: int,
    axes: dict,
    learning_rate: float = 2e-2,
    adam_learning_rate: float = 3e-3,
    decay: str = "linear",
    warmup: int = 20,
    cooldown: float = 1.0,
    momentum: float = 0.95,
    b1: float = 0.9,
    b2: float = 0.95,
    weight_decay: float = 0.0,
    clip: float = 0.0,
) -> Optimizer:
    """Muon on the matrices of the layers, Adam on everything else (optax.contrib.muon).

    The logged learning rate is Muon's; Adam's follows the same schedule.
    """
    _check_rates(momentum=momentum, b1=b1, b2=b2)
    rate = learning_rate_schedule(learning_rate, decay, warmup, steps, cooldown)
    adam_rate = learning_rate_schedule(
        adam_learning_rate, decay, warmup, steps, cooldown, "adam_learning_rate"
    )
    transform = optax_muon(
        rate,
        beta=momentum,
        weight_decay=weight_decay,
        adam_b1=b1,
        adam_b2=b2,
        adam_learning_rate=adam_rate,
        muon_weight_dimension_numbers=partial(muon_dimensions, axes),
    )
    return Optimizer(_clipped(clip, weight_decay, transform), rate)

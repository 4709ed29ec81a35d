"""Likelihood of a split: exact, or the objective's upper bound by Monte Carlo."""

import functools
import math
from collections.abc import Callable

import numpy as np

from diffusion_lm import evaluators, keys
from diffusion_lm.types import Objective

ENOUGH = 10  # degrees of freedom of the standard error (itself then known to 22 %) to stop on it


def make(
    *,
    objective: Objective,
    split: str = "valid",
    draws: int = 4,
    target_error: float = 0.0,
    batch_size: int = 64,
    max_windows: int = 0,
) -> Callable[..., dict]:
    """Scores every window of a split `draws` times (once if the objective is exact).

    `max_windows` limits the split to its first windows, 0 means all. The standard error is that of
    the Monte-Carlo average: windows are scored in batches, and each batch's spread over the draws
    adds its share. It does not speak of the choice of the split, and is 0 for an exact score. With
    a `target_error` (nats per token), drawing ends as soon as the standard error is that small, and
    `draws` is the most. Figures that an objective gives beside its nll (EDLM's) are reported with
    their own standard errors.
    """
    evaluators.check(batch_size=batch_size, max_windows=max_windows)
    if objective.nll is None and objective.figures is None:
        raise ValueError(
            "the likelihood evaluator needs a model with a likelihood or a bound on it; this "
            f"{objective.families[0]} one has none"
        )
    if draws < 1:
        raise ValueError(f"evaluators.draws must be at least 1, got {draws}")
    if not 0 <= target_error < math.inf:
        raise ValueError(f"evaluators.target_error must be 0 (none) or more, got {target_error}")
    if batch_size % 2:
        raise ValueError(f"evaluators.batch_size must be even, got {batch_size}")

    def evaluate(run) -> dict:
        """One row of results for an `evaluate.Run`."""
        number = evaluators.number_of_windows(run, split, max_windows)
        batches, tokens = -(-number // batch_size), run.data.scored(split, number)
        exact, score = run.objective.exact, run.objective.figures or _alone(run.objective.nll)
        nats = []  # draws of batches of sums by name
        error, reached = 0.0 if exact else None, exact
        for draw in range(1 if exact else draws):
            sums = []
            for index, batch in zip(range(batches), run.batches(split, batch_size), strict=False):
                key = keys.stream(run.seed, f"likelihood {split}", draw * batches + index)
                sums.append(run.total(batch, key, number - index * batch_size, score))
            nats.append(sums)
            if draw:
                error = _error(nats, "nll") / tokens
                reached = draw * batches >= ENOUGH and error <= target_error
            if reached:
                break
        row = evaluators.row(run, split, number, _mean(nats, "nll")) | {
            "standard_error": error,  # nats per token
            "kind": "exact" if exact else "upper bound",
            "draws": len(nats),
        }
        for name in sorted(nats[0][0].keys() - {"nll"}):
            row[f"{name}_nats_per_token"] = _mean(nats, name) / tokens
            row[f"{name}_standard_error"] = _error(nats, name) / tokens if len(nats) > 1 else None
        return row | ({"target_reached": reached} if target_error else {})

    return evaluate


@functools.cache  # what is scored is compiled once for each function
def _alone(nll):
    return lambda params, batch, key: {"nll": nll(params, batch, key)}


def _of(nats: list, name: str) -> np.ndarray:
    """f64[draws, batches]"""
    return np.array([[sums[name] for sums in draw] for draw in nats], np.float64)


def _mean(nats: list, name: str) -> float:
    """Nats of all windows, averaged over draws."""
    return _of(nats, name).sum() / len(nats)


def _error(nats: list, name: str) -> float:
    """Its standard error: each batch's spread over the draws adds its share."""
    return math.sqrt((_of(nats, name).var(0, ddof=1) / len(nats)).sum())

"""Exact likelihood under a deterministic order of revealing (DUEL, arXiv 2603.01367).

Start from masks alone. At each of L steps the order picks one masked position from the predictions
given the tokens revealed so far; the true token is scored there and revealed:

  -log p(x) = - sum_{k=1..L} log mu^{o_k}_{x^{o_k}}(x at o_1, ..., o_{k-1}, masks elsewhere).

The order looks at predictions only, never at the token it is about to reveal, so these p(x) sum to
1 over all x: they are the law of the sampler that reveals one token at a time in this order.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_lm import evaluators
from diffusion_lm.ops.certainty import KINDS, certainty
from diffusion_lm.ops.rows import at_rows
from diffusion_lm.schedules import time_of
from diffusion_lm.types import Array, Data, Objective

ORDERS = ("left_to_right", *KINDS)
ROWS = 512  # whose log-probabilities are held at once


def make(
    *,
    data: Data,
    objective: Objective,
    split: str = "valid",
    order: str = "confidence",
    batch_size: int = 64,
    max_windows: int = 0,
) -> Callable[..., dict]:
    """Scores every window of a split with L network calls a batch.

    `order`: "left_to_right", or the surest position first by "confidence", "margin" or "entropy"
    (ops/certainty.py); of equals the leftmost. `max_windows` limits the split to its first windows,
    0 means all.
    """
    evaluators.check(batch_size=batch_size, max_windows=max_windows)
    if order not in ORDERS:
        raise ValueError(f"unknown evaluators.order {order!r}; choices: {', '.join(ORDERS)}")
    if data.of_sources:
        raise ValueError("the ordered evaluator is not for pairs")
    if "masked" not in objective.families:
        kind = objective.families[0].replace("_", "-")
        raise ValueError(
            f"the ordered evaluator needs masked diffusion (md4), not this {kind} model"
        )
    score = nats_in_order(objective, order)

    def evaluate(run) -> dict:
        """One row of results for an `evaluate.Run`."""
        number = evaluators.number_of_windows(run, split, max_windows)
        batches, nats = -(-number // batch_size), 0.0
        for index, batch in zip(range(batches), run.batches(split, batch_size), strict=False):
            rows = number - index * batch_size
            nats += run.total(batch, jax.random.key(0), rows, score)
        return evaluators.row(run, split, number, nats) | {
            "kind": "exact under the order",
            "order": order,
            "calls": batches * run.data.length,
        }

    return evaluate


def nats_in_order(objective: Objective, order: str) -> Callable[..., Array]:
    """(params, batch, key) -> -log p(x) under the order, f32[B] nats; the key is not used."""

    def score(params, batch, key):
        x_BL, (size, length) = batch["x"], batch["x"].shape
        process = objective.process(params)
        cond = {"label": batch["label"]} if "label" in batch else None
        denoiser, place_L = objective.predict(params, cond), jnp.arange(length)

        def measured(args):
            h_RD, x_R = args
            log_p = denoiser.head(h_RD)
            one = order == "left_to_right"  # only one position is asked
            sure_R = jnp.zeros(len(x_R)) if one else certainty(log_p, order)
            return sure_R, jnp.take_along_axis(log_p, x_R[:, None], axis=1)[:, 0]

        def step(carry, known):
            z_BL, nats_B = carry
            t_B = time_of(process.schedule, jnp.full(size, 1 - known / length))
            h = denoiser.trunk(z_BL, t_B)
            asked_BL, rows = z_BL == process.mask, ROWS
            if order == "left_to_right":
                asked_BL, rows = asked_BL & (place_L == known), size
            sure_BL, log_p_BL = at_rows(measured, asked_BL, (h, x_BL), chunk=rows)
            next_B = jnp.where(asked_BL, sure_BL, -jnp.inf).argmax(1)
            next_BL = place_L == next_B[:, None]
            nats_B = nats_B - jnp.where(next_BL, log_p_BL, 0).sum(1)
            return (jnp.where(next_BL, x_BL, z_BL), nats_B), None

        start = jnp.full_like(x_BL, process.mask), jnp.zeros(size)
        return jax.lax.scan(step, start, jnp.arange(length))[0][1]

    return score

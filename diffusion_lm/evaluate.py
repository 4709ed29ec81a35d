"""Runs the config's evaluators on parameters, inside a run or on a finished checkpoint."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_lm import build, keys, parallel
from diffusion_lm.types import Batch, Objective, Params


class Run(NamedTuple):
    """What an evaluator may use."""

    data: object
    objective: Objective
    params: Params
    mesh: Mesh
    seed: int
    step: Callable  # see make_eval_step

    def batches(self, split: str, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of every batch of a split, in order."""
        return self.data.evaluation_batches(
            split,
            batch_size=batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def weighted_nll(self, local: Batch, key, rows: int) -> float:
        """Sum of nats over the first `rows` rows of a global batch, padding left out."""
        batch = parallel.global_batch(self.mesh, local)
        return float(self.step(self.params, batch, key, rows))


def make_eval_step(objective: Objective, mesh: Mesh):
    """(params, global batch, key, rows) -> sum over the first `rows` rows of weight * nll."""

    def eval_step(params, batch, key, rows):
        batch = keys.number(batch)
        nats_B = objective.nll(params, batch, key)
        counted = (batch["weight"] > 0) & (batch["row"] < rows)
        return jnp.where(counted, nats_B, 0).sum()

    return jax.jit(eval_step, out_shardings=parallel.replicated(mesh))


def evaluate(parts: build.Parts, run: Run, step: int) -> list[dict]:
    """One row for each evaluator of the config."""
    return [
        {"step": step, "evaluator": label} | evaluator(run)
        for label, evaluator in parts.evaluators.items()
    ]


def describe(row: dict) -> str:
    """A row as one line for people."""
    chars = row.get("bits_per_char")
    figures = f"{chars:.4f} bits/char, " if chars is not None else ""
    figures += f"{row['bits_per_token']:.4f} bits/token"
    if row["kind"] == "upper bound":
        error = row["standard_error"]
        spread = "unknown" if error is None else f"{error / np.log(2):.4f} bits/token"
        figures = f"<= {figures} (standard error {spread}, {row['draws']} draws)"
    return f"step {row['step']} {row['evaluator']} ({row['split']}): {figures}"

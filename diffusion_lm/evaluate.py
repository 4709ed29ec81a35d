"""Runs the config's evaluators on parameters, inside a run or on a finished checkpoint."""

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_lm import build, keys, parallel
from diffusion_lm.types import Array, Data, Objective, Params, Sampler, Samples


class Run(NamedTuple):
    """What an evaluator may use."""

    data: Data
    objective: Objective
    params: Params
    mesh: Mesh
    seed: int
    step: Callable  # see make_eval_step
    translator: Callable | None = None  # of pairs, see translate.py

    def batches(self, split: str, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of every batch of a split, in order."""
        return self.data.evaluation_batches(
            split,
            batch_size=batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def total(self, local: dict[str, np.ndarray], key: Array, rows: int, score: Callable) -> Any:
        """Sums of what `score(params, batch, key)` returns, a pytree of f32[B], over the first
        `rows` rows of a global batch, padding left out."""
        batch = parallel.global_batch(self.mesh, local)
        return jax.tree.map(float, self.step(self.params, batch, key, rows, score))

    def translate(self, split: str, number: int, batch_size: int) -> Iterator:
        """Translations of the first `number` sources of a split, in order."""
        sources = self.data.windows(split).sources[:number]
        return self.translator(self.params, sources, seed=self.seed, batch_size=batch_size)

    def draw(self, sampler: Sampler, number: int, *, seed: int, batch_size: int) -> Samples:
        """`number` whole texts int32[number, L], those that `diffusion_lm.sample` writes with this
        seed; `calls` is the mean over samples of what the batch of each took."""
        data, tokens, calls = self.data, [], 0
        draw = drawer(sampler, self.mesh, (batch_size, data.length), data.vocab_size)
        for start in range(0, number, batch_size):
            out = draw(self.params, seed, start)
            tokens.append(np.asarray(out.tokens)[: number - start])
            calls += int(out.calls) * len(tokens[-1])
        return Samples(np.concatenate(tokens), calls / number)


@functools.cache  # what draws is compiled once
def drawer(sampler: Sampler, mesh: Mesh, shape: tuple[int, int], mask: int) -> Callable:
    """(params, seed, start) -> Samples of the indices from `start` on, spread over the mesh."""

    def draw(params, seed, start):
        index_B = start + jnp.arange(shape[0], dtype=jnp.int32)
        keys_B = keys.rows_fold(keys.samples(seed, index_B), 0)
        keys_B = jax.lax.with_sharding_constraint(keys_B, parallel.batch_sharding(mesh))
        return sampler.sample(params, keys_B, jnp.full(shape, mask), jnp.ones(shape, bool))

    return parallel.jit(draw, mesh, static_argnums=1, out_shardings=parallel.replicated(mesh))


def make_eval_step(objective: Objective, mesh: Mesh) -> Callable:
    """(params, global batch, key, rows, score) -> sums of weight * score over the first rows."""

    def eval_step(params, batch, key, rows, score):
        batch = keys.number(batch)
        counted = (batch["weight"] > 0) & (batch["row"] < rows)
        scores = score(params, batch, key)
        return jax.tree.map(lambda a: jnp.where(counted, a, 0).sum(), scores)

    return parallel.jit(eval_step, mesh, static_argnums=4, out_shardings=parallel.replicated(mesh))


def evaluate(parts: build.Parts, run: Run, step: int) -> Iterator[dict]:
    """One row for each evaluator of the config, as soon as it is there."""
    for label, evaluator in parts.evaluators.items():
        yield {"step": step, "evaluator": label} | evaluator(run)


def describe(row: dict) -> str:
    """A row as one line for people; of a frontier, a line for each point too."""
    if row["kind"] == "generative":
        head = f"step {row['step']} {row['evaluator']}, judge {row['protocol']['judge']}:"
        return "\n".join([head, *map(_point, row["points"])])
    if row["kind"] == "translation":
        return (
            f"step {row['step']} {row['evaluator']} ({row['split']}): BLEU {row['bleu']:.2f} (the "
            f"sources' own {row['bleu_of_source']:.2f}), chrF {row['chrf']:.2f}, {row['pairs']} "
            f"pairs, {row['candidates']} candidates by {row['choice']}, {row['calls']:.0f} calls"
        )
    if "bits_per_token" not in row:
        rest = {k: v for k, v in row.items() if k not in ("step", "evaluator", "kind")}
        return f"step {row['step']} {row['evaluator']}: {json.dumps(rest, ensure_ascii=False)}"
    chars = row.get("bits_per_char")
    unit = "dim" if "bits_per_dim" in row else "token"
    figures = f"{chars:.4f} bits/char, " if chars is not None else ""
    figures += f"{row['bits_per_token']:.4f} bits/{unit}"
    if row["kind"] == "upper bound":
        error = row["standard_error"]
        spread = "unknown" if error is None else f"{error / np.log(2):.4f} bits/{unit}"
        missed = "" if row.get("target_reached", True) else ", target not reached"
        figures = f"<= {figures} (standard error {spread}, {row['draws']} draws{missed})"
    elif row["kind"] != "exact":
        figures += f" ({row['kind']} {row['order']}, {row['calls']} calls)"
    return f"step {row['step']} {row['evaluator']} ({row['split']}): {figures}"


def _point(point: dict) -> str:
    """A point of a frontier as one line."""
    settings = {"steps": point.get("steps"), "T": point.get("temperature")}
    at = "".join(f" {name}={value}" for name, value in settings.items() if value is not None)
    perplexity = point["perplexity_token_weighted"]
    return (
        f"  {point['of']}{at}: perplexity {perplexity:.4g} (standard error "
        f"{perplexity * point['standard_error']:.2g}; mean over sequences "
        f"{point['perplexity_mean_over_sequences']:.4g}), entropy {point['entropy']:.3f} nats, "
        f"distinct-2 {point['distinct_2']:.3f}, repetition {point['repetition']:.3f}"
        + (f", MAUVE {point['mauve']:.3f}" if "mauve" in point else "")
    )

"""Likelihood of a split: exact, or the objective's upper bound by Monte Carlo."""

import math

import numpy as np

from diffusion_lm import keys


def make(*, split: str = "valid", draws: int = 4, batch_size: int = 64, max_windows: int = 0):
    """Scores every window of a split `draws` times (once if the objective is exact).

    `max_windows` limits the split to its first windows, 0 means all. The standard error is that of
    the Monte-Carlo average: windows are scored in batches, and each batch's spread over the draws
    adds its share. It does not speak of the choice of the split, and is 0 for an exact score.
    """
    for name, value in (("draws", draws), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"evaluators.{name} must be at least 1, got {value}")
    if max_windows < 0:
        raise ValueError(f"evaluators.max_windows must be 0 (all) or more, got {max_windows}")
    if batch_size % 2:
        raise ValueError(f"evaluators.batch_size must be even, got {batch_size}")

    def evaluate(run) -> dict:
        """One row of results for an `evaluate.Run`."""
        data, windows = run.data, run.data.windows(split)
        number = min(max_windows or len(windows.tokens), len(windows.tokens))
        batches = -(-number // batch_size)
        repeats = 1 if run.objective.exact else draws
        nats = np.zeros((repeats, batches))
        for draw in range(repeats):
            for index, batch in zip(range(batches), run.batches(split, batch_size), strict=False):
                key = keys.stream(run.seed, f"likelihood {split}", draw * batches + index)
                nats[draw, index] = run.weighted_nll(batch, key, number - index * batch_size)
        tokens = number * data.length
        chars = int(data.tokenizer.token_chars[windows.tokens[:number]].sum())
        error = math.sqrt((nats.var(0, ddof=1) / repeats).sum()) if repeats > 1 else 0.0
        per_token = nats.sum() / repeats / tokens
        known = run.objective.exact or repeats > 1
        row = {
            "split": split,
            "bits_per_token": per_token / math.log(2),
            "bits_per_char": nats.sum() / repeats / math.log(2) / chars if chars else None,
            "nats_per_token": per_token,
            "standard_error": error / tokens if known else None,  # nats per token
            "kind": "exact" if run.objective.exact else "upper bound",
            "draws": repeats,
            "windows": number,
            "tokenizer": f"{data.tokenizer.name}-{data.vocab_size}-{data.tokenizer.fingerprint}",
            "data": windows.fingerprint,
        }
        return row

    return evaluate

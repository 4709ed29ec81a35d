"""Evaluators, and what those that score the windows of a split share."""

import math
from typing import Any

import numpy as np


def check(*, batch_size: int, max_windows: int) -> None:
    """Raises ValueError for options that no evaluator of windows can have."""
    if batch_size < 1:
        raise ValueError(f"evaluators.batch_size must be at least 1, got {batch_size}")
    if max_windows < 0:
        raise ValueError(f"evaluators.max_windows must be 0 (all) or more, got {max_windows}")


def number_of_windows(run: Any, split: str, max_windows: int) -> int:
    """How many windows of a split are scored: the first `max_windows`, 0 means all."""
    number = len(run.data.windows(split).tokens)
    return min(max_windows or number, number)


def row(run: Any, split: str, number: int, nats: float) -> dict:
    """What every likelihood says of the first `number` windows, given the sum of their nats.

    `protocol` holds what two figures must share to be compared (compare.py). Windows do not
    overlap, and nothing is seen across their edges, so the stride is the context. Bits per
    character and byte are of the text that the windows hold, end tokens' bits included.
    """
    data, windows = run.data, run.data.windows(split)
    tokens = data.scored(split, number)
    bits = nats / math.log(2)
    score = {"split": split, "bits_per_token": bits / tokens}
    if data.shape:
        score["bits_per_dim"] = bits / tokens
    else:
        coder, shown = data.tokenizer, windows.tokens[:number]
        for unit, sizes in (("char", coder.token_chars), ("byte", coder.token_bytes)):
            size = int(sizes[shown].sum(dtype=np.int64))
            score[f"bits_per_{unit}"] = bits / size if size else None
        score["perplexity"] = math.exp(min(nats / tokens, 700))
    return score | {
        "nats_per_token": nats / tokens,
        "protocol": {
            "split": split,
            "windows": number,
            "context": data.length,
            "stride": data.length,
            "tokenizer": f"{data.tokenizer.name}-{data.vocab_size}-{data.tokenizer.fingerprint}",
            "data": windows.fingerprint,
            **data.protocol,
        },
    }

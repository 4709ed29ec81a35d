"""Evaluators, and what those that score the windows of a split share."""

import math


def check(*, batch_size: int, max_windows: int) -> None:
    if batch_size < 1:
        raise ValueError(f"evaluators.batch_size must be at least 1, got {batch_size}")
    if max_windows < 0:
        raise ValueError(f"evaluators.max_windows must be 0 (all) or more, got {max_windows}")


def number_of_windows(run, split: str, max_windows: int) -> int:
    """How many windows of a split are scored: the first `max_windows`, 0 means all."""
    number = len(run.data.windows(split).tokens)
    return min(max_windows or number, number)


def row(run, split: str, number: int, nats: float) -> dict:
    """What every likelihood says of the first `number` windows, given the sum of their nats."""
    data, windows = run.data, run.data.windows(split)
    tokens = data.scored(split, number)
    bits = nats / math.log(2)
    score = {"split": split, "bits_per_token": bits / tokens}
    if data.shape:
        score["bits_per_dim"] = bits / tokens
    else:
        chars = int(data.tokenizer.token_chars[windows.tokens[:number]].sum())
        score["bits_per_char"] = bits / chars if chars else None
    return score | {
        "nats_per_token": nats / tokens,
        "windows": number,
        "tokenizer": f"{data.tokenizer.name}-{data.vocab_size}-{data.tokenizer.fingerprint}",
        "data": windows.fingerprint,
    }

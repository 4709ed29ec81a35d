"""A source with known probabilities: a Markov chain over a few symbols, drawn from a seed.

What a model writes can then be judged by its true log-likelihood instead of by another model. The
chain has V states; given the last `order` tokens the next is drawn from a row of a table, Dirichlet
with `concentration` (smaller: more regular) mixed with 1 % of the uniform distribution, so that no
text has probability 0. The first `order` tokens of a window are uniform.
"""

import math

import numpy as np

from diffusion_lm.data import text, tokenizers

NOISE = 0.01
SYMBOLS = "abcdefghijklmnopqrstuvwxyz"


def make(
    *,
    vocab_size: int = 16,
    order: int = 2,
    concentration: float = 0.1,
    length: int = 64,
    train_windows: int = 20_000,
    other_windows: int = 1_000,
    source_seed: int = 0,
) -> text.TextData:
    """Independent windows of `length` tokens; `other_windows` of them for each of valid and test.

    Tokens are shown as letters; the last is the tokenizer's end of text, here a symbol like others.
    """
    if not 2 <= vocab_size <= len(SYMBOLS) + 1:
        raise ValueError(f"data.vocab_size must lie in 2..{len(SYMBOLS) + 1}, got {vocab_size}")
    if not 1 <= order <= 3:
        raise ValueError(f"data.order must be 1, 2 or 3, got {order}")
    if length <= order:
        raise ValueError(f"data.length must be more than data.order {order}, got {length}")
    if not concentration > 0:
        raise ValueError(f"data.concentration must be positive, got {concentration}")
    for name, given in (("train_windows", train_windows), ("other_windows", other_windows)):
        if given < 1:
            raise ValueError(f"data.{name} must be at least 1, got {given}")
    if source_seed < 0:
        raise ValueError(f"data.source_seed must not be negative, got {source_seed}")
    rng = np.random.default_rng(source_seed)
    table = rng.dirichlet(np.full(vocab_size, concentration), size=(vocab_size,) * order)
    table = (1 - NOISE) * table + NOISE / vocab_size
    coder = tokenizers.load(name="characters", alphabet=SYMBOLS[: vocab_size - 1])
    ones = np.ones(vocab_size, np.int32)  # here the end token is a symbol like others
    coder = coder._replace(token_chars=ones, token_bytes=ones)
    sizes = {"train": train_windows, "valid": other_windows, "test": other_windows}
    splits = {
        name: text.cut(draw(table, number, length, rng).reshape(-1), number, coder, length)
        for name, number in sizes.items()
    }
    facts = {"documents": "independent windows of a Markov chain", "counted": "every token"}
    return text.TextData(vocab_size, length, coder, splits, source=table, protocol=facts)


def draw(table: np.ndarray, number: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """`number` windows from P(next | last tokens), f64[V, ..., V]: uint16[number, length]."""
    order, vocab_size = table.ndim - 1, table.shape[-1]
    x = np.zeros((number, length), np.uint16)
    x[:, :order] = rng.integers(0, vocab_size, (number, order))
    upto = table.cumsum(-1)
    upto[..., -1] = 1  # what rounding left
    for n in range(order, length):
        rows = upto[tuple(x[:, n - order : n].T)]
        x[:, n] = (rng.random((number, 1)) > rows).sum(1)
    return x


def log_prob(table: np.ndarray, x: np.ndarray) -> np.ndarray:
    """True log-probabilities in nats of windows int[N, L] under a table: f64[N]."""
    order, vocab_size = table.ndim - 1, table.shape[-1]
    x = np.asarray(x, np.int64)
    each = [np.log(table[tuple(x[:, n - order : n + 1].T)]) for n in range(order, x.shape[1])]
    return np.sum(each, axis=0) - order * math.log(vocab_size)


def entropy(table: np.ndarray, length: int) -> float:
    """The entropy of a window in nats."""
    order, vocab_size = table.ndim - 1, table.shape[-1]
    total, context = order * math.log(vocab_size), np.full(table.shape[:-1], vocab_size**-order)
    of_row = -(table * np.log(table)).sum(-1)
    for _ in range(order, length):
        total += (context * of_row).sum()
        context = (context[..., None] * table).sum(0)
    return float(total)


def tuples(table: np.ndarray, length: int) -> np.ndarray:
    """The law of order + 1 adjacent tokens at a uniform place of a window: f64[V, ..., V]."""
    context = np.full(table.shape[:-1], 1 / table[..., 0].size)
    mean = np.zeros_like(table)
    for _ in range(length - context.ndim):
        joint = context[..., None] * table
        mean += joint / (length - context.ndim)
        context = joint.sum(0)
    return mean

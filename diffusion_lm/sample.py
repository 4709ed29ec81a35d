"""Texts from a model: prompts with [MASK:n] spans, batches of samples, one seed a sample."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_lm import build, keys, parallel
from diffusion_lm.types import Params, Sampler

SPAN = re.compile(r"\[MASK:(\d+)\]")


class Prompt(NamedTuple):
    """tokens, free: [L]; the model fills `free` positions; `used` positions make up the text."""

    tokens: np.ndarray
    free: np.ndarray
    used: int


def encode_prompt(text: str, data, *, ordered: bool) -> Prompt:
    """A prompt with spans "[MASK:n]" of n tokens to fill; without a span, the text is continued to
    the model's length. Positions after an infilled text stay unknown to the model.

    `ordered` models write left to right, so for them a span must end the prompt.
    """
    mask, length = data.vocab_size, data.length
    pieces = SPAN.split(text)  # text, n, text, n, ..., text
    tokens: list[int] = []
    free: list[bool] = []
    for index, piece in enumerate(pieces):
        if index % 2:
            if int(piece) < 1:
                raise ValueError(f"a span must hold at least one token, got [MASK:{piece}]")
            tokens += [mask] * int(piece)
            free += [True] * int(piece)
        elif piece:
            ids = data.tokenizer.encode(piece)
            tokens += ids.tolist()
            free += [False] * len(ids)
    if len(tokens) > length:
        raise ValueError(f"the prompt has {len(tokens)} tokens, the model holds {length}")
    if len(pieces) == 1:
        if len(tokens) == length:
            raise ValueError(f"the prompt fills all {length} tokens, nothing is left to write")
        rest = length - len(tokens)
        tokens, free = tokens + [mask] * rest, free + [True] * rest
    if ordered and False in free[free.index(True) :]:
        raise ValueError(
            "an autoregressive model cannot fill a span with text behind it; put [MASK:n] last, or "
            "use a diffusion model"
        )
    used, rest = len(tokens), length - len(tokens)
    return Prompt(np.array(tokens + [mask] * rest, np.int32), np.array(free + [False] * rest), used)


def compiled(sampler: Sampler, mesh: Mesh) -> Callable:
    """The jitted sampler; its samples are whole on every process."""
    return jax.jit(sampler.sample, out_shardings=parallel.replicated(mesh))


def samples(
    parts: build.Parts,
    params: Params,
    sampler: Callable,
    *,
    num: int,
    seed: int,
    prompt: str = "",
    batch_size: int = 16,
) -> Iterator[dict]:
    """An iterator of {"index", "seed", "text", "calls"}, one for each of `num` samples.

    A sample's noise is a function of (seed, its index) alone: the same text in any batch.
    `sampler` is a `compiled` one; it compiles when the first sample is asked for. Raises ValueError
    for a prompt that the model cannot serve.
    """
    if num < 1:
        raise ValueError(f"the number of samples must be at least 1, got {num}")
    data = parts.data
    asked = encode_prompt(prompt, data, ordered=parts.objective.process is None)
    size = min(batch_size, num)

    def draw():
        tokens_BL = jnp.tile(asked.tokens[None], (size, 1))
        free_BL = jnp.tile(asked.free[None], (size, 1))
        for start in range(0, num, size):
            index_B = start + jnp.arange(size, dtype=jnp.int32)
            keys_B = keys.rows(keys.stream(seed, "sample"), index_B)
            out = sampler(params, keys_B, tokens_BL, free_BL)
            for row, tokens in enumerate(np.asarray(out.tokens)[: num - start]):
                text = data.tokenizer.decode(tokens[: asked.used])
                yield {"index": start + row, "seed": seed, "text": text, "calls": int(out.calls)}

    return draw()

"""Samples from a model: prompts with [MASK:n] spans, blocks, batches, one seed a sample."""

import itertools
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_lm import build, keys, parallel
from diffusion_lm.data import pictures
from diffusion_lm.types import Array, Data, Params, Sampler, Samples

SPAN = re.compile(r"\[MASK:(\d+)\]")


class Prompt(NamedTuple):
    """tokens, free: [N]; the model fills `free` positions of a text of N tokens."""

    tokens: np.ndarray
    free: np.ndarray


class Step(NamedTuple):
    """What a step changed in a text; steps that change nothing are left out."""

    places: np.ndarray  # int[n]
    tokens: np.ndarray  # int[n], what stands there now
    prob: np.ndarray  # f32[n], of those that were drawn (see types.Trace), NaN for noise and masks
    effective: float  # the effective sample size where it chose among candidates, else NaN


def encode_prompt(text: str, data: Data, *, length: int, ordered: bool) -> Prompt:
    """A prompt with spans "[MASK:n]" of n tokens to fill; without a span, the text is continued to
    `length` tokens.

    `ordered` models write left to right, so for them a span must end the prompt.
    """
    mask = data.vocab_size
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
        raise ValueError(
            f"the prompt has {len(tokens)} tokens, the text to write {length}; --length=N asks for "
            "a longer one"
        )
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
    return Prompt(np.array(tokens, np.int32), np.array(free))


def compiled(sampler: Sampler, mesh: Mesh, *, traced: bool = False) -> Callable:
    """The jitted sampler; its samples are whole on every process, with a trace if `traced`."""
    sample = partial(sampler.sample, traced=True) if traced else sampler.sample
    return parallel.jit(sample, mesh, out_shardings=parallel.replicated(mesh))


def steps_of(out: Samples, z_BL: np.ndarray, first: int) -> list[list[Step]]:
    """The steps of each row from a trace; `z_BL` is the text before, whose first position stands at
    `first` in the whole one. Noise that is not the mask is a step of its own, before the others."""
    trace = jax.tree.map(np.asarray, out.trace)
    tokens_TBL = np.concatenate([z_BL[None], trace.start[None], trace.tokens])
    prob_TBL = np.pad(trace.prob, ((1, 0), (0, 0), (0, 0)), constant_values=np.nan)
    effective_TB = np.full(prob_TBL.shape[:2], np.nan)
    if out.effective is not None:
        effective_TB[1:] = out.effective
    hit_TBL = (tokens_TBL[1:] != tokens_TBL[:-1]) | ~np.isnan(prob_TBL)

    def step(t, row):
        (at,) = np.nonzero(hit_TBL[t, row])
        return Step(
            first + at, tokens_TBL[t + 1, row, at], prob_TBL[t, row, at], effective_TB[t, row]
        )

    some_TB = hit_TBL.any(-1)
    return [[step(t, row) for t in np.flatnonzero(some_TB[:, row])] for row in range(len(z_BL))]


def in_blocks(
    sampler: Callable,
    params: Params,
    keys_B: Array,
    prompt: Prompt,
    *,
    window: int,
    block: int,
    mask: int,
    cond: dict | None,
) -> Samples:
    """Fills a text of any length, `block` tokens at a time from the left (semi-autoregressive).

    The model sees a window of `window` tokens that ends with the block, or, where given tokens
    follow, has the block in its middle (as far as the text goes). In it, what is given or was
    written before is a condition; what comes after the block and is not given stays unknown. So
    with an exact model the law is that of p(block | window) in turn.
    Returns Samples with tokens [B, N]; all blocks run the same compiled program. The trace of a
    `sampler` with traces is a list for each row, of its Steps in the whole text.
    """
    size, length = keys_B.shape[0], len(prompt.tokens)
    tokens_BN, calls, effective = np.tile(prompt.tokens, (size, 1)), 0, []
    steps: Any = None  # list[list[Step]], if there are traces
    for number, start in enumerate(range(0, length, block)):
        free = prompt.free & (np.arange(length) >= start) & (np.arange(length) < start + block)
        if not free.any():
            continue
        end = min(start + block, length)
        ahead = 0 if prompt.free[end:].all() else (window - block) // 2
        first = max(0, min(end + ahead, length) - window)
        shown = slice(first, min(first + window, length))
        padding = window - (shown.stop - shown.start)
        z_BL = np.pad(tokens_BN[:, shown], ((0, 0), (0, padding)), constant_values=mask)
        free_BL = np.tile(np.pad(free[shown], (0, padding)), (size, 1))
        keys_i = keys.rows_fold(keys_B, number)
        out = sampler(params, keys_i, jnp.asarray(z_BL), jnp.asarray(free_BL), cond)
        tokens_BN[:, shown] = np.asarray(out.tokens)[:, : shown.stop - shown.start]
        calls += int(out.calls)
        if out.effective is not None:
            effective.append(np.asarray(out.effective))
        if out.trace is not None:
            new = steps_of(out, z_BL, first)
            steps = [[*a, *b] for a, b in zip(steps, new, strict=True)] if steps else new
    effective = np.concatenate(effective) if effective else None
    return Samples(tokens_BN, calls, effective, trace=steps)


def samples(
    parts: build.Parts,
    params: Params,
    sampler: Callable,
    *,
    num: int,
    seed: int,
    prompt: str = "",
    length: int = 0,
    block: int = 0,
    label: int | None = None,
    guidance: float | None = None,
    batch_size: int = 16,
) -> Iterator[dict]:
    """An iterator of {"index", "seed", "calls", "text"}, for images with their "tokens" int32[L],
    where steps choose among candidates "effective_sample_size", one for each step that does, and of
    a `sampler` with traces "prompt", a Prompt, and "steps", what became of it.

    A sample's noise is a function of (seed, its index) alone: the same in any batch. `sampler` is a
    `compiled` one; it compiles when the first sample is asked for. `length` is that of the text in
    tokens (0: the model's); `block` tokens are written at a time (0: all, or half of the model's
    length for a text that is longer than that). Raises ValueError for what the model cannot serve.
    """
    data, ordered = parts.data, "autoregressive" in parts.objective.families
    if num < 1:
        raise ValueError(f"the number of samples must be at least 1, got {num}")
    if length < 0 or block < 0:
        raise ValueError(f"--length and --block must not be negative, got {length} and {block}")
    if data.shape and (prompt or length or block):
        raise ValueError("--prompt, --length and --block are for text, this model makes images")
    if label is not None and not 0 <= label < data.classes:
        known = f"0 to {data.classes - 1}" if data.classes else "none: it was trained without"
        raise ValueError(f"--label={label}: the labels of this model are {known}")
    if guidance is not None and (label is None or ordered or "energy" in parts.objective.families):
        raise ValueError("--guidance needs a --label and a diffusion model without energies")
    if guidance is not None and not np.isfinite(guidance):
        raise ValueError(f"--guidance must be a number, got {guidance}")
    length = length or data.length
    block = block or (length if length <= data.length else max(1, data.length // 2))
    if block > data.length:
        raise ValueError(f"--block={block} is more than the model holds, {data.length} tokens")
    asked = encode_prompt(prompt, data, length=length, ordered=ordered)
    size = min(batch_size, num)
    cond = None if label is None else {"label": jnp.full(size, label, jnp.int32)}
    if guidance is not None:
        cond["guidance"] = jnp.float32(guidance)

    def draw():
        for start in range(0, num, size):
            index_B = start + jnp.arange(size, dtype=jnp.int32)
            keys_B = keys.samples(seed, index_B)
            out = in_blocks(
                sampler,
                params,
                keys_B,
                asked,
                window=data.length,
                block=block,
                mask=data.vocab_size,
                cond=cond,
            )
            for row, tokens in enumerate(out.tokens[: num - start]):
                text = data.tokenizer.decode(tokens)
                made = {"index": start + row, "seed": seed, "text": text, "calls": out.calls}
                if out.effective is not None:
                    sizes = out.effective[:, row]
                    made["effective_sample_size"] = [round(float(n), 3) for n in sizes[sizes > 0]]
                if out.trace is not None:
                    made |= {"prompt": asked, "steps": out.trace[row]}
                yield {**made, "tokens": tokens} if data.shape else made

    return draw()


def save_images(data: Data, drawn: list[dict], folder: str, stem: str) -> str:
    """Writes samples as one grid, folder/samples/stem.png or, if there is one, stem-2.png and so
    on; returns the path."""
    folder = os.path.join(folder, "samples")
    os.makedirs(folder, exist_ok=True)
    tokens = np.stack([made["tokens"] for made in drawn])
    for number in itertools.count(1):
        path = os.path.join(folder, f"{stem}{f'-{number}' if number > 1 else ''}.png")
        try:
            pictures.save_grid(path, tokens, data.shape, data.vocab_size)
            break
        except FileExistsError:
            continue
    return path

"""From sources to targets: lengths x noises in one batch of candidates, and the choice of one."""

import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_lm import keys, parallel
from diffusion_lm.evaluators.translation import check_packages, sentence_bleu
from diffusion_lm.types import Data, Objective, Params, Sampler

CHOICES = ("model", "mbr", "ar", "energy")


class Settings(NamedTuple):
    """The section `decoding` of a config, see `settings`."""

    length_beam: int
    noise_beam: int
    choice: str
    reranker: str | None


class Reranker(NamedTuple):
    """An autoregressive model of the same pairs."""

    objective: Objective
    params: Params


class Translation(NamedTuple):
    """What was written for one source."""

    text: str
    candidates: list[str]  # all, the chosen one among them
    calls: int  # network calls of the batch that it was in
    protocol: dict  # how it was made, the same for all


def settings(
    *,
    length_beam: int = 1,
    noise_beam: int = 1,
    choice: str = "model",
    reranker: Objective | None = None,
) -> Settings:
    """How a target is decoded: `length_beam` likeliest lengths, each with `noise_beam` noises, make
    the candidates. Of these is taken, by `choice`,

      model   the one with the largest log-probability a token under the model itself
      mbr     the one with the largest mean sentence BLEU against the others (minimum Bayes risk)
      ar      the one with the largest log-probability a token under `reranker`, the folder of an
              autoregressive run on the same pairs
      energy  one drawn with weights exp(-E), E = -log p_reranker + log p_model, which is EDLM's
              autoregressive energy (arXiv 2410.21357); meant for candidates that are drawn, not
              the likeliest
    """
    for name, value in (("length_beam", length_beam), ("noise_beam", noise_beam)):
        if value < 1:
            raise ValueError(f"decoding.{name} must be at least 1, got {value}")
    if choice not in CHOICES:
        raise ValueError(f"unknown decoding.choice {choice!r}; choices: {', '.join(CHOICES)}")
    if choice == "mbr":
        check_packages("decoding.choice 'mbr'")
    if (choice in ("ar", "energy")) != (reranker is not None):
        raise ValueError(
            f"decoding.reranker, the folder of an autoregressive run, goes with decoding.choice "
            f"'ar' or 'energy'; got choice {choice!r}, reranker {reranker!r}"
        )
    # names.py sees by the type that the option is the folder of a run
    return Settings(length_beam, noise_beam, choice, reranker)  # type: ignore[arg-type]


def translator(
    objective: Objective,
    sampler: Sampler,
    data: Data,
    options: Settings,
    reranker: Reranker | None,
    facts: dict,
    *,
    abstract: Params = None,
    mesh: Mesh | None = None,
) -> Callable[..., Iterator[Translation]]:
    """(params, src int[N, S], *, seed, batch_size) -> an iterator of N Translations, in order.

    What is drawn for a source depends on (seed, its place in src) alone. `facts` go into the
    protocol of each; `abstract` are the shapes of the parameters; candidates are spread over the
    devices of `mesh`. Raises ValueError for what does not go together.
    """
    ordered = objective.lengths is None
    if ordered and options.length_beam > 1:
        raise ValueError(
            f"decoding.length_beam={options.length_beam}: an autoregressive model ends its targets "
            "itself; decoding.noise_beam draws several"
        )
    if options.length_beam >= data.length:
        raise ValueError(
            f"decoding.length_beam={options.length_beam}, but targets have 1 to {data.length - 1} "
            "tokens"
        )
    number = options.length_beam * options.noise_beam
    protocol = {"candidates": number, **options._asdict(), **facts}

    shards = 1 if mesh is None else parallel.batch_shards(mesh)

    def spread(a):
        if mesh is None:
            return a
        return jax.lax.with_sharding_constraint(a, parallel.batch_sharding(mesh))

    def lengths_of(params, src_BS):
        """The likeliest lengths, int32[B, length_beam]."""
        return jax.lax.top_k(objective.lengths(params, src_BS), options.length_beam)[1]

    def candidates(params, key, row_B, src_BS):
        """Samples of B x number rows, the candidates of a source one after the other."""
        src_RS = spread(jnp.repeat(src_BS, number, axis=0))
        row_R = spread((row_B[:, None] * number + jnp.arange(number)).reshape(-1))
        prompt_RL = jnp.full((len(src_RS), data.length), data.tokenizer.end)
        free_RL, cond = jnp.ones(prompt_RL.shape, bool), {"src": src_RS}
        if not ordered:
            length_BN = jnp.repeat(lengths_of(params, src_BS), options.noise_beam, axis=1)
            cond["length"] = length_BN.reshape(-1)
            free_RL = jnp.arange(data.length) < cond["length"][:, None]
        out = sampler.sample(params, keys.rows(key, row_R), prompt_RL, free_RL, cond)
        if out.score is None:
            if number > 1 and options.choice in ("model", "energy"):
                raise ValueError(
                    f"decoding.choice {options.choice!r} wants a sampler that scores what it "
                    "writes: routing, gaussian, autoregressive; or choose 'mbr' or 'ar'"
                )
            out = out._replace(score=jnp.zeros(len(src_RS)))
        return out

    def judged(params, x_RL, src_BS):
        """log p(x | src) under the reranker, f32[R] nats."""
        batch = {"x": spread(x_RL), "src": spread(jnp.repeat(src_BS, number, axis=0))}
        return -reranker.objective.token_nll(params, batch).sum(1)

    key, row_B = jax.random.key(0), jnp.zeros(shards, jnp.int32)
    src_BS = jnp.zeros((shards, data.source_length), jnp.int32)
    jax.eval_shape(candidates, abstract, key, row_B, src_BS)  # raises before anything is trained
    whole = None if mesh is None else parallel.replicated(mesh)
    candidates = jax.jit(candidates, out_shardings=whole)
    judged = jax.jit(judged, out_shardings=whole)

    def run(params, src_NS, *, seed: int, batch_size: int):
        key = keys.stream(seed, "translate")
        size = -(-min(batch_size, len(src_NS)) // shards) * shards
        for start in range(0, len(src_NS), size):
            src = np.asarray(src_NS[start : start + size], np.int32)
            filled = np.pad(src, ((0, size - len(src)), (0, 0)))
            row_B = jnp.arange(start, start + size, dtype=jnp.int32)
            out = candidates(params, key, row_B, filled)
            tokens = np.asarray(out.tokens).reshape(size, number, -1)
            sizes = np.cumprod(tokens != data.tokenizer.end, axis=-1).sum(-1)
            ended = np.minimum(sizes + 1, data.length)  # with the end, where there is room for it
            own = np.asarray(out.score, np.float64).reshape(size, number)
            calls, others, counts = int(out.calls), own, ended if ordered else sizes
            if reranker is not None:
                calls, counts = calls + 1, ended
                others = np.asarray(judged(reranker.params, out.tokens, filled), np.float64)
                others = others.reshape(size, number)
            for row in range(len(src)):
                texts = [data.text_of(candidate) for candidate in tokens[row]]
                rng = np.random.default_rng((seed, start + row))
                best = choose(options.choice, texts, own[row], others[row], counts[row], rng)
                yield Translation(texts[best], texts, calls, protocol)

    return run


def choose(
    choice: str,
    texts: list[str],
    own: np.ndarray,
    others: np.ndarray,
    counts: np.ndarray,
    rng: np.random.Generator,
) -> int:
    """Which candidate is taken; `own` and `others` are log-probabilities [number] under the model
    and the reranker, `counts` the tokens that these are of."""
    if len(texts) == 1:
        return 0
    if choice == "mbr":
        return int(np.argmax(mutual_bleu(texts)))
    if choice == "energy":
        weight = np.exp(others - own - (others - own).max())
        return int(rng.choice(len(texts), p=weight / weight.sum()))
    return int(np.argmax((others if choice == "ar" else own) / counts))


def mutual_bleu(texts: list[str]) -> list[float]:
    """The mean sentence BLEU of each text against each other one."""
    scores = {(a, b): sentence_bleu(a, [b]) for a in set(texts) for b in set(texts)}
    return [
        statistics.fmean(scores[text, other] for j, other in enumerate(texts) if j != i)
        for i, text in enumerate(texts)
    ]


def samples(
    run: Callable, params: Params, data: Data, sources: list[str], *, seed: int
) -> Iterator:
    """An iterator of {"index", "seed", "source", "text", "calls", "candidates"}, one a source.

    Raises ValueError, before anything is drawn, for a source that cannot be read.
    """
    src = np.stack([data.encode_source(text) for text in sources])

    def row(index: int, made: Translation) -> dict:
        about = {"index": index, "seed": seed, "source": sources[index], "text": made.text}
        return about | {"calls": made.calls, "candidates": made.candidates}

    return itertools.starmap(row, enumerate(run(params, src, seed=seed, batch_size=16)))

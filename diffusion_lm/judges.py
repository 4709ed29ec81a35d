"""What gives texts their exact probability: an autoregressive run, or the source of the data."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion_lm import parallel
from diffusion_lm.data import markov, tokenizers
from diffusion_lm.types import Data, Judge, Objective, Params


def source(option: str, data: Data) -> Judge:
    """The known probabilities that the data were drawn from."""
    if getattr(data, "source", None) is None:
        raise ValueError(
            f"{option}: 'source' wants data with known probabilities (config.data.name 'markov'); "
            "for others give the folder of an autoregressive run"
        )

    def score(tokens, batch_size):
        return -markov.log_prob(data.source, tokens), np.full(len(tokens), tokens.shape[1])

    return Judge(
        score,
        {
            "judge": "source",
            "judge_tokenizer": name(data),
            "judge_context": "all",
            "judge_dtype": "float64",
            "first_token": "judged, uniform by the source",
            "retokenized": False,
        },
    )


def run(
    option: str,
    objective: Objective,
    params: Callable[[], Params],
    mesh: Mesh,
    reads: Data,
    data: Data,
    facts: dict,
) -> Judge:
    """An exact objective with what `params()` returns when it is first asked. `reads` is the data
    set that it was trained on, `data` that of the model it judges, `facts` go into the protocol.

    Where the tokenizers are one, the judge gets the tokens as they are; else their text in its own.
    A text longer than its context is cut into chunks that are judged independently of each other.
    """
    if reads.shape or reads.of_sources or reads.classes:
        raise ValueError(f"{option}: the run in {facts['judge']!r} is no model of text alone")
    own, theirs = data.tokenizer, reads.tokenizer
    same = own.fingerprint == theirs.fingerprint
    if not same:
        try:  # now, and not when the first sample is written
            retokenized(np.arange(data.vocab_size), own, theirs)
        except ValueError as error:
            raise ValueError(
                f"{option}: the tokenizer of {facts['judge']!r} ({theirs.name}) cannot write all "
                f"that this model ({own.name}) can: {error}"
            ) from None
    loaded = functools.cache(params)
    whole = parallel.replicated(mesh)
    token_nll, features_of = (
        parallel.jit(function, mesh, out_shardings=whole)
        for function in (objective.token_nll, objective.features)
    )

    def read(tokens):
        return [np.asarray(x) if same else retokenized(x, own, theirs) for x in tokens]

    def over(function, batch_size: int, **columns) -> np.ndarray:
        """f64[M, ...], the rows of function(params, batch), `batch_size` at a time."""
        out = []
        for start in range(0, len(columns["x"]), batch_size):
            part = {name: rows[start : start + batch_size] for name, rows in columns.items()}
            size = len(part["x"])
            fill = {k: np.repeat(rows[:1], batch_size - size, axis=0) for k, rows in part.items()}
            batch = {name: np.concatenate([part[name], fill[name]]) for name in part}
            batch = jax.device_put(batch, parallel.batch_sharding(mesh))
            out.append(np.asarray(function(loaded(), batch), np.float64)[:size])
        return np.concatenate(out)

    def score(tokens, batch_size):
        texts = read(tokens)
        x_ML, counted_ML, owner_M = chunks(texts, reads.length, theirs.end)
        nats_M = np.where(counted_ML, over(token_nll, batch_size, x=x_ML), 0).sum(1)
        return np.bincount(owner_M, nats_M), np.array([len(text) for text in texts])

    def features(tokens, batch_size):
        """Of the first tokens of each text, as many as the context holds."""
        texts = [text[: reads.length] for text in read(tokens)]
        x_NL, there_NL, _ = chunks(texts, reads.length, theirs.end)
        return over(features_of, batch_size, x=x_NL, last=there_NL.sum(1) - 1)

    return Judge(
        score,
        facts
        | {
            "judge_tokenizer": name(reads),
            "judge_context": reads.length,
            "longer_texts": "cut into chunks of the context, judged independently",
            "first_token": "judged, after an end token",
            "retokenized": not same,
        }
        | ({} if same else {"unwritable": "characters that the judge has no tokens for as U+FFFD"}),
        features,
    )


def name(data: Data) -> str:
    """The tokenizer of a data set, its size and the hash of what it does."""
    return f"{data.tokenizer.name}-{data.vocab_size}-{data.tokenizer.fingerprint}"


def retokenized(
    tokens_L: np.ndarray, own: tokenizers.Tokenizer, theirs: tokenizers.Tokenizer
) -> np.ndarray:
    """The text of tokens in another tokenizer; an end token stays one, and is not spelt out.
    Characters that it has no tokens for, such as SmolLM2's for rare bytes, become U+FFFD. Raises
    ValueError if there are any and it has none for this either."""
    pieces: list = []
    for piece in np.split(np.asarray(tokens_L), np.flatnonzero(tokens_L == own.end)):
        if len(piece) and piece[0] == own.end:
            pieces.append([theirs.end])
            piece = piece[1:]
        text = own.decode(piece)
        if not _writes(theirs, text):
            known = {c: c if _writes(theirs, c) else "\ufffd" for c in set(text)}
            text = "".join(known[c] for c in text)
        pieces.append(theirs.encode(text))
    return np.concatenate(pieces).astype(np.int32)


def _writes(coder, text: str) -> bool:
    try:
        coder.encode(text)
    except ValueError:
        return False
    return True


def chunks(
    texts: list[np.ndarray], context: int, fill: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens int32[M, C], which are there bool[M, C], whose they are int[M]) of texts cut into
    chunks of at most `context` tokens. C is a power of two or the context, so that few programs are
    compiled; a causal judge does not see the filling behind a text."""
    longest = max(len(text) for text in texts)
    width = min(context, 1 << (longest - 1).bit_length())
    cut = [
        (owner, text[start : start + width])
        for owner, text in enumerate(texts)
        for start in range(0, len(text), width)
    ]
    x_MC = np.full((len(cut), width), fill, np.int32)
    there_MC = np.zeros(x_MC.shape, bool)
    for row, (_, part) in enumerate(cut):
        x_MC[row, : len(part)] = part
        there_MC[row, : len(part)] = True
    return x_MC, there_MC, np.array([owner for owner, _ in cut])

"""The contracts that every part of the package keeps, as plain NamedTuples of pure functions.

Alphabet of shapes: B batch, L length, V vocabulary, D width, H heads. Times run from t=0 (data) to
t=1 (noise), s < t. Losses are in nats per example.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

Array: TypeAlias = jax.Array
Params = Any
Data = Any  # what make of a module in data/ returns: text.TextData or what has its fields
BATCH_AXES = ("data", "fsdp")  # the axes of a mesh over which the rows of a batch are spread
# A batch is a dict of arrays with a leading axis B. "x": int32[B, L] tokens; "row": int32[B], the
# example's place in the global batch; "slot": float32[B], that place divided by the global batch
# size; with classes, "label": int32[B]; of pairs, "src": int32[B, S], the source of each "x", both
# filled up with their end tokens, which are nowhere else. All noise is a function of a key and of
# these, so it does not depend on devices, microbatches or processes.
Batch = dict[str, Array]


class Ratio(NamedTuple):
    """A mean kept as (sum, count): added up over microbatches, devices, hosts; divided once."""

    sum: Array
    count: Array


class LossOutput(NamedTuple):
    """What a loss returns. Training minimises sum(loss) / sum(tokens), in nats per token."""

    loss: Array  # f32[B] nats per example, unreduced; may be a surrogate (GenMD4, NCE)
    tokens: Array  # f32[B] how many tokens the loss of each example is spread over
    metrics: dict[str, Ratio]  # "nats_per_token" where the loss is a likelihood


class Schedule(NamedTuple):
    """A noise schedule; each member maps t[...] to an array of the same shape.

    `alpha` is P(token kept at t). `mask_prob` is 1 - alpha, computed without that subtraction.
    `dalpha` is d alpha / dt.
    """

    alpha: Callable[[Array], Array]
    mask_prob: Callable[[Array], Array]
    dalpha: Callable[[Array], Array]


class Process(NamedTuple):
    """A forward process on token sequences, and its exact posterior."""

    schedule: Schedule
    vocab_size: int  # V, the mask not counted
    mask: int | None  # id of the mask (V, one past the data), None if there is none
    corrupt: Callable[[Array, Array, Array], Array]  # (keys[B], x[B, L], t[B]) -> z[B, L]
    posterior: Callable[..., Array]  # (z, x, t, s) -> P(z_s | z_t, x), f32[B, L, V (+ 1)]
    prior: Callable[..., Array]  # (keys[B], length) -> z_1[B, L]


class Network(NamedTuple):
    """A network as pure functions. The head stands apart so that a loss can ask for chosen rows."""

    init: Callable[..., Params]  # (key) -> params
    # (params, tokens[B, L], t[B] | None, dropout keys[B] | None, given) -> h[B, L, D]; `given` is
    # what all is conditioned on: a Memory; or labels int32[B], of which the number of classes means
    # "unknown"; or None
    trunk: Callable[..., Array]
    head: Callable[..., Array]  # (params, h[..., D]) -> logits f32[..., V]
    # (params, cache, tokens[B], position, given) -> (logits f32[B, V], cache); causal ones only
    decode: Callable[..., tuple[Array, Any]] | None = None
    cache: Callable[..., Any] | None = None  # (batch, length) -> an empty cache for `decode`
    # (params, src[B, S], dropout keys[B] | None) -> Memory; networks of pairs only
    encode: Callable[..., "Memory"] | None = None
    anneals: bool = False  # whether, in training, `given` is the steps done, int32[B], instead


class Memory(NamedTuple):
    """What a network of pairs makes of the sources, once for all that is predicted from them."""

    keys: Array  # f[layers, B, S, H, K]
    values: Array  # f[layers, B, S, H, K]
    shown: Array  # bool[B, S], false where the source is filled up
    length: Array | None  # f32[B, L], log p(length of the target); None in causal networks
    target: Array | None = None  # bool[B, L], false where the target is filled up; None: nowhere


class Objective(NamedTuple):
    """A training objective with its bound and what samplers need of it; pure functions."""

    init: Callable[..., Params]  # (key) -> params, a dict whose keys name its parts
    loss: Callable[..., LossOutput]  # (params, batch, key, *, train) -> LossOutput
    nll: Callable[..., Array] | None  # (params, batch, key) -> f32[B] nats per example
    # (params, cond) -> what samplers drive: a Denoiser, a Decoder if autoregressive, an Embedder.
    # cond is None; {"label": int32[B]}, with {"guidance": f32[]} for classifier-free guidance; or
    # {"src": int32[B, S], "length": int32[B]}, a source and how long its target is to be.
    predict: Callable[..., Any]
    process: Callable[[Params], Process] | None  # None for autoregressive models
    # what samplers can serve it (their SERVES): "masked", "score", "state_dependent", "energy",
    # "autoregressive", "multinomial", "gaussian"
    families: tuple[str, ...]
    exact: bool = False  # True if nll is -log p(x) itself, False if an upper bound in expectation
    token_nll: Callable[..., Array] | None = None  # (params, batch) -> f32[B, L], nll by tokens
    # (params, batch with "last" int[B]) -> f32[B, D], what it makes of x up to its last token
    features: Callable[..., Array] | None = None
    # (params, batch, key) -> {name: f32[B] nats per example}: "nll" and what to read beside it
    figures: Callable[..., dict[str, Array]] | None = None
    frozen: tuple[str, ...] = ()  # parts of params that come from other runs and are not trained
    start: Callable[[Params], Params] | None = (
        None  # what to make of params once these are in place
    )
    # (params, src[B, S]) -> log p(length of the target) f32[B, L]; None where the model itself ends
    lengths: Callable[..., Array] | None = None


class Denoiser(NamedTuple):
    """What a diffusion objective offers to samplers. The head stands apart, so that it runs only at
    positions that are asked for.
    """

    trunk: Callable[..., Any]  # (z[B, L], t[B]) -> h, a pytree of arrays [B, L, ...]
    # h at any positions, [..., ...] -> log p(x | z), f32[..., V]; of the family "masked"
    head: Callable[..., Array] | None
    calls: int = 1  # network calls that one trunk costs
    # (h, z[...], t[...]) at any positions -> log s, f32[..., V] or, with a mask, f32[..., V + 1]:
    # the log ratios of p_t with a position set to y to p_t as it is; 0 at y = z. Of the family
    # "score" only.
    score: Callable[..., Array] | None = None
    # (z[B, L], x[B, L], t[B], log mu(x | z) f32[B]) -> E(x, z, t) f32[B]: what the product of
    # predictions is corrected by, p(x | z) ~ mu(x | z) e^-E. Of the family "energy" only.
    energy: Callable[..., Array] | None = None


class Decoder(NamedTuple):
    """What an autoregressive objective offers to samplers: one token at a time, with a cache."""

    cache: Callable[..., Any]  # (batch, length) -> cache
    step: Callable[
        ..., tuple[Array, Any]
    ]  # (cache, token[B], position) -> (log p f32[B, V], cache)
    start: int  # the token that stands before the first one


class Embedder(NamedTuple):
    """What diffusion on embeddings offers to samplers: z_t = signal z_0 + noise eps, of width E."""

    # (z[B, L, E], before[B, L, E], t[B]) -> the prediction of z_0; `before` is an earlier one, or 0
    denoise: Callable[..., Array]
    log_prob: Callable[[Array], Array]  # z_0[..., E] -> log p(token) f32[..., V]
    levels: Callable[..., tuple[Array, Array]]  # (t, F) -> (signal, noise)
    factor: float  # F in training
    width: int  # E


class Trace(NamedTuple):
    """How samples came about, in T steps."""

    tokens: Array  # int32[T, B, L], the sequences after each step
    # f32[T, B, L], of each token that the step drew and left standing, its probability in the
    # prediction it was drawn from, before temperature and top_p; NaN elsewhere
    prob: Array
    start: Array  # int32[B, L], the sequences before the first step


class Samples(NamedTuple):
    """tokens: int32[B, L]; calls: int32[], how often a network ran on the whole batch; effective:
    f32[steps, B], the effective sample size of steps that choose among candidates, else NaN;
    score: f32[B], the model's own log-probability of what it wrote, in nats, where it has one;
    trace: if it was asked for."""

    tokens: Array
    calls: Array
    effective: Array | None = None
    score: Array | None = None
    trace: Trace | None = None


class Sampler(NamedTuple):
    """`sample(params, keys[B], prompt[B, L], free[B, L], cond=None, traced=False)` fills positions
    where `free` is true and leaves all others as they are: a token there is a condition, a mask
    there stays unknown, which for masked diffusion means that it is marginalised out. With
    `traced`, known when it is compiled, a sampler of tokens returns a trace; otherwise it costs
    nothing.
    """

    sample: Callable[..., Samples]


class Judge(NamedTuple):
    """What gives texts their exact probability."""

    # (tokens int[N, L] of the model that is judged, batch size) -> (-log p of each text in nats
    # f64[N], of how many of the judge's tokens int[N])
    score: Callable[..., tuple[Any, Any]]
    protocol: dict  # who it is and how it reads, for the log
    features: Callable[..., Any] | None = None  # (tokens, batch size) -> f32[N, D], for MAUVE


class Optimizer(NamedTuple):
    """An optax transformation and its learning rate as a function of the step, for the log."""

    transform: Any
    learning_rate: Callable[[Any], Any]


def ratio(values: Array, counts: Array | None = None) -> Ratio:
    """Ratio of the sums of two arrays; without counts, the mean of the first."""
    count = jnp.float32(values.size) if counts is None else counts.sum()
    return Ratio(values.sum(), count)

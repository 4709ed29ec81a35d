"""Starting a transformer as a bigram model instead of a uniform one.

Small budgets go mostly into learning which tokens neighbour each other. That can be counted: with
P[a, b] = max(0, log p(ab) / (p(a) p(b))) over adjacent tokens of the training split (positive
pointwise mutual information), and its truncated singular value decomposition P ~ U W^T, embeddings
and head are set so that the new network, whose layers start as the identity, predicts

    log p(v) + scale * (U[left] . W[v] + W[right] . U[v])      bidirectional, a mask counts as 0
    log p(v) + scale * U[last] . W[v]                          causal

up to its norms. `scale` is the best of a few on some training windows. Levy and Goldberg (2014,
"Neural word embedding as implicit matrix factorization") is where the factorisation comes from.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.experimental import multihost_utils
from scipy.sparse.linalg import svds

from diffusion_lm import keys
from diffusion_lm.types import Data, Objective, Params

MOST_TOKENS = 10_000_000  # counted at most; more change little
SCALES = (0.05, 0.1, 0.15, 0.2, 0.3)


def check(params: Params) -> None:
    """Raises ValueError if a network (given by its abstract parameters) cannot start this way."""
    if not {"embedding", "shift", "head"} <= set(params.get("network", {})):
        raise ValueError(
            "train.start 'bigram' needs a transformer with network.shift=True, network.tied=False"
        )


def start(params: Params, objective: Objective, data: Data, *, seed: int) -> Params:
    """Parameters with embeddings, shift and head replaced; numpy in, arrays laid out as before.

    `params["network"]` is a transformer's with `shift` (see `check`). One process computes, all
    others receive.
    """
    windows = data.windows("train").tokens
    network = params["network"]
    causal = objective.process is None
    width = network["embedding"].shape[1]
    vocab = data.vocab_size
    if jax.process_index() == 0:
        tokens = np.asarray(windows[: MOST_TOKENS // data.length]).reshape(-1)
        left, right = factors(tokens, vocab, width if causal else width // 2)
        counts = np.bincount(tokens, minlength=vocab) + 0.3
    else:
        rank = width if causal else width // 2
        left = right = np.zeros((vocab, rank), np.float32)
        counts = np.ones(vocab)
    if causal:
        embedding, head = left, right
        taps = np.array([0.0, 0.0, 1.0])[:, None] * np.ones(width)
    else:
        # The first half of the width carries the left neighbour, the second half the right one.
        embedding = np.concatenate([left, right], axis=1)
        head = np.concatenate([right, left], axis=1)
        half = np.arange(width) < width // 2
        taps = np.stack([half, np.ones(width), ~half])
    # Rows of unit mean square after the network's own scaling; rare tokens stay short.
    size = np.sqrt((embedding**2).mean(1, keepdims=True)) + 0.05
    full = np.zeros(network["embedding"].shape, np.float32)
    full[:vocab] = embedding / size / np.sqrt(width)
    new = {
        "embedding": full,
        "shift": {"taps": taps.astype(np.float32)},
        "head": {
            "kernel": np.ascontiguousarray(head.T, np.float32),
            # relative to the uniform distribution, which scores (SEDD) start from
            "bias": np.log(counts / counts.sum() * vocab).astype(np.float32),
        },
    }
    if jax.process_count() > 1:
        new = multihost_utils.broadcast_one_to_all(new)

    def place(value, old):
        return jax.make_array_from_callback(old.shape, old.sharding, lambda i: np.asarray(value)[i])

    for name, value in new.items():
        network = network | {name: jax.tree.map(place, value, network[name])}
    return _scaled(params | {"network": network}, objective, windows, seed)


def factors(tokens: np.ndarray, vocab: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """U, W: f32[V, rank] with U W^T the best fit to the positive PMI of adjacent tokens [n]."""
    a, b = tokens[:-1].astype(np.int64), tokens[1:].astype(np.int64)
    pairs, count = np.unique(a * vocab + b, return_counts=True)
    first, second = pairs // vocab, pairs % vocab
    # 0.5 and 5 damp pairs and tokens seen only a few times.
    seen = (np.bincount(a, minlength=vocab)[first] + 5.0) * (
        np.bincount(b, minlength=vocab)[second] + 5.0
    )
    pmi = np.maximum(np.log((count - 0.5) * len(a) / seen), 0).astype(np.float32)
    table = scipy.sparse.csr_matrix((pmi, (first, second)), shape=(vocab, vocab))
    table.eliminate_zeros()
    if not table.nnz:  # nothing but one token
        return np.zeros((vocab, rank), np.float32), np.zeros((vocab, rank), np.float32)
    rank_found = min(rank, vocab - 1)
    u, s, vt = svds(table, k=rank_found, v0=np.ones(vocab, np.float32))
    pad = ((0, 0), (0, rank - rank_found))
    return np.pad(u * np.sqrt(s), pad), np.pad(vt.T * np.sqrt(s), pad)


def _scaled(params, objective, windows, seed: int):
    """The head's kernel times the scale of SCALES that gives the lowest nll on 16 windows."""
    x = jnp.asarray(np.asarray(windows[:16]), jnp.int32)
    batch = keys.number({"x": jnp.tile(x, (-(-16 // len(x)), 1))[:16]})
    key = keys.stream(seed, "bigram")

    def with_scale(params, scale):
        head = params["network"]["head"]
        head = head | {"kernel": head["kernel"] * scale}
        return params | {"network": params["network"] | {"head": head}}

    score = jax.jit(lambda p, scale: objective.nll(with_scale(p, scale), batch, key).mean())
    best = min(SCALES, key=lambda scale: float(score(params, scale)))
    return with_scale(params, best)

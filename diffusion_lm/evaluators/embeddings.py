"""The health of Difformer's embeddings, and what the network leans on (arXiv 2212.09412).

Collapsed embeddings lie close to each other beside the noise, so that nothing can be told apart;
well parted ones, under little noise, are read off z_t without any source. Both show here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_lm import keys, parallel
from diffusion_lm.types import Embedder, Objective

TIMES = 16  # for the copy score, evenly spaced
TOKENS = 1000  # the first ones, for the copy score
ROWS = 32  # pairs, or 32 times as many embeddings, that are looked at together


def make(
    *, objective: Objective, split: str = "valid", max_pairs: int = 256
) -> Callable[..., dict]:
    """Measures on the embeddings of the target tokens that the training split holds, and on the
    first `max_pairs` pairs of `split`:

      mean_cosine        over all pairs of different tokens; 1 when collapsed
      nearest_distance   from z_0 to the nearest other z_0, mean over tokens, divided by F sqrt(D)
      effective_rank     exp(entropy) of the singular values of the centred table, of at most D
      norm               mean |E|; z_0 has sqrt(D) times that
      copy_score         how often the nearest signal z_0 to z_t is the answer already, t uniform
      accuracy           of the prediction at z_t with the right source, t uniform
      accuracy_with_wrong_source  with that of another pair: what is taken from z_t alone
    """
    if max_pairs < 1:
        raise ValueError(f"evaluators.max_pairs must be at least 1, got {max_pairs}")
    if "gaussian" not in objective.families:
        raise ValueError("the embeddings evaluator is for diffusion on embeddings: difformer")

    @jax.jit
    def hits(params, batch, key):
        return objective.loss(params, keys.number(batch), key, train=False).metrics["accuracy"]

    def accuracy(run, x, src):
        """Of all pairs, ROWS at a time; those that are left over at the end are left out."""
        key, total = keys.stream(run.seed, f"embeddings {split}"), np.zeros(2)
        rows = min(ROWS, len(x))
        for start in range(0, len(x) - rows + 1, rows):
            batch = {"x": x[start : start + rows], "src": src[start : start + rows]}
            found = hits(run.params, batch, jax.random.fold_in(key, start))
            total += float(found.sum), float(found.count)
        return float(total[0] / total[1])

    def evaluate(run) -> dict:
        data, pairs = run.data, run.data.windows(split)
        whole = jax.jit(lambda a: a, out_shardings=parallel.replicated(run.mesh))
        table = np.asarray(whole(run.params["network"]["embedding"]), np.float64)
        table = table[: data.vocab_size]
        seen = np.bincount(data.windows("train").tokens.reshape(-1), minlength=len(table)) > 0
        seen[data.tokenizer.end] = False
        cond = {
            "src": jnp.asarray(pairs.sources[:1], jnp.int32),
            "length": jnp.ones(1, jnp.int32),
        }
        model = objective.predict(run.params, cond)
        x, src = (np.asarray(a[:max_pairs], np.int32) for a in (pairs.tokens, pairs.sources))
        answer = x[x != data.tokenizer.end][:TOKENS]
        return {
            "kind": "embeddings",
            "split": split,
            **health(table[seen], model.factor),
            "copy_score": copied(table, answer, model, np.random.default_rng(run.seed)),
            "accuracy": accuracy(run, x, src),
            "accuracy_with_wrong_source": accuracy(run, x, np.roll(src, 1, axis=0))
            if len(src) > 1
            else None,
        }

    return evaluate


def health(table: np.ndarray, factor: float) -> dict[str, float]:
    """The first four figures of an embedding table f64[V, D], at least two rows."""
    number, width = table.shape
    length = np.linalg.norm(table, axis=1)
    unit = table / np.maximum(length, 1e-30)[:, None]
    nearest = np.empty(number)  # of z_0 it is sqrt(D) times that
    for start in range(0, number, 32 * ROWS):
        rows = slice(start, min(start + 32 * ROWS, number))
        square = length[rows, None] ** 2 + length**2 - 2 * table[rows] @ table.T
        square[np.arange(rows.stop - start), np.arange(start, rows.stop)] = np.inf
        nearest[rows] = np.sqrt(np.maximum(square.min(1), 0))
    singular = np.linalg.svd(table - table.mean(0), compute_uv=False)
    share = singular / max(singular.sum(), 1e-30)
    entropy = -(share * np.log(np.maximum(share, 1e-30))).sum()
    return {
        "mean_cosine": float(((unit.sum(0) ** 2).sum() - number) / (number * (number - 1))),
        "nearest_distance": float(nearest.mean() / factor),
        "effective_rank": float(np.exp(entropy)),
        "norm": float(length.mean()),
    }


def copied(
    table: np.ndarray, answer: np.ndarray, model: Embedder, rng: np.random.Generator
) -> float:
    """The copy score over tokens int[N], each seen at every one of TIMES times."""
    clean, hits = np.sqrt(table.shape[1]) * table, []
    for t in (np.arange(TIMES) + 0.5) / TIMES:
        signal, noise = (float(a) for a in model.levels(jnp.float32(t), model.factor))
        z = signal * clean[answer] + noise * rng.standard_normal((len(answer), table.shape[1]))
        # argmin |z - a z_0|^2, with |z|^2 left out
        square = signal**2 * (clean**2).sum(1) - 2 * signal * z @ clean.T
        hits.append((square.argmin(1) == answer).mean())
    return float(np.mean(hits))

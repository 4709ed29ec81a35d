"""How good and how varied samples are: perplexity under a judge against entropy, as a frontier.

Generative perplexity alone can be had for nothing: text that repeats itself is likely under any
judge. So it never stands here without the entropy of the same samples, without the same figures of
real text, and without a control, the sampler at a low temperature and few steps, which shows what
perplexity a collapse of the entropy would buy.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence

import numpy as np

from diffusion_lm import evaluators
from diffusion_lm.types import Data, Judge

AVERAGES = (
    "token_weighted: exp(nats of all / judged tokens of all); mean_over_sequences: of exp(nats / "
    "judged tokens) of each; entropy: nats, of the frequencies of tokens in a sample, mean"
)


def make(
    *,
    data: Data,
    samplers: Callable,
    judge: Judge,
    split: str = "valid",
    samples: int = 64,
    steps: tuple[int, ...] = (),
    temperatures: tuple[float, ...] = (1.0,),
    control_temperature: float = 0.3,
    seed: int = 0,
    batch_size: int = 16,
    mauve: bool = False,
) -> Callable[..., dict]:
    """Draws `samples` texts at every pair of `steps` and `temperatures` with the config's sampler.

    Without `steps` the sampler's own number, if it has one, without `temperatures` its own; then
    there is no control. `judge` is "source", the known probabilities of the data, or the folder of
    an autoregressive run, one of imported weights for example. The row holds one point a pair; the
    control, at `control_temperature` and the fewest steps; and as many windows of `split`, spread
    evenly over it. The samples are those that `--mode=sample --seed` writes, the same in batches of
    any size; only `calls`, of the network a batch, tells these apart. `mauve` adds that score of
    samples and windows by the judge's own features, so it compares only under one judge; it wants
    some thousand samples.
    """
    if data.shape or data.of_sources:
        raise ValueError("the generative evaluator needs a model of text")
    evaluators.check(batch_size=batch_size, max_windows=0)
    if samples < 2:
        raise ValueError(f"evaluators.samples must be at least 2, got {samples}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"evaluators.seed must lie in [0, 2^32), got {seed}")
    if mauve and judge.features is None:
        raise ValueError("evaluators.mauve wants a judge with features: the folder of a run")
    if mauve and importlib.util.find_spec("mauve") is None:
        raise ModuleNotFoundError(
            "evaluators.mauve wants the extra: pip install 'diffusion_lm[mauve]'"
        )
    asked = [("model", given) for given in grid(steps, temperatures)]
    if temperatures:
        asked += [("control", given) for given in grid(sorted(steps)[:1], [control_temperature])]
    made = [(of, *samplers(**given)) for of, given in asked]

    def point(of: str, tokens, real, **about) -> dict:
        nats, counts = judge.score(tokens, batch_size)
        row = {"of": of, **about, "samples": len(tokens), **likely(nats, counts), **varied(tokens)}
        if mauve and of != "data":
            row["mauve"] = mauve_of(*(judge.features(x, batch_size) for x in (real, tokens)))
        return row

    def evaluate(run) -> dict:
        """One row of results for an `evaluate.Run`."""
        windows, points = run.data.windows(split), []
        number = min(samples, len(windows.tokens))
        spread = np.arange(number) * len(windows.tokens) // number
        real = np.asarray(windows.tokens[spread], np.int32)
        for of, sampler, fields in made:
            drawn = run.draw(sampler, samples, seed=seed, batch_size=batch_size)
            about = {"steps": fields.get("num_steps"), "temperature": fields.get("temperature")}
            points.append(point(of, drawn.tokens, real, **about, calls=drawn.calls))
        points.append(point("data", real, real))
        kept = {k: v for k, v in made[0][2].items() if k not in ("num_steps", "temperature")}
        return {
            "kind": "generative",
            "sampler": kept.pop("name"),
            "sampler_options": kept,
            "seed": seed,
            "points": points,
            "protocol": {
                "split": split,
                "data": windows.fingerprint,
                "samples": samples,
                "length": data.length,
                **judge.protocol,
                "averages": AVERAGES,
            },
        }

    return evaluate


def grid(steps: Sequence[int], temperatures: Sequence[float]) -> list[dict]:
    """The fields of the sampler that are replaced, one dict a point."""
    return [
        {name: value for name, value in (("num_steps", n), ("temperature", t)) if value is not None}
        for n in steps or [None]
        for t in temperatures or [None]
    ]


def likely(nats_N: np.ndarray, counts_N: np.ndarray) -> dict:
    """Both perplexities of texts of so many nats and judged tokens, and the nats a token with the
    standard error over texts (of a ratio of means)."""
    total = counts_N.sum()
    mean = nats_N.sum() / total
    spread = ((nats_N - mean * counts_N) ** 2).sum() / (1 - 1 / len(nats_N))
    return {
        "perplexity_token_weighted": math.exp(min(mean, 700)),
        "perplexity_mean_over_sequences": float(np.exp(np.minimum(nats_N / counts_N, 700)).mean()),
        "nats_per_judged_token": float(mean),
        "standard_error": math.sqrt(spread) / float(total),  # of the nats a judged token
        "judged_tokens": int(total),
    }


def varied(tokens: np.ndarray) -> dict:
    """How varied texts int[N, L] are, in the model's own tokens.

    `entropy` is what the literature calls sample entropy, at most log L; `pooled_entropy` is that
    of all texts together. `distinct_2`, the different pairs over all pairs, falls where texts are
    like each other, but also as samples are added. `repetition` is the share of tokens that equal
    the one before them.
    """
    each = np.array([entropy(text) for text in tokens])
    pairs = np.stack([tokens[:, :-1], tokens[:, 1:]], axis=-1).reshape(-1, 2)
    return {
        "entropy": float(each.mean()),
        "entropy_standard_error": float(each.std(ddof=1) / math.sqrt(len(each))),
        "pooled_entropy": entropy(tokens.reshape(-1)),
        "distinct_1": len(np.unique(tokens)) / tokens.size,
        "distinct_2": len(np.unique(pairs, axis=0)) / len(pairs),
        "repetition": float((tokens[:, 1:] == tokens[:, :-1]).mean()),
    }


def entropy(tokens: np.ndarray) -> float:
    """Of the frequencies of tokens, in nats."""
    share = np.unique(tokens, return_counts=True)[1] / tokens.size
    return float(abs((share * np.log(share)).sum()))  # abs: of one token it is 0, not -0


def mauve_of(real: np.ndarray, written: np.ndarray) -> float:
    """MAUVE of features f[N, D] by mauve-text (arXiv 2102.01454): 1 if the texts are alike."""
    from mauve import compute_mauve

    return float(compute_mauve(p_features=real, q_features=written).mauve)

"""Likelihood of texts that the model was not trained on, read and cut by a paper's protocol."""

from collections.abc import Callable

from diffusion_lm.data import corpora
from diffusion_lm.evaluators import likelihood
from diffusion_lm.types import Data, Objective


def make(
    *,
    objective: Objective,
    data: Data,
    path: str,
    dataset: str = "text",
    protocol: str = "joined",
    draws: int = 4,
    target_error: float = 0.0,
    batch_size: int = 64,
    max_windows: int = 0,
) -> Callable[..., dict]:
    """As the evaluator `likelihood`, of the windows of another data set.

    `dataset` says what stands at `path` and how it is detokenized, `protocol` how documents become
    windows: "joined" as in training, "sedd" and "mdlm" as in these papers (data/corpora.py names
    the choices of both). The tokenizer and the context are the model's own. Published perplexities
    are `perplexity` in the row, of one token; bits per character are of the detokenized text.
    """
    if data.shape or data.of_sources:
        raise ValueError("the zero_shot evaluator needs a model of text")
    score = likelihood.make(
        objective=objective,
        split="test",
        draws=draws,
        target_error=target_error,
        batch_size=batch_size,
        max_windows=max_windows,
    )

    texts = corpora.corpus(
        path,
        dataset=dataset,
        protocol=protocol,
        tokenizer=data.tokenizer,
        length=data.length,
        started=objective.exact,
    )
    texts.windows("test")  # raises if there are none

    def evaluate(run) -> dict:
        """One row of results for an `evaluate.Run`."""
        row = score(run._replace(data=texts))
        row["protocol"] = {"dataset": dataset, "name": protocol} | row["protocol"]
        return row | {"given_tokens": data.length - texts.length}  # at the start of a window

    return evaluate

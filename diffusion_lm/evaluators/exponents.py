"""The learned schedules of GenMD4, token by token."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from diffusion_lm.types import Objective

MOST_TOKENS = 10_000_000  # counted at most


def make(*, objective: Objective, tokens: int = 20) -> Callable[..., dict]:
    """Lists the `tokens` largest and smallest exponents w_v of alpha_{t,v} = 1 - t^{w_v}.

    A token with a large exponent is masked late and so revealed early. Tokens that the (first ten
    million tokens of the) training split does not hold are left out.
    """
    if tokens < 1:
        raise ValueError(f"evaluators.tokens must be at least 1, got {tokens}")
    if "state_dependent" not in objective.families:
        raise ValueError(
            "the exponents evaluator needs an objective with learned schedules: genmd4"
        )

    def evaluate(run) -> dict:
        mask_prob = objective.process(run.params).schedule.mask_prob
        w_V = -np.log(np.asarray(mask_prob(jnp.exp(jnp.float32(-1)))))  # P(masked at t=1/e) = e^-w
        tokens_N = run.data.windows("train").tokens[: MOST_TOKENS // run.data.length].reshape(-1)
        seen = np.bincount(tokens_N, minlength=len(w_V))
        order = [int(v) for v in np.argsort(-w_V, kind="stable") if seen[v]]

        def named(ids):
            decode = str if run.data.shape else lambda v: run.data.tokenizer.decode(np.array([v]))
            return [[decode(v), round(float(w_V[v]), 4)] for v in ids]

        return {
            "kind": "exponents",
            "mean_by_frequency": float((w_V * seen).sum() / seen.sum()),
            "largest": named(order[:tokens]),
            "smallest": named(order[::-1][:tokens]),
        }

    return evaluate

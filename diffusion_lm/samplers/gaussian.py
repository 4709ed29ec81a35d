"""Diffusion on embeddings run backwards: the respaced DDPM posterior (arXiv 2006.11239, eq. 6, 7).

With z_t = a_t z_0 + n_t eps, r = a_t / a_s and v = n_t^2 - r^2 n_s^2, s < t:

  q(z_s | z_t, z_0) = N( (r n_s^2 z_t + a_s v z_0) / n_t^2 ,  v n_s^2 / n_t^2 ),

and z_0 is the network's prediction. At the end each token is the likeliest under the last
prediction. A heuristic for discrete data: nothing is promised about the law of the tokens.
"""

import jax
import jax.numpy as jnp

from diffusion_lm import samplers
from diffusion_lm.types import Array, Objective, Sampler, Samples

SERVES = ("gaussian",)


def make(
    *,
    objective: Objective,
    num_steps: int = 20,
    early_stop: int = 0,
    decode_F: float | None = None,
) -> Sampler:
    """`num_steps` steps, uniform in t, of which the last `early_stop` are left out: 20 and 5 in the
    paper (arXiv 2212.09412). `decode_F` is the factor on the noise, None that of training."""
    samplers.check("gaussian", objective)
    if num_steps < 1:
        raise ValueError(f"sampler.num_steps must be at least 1, got {num_steps}")
    if not 0 <= early_stop < num_steps:
        raise ValueError(
            f"sampler.early_stop must lie in 0..num_steps - 1 = {num_steps - 1}, got {early_stop}"
        )
    if decode_F is not None and not decode_F > 0:
        raise ValueError(f"sampler.decode_F must be positive or none, got {decode_F}")

    def sample(params, keys_B, prompt_BL, free_BL, cond=None):
        model = objective.predict(params, cond)
        F = model.factor if decode_F is None else decode_F
        size, length = prompt_BL.shape

        def normal(i):
            def row(key):
                return jax.random.normal(jax.random.fold_in(key, i), (length, model.width))

            return jax.vmap(row)(keys_B)

        def step(carry, i):  # i = num_steps .. early_stop + 1, from t = i/S to s = (i - 1)/S
            z, before = carry
            t, s = i / num_steps, (i - 1) / num_steps
            z_0 = model.denoise(z, before, jnp.full(size, t))
            mean, deviation = posterior(z, z_0, model.levels(t, F), model.levels(s, F))
            return (mean + deviation * normal(i), z_0), None

        start = model.levels(jnp.float32(1), F)[1] * normal(num_steps + 1)
        steps = jnp.arange(num_steps, early_stop, -1)
        (_, z_0), _ = jax.lax.scan(step, (start, jnp.zeros_like(start)), steps)

        def read(z_BE):
            log_p = model.log_prob(z_BE)
            return log_p.argmax(-1), log_p.max(-1)

        # A position at a time: the logits of all, of many candidates, do not fit.
        best_LB, score_LB = jax.lax.map(read, z_0.swapaxes(0, 1))
        tokens_BL = jnp.where(free_BL, best_LB.T, prompt_BL)
        score_B = jnp.where(free_BL, score_LB.T, 0).sum(1)
        return Samples(tokens_BL, jnp.int32(num_steps - early_stop), score=score_B)

    return Sampler(sample)


def posterior(
    z: Array, z_0: Array, levels_t: tuple[Array, Array], levels_s: tuple[Array, Array]
) -> tuple[Array, Array]:
    """(mean, standard deviation) of q(z_s | z_t, z_0); levels are (signal, noise) at t and s."""
    (a_t, n_t), (a_s, n_s) = levels_t, levels_s
    ratio = jnp.where(a_s > 0, a_t / jnp.where(a_s > 0, a_s, 1), 0)
    fresh = n_t**2 - ratio**2 * n_s**2  # variance that the step from s to t adds
    mean = (ratio * n_s**2 * z + a_s * fresh * z_0) / n_t**2
    return mean, jnp.sqrt(jnp.maximum(fresh, 0)) * n_s / n_t

"""Forward processes on token sequences: corruption, exact posterior, prior."""

import jax
import jax.numpy as jnp

from diffusion_lm.types import Process, Schedule


def absorbing(schedule: Schedule, vocab_size: int) -> Process:
    """Each token is kept with probability alpha(t), else replaced by the mask, whose id is V."""
    mask = vocab_size

    def corrupt(keys_B, x_BL, t_B):
        u_BL = jax.vmap(lambda key: jax.random.uniform(key, x_BL.shape[1:]))(keys_B)
        return jnp.where(u_BL < schedule.mask_prob(t_B)[:, None], mask, x_BL)

    def posterior(z_BL, x_BL, t_B, s_B):
        """q(z_s | z_t, x): a masked token is revealed with (alpha_s - alpha_t)/(1 - alpha_t)."""
        reveal_B = reveal_prob(schedule, t_B, s_B)
        x_BLV = jax.nn.one_hot(x_BL, vocab_size + 1)
        mask_V = jax.nn.one_hot(mask, vocab_size + 1)
        masked_BLV = reveal_B[:, None, None] * x_BLV + (1 - reveal_B[:, None, None]) * mask_V
        return jnp.where(
            (z_BL == mask)[..., None], masked_BLV, jax.nn.one_hot(z_BL, vocab_size + 1)
        )

    def prior(keys_B, length):
        return jnp.full((keys_B.shape[0], length), mask, jnp.int32)

    return Process(schedule, vocab_size, mask, corrupt, posterior, prior)


def reveal_prob(schedule: Schedule, t, s):
    """(alpha_s - alpha_t) / (1 - alpha_t); the difference is taken between the smaller numbers."""
    masked = schedule.mask_prob(t)
    by_mask = masked - schedule.mask_prob(s)
    by_alpha = schedule.alpha(s) - schedule.alpha(t)
    return jnp.where(masked < 0.5, by_mask, by_alpha) / masked

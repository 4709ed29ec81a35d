"""Forward processes on token sequences: corruption, exact posterior, prior."""

import jax
import jax.numpy as jnp

from diffusion_lm.types import Array, Process, Schedule


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


def uniform(schedule: Schedule, vocab_size: int) -> Process:
    """Each token is kept with probability alpha(t), else drawn anew from all V tokens."""

    def corrupt(keys_B, x_BL, t_B):
        return replaced(keys_B, x_BL, schedule.mask_prob(t_B), vocab_size)

    def posterior(z_BL, x_BL, t_B, s_B):
        """q(z_s | z_t, x), proportional to q(z_t | z_s) q(z_s | x): f32[B, L, V]."""
        z_BLV, x_BLV = jax.nn.one_hot(z_BL, vocab_size), jax.nn.one_hot(x_BL, vocab_size)
        kept, lost = kept_and_lost(schedule, t_B, s_B)
        kept, lost, alpha, noise = (
            a[:, None, None] for a in (kept, lost, schedule.alpha(s_B), schedule.mask_prob(s_B))
        )
        joint = (kept * z_BLV + lost / vocab_size) * (alpha * x_BLV + noise / vocab_size)
        return joint / joint.sum(-1, keepdims=True)

    def prior(keys_B, length):
        return jax.vmap(lambda key: jax.random.randint(key, (length,), 0, vocab_size))(keys_B)

    return Process(schedule, vocab_size, None, corrupt, posterior, prior)


def replaced(keys_B: Array, z_BL: Array, lost_B: Array, vocab_size: int) -> Array:
    """z with each token drawn anew from all V tokens with probability `lost_B`."""

    def row(key, z_L, lost):
        key_which, key_what = jax.random.split(key)
        new_L = jax.random.randint(key_what, z_L.shape, 0, vocab_size)
        return jnp.where(jax.random.uniform(key_which, z_L.shape) < lost, new_L, z_L)

    return jax.vmap(row)(keys_B, z_BL, lost_B)


def kept_and_lost(schedule: Schedule, t: Array, s: Array) -> tuple[Array, Array]:
    """P(a token of s is kept until t) = alpha_t / alpha_s, and one minus that; s < t."""
    alpha_s = schedule.alpha(s)
    lost = reveal_prob(schedule, t, s) * schedule.mask_prob(t) / alpha_s
    return schedule.alpha(t) / alpha_s, lost


def reveal_prob(schedule: Schedule, t: Array, s: Array) -> Array:
    """(alpha_s - alpha_t) / (1 - alpha_t); the difference is taken between the smaller numbers."""
    masked = schedule.mask_prob(t)
    by_mask = masked - schedule.mask_prob(s)
    by_alpha = schedule.alpha(s) - schedule.alpha(t)
    return jnp.where(masked < 0.5, by_mask, by_alpha) / masked

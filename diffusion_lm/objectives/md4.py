"""MD4: simplified and generalised masked diffusion for discrete data (arXiv 2406.04329).

With x the data, z_t its masked version, alpha_t = P(token kept) and mu the network's prediction:

  continuous time (eq. 5):
    -log p(x) <= int_0^1 alpha'_t / (1 - alpha_t) E[ sum_{n masked} log mu^n_{x^n}(z_t) ] dt + R
  discrete time, T steps (eq. 4), t = i/T, s = t - 1/T:
    -log p(x) <= - sum_i (alpha_s - alpha_t) / (1 - alpha_t) E[ sum_{n masked} log mu^n_{x^n} ] + R
  reconstruction: R = L (1 - alpha_0) log V (a token still masked at t = 0 is drawn uniformly)
  prior: KL(q(z_1 | x) || p(z_1)) = 0, since alpha_1 = 0

and, for a network without time input, the same integral in its any-order form:
    -log p(x) <= E_{n ~ U{1..L}} L/n E_{n-subset masked} [ - sum_{n masked} log mu^n_{x^n} ].
"""

import math

import jax
import jax.numpy as jnp

from diffusion_lm import keys
from diffusion_lm.ops.cross_entropy import token_log_prob
from diffusion_lm.processes import absorbing, reveal_prob
from diffusion_lm.schedules import independent_times, stratified_times
from diffusion_lm.types import LossOutput, Objective, Schedule, ratio

ESTIMATORS = ("independent", "low_discrepancy", "paired")


def make(
    *,
    network,
    vocab_size: int,
    length: int,
    schedule: Schedule,
    timesteps: int = 0,
    time_input: bool = False,
    estimator: str = "low_discrepancy",
) -> Objective:
    """The MD4 objective on windows x: int32[B, L] with ids below V.

    `timesteps` is T of the discrete-time bound, 0 means continuous time. `estimator` names how the
    bound is sampled, all without bias: "independent" times, "low_discrepancy" times over the global
    batch, or "paired": the any-order form, where rows 2j and 2j+1 mask n and L+1-n tokens, so that
    each pair has exactly L+1 masked rows and the head and the cross entropy run on half of the rows
    (batch sizes must be even, and the network takes no time).
    """
    if estimator not in ESTIMATORS:
        raise ValueError(
            f"unknown objective.estimator {estimator!r}; choices: {', '.join(ESTIMATORS)}"
        )
    if timesteps < 0:
        raise ValueError(f"objective.timesteps must be 0 (continuous) or more, got {timesteps}")
    if estimator == "paired" and (time_input or timesteps):
        raise ValueError(
            "objective.estimator 'paired' integrates time out: it needs time_input=False and "
            f"timesteps=0, got time_input={time_input}, timesteps={timesteps}"
        )
    net = network(inputs=vocab_size + 1, outputs=vocab_size, causal=False, time_input=time_input)
    process = absorbing(schedule, vocab_size)
    mask = process.mask

    def init(key):
        return {"network": net.init(key)}

    def by_time(params, batch, key, train):
        """The bound at one time a row: f32[B] nats per example."""
        x_BL = batch["x"]
        key_t, key_rows = jax.random.split(key)
        keys_t, keys_mask, keys_drop = keys.split(keys.rows(key_rows, batch["row"]), 3)
        if estimator == "independent":
            t_B = independent_times(keys_t)
        else:
            t_B = stratified_times(key_t, batch["slot"])
        if timesteps:
            t_B = jnp.minimum(jnp.floor(t_B * timesteps) + 1, timesteps) / timesteps
            weight_B = timesteps * reveal_prob(schedule, t_B, t_B - 1 / timesteps)
        else:
            weight_B = -schedule.dalpha(t_B) / schedule.mask_prob(t_B)
        z_BL = process.corrupt(keys_mask, x_BL, t_B)
        h_BLD = net.trunk(params["network"], z_BL, t_B, keys_drop if train else None)
        log_mu_BL = token_log_prob(net.head(params["network"], h_BLD), x_BL)
        masked_nats_B = -jnp.where(z_BL == mask, log_mu_BL, 0).sum(1)
        reconstruction = x_BL.shape[1] * schedule.mask_prob(jnp.float32(0)) * math.log(vocab_size)
        return weight_B * masked_nats_B + reconstruction

    def by_pairs(params, batch, key, train):
        """The any-order form, L+1 masked rows in every pair: f32[B] nats per example."""
        x_BL, (size, length) = batch["x"], batch["x"].shape
        if size % 2:
            raise ValueError(
                f"the paired estimator needs an even number of rows per device and microbatch, "
                f"got {size}"
            )
        key_n, key_rows = jax.random.split(key)
        keys_mask, keys_drop = keys.split(keys.rows(key_rows, batch["row"]), 2)
        u = stratified_times(key_n, batch["slot"][::2])
        first = 1 + jnp.minimum(jnp.floor(u * length), length - 1).astype(jnp.int32)
        n_B = jnp.stack([first, length + 1 - first], axis=1).reshape(size)
        rank_BL = jax.vmap(lambda k: jax.random.permutation(k, length))(keys_mask)
        masked_BL = rank_BL < n_B[:, None]
        z_BL = jnp.where(masked_BL, mask, x_BL)
        h_BLD = net.trunk(params["network"], z_BL, None, keys_drop if train else None)

        def pair(masked, h, x):  # the L+1 masked rows of two sequences laid end to end
            (rows,) = jnp.nonzero(masked.reshape(-1), size=length + 1)
            return rows, h.reshape(2 * length, -1)[rows], x.reshape(-1)[rows]

        grouped = [a.reshape(size // 2, 2, *a.shape[1:]) for a in (masked_BL, h_BLD, x_BL)]
        row_PR, h_PRD, x_PR = jax.vmap(pair)(*grouped)
        log_mu_PR = token_log_prob(net.head(params["network"], h_PRD), x_PR)
        in_second = row_PR >= length
        halves = [jnp.where(in_second, 0, log_mu_PR), jnp.where(in_second, log_mu_PR, 0)]
        masked_nats_B = -jnp.stack([half.sum(1) for half in halves], axis=1).reshape(size)
        return length / n_B * masked_nats_B

    bound = by_pairs if estimator == "paired" else by_time

    def loss(params, batch, key, *, train):
        nats_B = bound(params, batch, key, train)
        tokens_B = jnp.full(nats_B.shape, batch["x"].shape[1], jnp.float32)
        return LossOutput(nats_B, tokens_B, {"nats_per_token": ratio(nats_B, tokens_B)})

    def nll(params, batch, key):
        """One unbiased draw of the upper bound on -log p(x): f32[B] nats per example."""
        return bound(params, batch, key, False)

    def predict(params, cond=None):
        """(z, t) -> log mu(x | z), f32[B, L, V]; a token that is not masked stays (SUBS)."""

        def log_mu(z_BL, t_B):
            h_BLD = net.trunk(params["network"], z_BL, t_B if time_input else None, None)
            log_mu_BLV = jax.nn.log_softmax(net.head(params["network"], h_BLD))
            kept_BLV = jnp.where(jax.nn.one_hot(z_BL, vocab_size, dtype=bool), 0.0, -jnp.inf)
            return jnp.where((z_BL == mask)[..., None], log_mu_BLV, kept_BLV)

        return log_mu

    return Objective(init, loss, nll, predict, lambda params: process)

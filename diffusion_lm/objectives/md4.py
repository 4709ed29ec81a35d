"""MD4: simplified and generalised masked diffusion for discrete data (arXiv 2406.04329).

With x the data, z_t its masked version, alpha_t = P(token kept) and mu the network's prediction:

  continuous time (eq. 5):
    -log p(x) <= int_0^1 alpha'_t / (1 - alpha_t) E[ sum_{n masked} log mu^n_{x^n}(z_t) ] dt + R
  discrete time, T steps (eq. 4), t = i/T, s = t - 1/T:
    -log p(x) <= - sum_i (alpha_s - alpha_t) / (1 - alpha_t) E[ sum_{n masked} log mu^n_{x^n} ] + R
  reconstruction: R = L (1 - alpha_0) log V (a token still masked at t = 0 is drawn uniformly)
  prior: KL(q(z_1 | x) || p(z_1)) = 0, since alpha_1 = 0

and, for a network without time input, the same integral in its any-order form, with M a uniform
subset of n positions, all masked in z:
    -log p(x) <= sum_{n=1..L} 1/n E_M[ - sum_{i in M} log mu^i_{x^i}(z) ].

The estimators of the bound, all without bias; those after the first two take the any-order form:

  independent      one time t a row
  low_discrepancy  times spread evenly over the global batch
  counts           n uniform on 1..L, spread evenly over the global batch; weight L/n
  paired           counts where rows 2j, 2j+1 mask n and L+1-n tokens: L+1 masked rows in every
                   pair, so that the head and the cross entropy run on half of the rows
  complementary    each example is such a pair by itself, and the two masks share one position:
                   two network rows an example, and every token counts
  control_variate  scores what the text left over adds to mu_0, the prediction from masks alone:
                     - sum_i log mu_0^i_{x^i} - sum_n 1/n E_M[ sum_{i in M} (log mu - log mu_0)^i ]
                   Such sums differ less from M to M, for one more network row a batch. They differ
                   most where n is small, so n = ceil(L u^2) with u uniform; row 2j takes u and row
                   2j+1 takes 1 - u: at most L+1 masked rows in every pair
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_lm import keys
from diffusion_lm.ops import rows
from diffusion_lm.ops.cross_entropy import token_log_prob
from diffusion_lm.processes import absorbing, reveal_prob
from diffusion_lm.schedules import independent_times, stratified_times
from diffusion_lm.types import Array, Denoiser, LossOutput, Network, Objective, Schedule, ratio

BY_TIME = ("independent", "low_discrepancy")
ESTIMATORS = (*BY_TIME, "counts", "paired", "complementary", "control_variate")
VARIANTS = tuple({"estimator": e} for e in ESTIMATORS)
SINGLE = (*BY_TIME, "counts")  # a row's mask has no partner


def make(
    *,
    network: Callable[..., Network],
    vocab_size: int,
    length: int,
    schedule: Schedule,
    classes: int = 0,
    timesteps: int = 0,
    time_input: bool = False,
    estimator: str = "low_discrepancy",
    draws: int = 1,
) -> Objective:
    """The MD4 objective on windows x: int32[B, L] with ids below V.

    `timesteps` is T of the discrete-time bound, 0 means continuous time. `estimator` is how the
    loss samples the bound (see above); `nll` takes the one of least variance that the network
    allows. Pairs of rows need even batch sizes. With `draws`, the loss is a mean over that many
    masks of each example at one t or n, at as many network rows. With `classes`, batches carry
    labels, and training hides one in ten, so that the model can also do without.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(
            f"unknown objective.estimator {estimator!r}; choices: {', '.join(ESTIMATORS)}"
        )
    if timesteps < 0:
        raise ValueError(f"objective.timesteps must be 0 (continuous) or more, got {timesteps}")
    any_order = not time_input and not timesteps
    if estimator not in BY_TIME and not any_order:
        raise ValueError(
            f"objective.estimator {estimator!r} integrates time out: it needs time_input=False and "
            f"timesteps=0, got time_input={time_input}, timesteps={timesteps}"
        )
    if draws < 1:
        raise ValueError(f"objective.draws must be at least 1, got {draws}")
    if draws > 1 and estimator not in SINGLE:
        raise ValueError(
            f"objective.draws={draws} needs one of the estimators {', '.join(SINGLE)}, whose masks "
            f"have no partner; got {estimator!r}"
        )
    net = network(inputs=vocab_size + 1, outputs=vocab_size, causal=False, time_input=time_input)
    process = absorbing(schedule, vocab_size)
    mask = process.mask

    def init(key):
        return {"network": net.init(key)}

    def trunk(params, z_BL, t_B, batch, keys_B, train):
        label_B = batch.get("label")
        if train and label_B is not None:
            label_B = hide(keys.rows_fold(keys_B, 0), label_B, classes)
        keys_drop = keys.rows_fold(keys_B, 1) if train else None
        given_B = batch.get("step") if net.anneals and train else label_B
        return net.trunk(params["network"], z_BL, t_B, keys_drop, given_B)

    def by_time(estimator, params, batch, key, train, draw):
        """The bound at one time a row: f32[B] nats per example."""
        x_BL = batch["x"]
        key_t, key_rows = jax.random.split(key)
        keys_t, keys_mask, keys_net = keys.split(keys.rows(key_rows, batch["row"]), 3)
        if estimator == "independent":
            t_B = independent_times(keys_t)
        else:
            t_B = stratified_times(key_t, batch["slot"])
        if timesteps:
            t_B = jnp.minimum(jnp.floor(t_B * timesteps) + 1, timesteps) / timesteps
            weight_B = timesteps * reveal_prob(schedule, t_B, t_B - 1 / timesteps)
        else:
            weight_B = -schedule.dalpha(t_B) / schedule.mask_prob(t_B)
        z_BL = process.corrupt(again(keys_mask, draw), x_BL, t_B)
        h_BLD = trunk(params, z_BL, t_B, batch, again(keys_net, draw), train)
        reconstruction = x_BL.shape[1] * schedule.mask_prob(jnp.float32(0)) * math.log(vocab_size)
        return masked_nats(params, h_BLD, x_BL, z_BL == mask, weight_B) + reconstruction

    def by_counts(estimator, params, batch, key, train, draw):
        """The any-order form at one count a row: f32[B] nats per example."""
        x_BL, length = batch["x"], batch["x"].shape[1]
        key_n, key_rows = jax.random.split(key)
        keys_mask, keys_net = keys.split(keys.rows(key_rows, batch["row"]), 2)
        n_B, weight_B = uniform_counts(stratified_times(key_n, batch["slot"]), length)
        masked_BL = ranks(again(keys_mask, draw), length) < n_B[:, None]
        z_BL = jnp.where(masked_BL, mask, x_BL)
        h_BLD = trunk(params, z_BL, None, batch, again(keys_net, draw), train)
        return masked_nats(params, h_BLD, x_BL, masked_BL, weight_B)

    def nats(params, weight_BR, h_BRD, x_BR, half_BR=None):
        """Weighted cross entropies, in nats: f32[B, R], or summed over halves of R, f32[B, 2]."""

        def of(params, h, x):
            return -token_log_prob(net.head(params, h), x)

        return rows.weighted(
            of, params["network"], weight_BR, h_BRD, x_BR, width=vocab_size, half_BR=half_BR
        )

    def masked_nats(params, h_BLD, x_BL, masked_BL, weight_B):
        """Cross entropies summed over masked positions, times a weight: f32[B] nats."""
        return nats(params, masked_BL * weight_B[:, None], h_BLD, x_BL).sum(1)

    def by_pairs(estimator, params, batch, key, train):
        """The any-order form in pairs of rows with at most L+1 masked positions: f32[B] nats."""
        x_BL, (size, length) = batch["x"], batch["x"].shape
        alone = estimator == "complementary"
        if size % 2 and not alone:
            raise ValueError(
                f"the {estimator} estimator needs an even number of rows per device and "
                f"microbatch, got {size}"
            )
        key_n, key_rows = jax.random.split(key)
        keys_mask, keys_net = keys.split(keys.rows(key_rows, batch["row"]), 2)
        rank_BL = ranks(keys_mask, length)
        u = stratified_times(key_n, batch["slot"] if alone else batch["slot"][::2])
        if estimator == "control_variate":
            n_B, weight_B = early_counts(jnp.stack([u, 1 - u], axis=1).reshape(-1), length)
        else:
            first, _ = uniform_counts(u, length)
            n_B = jnp.stack([first, length + 1 - first], axis=1).reshape(-1)
            weight_B = length / n_B
        if alone:  # the second row of an example masks its last ranks
            batch = {name: jnp.repeat(value, 2, axis=0) for name, value in batch.items()}
            rank_BL = jnp.stack([rank_BL, length - 1 - rank_BL], axis=1).reshape(-1, length)
            keys_net = jnp.stack([keys_net, again(keys_net, 1)], axis=1).reshape(-1)
        masked_BL = rank_BL < n_B[:, None]
        z_BL = jnp.where(masked_BL, mask, batch["x"])
        h_BLD = trunk(params, z_BL, None, batch, keys_net, train)
        nats_B = masked_nats_of_pairs(params, h_BLD, batch["x"], masked_BL, weight_B)
        if alone:
            return nats_B.reshape(size, 2).mean(1)
        if estimator == "paired":
            return nats_B
        h_1LD = trunk(params, jnp.full((1, length), mask), None, {}, None, False)
        log_mu_LV = jax.nn.log_softmax(net.head(params["network"], h_1LD[0]))
        nats_0_BL = -log_mu_LV[jnp.arange(length), x_BL]
        return nats_0_BL.sum(1) + nats_B - weight_B * jnp.where(masked_BL, nats_0_BL, 0).sum(1)

    def masked_nats_of_pairs(params, h_BLD, x_BL, masked_BL, weight_B):
        """The same where rows 2j and 2j+1 have at most L+1 masked positions together, on which
        alone the head and the cross entropy run."""
        size, length = x_BL.shape

        def pair(masked, h, x):  # the masked rows of two sequences laid end to end
            (row,) = jnp.nonzero(masked.reshape(-1), size=length + 1, fill_value=2 * length)
            at = jnp.minimum(row, 2 * length - 1)
            return row, h.reshape(2 * length, -1)[at], x.reshape(-1)[at]

        grouped = [a.reshape(size // 2, 2, *a.shape[1:]) for a in (masked_BL, h_BLD, x_BL)]
        row_PR, h_PRD, x_PR = jax.vmap(pair)(*grouped)
        half_PR, weight_P2 = jnp.minimum(row_PR // length, 1), weight_B.reshape(-1, 2)
        weight_PR = jnp.take_along_axis(weight_P2, half_PR, axis=1)
        weight_PR = jnp.where(row_PR < 2 * length, weight_PR, 0)
        return nats(params, weight_PR, h_PRD, x_PR, half_PR).reshape(size)

    def bound(estimator, params, batch, key, train, draws=1):
        if estimator not in SINGLE:
            return by_pairs(estimator, params, batch, key, train)
        one = by_time if estimator in BY_TIME else by_counts
        return sum(one(estimator, params, batch, key, train, i) for i in range(draws)) / draws

    def loss(params, batch, key, *, train):
        nats_B = bound(estimator, params, batch, key, train, draws)
        tokens_B = jnp.full(nats_B.shape, batch["x"].shape[1], jnp.float32)
        return LossOutput(nats_B, tokens_B, {"nats_per_token": ratio(nats_B, tokens_B)})

    def nll(params, batch, key):
        """One unbiased draw of the upper bound on -log p(x): f32[B] nats per example."""
        size = len(batch["x"])
        if not any_order:
            return bound("low_discrepancy", params, batch, key, False)
        if size % 2:  # the last row is its own partner
            batch = {name: jnp.concatenate([a, a[-1:]]) for name, a in batch.items()}
        return bound("control_variate", params, batch, key, False)[:size]

    def predict(params, cond=None):
        """A Denoiser: log mu(x^n | z) for masked positions n."""

        def run(z_BL, t_B, label_B):
            return net.trunk(params["network"], z_BL, t_B if time_input else None, None, label_B)

        return guided(
            run, lambda h: jax.nn.log_softmax(net.head(params["network"], h)), cond, classes
        )

    return Objective(init, loss, nll, predict, lambda params: process, ("masked",))


def uniform_counts(u: Array, length: int) -> tuple[Array, Array]:
    """n uniform on 1..L from u uniform on [0, 1), and its weight L/n."""
    n = 1 + jnp.minimum(jnp.floor(u * length), length - 1).astype(jnp.int32)
    return n, length / n


def early_counts(u: Array, length: int) -> tuple[Array, Array]:
    """n = ceil(L u^2) on 1..L from u uniform on [0, 1], and its weight 1 / (n P(n)).

    P(n) = sqrt(n/L) - sqrt((n-1)/L) = 1 / (sqrt(L n) + sqrt(L (n-1))).
    """
    n = jnp.clip(jnp.ceil(length * u**2), 1, length)
    return n, math.sqrt(length) * (jnp.sqrt(n) + jnp.sqrt(n - 1)) / n


def ranks(keys_B: Array, length: int) -> Array:
    """A permutation of 0..L-1 for each row: int32[B, L]."""
    return jax.vmap(lambda key: jax.random.permutation(key, length))(keys_B)


def again(keys_B: Array, draw: int) -> Array:
    """The keys of a further draw; those of draw 0 are the keys themselves."""
    return keys.rows_fold(keys_B, 1 + draw) if draw else keys_B  # 0 and 1: see trunk


def hide(keys_B: Array, label_B: Array, classes: int) -> Array:
    """Labels int32[B], each replaced by `classes`, the unknown one, with probability 0.1."""
    hidden_B = jax.vmap(lambda key: jax.random.bernoulli(key, 0.1))(keys_B)
    return jnp.where(hidden_B, classes, label_B)


def guided(
    run: Callable,
    log_mu: Callable | None,
    cond: dict[str, Array] | None,
    classes: int,
    score: Callable | None = None,
) -> Denoiser:
    """A Denoiser from `run(z, t, label) -> h`, `log_mu(h) -> log p` and `score(h, z, t) -> log s`,
    under a condition.

    With guidance g the prediction is proportional to mu(x | z, label)^g mu(x | z)^(1 - g)
    (arXiv 2207.12598; g as in arXiv 2412.10193, which tempers the mask's share as well: here when a
    token is revealed does not depend on g). g = 1 is the plain conditional. Scores are mixed
    likewise, which is guidance of the rates of jumps (arXiv 2406.01572): large g makes them come
    early.
    """
    label_B = None if cond is None else cond["label"]
    if cond is None or "guidance" not in cond:
        return Denoiser(lambda z_BL, t_B: run(z_BL, t_B, label_B), log_mu, score=score)
    unknown_B, g = jnp.full_like(label_B, classes), cond["guidance"]

    def trunk(z_BL, t_B):
        return run(z_BL, t_B, label_B), run(z_BL, t_B, unknown_B)

    def mixed(h):
        return jax.nn.log_softmax(g * log_mu(h[0]) + (1 - g) * log_mu(h[1]))

    def mixed_score(h, z, t):
        return g * score(h[0], z, t) + (1 - g) * score(h[1], z, t)

    head = None if log_mu is None else mixed
    return Denoiser(trunk, head, calls=2, score=None if score is None else mixed_score)

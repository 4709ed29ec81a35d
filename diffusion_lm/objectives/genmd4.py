"""GenMD4: masked diffusion whose schedules are learned, one a token (arXiv 2406.04329, section 6).

With w in R^V, w = softplus(parameter), and t in [t1, 1]:

  schedule:  alpha_{t,v} = 1 - t^{w_v}
  bound (the rates from the mask to v are w_v / t mu_v):
    -log p(x) <= int_{t1}^1 E_q(z_t|x)[ sum_{n masked} sum_v w_v / t mu^n_v
                                        - w_{x^n} / t (log mu^n_{x^n} + 1) ] dt + R
  reconstruction: R = sum_n t1^{w_x} ( logsumexp_v(w_v log t1) - w_x log t1 )
    (a token still masked at t1 is drawn from the exact posterior of a uniform prior)
  prior: 0, since alpha_{1,v} = 0
  gradient: q depends on w, so with two draws z1, z2 at the same t and their bounds
    l1, l2, REINFORCE leave-one-out adds 1/2 (l1 - l2) grad( log q(z1|x) - log q(z2|x) ) to the
    gradient of (l1 + l2) / 2.

The released code takes alpha_1 = 1e-4, leaves out the prior term that costs, and has no sampler.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_lm import keys
from diffusion_lm.objectives.md4 import guided, hide
from diffusion_lm.schedules import stratified_times
from diffusion_lm.types import LossOutput, Network, Objective, Process, Ratio, Schedule, ratio


def make(
    *,
    network: Callable[..., Network],
    vocab_size: int,
    length: int,
    classes: int = 0,
    first_time: float = 1e-3,
    time_input: bool = True,
) -> Objective:
    """The GenMD4 objective on windows x: int32[B, L] with ids below V.

    `first_time` is t1. Being masked at t tells something about a token, so the exact denoiser
    depends on t: without `time_input` the bound is looser, but valid.
    """
    if not 0 < first_time < 1:
        raise ValueError(f"objective.first_time must lie in (0, 1), got {first_time}")
    net = network(inputs=vocab_size + 1, outputs=vocab_size, causal=False, time_input=time_input)
    mask = vocab_size

    def init(key):
        raw = math.log(math.expm1(1.0))  # softplus(raw) = 1: a linear schedule for every token
        return {"network": net.init(key), "power": jnp.full(vocab_size, raw)}

    def bound(params, z_BL, x_BL, t_B, label_B, keys_drop):
        """The integrand at t, times 1 - t1: f32[B] nats per example."""
        w_V, t = jax.nn.softplus(params["power"]), t_B[:, None]
        h_BLD = net.trunk(params["network"], z_BL, t_B if time_input else None, keys_drop, label_B)
        log_mu_BLV = jax.nn.log_softmax(net.head(params["network"], h_BLD))
        log_mu_x_BL = jnp.take_along_axis(log_mu_BLV, x_BL[..., None], axis=-1)[..., 0]
        rates_BL = (jnp.exp(log_mu_BLV) * w_V).sum(-1) - w_V[x_BL] * (log_mu_x_BL + 1)
        return (1 - first_time) * jnp.where(z_BL == mask, rates_BL / t, 0).sum(1)

    def reconstruction(params, x_BL):
        w_V, log_t = jax.nn.softplus(params["power"]), math.log(first_time)
        w_BL = w_V[x_BL]
        left = jax.nn.logsumexp(w_V * log_t) - w_BL * log_t
        return (jnp.exp(w_BL * log_t) * left).sum(1)

    def draws(params, batch, key, train):
        """Two draws of the bound at one time: [(nats f32[B], log q(z_t | x) f32[B])] * 2."""
        x_BL, process = batch["x"], state_dependent(params["power"])
        key_t, key_rows = jax.random.split(key)
        keys_B = keys.rows(key_rows, batch["row"])
        t_B = first_time + (1 - first_time) * stratified_times(key_t, batch["slot"])
        label_B = batch.get("label")
        if train and label_B is not None:
            label_B = hide(keys.rows_fold(keys_B, 2), label_B, classes)
        pair = []
        for i in range(2):
            keys_mask, keys_drop = keys.split(keys.rows_fold(keys_B, i), 2)
            z_BL = process.corrupt(keys_mask, x_BL, t_B)
            nats_B = bound(params, z_BL, x_BL, t_B, label_B, keys_drop if train else None)
            pair.append((nats_B, log_q(params["power"], z_BL, x_BL, t_B)))
        return pair

    def loss(params, batch, key, *, train):
        """The surrogate has the value of the bound and the gradient above."""
        (l1, log_q1), (l2, log_q2) = draws(params, batch, key, train)
        nats_B = (l1 + l2) / 2 + reconstruction(params, batch["x"])
        score_B = (log_q1 - log_q2) * jax.lax.stop_gradient(l1 - l2) / 2
        tokens_B = jnp.full(nats_B.shape, batch["x"].shape[1], jnp.float32)
        w_V, one = jax.nn.softplus(params["power"]), jnp.float32(1)
        metrics = {
            "nats_per_token": ratio(nats_B, tokens_B),
            "smallest_exponent": Ratio(w_V.min(), one),
            "mean_exponent": Ratio(w_V.mean(), one),
            "largest_exponent": Ratio(w_V.max(), one),
        }
        return LossOutput(nats_B + score_B - jax.lax.stop_gradient(score_B), tokens_B, metrics)

    def log_q(power, z_BL, x_BL, t_B):
        """log q(z_t | x): f32[B]."""
        log_masked_BL = jax.nn.softplus(power)[x_BL] * jnp.log(t_B)[:, None]
        # t can round to 1, where nothing is kept: keep the logarithm finite there.
        log_kept_BL = jnp.log(-jnp.expm1(jnp.minimum(log_masked_BL, -1e-7)))
        return jnp.where(z_BL == mask, log_masked_BL, log_kept_BL).sum(1)

    def state_dependent(power):
        """The forward process; its schedule maps t[B] to f32[B, V]."""
        w_V = jax.nn.softplus(power)
        schedule = Schedule(
            alpha=lambda t: -jnp.expm1(w_V * jnp.log(t)[..., None]),
            mask_prob=lambda t: t[..., None] ** w_V,
            dalpha=lambda t: -w_V * t[..., None] ** (w_V - 1),
        )

        def corrupt(keys_B, x_BL, t_B):
            u_BL = jax.vmap(lambda key: jax.random.uniform(key, x_BL.shape[1:]))(keys_B)
            return jnp.where(u_BL < t_B[:, None] ** w_V[x_BL], mask, x_BL)

        def posterior(z_BL, x_BL, t_B, s_B):
            """q(z_s | z_t, x): a masked x stays so with (1 - alpha_{s,x}) / (1 - alpha_{t,x})."""
            stay_BL = (s_B / t_B)[:, None] ** w_V[x_BL]
            x_BLV, z_BLV = (jax.nn.one_hot(a, vocab_size + 1) for a in (x_BL, z_BL))
            mask_V = jax.nn.one_hot(mask, vocab_size + 1)
            hidden_BLV = (1 - stay_BL)[..., None] * x_BLV + stay_BL[..., None] * mask_V
            return jnp.where((z_BL == mask)[..., None], hidden_BLV, z_BLV)

        def prior(keys_B, length):
            return jnp.full((keys_B.shape[0], length), mask, jnp.int32)

        return Process(schedule, vocab_size, mask, corrupt, posterior, prior)

    def nll(params, batch, key):
        """One unbiased draw of the upper bound on -log p(x), from two masks: f32[B] nats."""
        (l1, _), (l2, _) = draws(params, batch, key, False)
        return (l1 + l2) / 2 + reconstruction(params, batch["x"])

    def predict(params, cond=None):
        """A Denoiser: log mu(x^n | z_t, t) for masked positions n."""

        def run(z_BL, t_B, label_B):
            return net.trunk(params["network"], z_BL, t_B if time_input else None, None, label_B)

        def log_mu(h):
            return jax.nn.log_softmax(net.head(params["network"], h))

        return guided(run, log_mu, cond, classes)

    def process(params):
        return state_dependent(params["power"])

    return Objective(init, loss, nll, predict, process, ("state_dependent",))

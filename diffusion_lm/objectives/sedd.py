"""SEDD: diffusion by ratios of probabilities (arXiv 2310.16834), and UDLM (arXiv 2412.10193).

A token jumps from y to z at the rate sigma'(t) Q(y, z), sigma_t = -log alpha_t (sigma-bar there):

  absorbing  to the mask, at rate 1:          P(z = x) = alpha, P(z = mask) = 1 - alpha
  uniform    to any other token, at rate 1/V: P(z = y) = (1 - alpha)/V, and alpha more for y = x

The score s_y(z, t) estimates p_t(z with y at one position) / p_t(z). With the ratios
r_y = q(y | x) / q(z | x) the denoising score entropy bounds the likelihood (section 3.3):

  -log p(x) <= int_0^1 sigma'(t) E_q(z|x)[ sum_n sum_{y != z^n} Q(y, z^n)
                 ( s_y - r_y log s_y + r_y (log r_y - 1) ) ] dt + R + KL( q(z_1|x) || p(z_1) )

  R (z_0 is noise still; x is drawn from q(z_0 | x) under a uniform prior):
     absorbing L (1 - alpha_0) log V; uniform L H_0, where H_t is the entropy of q(z_t|x) in a token
  the KL: absorbing 0, since alpha_1 = 0; uniform L (log V - H_1)

In closed form, without V x V matrices:

  absorbing, at masked positions: r_x = alpha/(1 - alpha) = 1/(e^sigma - 1), the other r_y are 0.
    Let s = r_x m, where m need not sum to one: then the integrand is
    - alpha'/(1 - alpha) ( sum_y m_y - 1 - log m_x ), which is MD4's where m does sum to one.
  uniform, at all positions: r = 1/(1 + o) if z = x; r_x = 1 + o and r = 1 elsewhere if z != x,
    o = V alpha/(1 - alpha). The terms are r phi(log s - log r), phi(u) = e^u - 1 - u, none of them
    negative.

Parametrizations, by logits l. "score" is SEDD's: absorbing, m = e^l / V (the scaling by e^sigma - 1
and V of the released code); uniform, s = e^l. Zeros predict the uniform distribution. "mean" takes
mu = softmax(l) for the clean token: absorbing, m = mu; uniform, s_y = (1 + o mu_y) / (1 + o mu_z),
with which the integral is UDLM's bound.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_lm import keys, processes, schedules
from diffusion_lm.objectives.md4 import guided, hide
from diffusion_lm.ops import rows
from diffusion_lm.ops.cross_entropy import token_logit
from diffusion_lm.types import Array, LossOutput, Network, Objective, Schedule, ratio

GRAPHS = ("absorbing", "uniform")
PARAMETRIZATIONS = ("score", "mean")
# absorbing "mean" is MD4
VARIANTS = (
    {"graph": "absorbing", "parametrization": "score"},
    {"graph": "uniform", "parametrization": "score"},
    {"graph": "uniform", "parametrization": "mean"},
)
LAST = 1e-3  # the paper's alpha_1: of the uniform graph, and the least that a network is told


def make(
    *,
    network: Callable[..., Network],
    vocab_size: int,
    schedule: Schedule,
    classes: int = 0,
    graph: str = "absorbing",
    parametrization: str = "score",
    time_input: bool = True,
) -> Objective:
    """The objective on windows x: int32[B, L] with ids below V.

    The log-linear noise of the paper is the schedule "linear". With `time_input` the network is
    told sigma; the best absorbing m does not depend on it (arXiv 2406.03736). With `classes`,
    batches carry labels, and training hides one in ten.
    """
    for name, given, choices in (
        ("graph", graph, GRAPHS),
        ("parametrization", parametrization, PARAMETRIZATIONS),
    ):
        if given not in choices:
            raise ValueError(f"unknown objective.{name} {given!r}; choices: {', '.join(choices)}")
    absorbing, mean = graph == "absorbing", parametrization == "mean"
    if absorbing:
        process = processes.absorbing(schedule, vocab_size)
    else:  # at alpha = 0 a score tells nothing of the data
        schedule = schedules.lifted(schedule, LAST)
        process = processes.uniform(schedule, vocab_size)
    inputs = vocab_size + absorbing
    net = network(inputs=inputs, outputs=vocab_size, causal=False, time_input=time_input)
    log_v = math.log(vocab_size)

    def init(key):
        return {"network": net.init(key)}

    def run(params, z_BL, t_B, keys_drop, label_B):
        sigma_B = -jnp.log(jnp.maximum(schedule.alpha(t_B), LAST))
        # The features of time count in thousandths: so they are sinusoids of sigma itself.
        time_B = sigma_B / 1000 if time_input else None
        return net.trunk(params["network"], z_BL, time_B, keys_drop, label_B)

    def log_odds(t):
        """log o = log V alpha/(1 - alpha)."""
        return log_v + jnp.log(schedule.alpha(t)) - jnp.log(schedule.mask_prob(t))

    def log_score(params, h, z, t):
        """log s_y at any positions: h[..., D], z[...] (absorbing: masks), t[...] -> f32[..., S]."""
        logits = net.head(params, h)
        o = log_odds(t)[..., None]
        if absorbing:
            log_m = jax.nn.log_softmax(logits) if mean else logits - log_v
            return jnp.concatenate([log_m + o - log_v, jnp.zeros_like(logits[..., :1])], axis=-1)
        if mean:
            log_p = jax.nn.softplus(jax.nn.log_softmax(logits) + o)
            return log_p - jnp.take_along_axis(log_p, z[..., None], axis=-1)
        return jnp.where(jnp.arange(vocab_size) == z[..., None], 0.0, logits)

    def score_entropy(params, h, z, x, t):
        """At any positions: f32[...] nats, of shown tokens 0 under absorbing noise."""
        if not absorbing:
            return uniform_score_entropy(log_score(params, h, z, t), z, x, log_odds(t))
        logit, mass = token_logit(net.head(params, h), x)
        log_norm, masked = mass if mean else log_v, z == process.mask
        # Nothing holds the logits of shown tokens: their exponentials must not overflow.
        more = jnp.where(masked, mass - log_norm, 0)
        return jnp.where(masked, jnp.expm1(more) - (logit - log_norm), 0)

    def integrand(params, h_BLD, z_BL, x_BL, t_B):
        """sigma'(t) times the score entropies: f32[B] nats."""
        rest = schedule.mask_prob(t_B) if absorbing else schedule.alpha(t_B) * vocab_size
        weight_BL, t_BL = (
            jnp.broadcast_to(a_B[:, None], z_BL.shape)
            for a_B in (-schedule.dalpha(t_B) / rest, t_B)
        )
        about = h_BLD, z_BL, x_BL, t_BL
        network = params["network"]
        return rows.weighted(score_entropy, network, weight_BL, *about, width=vocab_size).sum(1)

    def entropy(t):
        """H of q(z_t | x) in one token, uniform graph: nats."""
        other = schedule.mask_prob(jnp.float32(t)) / vocab_size
        elsewhere = (vocab_size - 1) * other
        return -(1 - elsewhere) * jnp.log1p(-elsewhere) - elsewhere * jnp.log(other)

    def ends():
        """R and the KL in one token: f32[] nats."""
        if absorbing:
            return schedule.mask_prob(jnp.float32(0)) * log_v
        return entropy(0.0) + log_v - entropy(1.0)

    def bound(params, batch, key, train):
        """The bound at one time a row, the times spread evenly over the batch: f32[B] nats."""
        x_BL, label_B = batch["x"], batch.get("label")
        key_t, key_rows = jax.random.split(key)
        keys_z, keys_net = keys.split(keys.rows(key_rows, batch["row"]), 2)
        t_B = schedules.stratified_times(key_t, batch["slot"])
        if train and label_B is not None:
            label_B = hide(keys.rows_fold(keys_net, 0), label_B, classes)
        z_BL = process.corrupt(keys_z, x_BL, t_B)
        keys_drop = keys.rows_fold(keys_net, 1) if train else None
        h_BLD = run(params, z_BL, t_B, keys_drop, label_B)
        return integrand(params, h_BLD, z_BL, x_BL, t_B) + x_BL.shape[1] * ends()

    def loss(params, batch, key, *, train):
        nats_B = bound(params, batch, key, train)
        tokens_B = jnp.full(nats_B.shape, batch["x"].shape[1], jnp.float32)
        return LossOutput(nats_B, tokens_B, {"nats_per_token": ratio(nats_B, tokens_B)})

    def nll(params, batch, key):
        """One unbiased draw of the upper bound on -log p(x): f32[B] nats per example."""
        return bound(params, batch, key, False)

    def predict(params, cond=None):
        """A Denoiser by log s; absorbing, also by log p(x | z), for which m is normalised."""

        def log_mu(h):
            return jax.nn.log_softmax(net.head(params["network"], h))

        return guided(
            lambda z_BL, t_B, label_B: run(params, z_BL, t_B, None, label_B),
            log_mu if absorbing else None,
            cond,
            classes,
            score=lambda h, z, t: log_score(params["network"], h, z, t),
        )

    families = ("masked", "score") if absorbing else ("score",)
    return Objective(init, loss, nll, predict, lambda params: process, families)


def uniform_score_entropy(log_s: Array, z: Array, x: Array, log_odds: Array) -> Array:
    """sum_{y != z} s_y - r_y log s_y + r_y (log r_y - 1) for the uniform graph, nats.

    log_s f32[..., V]; z, x int[...]; log_odds f32[...] is log o (see above) -> f32[...].
    """

    is_x, is_z = (jnp.arange(log_s.shape[-1]) == a[..., None] for a in (x, z))
    own = jnp.take_along_axis(is_x, z[..., None], axis=-1)  # z = x
    log_r = jax.nn.softplus(log_odds)[..., None] * (is_x.astype(jnp.float32) - own)
    gap = log_s - log_r
    return jnp.where(is_z, 0, jnp.exp(log_r) * (jnp.expm1(gap) - gap)).sum(-1)

"""RDM: reparameterised discrete diffusion (arXiv 2302.05737), and glancing training (2212.10240).

With b_t = 1[z_t = x] the posterior q(z_{t-1} | z_t, x) is a choice of routes, token by token:

  z_{t-1} = b_t [v1 z_t + (1 - v1) noise] + (1 - b_t) [v2 x + (1 - v2) noise(z_t)]
  b_{t-1} = (b_t and v1) or v2,    v2 ~ Bernoulli( (alpha_{t-1} - alpha_t) / (1 - alpha_t) )

so a model only has to say what x is where z is not x, and who says *when* is free: that is the
sampler `routing`. Steps are counted from t = 0 to T - 1, as in the released code, and what the
network sees at t is noise at time (t+1)/T (the paper's z_t, with t from 1 to T, is our t - 1):

  absorbing    a token is lost with probability (t+1)/T and becomes the mask, id V
  multinomial  it is lost with probability 1 - alpha((t+1)/T) and becomes any of the V tokens, x
               itself among them; alpha(u) = cos^2(pi/2 (u + s)/(1 + s)) / cos^2(pi/2 s/(1 + s)),
               s = .008 (arXiv 2102.09672, eq. 17)
  loss         sum_n T lambda_t 1[z^n != x^n] CE^n,  t uniform          (section 3, times N)
  lambda       linear 1 - t/T; reciprocal 1/(t+1); none 1

The factor T, one over the probability of t, stays for every lambda, as in the released code: the
loss is a sum over the steps. It matters beside the loss of the length, and to clipped gradients.
With the mask and "reciprocal" it is MD4's bound with T steps and alpha = 1 - t (eq. 4 there, since
(alpha_{t-1} - alpha_t) / (1 - alpha_t) = 1/(t+1)); "linear", the paper's choice, is a bound of
nothing, but weighs what is easy to route less. In a target of N tokens, all sums run over these N;
the released code divides by the padded length instead, which weighs short targets less.

Coupled (appendix F): two different times share the uniform number and the noise token of every
place, so what is noise at the earlier one is noise at the later one, and the loss is the mean of
both: for the mask z_s ~ q(z_s | z_t, x), as in the paper; with uniform noise z_s keeps the noise of
z_t, where the process may have drawn it anew in between. The mean is that of one time.

Glancing (DIFFGLAT, arXiv 2212.10240, after GLAT, arXiv 2008.07905). No code was released and the
full text was not at hand, so this follows the abstract and GLAT: a pass without gradient predicts
the noisy tokens; of these, round(glance_ratio x number of wrong predictions), drawn uniformly, are
shown as hints (halves round to even); each further pass looks again at what is wrong among those
still noisy. The loss, with its weight, is on what stays noisy. The paper's later layers, which
glance at what earlier ones left, are here further passes of the whole network.

The likelihood of the absorbing model is MD4's any-order bound, whatever lambda it was trained with,
plus -log p(N | source). The multinomial one has none here: the sum over all steps, weighted by the
probability of v2, bounds the likelihood of a chain that carries b from step to step, that is, of a
model that is told which tokens are noise and starts from a law of b. Here the network sees z alone,
training reads b off x (a noise token that hits x by chance passes for a clean one), and the three
lambdas are not those probabilities; a model of z alone would also have to find the noise.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from diffusion_lm import keys, processes, schedules
from diffusion_lm.objectives import md4
from diffusion_lm.ops.cross_entropy import NEVER, smoothed_nats, token_log_prob
from diffusion_lm.ops.rows import top
from diffusion_lm.types import (
    Array,
    Denoiser,
    LossOutput,
    Memory,
    Network,
    Objective,
    Schedule,
    ratio,
)

NOISES = ("absorbing", "multinomial")
WEIGHTS = ("linear", "reciprocal", "none")
VARIANTS = tuple({"noise": noise} for noise in NOISES)


def make(
    *,
    network: Callable[..., Network],
    vocab_size: int,
    length: int,
    end: int,
    noise: str = "absorbing",
    timesteps: int = 50,
    weight: str = "linear",
    label_smoothing: float = 0.1,
    coupled: bool = False,
    glances: int = 0,
    glance_ratio: float = 0.5,
    length_weight: float = 0.1,
) -> Objective:
    """RDM on windows x: int32[B, L] with ids below V, or, if the network encodes, on pairs.

    Of pairs, x is filled up with `end`, which is nowhere else, and src is int32[B, S]: the first N
    tokens are the target. `timesteps` is T. `label_smoothing` spreads that share over all V tokens.
    `coupled` takes two network rows an example, each of `glances` one more for every time. The loss
    of the length, `length_weight` times its cross entropy, counts N times, since what is trained,
    sum(loss)/sum(N), is a mean over tokens.
    """
    for name, given, choices in (("noise", noise, NOISES), ("weight", weight, WEIGHTS)):
        if given not in choices:
            raise ValueError(f"unknown objective.{name} {given!r}; choices: {', '.join(choices)}")
    if timesteps < 1 + coupled:
        raise ValueError(
            f"objective.timesteps must be at least {1 + coupled} with objective.coupled={coupled}, "
            f"got {timesteps}"
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"objective.label_smoothing must lie in [0, 1), got {label_smoothing}")
    if glances < 0:
        raise ValueError(f"objective.glances must be 0 or more, got {glances}")
    if not 0 <= glance_ratio <= 1:
        raise ValueError(f"objective.glance_ratio must lie in [0, 1], got {glance_ratio}")
    if not length_weight >= 0:
        raise ValueError(f"objective.length_weight must be 0 or more, got {length_weight}")
    absorbing = noise == "absorbing"
    if absorbing:  # to samplers; the loss takes (t+1)/T itself
        process = processes.absorbing(schedules.linear(), vocab_size)
    else:
        process = processes.uniform(cosine(), vocab_size)
    inputs = vocab_size + absorbing
    net = network(inputs=inputs, outputs=vocab_size, causal=False, time_input=False)
    exact_weight = absorbing and weight == "reciprocal"  # that of the bound
    is_bound = exact_weight and not label_smoothing and not glances and net.encode is None

    def init(key):
        return {"network": net.init(key)}

    def targets(x_BL):
        """The places of the N tokens: bool[B, L]."""
        if net.encode is None:
            return jnp.ones(x_BL.shape, bool)
        return jnp.cumsum(x_BL == end, axis=1) == 0

    def condition(params, batch, target_BL, keys_drop=None):
        """What the network is given: the Memory of the sources, or nothing."""
        if net.encode is None:
            return None
        memory = net.encode(params["network"], batch["src"], keys_drop)
        return memory._replace(target=target_BL)

    def log_mu(params, h):
        """log p(x | z) f32[..., V]; of pairs, whose lengths are given, x is never the end."""
        found = net.head(params["network"], h)
        return jax.nn.log_softmax(found if net.encode is None else found.at[..., end].set(NEVER))

    def logits(params, z_BL, keys_drop, given):
        h_BLD = net.trunk(params["network"], z_BL, None, keys_drop, given)
        return net.head(params["network"], h_BLD)

    def times(key, keys_B, slot_B):
        """Steps t: one int32[B], uniform on 0..T-1, or two different ones, each of that law."""
        t_B = jnp.floor(schedules.stratified_times(key, slot_B) * timesteps)
        t_B = jnp.minimum(t_B, timesteps - 1).astype(jnp.int32)
        if not coupled:
            return [t_B]
        draw = jax.vmap(lambda key: jax.random.randint(key, (), 1, timesteps))
        return [t_B, (t_B + draw(keys_B)) % timesteps]

    def lost(t_B):
        """P(a token is lost) at step t: f32[B, 1]."""
        u_B1 = (t_B[:, None] + 1) / timesteps
        return u_B1 if absorbing else process.schedule.mask_prob(u_B1)

    def glanced(params, z_BL, x_BL, keys_B, keys_drop, given):
        """z with the hints of all passes."""
        fixed, given = jax.lax.stop_gradient((params, given))
        for i in range(glances):
            noisy_BL = z_BL != x_BL
            guess_BL = logits(fixed, z_BL, keys_drop, given).argmax(-1)
            wrong_B = (noisy_BL & (guess_BL != x_BL)).sum(1)
            rank_BL = md4.ranks(keys.rows_fold(keys_B, i), x_BL.shape[1])
            hint_BL = top(-rank_BL, noisy_BL, jnp.round(glance_ratio * wrong_B))
            z_BL = jnp.where(hint_BL, x_BL, z_BL)
        return z_BL

    def loss(params, batch, key, *, train):
        x_BL, target_BL = batch["x"], targets(batch["x"])
        key_t, key_rows = jax.random.split(key)
        keys_lost, keys_new, keys_t, keys_glance, keys_net = keys.split(
            keys.rows(key_rows, batch["row"]), 5
        )
        given = condition(params, batch, target_BL, keys_net if train else None)
        u_BL = jax.vmap(lambda key: jax.random.uniform(key, x_BL.shape[1:]))(keys_lost)
        new_BL = process.prior(keys_new, x_BL.shape[1])

        def at(draw, t_B):
            """Loss, cross entropy, right guesses, noisy tokens at one step: f32[B] each."""
            keys_drop = md4.again(keys_net, draw) if train else None
            z_BL = jnp.where(target_BL & (u_BL < lost(t_B)), new_BL, x_BL)
            hints = md4.again(keys_glance, draw)
            z_BL = glanced(params, z_BL, x_BL, hints, keys_drop, given)
            noisy_BL = z_BL != x_BL
            logits_BLV = logits(params, z_BL, keys_drop, given)
            nats_BL, smooth_BL = smoothed_nats(logits_BLV, x_BL, label_smoothing)
            right_BL = logits_BLV.argmax(-1) == x_BL
            terms = (smooth_BL, nats_BL, right_BL, 1.0)
            loss_B, *rest = (jnp.where(noisy_BL, term, 0.0).sum(1) for term in terms)
            return timesteps * weight_at(weight, t_B, timesteps) * loss_B, *rest

        draws = [at(draw, t_B) for draw, t_B in enumerate(times(key_t, keys_t, batch["slot"]))]
        total_B, nats_B, right_B, noisy_B = map(sum, zip(*draws, strict=True))
        total_B, n_B = total_B / len(draws), target_BL.sum(1)
        metrics = {"cross_entropy": ratio(nats_B, noisy_B), "accuracy": ratio(right_B, noisy_B)}
        if given is not None:
            total_B += length_weight * n_B * length_nats(given, n_B)
            hit_B = given.length.argmax(1) == n_B
            metrics["length_accuracy"] = ratio(hit_B.astype(jnp.float32))
        tokens_B = n_B.astype(jnp.float32)
        metrics["loss"] = ratio(total_B, tokens_B)
        if is_bound:
            metrics["nats_per_token"] = metrics["loss"]
        return LossOutput(total_B, tokens_B, metrics)

    def nll(params, batch, key):
        """One draw of the upper bound on -log p(x), or on -log p(x | src): f32[B] nats.

        n is uniform on 1..N, of the N tokens n are masked, and their cross entropies count N/n.
        """
        x_BL, target_BL = batch["x"], targets(batch["x"])
        key_n, key_rows = jax.random.split(key)
        rank_BL = md4.ranks(keys.rows(key_rows, batch["row"]), x_BL.shape[1])
        n_B = target_BL.sum(1)
        u_B = schedules.stratified_times(key_n, batch["slot"])
        number_B, weight_B = md4.uniform_counts(u_B, n_B)
        masked_BL = top(-rank_BL, target_BL, number_B)
        given = condition(params, batch, target_BL)
        z_BL = jnp.where(masked_BL, process.mask, x_BL)
        log_mu_BLV = log_mu(params, net.trunk(params["network"], z_BL, None, None, given))
        nats_B = -jnp.where(masked_BL, token_log_prob(log_mu_BLV, x_BL), 0).sum(1)
        return weight_B * nats_B + (0 if given is None else length_nats(given, n_B))

    def predict(params, cond=None):
        """A Denoiser: log p(x^n | z), for a source and the length of its target if these are given.

        Of the mask at masked places n; of uniform noise at all places, noise or not.
        """
        given = None
        if cond is not None:
            given = condition(params, cond, jnp.arange(length) < cond["length"][:, None])

        def trunk(z_BL, t_B):
            return net.trunk(params["network"], z_BL, None, None, given)

        return Denoiser(trunk, partial(log_mu, params))

    def lengths(params, src_BS):
        """log p(N | src): f32[B, L]."""
        return net.encode(params["network"], src_BS).length

    return Objective(
        init,
        loss,
        nll if absorbing else None,
        predict,
        lambda params: process,
        ("masked",) if absorbing else ("multinomial",),
        lengths=None if net.encode is None else lengths,
    )


def cosine() -> Schedule:
    """alpha(t) = cos^2 a / cos^2 b, a = pi/2 (t + s)/(1 + s), b = a at t = 0, s = .008.

    arXiv 2102.09672, eq. 17. mask_prob is sin(a - b) sin(a + b) / cos^2 b, without a subtraction.
    The released code cuts every alpha_t / alpha_{t-1} at .001 from below, which here only the last
    step would notice: alpha(1) = 0.
    """
    s = 0.008
    rate = math.pi / 2 / (1 + s)
    b, top = rate * s, math.cos(rate * s) ** 2
    return Schedule(  # cos a = sin(pi/2 - a) keeps alpha(1) = 0 exact
        alpha=lambda t: jnp.sin(rate * (1 - t)) ** 2 / top,
        mask_prob=lambda t: jnp.sin(rate * t) * jnp.sin(rate * t + 2 * b) / top,
        dalpha=lambda t: -rate * jnp.sin(2 * (rate * t + b)) / top,
    )


def weight_at(weight: str, t: Array, timesteps: int) -> Array:
    """lambda at steps t = 0..T-1: f32 of t's shape."""
    if weight == "linear":
        return 1 - t / timesteps
    return 1 / (t + 1) if weight == "reciprocal" else jnp.ones(t.shape)


def length_nats(memory: Memory, n_B: Array) -> Array:
    """-log p(N | src): f32[B]."""
    return -jnp.take_along_axis(memory.length, n_B[:, None], axis=1)[:, 0]

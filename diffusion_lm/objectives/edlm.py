"""EDLM: energies that correct a masked denoiser (arXiv 2410.21357).

A denoiser predicts every masked token by itself, mu(x | z) = prod_n mu^n(x^n | z). An energy
corrects the product to a law of whole sequences,

  p(x | z) = mu(x | z) e^{-E(x, z)} / Z(z),   Z(z) = E_{x ~ mu}[ e^{-E(x, z)} ],

where x keeps the tokens that z shows. The denoiser is another run's and stays as it is. Energies:

  nce   E = MLP( mean over positions of a bidirectional transformer's output on [z; x] ), which
        starts as the denoiser. Trained by contrast of data x+ with negatives x- ~ mu(. | z):
          - log sigma(-E(x+)) - mean over negatives of log sigma(E(x-)),
        which is least where E = log mu(x | z) - log p(x | z).
  ar    E = - log p_AR(x) + log mu(x | z), with another run's autoregressive model: p ~ p_AR where
        mu is not 0. Nothing is trained.
  coar  the same with the terms of p_AR at masked positions only, sum_n log p_AR(x^n | x^{<n}):
        these are normalised, so Z = 1.

Likelihood. The paper puts - log p(x | z) in the place of MD4's sum of cross entropies. That is no
bound (docs/edlm_likelihood.md); it takes the laws of single tokens. With n uniform on 1..L, S a
uniform n-subset, l uniform in S, and z showing all but S,

  - log p(x) <= L E[ - log q(x^l | z) ]

for every q that sums to one over x^l, also where networks are told a time that does not depend on
x: here that at which first-hitting sampling shows one of n masks. Here q is the sampler's: of K
candidates X_i ~ mu it takes one with weights w_i = e^{-E(X_i, z)}, so

  q(x^l | z) = mu^l(x^l) E[ sum_i w'_i / (w'_i + sum_{j != i} w_j) ],  w'_i of X_i with x^l put in.

What is in the brackets has no bias, and the logarithm of it errs to the safe side. So this bounds
first-hitting sampling with K candidates, for every K. As K grows, q tends to

  p(x^l | z) = mu^l(x^l) E_{X ~ mu}[ e^{-E(X with x^l put in, z)} ] / Z(z).

This with means over K draws for both expectations is given as well: log Z by log Z_K, too low on
average, and by (2K - 1) log Z_K - 2 (K - 1) log Z_{K-1}, the latter averaged over leaving one draw
out, too high once K is large enough. At a given K neither is a bound.

coar is reported by the likelihood of a single step from masks alone with many candidates, which is
the autoregressive model's own. With several steps its sampler has another law, as shown tokens to
the right of a gap play no part in filling it.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_lm import keys
from diffusion_lm.objectives.md4 import ranks, uniform_counts
from diffusion_lm.ops import categorical
from diffusion_lm.schedules import stratified_times, time_of
from diffusion_lm.types import Array, LossOutput, Network, Objective, ratio

ENERGIES = ("nce", "ar", "coar")
VARIANTS = ({"energy": "nce"}, {"energy": "coar"})  # "ar" is loose by its number of candidates
PLACES = 64  # of every row, whose log-probabilities are held at once


def make(
    *,
    network: Callable[..., Network],
    vocab_size: int,
    proposal: Objective,
    ar: Objective | None = None,
    energy: str = "nce",
    negatives: int = 1,
    candidates: int = 16,
    time_input: bool = False,
    shape: tuple[int, ...] | None = None,
) -> Objective:
    """An energy over the denoiser `proposal`, for windows x: int32[B, L] with ids below V.

    In a config `proposal` and `ar` are folders of finished runs, of a masked and of an
    autoregressive model of the same tokens. `negatives` are drawn for each example in training,
    `candidates` (K) for each draw of the likelihood. For "nce" the network and `time_input` must be
    the proposal's, from which it starts; it is for text, without a `shape`.
    """
    if energy not in ENERGIES:
        raise ValueError(f"unknown objective.energy {energy!r}; choices: {', '.join(ENERGIES)}")
    learned = energy == "nce"
    if "masked" not in proposal.families:
        kind = proposal.families[0].replace("_", "-")
        raise ValueError(
            f"objective.proposal must be masked diffusion (md4, absorbing sedd), got a {kind} model"
        )
    if learned == (ar is not None):
        wants = "takes no" if learned else "needs an"
        raise ValueError(f"objective.energy {energy!r} {wants} objective.ar")
    if ar is not None and ar.token_nll is None:
        raise ValueError("objective.ar must be an autoregressive model")
    if negatives < 1:
        raise ValueError(f"objective.negatives must be at least 1, got {negatives}")
    if candidates < 2:
        raise ValueError(f"objective.candidates must be at least 2, got {candidates}")
    if learned and shape:
        raise ValueError("objective.energy 'nce' is for text; for images there are 'ar' and 'coar'")
    if learned and time_input and "score" in proposal.families:
        raise ValueError(
            "objective.energy 'nce' starts as the proposal's network, but SEDD's is told sigma in "
            "place of the time: take one with objective.time_input=False"
        )
    net = None
    if learned:
        net = network(
            inputs=vocab_size + 1, outputs=vocab_size, causal=False, time_input=time_input
        )

    def init(key):
        key_proposal, key_other, key_pool = jax.random.split(key, 3)
        params = {"proposal": proposal.init(key_proposal)}
        if not learned:
            return params | {"ar": ar.init(key_other)}
        body = body_of(net.init(key_other))
        h = net.trunk(body, jnp.zeros((1, 2), int), jnp.zeros(1) if time_input else None)
        width = h.shape[-1]
        pool = {
            "hidden": jax.random.normal(key_pool, (width, width)) / math.sqrt(width),
            "out": jnp.zeros(width),  # E = 0: the start is the denoiser itself
        }
        return params | {"network": body, "pool": pool}

    def start(params):
        """The energy's network as the denoiser's. Raises ValueError if it is not such a one."""
        theirs, mine = body_of(params["proposal"].get("network", {})), params["network"]
        if jax.tree.map(jnp.shape, theirs) != jax.tree.map(jnp.shape, mine):
            raise ValueError(
                "the energy starts as the proposal's network, so config.network and "
                "config.objective.time_input must be those of the proposal's run"
            )
        return params | {"network": jax.tree.map(jnp.copy, theirs)}

    def energy_of(params, z_BL, x_BL, t_B, log_mu_B, *, label_B=None, keys_drop=None):
        """E(x, z): f32[B] nats; log_mu_B is log mu(x | z), which nce does not need."""
        if not learned:
            nats_BL = ar.token_nll(params["ar"], {"x": x_BL} | labelled(label_B))
            if energy == "coar":
                nats_BL = jnp.where(masked(params, z_BL), nats_BL, 0)
            return nats_BL.sum(1) + log_mu_B
        both = jnp.concatenate([z_BL, x_BL], axis=1)
        h_BLD = net.trunk(params["network"], both, t_B if time_input else None, keys_drop)
        h_BD = jax.nn.silu(h_BLD.astype(jnp.float32).mean(1) @ params["pool"]["hidden"])
        return h_BD @ params["pool"]["out"]

    def masked(params, z_BL):
        return z_BL == proposal.process(params["proposal"]).mask

    def draw(params, z_BL, x_BL, t_B, keys_B, number, label_B=None):
        """`number` candidates X ~ mu(. | z) a row, and what mu says of x itself.

        Returns X: int32[B, K, L], log mu(X^n | z): f32[B, K, L], log mu(x^n | z): f32[B, L], the
        latter two 0 at positions that z shows.
        """
        denoiser = proposal.predict(params["proposal"], labelled(label_B) or None)

        def one(args):  # a place in all rows
            h, x_B, keys_B = args
            log_mu_BV = denoiser.head(h)
            log_mu_B = jnp.take_along_axis(log_mu_BV, x_B[:, None], axis=1)[:, 0]
            return *categorical.draw_several(keys_B, log_mu_BV, number), log_mu_B

        # Places in turn and all rows at once, since the rows may lie on many devices.
        args = denoiser.trunk(z_BL, t_B), x_BL, keys.places(keys_B, z_BL.shape[1])
        args = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), args)
        draw_LBK, log_mu_LBK, log_mu_LB = jax.lax.map(one, args, batch_size=PLACES)
        where_BL = masked(params, z_BL)
        draw_BKL = jnp.where(where_BL[:, None], draw_LBK.transpose(1, 2, 0), x_BL[:, None])
        log_mu_BKL = jnp.where(where_BL[:, None], log_mu_LBK.transpose(1, 2, 0), 0)
        return draw_BKL, log_mu_BKL, jnp.where(where_BL, log_mu_LB.T, 0)

    def loss(params, batch, key, *, train):
        """nce: the contrast, in nats an example. Else nothing is trained, and it is the bound."""
        x_BL, size = batch["x"], len(batch["x"])
        if not learned:
            nats_B = nll(params, batch, key)
            tokens_B = jnp.full(size, x_BL.shape[1], jnp.float32)
            return LossOutput(nats_B, tokens_B, {"nats_per_token": ratio(nats_B, tokens_B)})
        key_t, key_rows = jax.random.split(key)
        keys_z, keys_x, keys_net = keys.split(keys.rows(key_rows, batch["row"]), 3)
        t_B = stratified_times(key_t, batch["slot"])
        z_BL = proposal.process(params["proposal"]).corrupt(keys_z, x_BL, t_B)
        wrong_BKL, _, _ = draw(params, z_BL, x_BL, t_B, keys_x, negatives)
        keys_drop = keys.split(keys_net, 1 + negatives) if train else [None] * (1 + negatives)
        right_B = energy_of(params, z_BL, x_BL, t_B, None, keys_drop=keys_drop[0])
        wrong = [
            energy_of(params, z_BL, wrong_BKL[:, k], t_B, None, keys_drop=keys_drop[1 + k])
            for k in range(negatives)
        ]
        nats_B = jax.nn.softplus(right_B) + sum(jax.nn.softplus(-e_B) for e_B in wrong) / negatives
        metrics = {
            "contrast": ratio(nats_B),  # 2 log 2 where the energy tells nothing
            "told_apart": ratio((right_B < wrong[0]).astype(jnp.float32)),
        }
        return LossOutput(nats_B, jnp.ones(size), metrics)  # a mean over examples, not tokens

    def figures(params, batch, key):
        """One draw of the bound and what is to be read beside it: {name: f32[B] nats}.

        "nll": the bound, by q. "plug_in_log_z_below", "plug_in_log_z_above": the ratio of means.
        "paper_joint_not_a_bound": what the paper reports.
        """
        x_BL, label_B, length = batch["x"], batch.get("label"), batch["x"].shape[1]
        process = proposal.process(params["proposal"])
        key_n, key_rows = jax.random.split(key)
        keys_mask, keys_x, keys_t = keys.split(keys.rows(key_rows, batch["row"]), 3)
        n_B, weight_B = uniform_counts(stratified_times(key_n, batch["slot"]), length)
        rank_BL = ranks(keys_mask, length)
        asked_BL = rank_BL == 0  # l: uniform in S, since ranks are
        z_BL = jnp.where(rank_BL < n_B[:, None], process.mask, x_BL)
        # the sampler's time where n are hidden: P(masked) is the n-th smallest of L uniform draws
        u_BL = jnp.sort(jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys_t), axis=1)
        t_B = time_of(process.schedule, jnp.take_along_axis(u_BL, n_B[:, None] - 1, axis=1)[:, 0])
        draw_BKL, log_mu_BKL, log_mu_BL = draw(params, z_BL, x_BL, t_B, keys_x, candidates, label_B)
        put_in_BKL = jnp.where(asked_BL[:, None], x_BL[:, None], draw_BKL)
        log_mu_put_in_BKL = jnp.where(asked_BL[:, None], log_mu_BL[:, None], log_mu_BKL)
        x_BJL = jnp.concatenate([draw_BKL, put_in_BKL, x_BL[:, None]], axis=1)
        log_mu_BJ = jnp.concatenate(
            [log_mu_BKL, log_mu_put_in_BKL, log_mu_BL[:, None]], axis=1
        ).sum(-1)

        def one(args):
            x_BL, log_mu_B = args
            return -energy_of(params, z_BL, x_BL, t_B, log_mu_B, label_B=label_B)

        log_w_BJ = jax.lax.map(one, (x_BJL.swapaxes(0, 1), log_mu_BJ.T)).T
        log_w_BK, put_in_BK = log_w_BJ[:, :candidates], log_w_BJ[:, candidates:-1]
        log_mu_l_B = jnp.where(asked_BL, log_mu_BL, 0).sum(1)
        below_B, above_B = log_partition(log_w_BK)
        plug_in_B = -log_mu_l_B - log_mean_exp(put_in_BK)
        return {
            "nll": length * (-log_mu_l_B - log_chosen(log_w_BK, put_in_BK)),
            "plug_in_log_z_below": length * (plug_in_B + below_B),
            "plug_in_log_z_above": length * (plug_in_B + above_B),
            "paper_joint_not_a_bound": weight_B * (below_B - log_mu_BL.sum(1) - log_w_BJ[:, -1]),
        }

    def nll(params, batch, key):
        """coar: -log p_AR(x), exactly; else a draw of the upper bound: f32[B] nats per example."""
        if energy == "coar":
            return ar.nll(params["ar"], batch, key)
        return figures(params, batch, key)["nll"]

    def predict(params, cond=None):
        """The proposal's Denoiser, with an energy."""
        label_B = None if cond is None else cond["label"]

        def of(z_BL, x_BL, t_B, log_mu_B):
            return energy_of(params, z_BL, x_BL, t_B, log_mu_B, label_B=label_B)

        return proposal.predict(params["proposal"], cond)._replace(energy=of)

    return Objective(
        init,
        loss,
        nll,
        predict,
        lambda params: proposal.process(params["proposal"]),
        ("energy",),
        exact=energy == "coar",
        figures=None if energy == "coar" else figures,
        frozen=("proposal",) if learned else ("proposal", "ar"),
        start=start if learned else None,
    )


def log_mean_exp(a_BK: Array) -> Array:
    """f32[B, K] -> f32[B]."""
    return jax.nn.logsumexp(a_BK, axis=1) - math.log(a_BK.shape[1])


def log_others(a_BK: Array) -> Array:
    """log sum_{j != i} e^{a_j}: f32[B, K]."""
    itself = jnp.eye(a_BK.shape[1], dtype=bool)
    return jax.nn.logsumexp(jnp.where(itself, -jnp.inf, a_BK[:, None]), axis=2)


def log_partition(a_BK: Array) -> tuple[Array, Array]:
    """Two estimates of log E[e^a] from K draws, f32[B, K] -> f32[B], f32[B]: the first too low on
    average, the second too high once K is large enough."""
    number, top_B = a_BK.shape[1], a_BK.max(1)
    a_BK = a_BK - top_B[:, None]  # the factors below would multiply its rounding
    below_B = log_mean_exp(a_BK)
    fewer_B = (log_others(a_BK) - math.log(number - 1)).mean(1)
    above_B = (2 * number - 1) * below_B - 2 * (number - 1) * fewer_B
    return below_B + top_B, above_B + top_B


def log_chosen(log_w_BK: Array, put_in_BK: Array) -> Array:
    """log sum_i w'_i / (w'_i + sum_{j != i} w_j): f32[B]."""
    return jax.nn.logsumexp(-jax.nn.softplus(log_others(log_w_BK) - put_in_BK), axis=1)


def body_of(network: dict) -> dict:
    """The parameters of a network without its head."""
    return {name: part for name, part in network.items() if name != "head"}


def labelled(label_B: Array | None) -> dict:
    """The labels as a batch or a condition holds them, if there are any."""
    return {} if label_B is None else {"label": label_B}

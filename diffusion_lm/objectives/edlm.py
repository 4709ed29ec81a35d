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
bound (docs/edlm_likelihood.md); one needs the corrected marginals. With n uniform on 1..L, S a
uniform n-subset, l uniform in S, and z showing all but S,

  - log p(x) <= L E[ - log p(x^l | z) ],
  p(x^l | z) = mu^l(x^l) E_{X ~ mu}[ e^{-E(X with x^l at l, z)} ] / Z(z).

Both expectations are means over `candidates` draws, and the log of a mean is low on average. In the
numerator that makes the bound larger, which is safe; in Z smaller, which is not. So log Z is also
estimated from above, by (2n - 1) log Z_n - 2 (n - 1) log Z_{n-1}, the latter averaged over leaving
one draw out (above on average, once n is large enough). coar's likelihood is the autoregressive
model's own: with all tokens masked, p(x | z) = p_AR(x).
"""

import math

import jax
import jax.numpy as jnp

from diffusion_lm import keys
from diffusion_lm.objectives.md4 import again, ranks, uniform_counts
from diffusion_lm.ops import categorical
from diffusion_lm.ops.rows import at_rows
from diffusion_lm.schedules import stratified_times, time_of
from diffusion_lm.types import LossOutput, Objective, ratio

ENERGIES = ("nce", "ar", "coar")
VARIANTS = ({"energy": "nce"}, {"energy": "coar"})  # "ar" errs by its number of candidates
ROWS = 1024  # positions whose log-probabilities are held at once


def make(
    *,
    network,
    vocab_size: int,
    proposal: Objective,
    ar: Objective | None = None,
    energy: str = "nce",
    negatives: int = 1,
    candidates: int = 16,
    time_input: bool = False,
) -> Objective:
    """An energy over the denoiser `proposal`, for windows x: int32[B, L] with ids below V.

    In a config `proposal` and `ar` are folders of finished runs, of a masked and of an
    autoregressive model of the same tokens. `negatives` are drawn for each example in training,
    `candidates` for each draw of the likelihood. For "nce" the network and `time_input` must be the
    proposal's, from which it starts.
    """
    if energy not in ENERGIES:
        raise ValueError(f"unknown objective.energy {energy!r}; choices: {', '.join(ENERGIES)}")
    if "masked" not in proposal.families:
        kind = proposal.families[0].replace("_", "-")
        raise ValueError(
            f"objective.proposal must be masked diffusion (md4, absorbing sedd), got a {kind} model"
        )
    if (energy != "nce") != (ar is not None):
        wants = "takes no" if energy == "nce" else "needs a"
        raise ValueError(f"objective.energy {energy!r} {wants} objective.ar")
    if ar is not None and ar.token_nll is None:
        raise ValueError("objective.ar must be an autoregressive model")
    if negatives < 1:
        raise ValueError(f"objective.negatives must be at least 1, got {negatives}")
    if candidates < 2:
        raise ValueError(f"objective.candidates must be at least 2, got {candidates}")
    learned = energy == "nce"
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
        """The energy's network as the denoiser's."""
        theirs, mine = body_of(params["proposal"].get("network", {})), params["network"]
        if jax.tree.map(jnp.shape, theirs) != jax.tree.map(jnp.shape, mine):
            raise ValueError(
                "the energy starts from the proposal's network, so config.network and "
                "objective.time_input must be those of the proposal's run"
            )
        return params | {"network": jax.tree.map(jnp.copy, theirs)}

    def energy_of(params, z_BL, x_BL, t_B, log_mu_B, keys_drop=None, label_B=None):
        """E(x, z): f32[B] nats; log_mu_B is log mu(x | z)."""
        if not learned:
            nats_BL = ar.token_nll(params["ar"], {"x": x_BL} | labelled(label_B))
            if energy == "coar":
                nats_BL = jnp.where(masked(params, z_BL), nats_BL, 0)
            return nats_BL.sum(1) + log_mu_B
        both = jnp.concatenate([z_BL, x_BL], axis=1)
        h_BLD = net.trunk(params["network"], both, t_B if time_input else None, keys_drop, label_B)
        h_BD = jax.nn.silu(h_BLD.mean(1).astype(jnp.float32) @ params["pool"]["hidden"])
        return h_BD @ params["pool"]["out"]

    def masked(params, z_BL):
        return z_BL == proposal.process(params["proposal"]).mask

    def candidates_of(params, z_BL, x_BL, t_B, keys_B, number, label_B=None):
        """`number` draws X ~ mu(. | z) a row and what mu says of x itself.

        Returns X: int32[B, K, L], log mu(X^n | z): f32[B, K, L], log mu(x^n | z): f32[B, L], the
        latter two 0 at positions that z shows.
        """
        denoiser = proposal.predict(params["proposal"], labelled(label_B) or None)
        h = denoiser.trunk(z_BL, t_B)

        def one(args):
            h, x_R, keys_R = args
            log_mu = denoiser.head(h)
            log_mu_x = jnp.take_along_axis(log_mu, x_R[:, None], axis=1)[:, 0]
            return *categorical.draw_several(keys_R, log_mu, number), log_mu_x

        args = h, x_BL, keys.places(keys_B, z_BL.shape[1])
        where_BL = masked(params, z_BL)
        draw_BLK, log_mu_BLK, log_mu_BL = at_rows(one, where_BL, args, chunk=ROWS)
        draw_BKL = jnp.where(where_BL[:, None], draw_BLK.swapaxes(1, 2), x_BL[:, None])
        return draw_BKL, log_mu_BLK.swapaxes(1, 2), log_mu_BL

    def loss(params, batch, key, *, train):
        """nce: the contrast, in nats an example. Else nothing is trained, and it is the bound."""
        x_BL, size, label_B = batch["x"], len(batch["x"]), batch.get("label")
        tokens_B = jnp.full(size, x_BL.shape[1], jnp.float32)
        if not learned:
            nats_B = nll(params, batch, key)
            return LossOutput(nats_B, tokens_B, {"nats_per_token": ratio(nats_B, tokens_B)})
        key_t, key_rows = jax.random.split(key)
        keys_z, keys_x, keys_net = keys.split(keys.rows(key_rows, batch["row"]), 3)
        t_B = stratified_times(key_t, batch["slot"])
        z_BL = proposal.process(params["proposal"]).corrupt(keys_z, x_BL, t_B)
        wrong_BKL, _, log_mu_BL = candidates_of(params, z_BL, x_BL, t_B, keys_x, negatives, label_B)
        some_BJL = jax.lax.stop_gradient(jnp.concatenate([x_BL[:, None], wrong_BKL], axis=1))
        keys_drop = [again(keys_net, j) for j in range(1 + negatives)] if train else None
        e_BJ = jnp.stack(
            [
                energy_of(
                    params, z_BL, some_BJL[:, j], t_B, None, keys_drop and keys_drop[j], label_B
                )
                for j in range(1 + negatives)
            ],
            axis=1,
        )
        right_B = jax.nn.softplus(e_BJ[:, 0])
        wrong_B = jax.nn.softplus(-e_BJ[:, 1:]).mean(1)
        told_B = (e_BJ[:, 0] < e_BJ[:, 1]).astype(jnp.float32)
        metrics = {
            "contrast": ratio(right_B + wrong_B),  # 2 log 2 where the energy tells nothing
            "told_apart": ratio(told_B),
        }
        return LossOutput(right_B + wrong_B, tokens_B, metrics)

    def figures(params, batch, key):
        """One draw of the bound and what is to be read beside it: {name: f32[B] nats}.

        "nll": the bound, log Z from above. "log_z_from_below": the same with the plain estimate.
        "paper_joint_not_a_bound": what the paper reports.
        """
        x_BL, label_B, length = batch["x"], batch.get("label"), batch["x"].shape[1]
        process = proposal.process(params["proposal"])
        key_n, key_rows = jax.random.split(key)
        keys_mask, keys_x = keys.split(keys.rows(key_rows, batch["row"]), 2)
        n_B, weight_B = uniform_counts(stratified_times(key_n, batch["slot"]), length)
        rank_BL = ranks(keys_mask, length)
        asked_BL = rank_BL == 0  # l: uniform in S, since ranks are
        z_BL = jnp.where(rank_BL < n_B[:, None], process.mask, x_BL)
        t_B = time_of(process.schedule, n_B / length)
        draw_BKL, log_mu_BKL, log_mu_BL = candidates_of(
            params, z_BL, x_BL, t_B, keys_x, candidates, label_B
        )
        some_BJL = jnp.concatenate(
            [draw_BKL, jnp.where(asked_BL[:, None], x_BL[:, None], draw_BKL), x_BL[:, None]], axis=1
        )
        right_BKL = jnp.where(asked_BL[:, None], log_mu_BL[:, None], log_mu_BKL)
        log_mu_BJ = jnp.concatenate([log_mu_BKL, right_BKL, log_mu_BL[:, None]], axis=1).sum(-1)

        def one(args):
            x_BL, log_mu_B = args
            return energy_of(params, z_BL, x_BL, t_B, log_mu_B, None, label_B)

        e_BJ = jax.lax.map(one, (some_BJL.swapaxes(0, 1), log_mu_BJ.T)).T
        e_BK, right_BK, e_B = e_BJ[:, :candidates], e_BJ[:, candidates:-1], e_BJ[:, -1]
        below_B, above_B = log_partition(-e_BK)
        log_mu_l_B = jnp.where(asked_BL, log_mu_BL, 0).sum(1)
        nats_B = -log_mu_l_B - log_mean_exp(-right_BK)
        return {
            "nll": length * (nats_B + above_B),
            "log_z_from_below": length * (nats_B + below_B),
            "paper_joint_not_a_bound": weight_B * (e_B - log_mu_BL.sum(1) + below_B),
        }

    def nll(params, batch, key):
        """coar: -log p(x), exactly; else one draw of the upper bound: f32[B] nats per example."""
        if energy == "coar":
            return ar.nll(params["ar"], batch, key)
        return figures(params, batch, key)["nll"]

    def predict(params, cond=None):
        """The proposal's Denoiser, with an energy."""
        label_B = None if cond is None else cond["label"]

        def of(z_BL, x_BL, t_B, log_mu_B):
            return energy_of(params, z_BL, x_BL, t_B, log_mu_B, None, label_B)

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


def log_mean_exp(a_BK):
    """f32[B, K] -> f32[B]."""
    return jax.nn.logsumexp(a_BK, axis=1) - math.log(a_BK.shape[1])


def log_partition(a_BK):
    """Two estimates of log E[e^a] from K draws, f32[B, K] -> f32[B], f32[B]: the first too low on
    average, the second too high."""
    number = a_BK.shape[1]
    left_out = jnp.where(jnp.eye(number, dtype=bool), -jnp.inf, a_BK[:, None])
    fewer_B = (jax.nn.logsumexp(left_out, axis=2) - math.log(number - 1)).mean(1)
    below_B = log_mean_exp(a_BK)
    return below_B, (2 * number - 1) * below_B - 2 * (number - 1) * fewer_B


def body_of(network: dict) -> dict:
    """The parameters of a network without its head."""
    return {name: part for name, part in network.items() if name != "head"}


def labelled(label_B) -> dict:
    return {} if label_B is None else {"label": label_B}

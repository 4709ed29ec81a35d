"""EDLM on 249 US presidential messages: energies over the runs of md4_sotu and ar_sotu.

Command:   python -m diffusion_lm.main --config=configs/edlm_sotu.py --workdir=runs/edlm_sotu
           energies of the autoregressive model, nothing to train: --config=configs/edlm_sotu.py:ar
           or --config=configs/edlm_sotu.py:coar
           the whole chain, denoiser, autoregressive model, energies: python launch/edlm_chain.py
Hardware:  2 CPU cores; more cores or an accelerator need no change.
Cost:      nce: 200 steps of 32 sequences of 256 tokens, no head: 11 minutes on one core, and
           4 to evaluate; the whole chain 53 minutes on one core.
Expected:  one seed, first 128 windows of validation, bits per character: nce 1.60 and ar 1.56, with
           standard errors of 0.05; coar 1.253, the autoregressive model's own (exact); MD4 alone
           1.551 (0.002). At this size the corrected bounds are not told from MD4's.
Needs:     the runs in config.objective.proposal and, for ar and coar, config.objective.ar.
"""

from ml_collections import ConfigDict

ENERGIES = ("nce", "ar", "coar")


def get_config(energy="nce"):
    if energy not in ENERGIES:
        raise ValueError(f"unknown energy {energy!r} of edlm_sotu; choices: {', '.join(ENERGIES)}")
    learned = energy == "nce"
    return ConfigDict(
        {
            "data": {
                "name": "text",
                "source": "sotu",
                "tokenizer": "gpt2",
                "vocab_size": 16384,
                "length": 128,
            },
            "network": {
                "name": "transformer",
                "layers": 4,
                "width": 192,
                "heads": 3,
                "hidden": 512,
                "qk_norm": True,
                "shift": True,
            },
            "objective": {
                "name": "edlm",
                "energy": energy,
                "proposal": "runs/md4_sotu",
                "ar": None if learned else "runs/ar_sotu",
                "candidates": 8,
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 3e-4,
                "decay": "linear",
                "warmup": 20,
                "clip": 1.0,
            },
            "sampler": {"name": "importance", "num_steps": 64, "candidates": 4},
            "evaluators": {
                "valid": {"name": "likelihood", "draws": 4, "batch_size": 32, "max_windows": 128}
            },
            "train": {
                "steps": 200 if learned else 0,
                "batch_size": 16,
                "log_every": 20,
                "eval_every": 200,
                "checkpoint_every": 100,
            },
        }
    )

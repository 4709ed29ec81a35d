"""EDLM on a Markov chain with known probabilities: what the corrected sampler is worth.

Command:   python launch/edlm_claims.py --workdir=runs/edlm_claims (trains all it needs; wants the
           extra: plots)
           alone: python -m diffusion_lm.main --config=configs/edlm_markov.py --workdir=runs/edlm
           energies of the autoregressive model: --config=configs/edlm_markov.py:ar or :coar
Hardware:  1 CPU core; more cores or an accelerator need no change.
Cost:      nce: 0.13 M parameters, 1,000 steps of 64 x 128 tokens: a few minutes.
Expected:  docs/edlm_markov.md, which launch/edlm_claims.py writes.
Needs:     the runs in config.objective.proposal and, for ar and coar, config.objective.ar.
"""

from ml_collections import ConfigDict

ENERGIES = ("nce", "ar", "coar")


def get_config(energy="nce"):
    if energy not in ENERGIES:
        raise ValueError(
            f"unknown energy {energy!r} of edlm_markov; choices: {', '.join(ENERGIES)}"
        )
    learned = energy == "nce"
    return ConfigDict(
        {
            "data": {"name": "markov", "vocab_size": 8, "order": 2, "length": 64},
            "network": {"name": "transformer", "layers": 2, "width": 64, "heads": 2},
            "objective": {
                "name": "edlm",
                "energy": energy,
                "proposal": "runs/md4_markov",
                "ar": None if learned else "runs/ar_markov",
                "candidates": 16,
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 2e-3,
                "decay": "linear",
                "warmup": 50,
                "clip": 1.0,
            },
            "sampler": {"name": "importance", "num_steps": 16, "candidates": 8},
            "evaluators": {
                "valid": {"name": "likelihood", "draws": 8, "batch_size": 64, "max_windows": 256}
            },
            "train": {
                "steps": 1000 if learned else 0,
                "batch_size": 32,
                "log_every": 100,
                "eval_every": 1000,
                "checkpoint_every": 1000,
            },
        }
    )

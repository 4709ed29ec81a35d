"""EDLM on text8: an energy over the run of configs/md4_text8.py (arXiv 2410.21357).

Command:   python -m diffusion_lm.main --config=configs/edlm_text8.py --workdir=runs/edlm_text8 \
               --config.data.path=PATH_OF_text8
           an autoregressive energy: --config=configs/edlm_text8.py:ar or :coar, with
           --config.objective.ar=FOLDER_OF_ITS_RUN
Hardware:  meant for 8 accelerators; not yet run by us at full length.
Cost:      nce: 400,000 steps of 512 x 2 sequences of 512 tokens, 92 M parameters.
Expected:  1.24 bits per character (published; by the paper's joint figure, which is not a bound).
Data:      the file text8, 10^8 characters, split 90/5/5 by position.
Needs:     the run in config.objective.proposal.
"""

from ml_collections import ConfigDict

ENERGIES = ("nce", "ar", "coar")


def get_config(energy="nce"):
    if energy not in ENERGIES:
        raise ValueError(f"unknown energy {energy!r} of edlm_text8; choices: {', '.join(ENERGIES)}")
    learned = energy == "nce"
    return ConfigDict(
        {
            "data": {
                "name": "text",
                "source": "files",
                "path": "text8",
                "split": "position",
                "tokenizer": "characters",
                "alphabet": " abcdefghijklmnopqrstuvwxyz",
                "length": 256,
            },
            "network": {
                "name": "transformer",
                "layers": 12,
                "width": 768,
                "heads": 12,
                "dropout_rate": 0.05,
                "dtype": "bfloat16",
            },
            "objective": {
                "name": "edlm",
                "energy": energy,
                "proposal": "runs/md4_text8",
                "ar": None if learned else "runs/ar_text8",
                "time_input": True,
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 3e-4,
                "decay": "constant",
                "warmup": 2500,
                "clip": 1.0,
            },
            "sampler": {"name": "importance", "num_steps": 256, "candidates": 4, "window": 0.6},
            "evaluators": {
                "valid": {
                    "name": "likelihood",
                    "draws": 4,
                    "batch_size": 512,
                    "max_windows": 4096,
                }
            },
            "train": {
                "steps": 400_000 if learned else 0,
                "batch_size": 512,
                "ema": 0.9999 if learned else 0.0,
                "log_every": 500,
                "eval_every": 50_000,
                "checkpoint_every": 10_000,
            },
        }
    )

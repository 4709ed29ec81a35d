"""EDLM on OpenWebText: an energy over the run of configs/md4_owt.py (arXiv 2410.21357).

Command:   python -m diffusion_lm.main --config=configs/edlm_owt.py --workdir=runs/edlm_owt \
               --config.data.path=FOLDER_OF_OPENWEBTEXT --config.data.cache_dir=FOLDER_FOR_TOKENS
           the energies of configs/ar_owt.py's run: --config=configs/edlm_owt.py:ar or :coar
Hardware:  meant for a TPU v5e 8x8 slice or 64 GPUs; not yet run by us at full length.
Cost:      nce: 400,000 steps of 512 x 2 sequences of 2048 tokens, 131 M trained parameters, and
           the proposal forward.
Expected:  validation perplexity 21.52 nce, 20.49 ar, 17.58 coar (published; the first two by the
           paper's joint figure, which is not a bound, the last the autoregressive model's own).
Data:      the .tar.xz archives or any folder of documents; the last 100,000 are validation.
Needs:     the runs in config.objective.proposal and, for ar and coar, config.objective.ar.

The rate and the clipping are those of the released code. How long the energy was trained it does
not say, so the number of steps is ours; the warm-up is that of configs/sedd_owt.py.
"""

from ml_collections import ConfigDict

ENERGIES = ("nce", "ar", "coar")


def get_config(energy="nce"):
    if energy not in ENERGIES:
        raise ValueError(f"unknown energy {energy!r} of edlm_owt; choices: {', '.join(ENERGIES)}")
    learned = energy == "nce"
    return ConfigDict(
        {
            "data": {
                "name": "text",
                "source": "openwebtext",
                "path": "openwebtext",
                "cache_dir": "openwebtext_tokens",
                "tokenizer": "gpt2",
                "length": 1024,
            },
            "network": {
                "name": "transformer",
                "dtype": "bfloat16",
                "layers": 12,
                "width": 768,
                "heads": 12,
                "dropout_rate": 0.02,
            },
            "objective": {
                "name": "edlm",
                "energy": energy,
                "proposal": "runs/md4_owt",
                "ar": None if learned else "runs/ar_owt",
                "time_input": True,
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 3e-4,
                "decay": "constant",
                "warmup": 2500,
                "clip": 1.0,
            },
            "sampler": {"name": "importance", "num_steps": 1024, "candidates": 2, "window": 0.2},
            "evaluators": {
                "valid": {
                    "name": "likelihood",
                    "draws": 2,
                    "batch_size": 512,
                    "max_windows": 2048,
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

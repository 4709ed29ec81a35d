"""SEDD on 249 US presidential messages: the network, data and steps of configs/md4_sotu.py.

Command:   python -m diffusion_lm.main --config=configs/sedd_sotu.py --workdir=runs/sedd_sotu
           uniform noise: --config=configs/sedd_sotu.py:uniform; UDLM, its mean parametrization:
           --config=configs/sedd_sotu.py:udlm
Hardware:  2 CPU cores; more cores or an accelerator need no change.
Cost:      8 M parameters, 600 steps of 16 x 128 tokens; the head at all positions.
Expected:  the README's table has the absorbing graph; the others were tried for 40 steps only.

The best absorbing prediction does not depend on the time (arXiv 2406.03736), so the absorbing
network is not told it, as MD4's is not. Uniform scores are not probabilities: they cannot start
from a bigram model.
"""

from ml_collections import ConfigDict

VARIANTS = {
    "absorbing": {"graph": "absorbing", "time_input": False},
    "uniform": {"graph": "uniform"},
    "udlm": {"graph": "uniform", "parametrization": "mean"},
}


def get_config(variant="absorbing"):
    if variant not in VARIANTS:
        raise ValueError(f"unknown sedd_sotu {variant!r}; choices: {', '.join(VARIANTS)}")
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
            "objective": {"name": "sedd", **VARIANTS[variant]},
            "optimizer": {
                "name": "muon",
                "learning_rate": 1e-2,
                "adam_learning_rate": 3e-3,
                "decay": "linear",
                "warmup": 10,
                "clip": 1.0,
            },
            "sampler": {"name": "score", "num_steps": 128},
            "evaluators": {"valid": {"name": "likelihood", "draws": 8, "batch_size": 32}},
            "train": {
                "steps": 600,
                "batch_size": 16,
                "start": "random" if variant == "uniform" else "bigram",
                "log_every": 20,
                "eval_every": 300,
                "checkpoint_every": 100,
            },
        }
    )

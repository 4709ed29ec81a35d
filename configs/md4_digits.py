"""MD4 on scikit-learn's 8 x 8 digits: masked diffusion on pixels, for two CPU cores.

Command:   python -m diffusion_lm.main --config=configs/md4_digits.py --workdir=runs/md4_digits
           with labels: --config=configs/md4_digits.py:classes
Hardware:  2 CPU cores; more cores or an accelerator need no change.
Cost:      3,000 steps of 32 images; about 500 seconds of one core.
Expected:  1.805 +- 0.006 bits per dimension of validation, an upper bound (three seeds: 1.795,
           1.805, 1.815; each +- 0.008 by Monte Carlo), still falling; test 1.830 +- 0.004. The same
           network as configs/ar_digits.py has 1.795 +- 0.002 at its best, after 500 steps, and 2.4
           after 3,000.
Data:      1,797 images of 64 pixels with 17 levels: 1,439 train, 179 valid, 179 test.
"""

from ml_collections import ConfigDict

VARIANTS = ("plain", "classes")


def get_config(variant="plain"):
    if variant not in VARIANTS:
        raise ValueError(f"unknown md4_digits {variant!r}; choices: {', '.join(VARIANTS)}")
    return ConfigDict(
        {
            "data": {"name": "images", "source": "digits", "labels": variant == "classes"},
            "network": {
                "name": "transformer",
                "layers": 4,
                "width": 64,
                "heads": 2,
                "qk_norm": True,
                "shift": True,
                "dropout_rate": 0.1,
            },
            "objective": {"name": "md4", "estimator": "paired"},
            "optimizer": {
                "name": "muon",
                "learning_rate": 2e-2,
                "adam_learning_rate": 5e-3,
                "decay": "linear",
                "warmup": 20,
                "clip": 1.0,
            },
            "sampler": {"name": "ancestral", "num_steps": 64, "grid": "cosine"},
            "evaluators": {"valid": {"name": "likelihood", "draws": 16, "batch_size": 64}},
            "train": {
                "steps": 3000,
                "batch_size": 32,
                "log_every": 100,
                "eval_every": 500,
                "checkpoint_every": 500,
                "num_samples": 16,
            },
        }
    )

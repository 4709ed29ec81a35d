"""An autoregressive model on scikit-learn's 8 x 8 digits, the baseline of md4_digits.py.

Command:   python -m diffusion_lm.main --config=configs/ar_digits.py --workdir=runs/ar_digits
           with labels: --config=configs/ar_digits.py:classes
Hardware:  2 CPU cores; more cores or an accelerator need no change.
Cost:      3,000 steps of 32 images; about as long as configs/md4_digits.py.
Expected:  bits per dimension of validation, seed 0: 1.796 after 500 steps, 1.933 after 1,000, 2.444
           after 3,000. It overfits early, masked diffusion does not: see configs/md4_digits.py.
Data:      1,797 images of 64 pixels with 17 levels: 1,439 train, 179 valid, 179 test.
"""

from ml_collections import ConfigDict

VARIANTS = ("plain", "classes")


def get_config(variant="plain"):
    if variant not in VARIANTS:
        raise ValueError(f"unknown ar_digits {variant!r}; choices: {', '.join(VARIANTS)}")
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
            "objective": {"name": "ar"},
            "optimizer": {
                "name": "muon",
                "learning_rate": 2e-2,
                "adam_learning_rate": 5e-3,
                "decay": "linear",
                "warmup": 20,
                "clip": 1.0,
            },
            "sampler": {"name": "autoregressive"},
            "evaluators": {"valid": {"name": "likelihood", "batch_size": 64}},
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

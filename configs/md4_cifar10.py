"""MD4 on CIFAR-10 with the paper's settings (arXiv 2406.04329, appendix): a U-Net on pixels.

Command:   python -m diffusion_lm.main --config=configs/md4_cifar10.py --workdir=runs/md4_cifar10 \
               --config.data.data_dir=FOLDER_OF_TFDS
Hardware:  meant for 8 or more accelerators; not yet run by us.
Cost:      28 M parameters, 2M steps of 256 x 3,072 tokens.
Expected:  2.75 bits/dim on test (published, an upper bound; 2.78 in the abstract's first version).
Data:      TFDS's cifar10, prepared as array_record (where TensorFlow is installed: TFDS wants it to
           write PNG); nothing is flipped. The last 5,000 training images are valid here, so 45,000
           train, while the paper trains on all 50,000.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            "data": {"name": "images", "source": "cifar10"},
            "network": {
                "name": "unet",
                "blocks": 32,
                "width": 128,
                "dropout_rate": 0.1,
                "dtype": "bfloat16",
                "remat": True,
            },
            "schedule": {"name": "linear"},
            "objective": {"name": "md4", "time_input": True, "estimator": "low_discrepancy"},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 4e-4,
                "decay": "cosine",
                "warmup": 2000,
                "b2": 0.999,
                "weight_decay": 0.03,
            },
            "sampler": {"name": "ancestral", "num_steps": 256, "grid": "cosine"},
            "evaluators": {"valid": {"name": "likelihood", "draws": 4, "batch_size": 256}},
            "train": {
                "steps": 2_000_000,
                "batch_size": 256,
                "ema": 0.9999,
                "log_every": 500,
                "eval_every": 50_000,
                "checkpoint_every": 10_000,
                "num_samples": 16,
            },
        }
    )

"""MD4 on downsampled ImageNet 64 x 64 with the paper's sizes (arXiv 2406.04329, appendix).

Command:   python -m diffusion_lm.main --config=configs/md4_imagenet64.py \
               --workdir=runs/md4_imagenet64 --config.data.data_dir=FOLDER_OF_TFDS \
               --config.data.cache_dir=FOLDER_FOR_PIXELS
Hardware:  meant for a TPU v5e 8x8 slice or 64 GPUs; not yet run by us.
Cost:      191 M parameters, 2M steps of 512 x 12,288 tokens.
Expected:  3.40 bits/dim on the valid split (published, an upper bound; 3.42 in the first version).
Data:      TFDS's downsampled_imagenet/64x64, prepared as array_record; 1.28 M images, of which the
           last 5,000 of train are test here; 16 GB of pixels in cache_dir.

From the paper: 8 residual blocks of 256 channels on each end, 20 layers of 768, the batch. Ours:
patches of 4 x 4, the learning rate and the number of steps.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            "data": {
                "name": "images",
                "source": "downsampled_imagenet",
                "cache_dir": "imagenet64_pixels",
            },
            "network": {
                "name": "uvit",
                "outer": 8,
                "outer_width": 256,
                "patch": 4,
                "layers": 20,
                "width": 768,
                "heads": 12,
                "dtype": "bfloat16",
                "remat": True,
            },
            "schedule": {"name": "linear"},
            "objective": {"name": "md4", "time_input": True, "estimator": "low_discrepancy"},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 2e-4,
                "decay": "cosine",
                "warmup": 2000,
                "b2": 0.999,
                "weight_decay": 0.03,
            },
            "sampler": {"name": "ancestral", "num_steps": 1000, "grid": "cosine"},
            "evaluators": {
                "valid": {
                    "name": "likelihood",
                    "draws": 2,
                    "batch_size": 512,
                    "max_windows": 8192,
                }
            },
            "train": {
                "steps": 2_000_000,
                "batch_size": 512,
                "ema": 0.9999,
                "log_every": 500,
                "eval_every": 50_000,
                "checkpoint_every": 10_000,
                "num_samples": 16,
            },
        }
    )

"""MD4 on OpenWebText with the paper's settings (arXiv 2406.04329, appendix), small or medium.

Command:   python -m diffusion_lm.main --config=configs/md4_owt.py --workdir=runs/md4_owt \
               --config.data.path=FOLDER_OF_OPENWEBTEXT --config.data.cache_dir=FOLDER_FOR_TOKENS
           medium: --config=configs/md4_owt.py:medium
Hardware:  meant for a TPU v5e 8x8 slice or 64 GPUs; not yet run by us at full length.
Plan:      v5e:8x8, small: 2.7 GB of state and 1.8 of temporaries a chip, of 16, 41 GB moved a step,
           MFU at most 71 %; v5e:16x16, medium: 6.8, 2.7, 38 and 55 % (2 rows a chip).
Cost:      1M steps of 512 x 1024 tokens; small 170 M parameters, medium 426 M.
Expected:  validation perplexity 22.13 small, 16.64 medium (published, upper bounds).
Data:      the .tar.xz archives or any folder of documents; the last 100,000 are validation.
"""

from ml_collections import ConfigDict

SIZES = {
    "small": {"layers": 12, "width": 768, "heads": 12, "dropout_rate": 0.02},
    "medium": {"layers": 24, "width": 1024, "heads": 16, "dropout_rate": 0.0},
}


def get_config(size="small"):
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r} of md4_owt; choices: {', '.join(SIZES)}")
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
                "remat": True,
                **SIZES[size],
            },
            "schedule": {"name": "linear"},
            "objective": {"name": "md4", "time_input": True, "estimator": "low_discrepancy"},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 3e-4,
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
                "steps": 1_000_000,
                "batch_size": 512,
                "ema": 0.9999,
                "log_every": 500,
                "eval_every": 50_000,
                "checkpoint_every": 10_000,
            },
        }
    )

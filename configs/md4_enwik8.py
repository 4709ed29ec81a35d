"""MD4 on the bytes of enwik8, with the paper's settings for text8 (arXiv 2406.04329, appendix).

Command:   python -m diffusion_lm.main --config=configs/md4_enwik8.py --workdir=runs/md4_enwik8 \
               --config.data.path=PATH_OF_enwik8
Hardware:  meant for 8 accelerators; not yet run by us at full length.
Cost:      1M steps of 512 x 256 tokens, 92 M parameters.
Expected:  no published figure; text8, close kin, has 1.37 bits per character.
Data:      the file enwik8, 10^8 bytes of UTF-8, split 90/5/5 by position of its characters.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            "data": {
                "name": "text",
                "source": "files",
                "path": "enwik8",
                "split": "position",
                "tokenizer": "bytes",
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
            "schedule": {"name": "linear"},
            "objective": {"name": "md4", "time_input": True, "estimator": "low_discrepancy"},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 5e-4,
                "decay": "cosine",
                "warmup": 2000,
                "b2": 0.999,
                "weight_decay": 0.03,
            },
            "sampler": {"name": "ancestral", "num_steps": 1000, "grid": "cosine"},
            "evaluators": {"valid": {"name": "likelihood", "draws": 4, "batch_size": 512}},
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

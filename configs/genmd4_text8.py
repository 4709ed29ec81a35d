"""GenMD4 on text8 with the paper's settings (arXiv 2406.04329, appendix).

Command:   python -m diffusion_lm.main --config=configs/genmd4_text8.py --workdir=runs/genmd4 \
               --config.data.path=PATH_OF_text8
Hardware:  meant for 8 accelerators; not yet run by us at full length.
Cost:      1M steps of 512 x 256 tokens, 92 M parameters.
Expected:  1.34 bits per character (published, an upper bound).
Data:      the file text8, 10^8 characters, split 90/5/5 by position.
"""

from ml_collections import ConfigDict


def get_config():
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
            "objective": {"name": "genmd4"},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 5e-4,
                "decay": "cosine",
                "warmup": 2000,
                "b2": 0.999,
                "weight_decay": 0.03,
            },
            "sampler": {"name": "state_dependent", "num_steps": 1000, "grid": "cosine"},
            "evaluators": {
                "valid": {"name": "likelihood", "draws": 4, "batch_size": 512},
                "exponents": {"name": "exponents"},
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

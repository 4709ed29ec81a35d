"""GenMD4 on OpenWebText with the paper's settings (arXiv 2406.04329, appendix).

Command:   python -m diffusion_lm.main --config=configs/genmd4_owt.py --workdir=runs/genmd4_owt \
               --config.data.path=FOLDER_OF_OPENWEBTEXT --config.data.cache_dir=FOLDER_FOR_TOKENS
Hardware:  meant for a TPU v5e 8x8 slice or 64 GPUs; not yet run by us at full length.
Cost:      1M steps of 512 x 1024 tokens; 170 M parameters.
Expected:  validation perplexity 21.80 (published, an upper bound).
Data:      the .tar.xz archives or any folder of documents; the last 100,000 are validation.
"""

from ml_collections import ConfigDict


def get_config():
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
                "layers": 12,
                "width": 768,
                "heads": 12,
                "dropout_rate": 0.02,
                "dtype": "bfloat16",
            },
            "objective": {"name": "genmd4"},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 3e-4,
                "decay": "cosine",
                "warmup": 2000,
                "b2": 0.999,
                "weight_decay": 0.03,
            },
            "sampler": {"name": "state_dependent", "num_steps": 1000, "grid": "cosine"},
            "evaluators": {
                "valid": {
                    "name": "likelihood",
                    "draws": 2,
                    "batch_size": 512,
                    "max_windows": 8192,
                },
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

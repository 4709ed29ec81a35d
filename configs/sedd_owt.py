"""SEDD on OpenWebText with the paper's settings (arXiv 2310.16834), small or medium.

Command:   python -m diffusion_lm.main --config=configs/sedd_owt.py --workdir=runs/sedd_owt \
               --config.data.path=FOLDER_OF_OPENWEBTEXT --config.data.cache_dir=FOLDER_FOR_TOKENS
           others: sedd_owt.py:medium, sedd_owt.py:small_uniform, sedd_owt.py:medium_uniform
Hardware:  meant for a TPU v5e 8x8 slice or 64 GPUs; not yet run by us at full length.
Cost:      1.3M steps of 512 x 1024 tokens; small 170 M parameters, medium 426 M.
Expected:  validation perplexity 24.1 small absorbing, 29.7 small uniform (published, upper bounds).
Data:      the .tar.xz archives or any folder of documents; the last 100,000 are validation.
"""

from ml_collections import ConfigDict

SIZES = {
    "small": {"layers": 12, "width": 768, "heads": 12},
    "medium": {"layers": 24, "width": 1024, "heads": 16},
}
NOISE = {
    "absorbing": {"name": "linear"},
    "uniform": {"name": "geometric", "minimum": 1e-4, "maximum": 20.0},
}
VARIANTS = [size + graph for size in SIZES for graph in ("", "_uniform")]


def get_config(variant="small"):
    if variant not in VARIANTS:
        raise ValueError(f"unknown sedd_owt {variant!r}; choices: {', '.join(VARIANTS)}")
    size, _, uniform = variant.partition("_")
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
                "norm": "layer",
                "dropout_rate": 0.1,
                "dtype": "bfloat16",
                **SIZES[size],
            },
            "schedule": NOISE[uniform or "absorbing"],
            "objective": {"name": "sedd", "graph": uniform or "absorbing"},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 3e-4,
                "decay": "constant",
                "warmup": 2500,
                "b2": 0.999,
                "clip": 1.0,
            },
            "sampler": {"name": "score", "num_steps": 1024},
            "evaluators": {
                "valid": {
                    "name": "likelihood",
                    "draws": 2,
                    "batch_size": 512,
                    "max_windows": 8192,
                }
            },
            "train": {
                "steps": 1_300_000,
                "batch_size": 512,
                "ema": 0.9999,
                "log_every": 500,
                "eval_every": 50_000,
                "checkpoint_every": 10_000,
            },
        }
    )

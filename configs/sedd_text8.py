"""SEDD on text8 with the paper's settings (arXiv 2310.16834), absorbing or uniform.

Command:   python -m diffusion_lm.main --config=configs/sedd_text8.py --workdir=runs/sedd_text8 \
               --config.data.path=PATH_OF_text8
           uniform noise: --config=configs/sedd_text8.py:uniform
Hardware:  meant for 8 accelerators; not yet run by us at full length.
Cost:      1M steps of 512 x 256 tokens, 92 M parameters.
Expected:  1.39 bits per character absorbing, 1.47 uniform (published, upper bounds).
Data:      the file text8, 10^8 characters, split 90/5/5 by position.
"""

from ml_collections import ConfigDict

NOISE = {
    "absorbing": {"name": "linear"},
    "uniform": {"name": "geometric", "minimum": 1e-4, "maximum": 20.0},
}


def get_config(graph="absorbing"):
    if graph not in NOISE:
        raise ValueError(f"unknown graph {graph!r} of sedd_text8; choices: {', '.join(NOISE)}")
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
                "norm": "layer",
                "dropout_rate": 0.1,
                "dtype": "bfloat16",
            },
            "schedule": NOISE[graph],
            "objective": {"name": "sedd", "graph": graph},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 3e-4,
                "decay": "constant",
                "warmup": 2500,
                "b2": 0.999,
                "clip": 1.0,
            },
            "sampler": {"name": "score", "num_steps": 256},
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

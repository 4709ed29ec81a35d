"""Difformer on strings of eight letters; the target is the source or its reverse, by a coin.

Command:   python -m diffusion_lm.main --config=configs/difformer_toy.py --workdir=runs/toy
           the reverse alone: --config=configs/difformer_toy.py:reverse
Hardware:  1 CPU core.
Cost:      0.3 M parameters, 1,000 steps of 64 pairs: a minute.
Expected:  docs/difformer.md, written by launch/difformer_claims.py.
Needs:     pip install -e '.[pairs]'
"""

from ml_collections import ConfigDict

TASKS = ("twomode", "reverse")


def get_config(task="twomode"):
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r} of difformer_toy; choices: {', '.join(TASKS)}")
    return ConfigDict(
        {
            "data": {
                "name": "pairs",
                "source": task,
                "tokenizer": "characters",
                "symbols": 31,
                "length": 9,
            },
            "network": {
                "name": "seq2seq",
                "layers": 2,
                "width": 64,
                "heads": 4,
                "hidden": 256,
                "embedding_width": 128,
            },
            "objective": {"name": "difformer"},
            "optimizer": {"name": "adamw", "learning_rate": 1e-3, "warmup": 100},
            "sampler": {"name": "gaussian", "num_steps": 20},
            "evaluators": {"health": {"name": "embeddings"}},
            "train": {
                "steps": 1000,
                "batch_size": 64,
                "log_every": 100,
                "eval_every": 1000,
                "checkpoint_every": 1000,
            },
        }
    )

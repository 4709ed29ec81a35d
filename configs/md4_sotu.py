"""MD4 on 249 US presidential messages: the default run, for two CPU cores.

Command:   python -m diffusion_lm.main --config=configs/md4_sotu.py --workdir=runs/md4_sotu
Hardware:  2 CPU cores; more cores or an accelerator need no change.
Cost:      8 M parameters, 600 steps of 16 x 128 tokens; the README's table has the seconds.
Expected:  the README's table, written from results/sotu.json (validation bits per character).

The tokenizer, the bigram start and the token shift are not the paper's: they won a race at this
budget. configs/md4_text8.py and configs/md4_owt.py keep the paper's settings.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            "data": {
                "name": "text",
                "source": "sotu",
                "tokenizer": "gpt2",
                "vocab_size": 16384,
                "length": 128,
            },
            "network": {
                "name": "transformer",
                "layers": 4,
                "width": 192,
                "heads": 3,
                "hidden": 512,
                "qk_norm": True,
                "shift": True,
            },
            "objective": {"name": "md4", "estimator": "paired"},
            "optimizer": {
                "name": "muon",
                "learning_rate": 1e-2,
                "adam_learning_rate": 3e-3,
                "decay": "linear",
                "warmup": 10,
                "clip": 1.0,
            },
            "sampler": {"name": "ancestral", "num_steps": 128, "grid": "cosine"},
            "evaluators": {"valid": {"name": "likelihood", "draws": 4, "batch_size": 32}},
            "train": {
                "steps": 600,
                "batch_size": 16,
                "start": "bigram",
                "log_every": 20,
                "eval_every": 300,
                "checkpoint_every": 100,
            },
        }
    )

"""GenMD4 on 249 US presidential messages: md4_sotu with a learned schedule for every token.

Command:   python -m diffusion_lm.main --config=configs/genmd4_sotu.py --workdir=runs/genmd4_sotu
Hardware:  2 CPU cores; more cores or an accelerator need no change.
Cost:      that of md4_sotu times about four: two draws a step, time as an input, the head at all
           positions.
Expected:  LOG.md has what the schedule and what the second draw are worth at a smaller size.
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
            "objective": {"name": "genmd4"},
            "optimizer": {
                "name": "muon",
                "learning_rate": 1e-2,
                "adam_learning_rate": 3e-3,
                "decay": "linear",
                "warmup": 10,
                "clip": 1.0,
            },
            "sampler": {"name": "state_dependent", "num_steps": 128, "grid": "cosine"},
            "evaluators": {
                "valid": {"name": "likelihood", "draws": 4, "batch_size": 32},
                "exponents": {"name": "exponents"},
            },
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

"""MD4 on a Markov chain with known probabilities, the proposal of configs/edlm_markov.py.

Command:   python -m diffusion_lm.main --config=configs/md4_markov.py --workdir=runs/md4_markov
Hardware:  1 CPU core; more cores or an accelerator need no change.
Cost:      0.13 M parameters, 2,000 steps of 32 x 64 tokens: about two minutes.
Expected:  docs/edlm_markov.md, which launch/edlm_claims.py writes.
Quality:   of what it writes, by the true probabilities, in half a minute:
           Q=--config.evaluators.quality; python -m diffusion_lm.main --workdir=runs/md4_markov \\
           --mode=eval $Q.name=generative $Q.judge=source $Q.steps=4,16,64 $Q.temperatures=0.7,1.0
Data:      20,000 windows of a chain of order 2 over 8 symbols, drawn from data.source_seed.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            "data": {"name": "markov", "vocab_size": 8, "order": 2, "length": 64},
            "network": {"name": "transformer", "layers": 2, "width": 64, "heads": 2},
            "objective": {"name": "md4", "estimator": "paired"},
            "optimizer": {
                "name": "muon",
                "learning_rate": 1e-2,
                "adam_learning_rate": 3e-3,
                "decay": "linear",
                "warmup": 20,
                "clip": 1.0,
            },
            "sampler": {"name": "ancestral", "num_steps": 64, "grid": "cosine"},
            "evaluators": {"valid": {"name": "likelihood", "draws": 4, "batch_size": 64}},
            "train": {
                "steps": 2000,
                "batch_size": 32,
                "log_every": 100,
                "eval_every": 2000,
                "checkpoint_every": 1000,
            },
        }
    )

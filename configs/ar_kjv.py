"""The autoregressive encoder-decoder from the King James Bible to the World English Bible.

Command:   python -m diffusion_lm.main --config=configs/ar_kjv.py --workdir=runs/ar_kjv
Hardware:  2 CPU cores; more cores or an accelerator need no change.
Cost:      4 M parameters, 1,500 steps of 64 pairs.
Expected:  0.71 bits/char on validation (exact); BLEU on test in results/kjv.json.
It is the reranker of configs/difformer_kjv.py too: --config.decoding.choice=ar
--config.decoding.reranker=runs/ar_kjv. Needs: pip install -e '.[pairs]'
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
            "objective": {"name": "ar", "label_smoothing": 0.1},
            "optimizer": {
                "name": "muon",
                "learning_rate": 1e-2,
                "adam_learning_rate": 3e-3,
                "decay": "linear",
                "warmup": 50,
                "clip": 1.0,
            },
            "sampler": {"name": "autoregressive", "temperature": 0.0},
            "evaluators": {
                "valid": {"name": "translation", "max_pairs": 256, "batch_size": 32},
                "nll": {"name": "likelihood", "max_windows": 256},
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

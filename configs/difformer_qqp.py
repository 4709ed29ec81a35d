"""Difformer on Quora question pairs, the paper's settings (arXiv 2212.09412).

Command:   python -m diffusion_lm.main --config=configs/difformer_qqp.py --workdir=runs/qqp
Hardware:  one accelerator.
Cost:      50,000 steps of 1024 pairs; the paper counts batches in tokens.
Expected:  BLEU 30.43 in the paper. Not run here.
Data:      data/qqp/train.jsonl, valid.jsonl, test.jsonl as DiffuSeq has them.
Needs:     pip install -e '.[pairs]'
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            "data": {
                "name": "pairs",
                "source": "jsonl",
                "path": "data/qqp",
                "vocab_size": 30000,
                "length": 64,
                "buckets": 4,
            },
            "network": {
                "name": "seq2seq",
                "layers": 6,
                "width": 768,
                "heads": 12,
                "hidden": 3072,
                "embedding_width": 128,
                "post_norm": True,
                "dropout_rate": 0.1,
                "dtype": "bfloat16",
            },
            "objective": {"name": "difformer", "train_F": 4.0},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 5e-4,
                "decay": "inverse_sqrt",
                "warmup": 10000,
                "b2": 0.98,
                "weight_decay": 0.01,
                "clip": 1.0,
            },
            "sampler": {"name": "gaussian", "num_steps": 20, "early_stop": 5},
            "decoding": {"length_beam": 7, "noise_beam": 3, "choice": "mbr"},
            "evaluators": {
                "valid": {"name": "translation", "max_pairs": 1000},
                "health": {"name": "embeddings"},
            },
            "train": {
                "steps": 50000,
                "batch_size": 1024,
                "log_every": 100,
                "eval_every": 10000,
                "checkpoint_every": 5000,
            },
        }
    )

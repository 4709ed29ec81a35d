"""Difformer on Gigaword summarisation (arXiv 2212.09412).

Command:   python -m diffusion_lm.main --config=configs/difformer_gigaword.py --workdir=runs/giga
Hardware:  one accelerator.
Cost:      100,000 steps of 1024 pairs; the paper counts batches in tokens.
Expected:  no figure at hand. Not run here; the network is that of WMT14, F that of IWSLT14.
Data:      TFDS's gigaword, prepared as array_record.
Needs:     pip install -e '.[pairs]'
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            "data": {
                "name": "pairs",
                "source": "tfds",
                "tfds_name": "gigaword",
                "source_field": "document",
                "target_field": "summary",
                "vocab_size": 30000,
                "length": 64,
                "source_length": 128,
                "buckets": 4,
            },
            "network": {
                "name": "seq2seq",
                "layers": 6,
                "width": 512,
                "heads": 8,
                "hidden": 2048,
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
            },
            "sampler": {"name": "gaussian", "num_steps": 20, "early_stop": 5},
            "decoding": {"length_beam": 7, "noise_beam": 3, "choice": "mbr"},
            "evaluators": {
                "valid": {"name": "translation", "max_pairs": 1000},
                "health": {"name": "embeddings"},
            },
            "train": {
                "steps": 100000,
                "batch_size": 1024,
                "log_every": 100,
                "eval_every": 10000,
                "checkpoint_every": 5000,
            },
        }
    )

"""Difformer on IWSLT14 German to English, the paper's settings (arXiv 2212.09412).

Command:   python -m diffusion_lm.main --config=configs/difformer_iwslt14.py --workdir=runs/iwslt14
           decode_F = 1, as the released scripts: --config=configs/difformer_iwslt14.py:released
Hardware:  one accelerator.
Cost:      300,000 steps of 256 pairs; the paper counts batches in tokens.
Expected:  BLEU 34.48, SacreBLEU 33.5 in the paper (21 candidates, reranked by an autoregressive
           model, distilled targets); one candidate: 32.2 there,
           29.9 by a user. Not run here.
Data:      data/iwslt14/train.de, train.en, valid.*, test.*; targets distilled by an autoregressive
           model in the paper: say so by --config.data.distillation=NAME.
Needs:     pip install -e '.[pairs]'
"""

from ml_collections import ConfigDict


def get_config(preset="paper"):
    if preset not in ("paper", "released"):
        raise ValueError(
            f"unknown preset {preset!r} of difformer_iwslt14; choices: paper, released"
        )
    return ConfigDict(
        {
            "data": {
                "name": "pairs",
                "source": "files",
                "path": "data/iwslt14",
                "source_suffix": "de",
                "target_suffix": "en",
                "vocab_size": 10000,
                "length": 160,
                "buckets": 4,
            },
            "network": {
                "name": "seq2seq",
                "layers": 6,
                "width": 512,
                "heads": 4,
                "hidden": 1024,
                "embedding_width": 128,
                "post_norm": True,
                "dropout_rate": 0.3,
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
            "sampler": {
                "name": "gaussian",
                "num_steps": 20,
                "early_stop": 5,
                "decode_F": 1.0 if preset == "released" else None,
            },
            "decoding": {"length_beam": 7, "noise_beam": 3, "choice": "mbr"},
            "evaluators": {
                "valid": {"name": "translation", "max_pairs": 1000},
                "health": {"name": "embeddings"},
            },
            "train": {
                "steps": 300000,
                "batch_size": 256,
                "log_every": 100,
                "eval_every": 10000,
                "checkpoint_every": 5000,
            },
        }
    )

"""Difformer on WMT14 English to German, the paper's settings (arXiv 2212.09412).

Command:   python -m diffusion_lm.main --config=configs/difformer_wmt14.py --workdir=runs/wmt14
Hardware:  one accelerator.
Cost:      300,000 steps of 1024 pairs; the paper counts batches in tokens.
Expected:  BLEU 27.74, SacreBLEU 26.2 in the paper (21 candidates, reranked by an autoregressive
           model, distilled targets). Not run here.
Data:      data/wmt14/train.en, train.de and so on.
Needs:     pip install -e '.[pairs]'
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            "data": {
                "name": "pairs",
                "source": "files",
                "path": "data/wmt14",
                "source_suffix": "en",
                "target_suffix": "de",
                "vocab_size": 40000,
                "length": 160,
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
            "objective": {"name": "difformer", "train_F": 3.5},
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
                "steps": 300000,
                "batch_size": 1024,
                "log_every": 100,
                "eval_every": 10000,
                "checkpoint_every": 5000,
            },
        }
    )

"""RDM on Quora question pairs, the paper's settings (arXiv 2302.05737).

Command:   python -m diffusion_lm.main --config=configs/rdm_qqp.py --workdir=runs/rdm_qqp
Hardware:  one accelerator.
Cost:      300,000 steps of 512 pairs; the paper counts batches in tokens.
Expected:  BLEU about 25 in the paper. Not run here.
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
                "post_norm": True,
                "dropout_rate": 0.1,
                "dtype": "bfloat16",
            },
            "objective": {"name": "rdm", "noise": "absorbing", "timesteps": 50, "coupled": True},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 5e-4,
                "decay": "inverse_sqrt",
                "warmup": 10000,
                "b2": 0.98,
                "weight_decay": 0.01,
            },
            "sampler": {"name": "routing", "num_steps": 10, "temperature": 0.0},
            "decoding": {"length_beam": 5, "choice": "model"},
            "evaluators": {"valid": {"name": "translation", "max_pairs": 1000}},
            "train": {
                "steps": 300000,
                "batch_size": 512,
                "log_every": 100,
                "eval_every": 10000,
                "checkpoint_every": 5000,
            },
        }
    )

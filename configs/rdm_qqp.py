"""RDM on Quora question pairs, the settings of its released script (arXiv 2302.05737).

Command:   python -m diffusion_lm.main --config=configs/rdm_qqp.py --workdir=runs/rdm_qqp
Hardware:  one accelerator.
Cost:      70,000 steps of 256 pairs.
Expected:  BLEU about 25 in the paper, which may be a mean over sentences as DiffuSeq's is; here it
           is the corpus's. Not run here.
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
                "width": 512,
                "heads": 8,
                "hidden": 1024,
                "post_norm": True,
                "dropout_rate": 0.2,
                "dtype": "bfloat16",
            },
            "objective": {"name": "rdm", "noise": "absorbing", "timesteps": 50, "coupled": True},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 5e-4,
                "decay": "inverse_sqrt",
                "warmup": 10000,
                "b2": 0.999,
                "weight_decay": 0.01,
                "clip": 1.0,
            },
            "sampler": {"name": "routing", "num_steps": 10, "temperature": 0.0},
            "decoding": {"length_beam": 5, "choice": "model"},
            "evaluators": {"valid": {"name": "translation", "max_pairs": 1000}},
            "train": {
                "steps": 70000,
                "batch_size": 256,
                "log_every": 100,
                "eval_every": 10000,
                "checkpoint_every": 5000,
            },
        }
    )

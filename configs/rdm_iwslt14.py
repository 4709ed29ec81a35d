"""RDM on IWSLT14 German to English, the paper's settings (arXiv 2302.05737).

Command:   python -m diffusion_lm.main --config=configs/rdm_iwslt14.py --workdir=runs/rdm_iwslt14
Hardware:  one accelerator.
Cost:      300,000 steps of 256 pairs; the paper counts batches in tokens.
Expected:  BLEU about 34.5 in the paper (10 iterations, 5 lengths). Not run here.
Data:      data/iwslt14/train.de, train.en, valid.*, test.*.
Needs:     pip install -e '.[pairs]'
"""

from ml_collections import ConfigDict


def get_config():
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
                "post_norm": True,
                "dropout_rate": 0.3,
                "dtype": "bfloat16",
            },
            "objective": {"name": "rdm", "noise": "absorbing", "timesteps": 50, "coupled": True},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 5e-4,
                "decay": "inverse_sqrt",
                "warmup": 30000,
                "b2": 0.98,
                "weight_decay": 0.01,
            },
            "sampler": {"name": "routing", "num_steps": 10, "temperature": 0.0},
            "decoding": {"length_beam": 5, "choice": "model"},
            "evaluators": {"valid": {"name": "translation", "max_pairs": 1000}},
            "train": {
                "steps": 300000,
                "batch_size": 256,
                "log_every": 100,
                "eval_every": 10000,
                "checkpoint_every": 5000,
            },
        }
    )

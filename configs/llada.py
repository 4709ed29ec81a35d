"""Masked diffusion at the size of LLaDA (arXiv 2502.09992, table 5), 1b or 8b: a plan for a pod.

Command:   python -m diffusion_lm.main --mode=plan --config=configs/llada.py:8b \
               --topology=v5p:8x8x16 --config.mesh.fsdp=64
           1b: --config.mesh.fsdp=16
Hardware:  a TPU v5p 8x8x16 slice (1024 chips); never run by us.
Plan:      8b: 1.4 GB of state and 5.6 of temporaries a chip, of 95; at least 0.56 s a step, MFU at
           most 79 %; 1b: 1.0 and 3.0 GB, 0.11 s, 79 %.
Cost:      LLaDA was trained on 2.3 T tokens. Its tokenizer and text are not public: here GPT-2's
           and OpenWebText, so the embeddings and the head are smaller than its own.
Expected:  nothing is published in our units.
"""

from ml_collections import ConfigDict

SIZES = {
    "1b": {"layers": 22, "width": 2048, "heads": 32, "hidden": 5632},
    "8b": {"layers": 32, "width": 4096, "heads": 32, "hidden": 12288},
}


def get_config(size="8b"):
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r} of llada; choices: {', '.join(SIZES)}")
    return ConfigDict(
        {
            "data": {
                "name": "text",
                "source": "openwebtext",
                "path": "openwebtext",
                "cache_dir": "openwebtext_tokens",
                "tokenizer": "gpt2",
                "length": 4096,
            },
            "network": {
                "name": "transformer",
                "dtype": "bfloat16",
                "remat": True,
                **SIZES[size],
            },
            "schedule": {"name": "linear"},
            "objective": {"name": "md4", "estimator": "low_discrepancy"},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 4e-4,
                "decay": "cosine",
                "warmup": 2000,
                "b2": 0.95,
                "weight_decay": 0.1,
                "clip": 1.0,
            },
            "sampler": {"name": "confidence", "num_steps": 256},
            "evaluators": {
                "valid": {"name": "likelihood", "draws": 2, "batch_size": 1024, "max_windows": 4096}
            },
            "train": {
                "steps": 500_000,
                "batch_size": 1024,
                "log_every": 100,
                "eval_every": 10_000,
                "checkpoint_every": 1000,
            },
        }
    )

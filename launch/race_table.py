"""Time to quality: MD4 as published for ten minutes, this code's recipe for five.

    python launch/race_table.py --workdir=runs/race [--seeds=5]

Both train configs/md4_sotu.py: the same text, tokens and batches of 16 windows, a transformer of
the same depth, widths and heads. "Published" is MD4's recipe (arXiv 2406.04329): AdamW,
low-discrepancy t, an embedding of t of width 64, a random start. Its learning rate is the best of
RATES, each tried for all of its time with the first seed; warm-up and clipping are the config's (10
steps, the paper's are 0.2 % of its own; norm 1, the paper has none). "Ours" is the config as it
stands: Muon, paired counts, no input of t, token shift, normed queries and keys, a bigram start.
The steps are those that fit into the minutes by seconds a step, which are measured in turns in one
process first; starting (ours with some seconds for the bigrams) and evaluating are not counted.

About two hours on two cores that do nothing else. The same line goes on after a stop: what is
finished is not run again. Writes results/race.json and, from that file alone, the block of the
README between the markers `<!-- race -->`.
"""

import argparse
import json
import pathlib

from sotu_table import hardware, readme_with
from study import kept, step_seconds, train
from study_pages import ROOT, mean

MARK = "<!-- race -->"
CONFIG = "md4_sotu.py"
MINUTES = {"published": 10, "ours": 5}
PUBLISHED = [
    "train.start=random",
    "objective.time_input=true",
    "objective.estimator=low_discrepancy",
    "network.condition_width=64",
    "network.shift=false",
    "network.qk_norm=false",
    "optimizer.name=adamw",
    "optimizer.decay=cosine",
    "optimizer.b2=0.999",
    "optimizer.weight_decay=0.03",
]
RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # the first is the paper's, for batches 32 times as large


def run(workdir: pathlib.Path, name: str, options: list[str], seed: int, steps: int) -> dict:
    """Trains one recipe for so many steps; returns its validation bound."""
    fixed = ["train.num_samples=0", "train.eval_every=1000000", "train.checkpoint_every=1000000"]
    fixed += [f"seed={seed}", f"train.steps={steps}"]
    folder = train(workdir / f"{name}_{seed}", CONFIG, [*options, *fixed], str(workdir / "cache"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (found,) = [row for row in rows if row.get("evaluator") == "valid"]
    fields = ("bits_per_char", "nats_per_token", "standard_error")
    return {"seed": seed, "steps": steps, **{field: found[field] for field in fields}}


def measure(workdir: pathlib.Path, seeds: int) -> dict:
    def seconds():
        return step_seconds({"published": (CONFIG, PUBLISHED), "ours": (CONFIG, [])})

    took = kept(workdir / "step_seconds.json", seconds)
    steps = {name: int(60 * minutes / took[name]) for name, minutes in MINUTES.items()}

    def published(rate, seed):
        options = [*PUBLISHED, f"optimizer.learning_rate={rate}"]
        return run(workdir, f"published_{rate:g}", options, seed, steps["published"])

    rates = {rate: published(rate, 0)["bits_per_char"] for rate in RATES}
    best = min(rates, key=rates.get)
    rows = []
    for seed in range(seeds):
        rows.append({"recipe": "published", **published(best, seed)})
        rows.append({"recipe": "ours", **run(workdir, "ours", [], seed, steps["ours"])})
    return {"minutes": MINUTES, "step_seconds": took, "rates": rates, "rows": rows}


def render(results: dict) -> str:
    """The README's block, from results/race.json."""
    lines = [
        "| recipe | minutes of training | ms a step | steps | validation bits/char |",
        "|---|---|---|---|---|",
    ]
    scores = {}
    for name, minutes in results["minutes"].items():
        rows = [row for row in results["rows"] if row["recipe"] == name]
        scores[name] = [row["bits_per_char"] for row in rows]
        cells = [name, f"{minutes:g}", f"{1000 * results['step_seconds'][name]:.0f}"]
        cells += [str(rows[0]["steps"]), mean(scores[name])]
        lines.append(f"| {' | '.join(cells)} |")
    rate = min(results["rates"], key=results["rates"].get)
    ahead = [a - b for a, b in zip(scores["published"], scores["ours"], strict=True)]
    lines += [
        "",
        f"Ahead by {mean(ahead)} bits/char: mean and standard error of {len(ahead)} seeds, "
        f"{min(ahead):.3f} in the closest. AdamW's learning rate is {float(rate):g}, the best of "
        f"{', '.join(f'{float(r):g}' for r in results['rates'])} with the first seed; both warm up "
        "in 10 steps and clip at norm 1. "
        f"{results['hardware']}; jax {results['jax']}. "
        "Written by `python launch/race_table.py` from `results/race.json`.",
    ]
    return "\n".join(lines)


def main() -> None:
    import jax

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    flags = parser.parse_args()
    results = {"hardware": hardware(), "jax": jax.__version__}
    results |= measure(flags.workdir.resolve(), flags.seeds)
    (ROOT / "results" / "race.json").write_text(json.dumps(results, indent=1) + "\n")
    readme = ROOT / "README.md"
    readme.write_text(readme_with(readme.read_text(), render(results), MARK))
    print(render(results))


if __name__ == "__main__":
    main()

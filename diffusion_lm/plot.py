"""Figures of runs as PNG: python -m diffusion_lm.plot frontier RUN [RUN ...] --to=FILE.png"""

import argparse
import sys

from diffusion_lm import compare

EPILOG = """\
examples:
  python -m diffusion_lm.main --workdir=runs/md4_markov --mode=eval \\
      --config.evaluators.quality.name=generative --config.evaluators.quality.judge=source \\
      --config.evaluators.quality.steps=4,16,64 --config.evaluators.quality.temperatures=0.7,1.0
  python -m diffusion_lm.plot frontier runs/md4_markov runs/ar_markov --to=frontier.png
frontier: generative perplexity against the entropy of the same samples, from the last generative
row of each run; a line goes over the temperatures of one number of steps. Nearer to the star of
real data is better; lower alone is not.
exit codes: 0 done; 2 bad input, or rows that were not measured alike (--anyway draws them).
"""
OF = ("model", "control", "data")
MARKERS = "osD^vP<>ph"  # of numbers of steps


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
    kinds = out.add_subparsers(dest="kind", required=True, metavar="frontier")
    front = kinds.add_parser("frontier", help="quality against variety", allow_abbrev=False)
    front.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    front.add_argument("--to", metavar="FILE.png", required=True)
    front.add_argument("--evaluator", metavar="LABEL", help="only this one of the config's")
    front.add_argument("--anyway", action="store_true", help="draw rows whose protocols differ")
    return out


def frontiers(runs: list[str], evaluator: str | None, anyway: bool) -> dict[str, dict]:
    """run -> its last generative row. Raises OSError or ValueError in one line."""
    found = {}
    for run in runs:
        rows = {k: r for k, r in compare.rows_of(run).items() if r["kind"] == "generative"}
        if evaluator:
            rows = {k: r for k, r in rows.items() if k == evaluator}
        if not rows:
            raise ValueError(
                f"{run!r} has no row of {evaluator or 'a generative evaluator'}; --mode=eval "
                "--config.evaluators.quality.name=generative writes one"
            )
        found[run] = list(rows.values())[-1]
    differ = compare.differences(list(found.values()))
    if differ and not anyway:
        said = "; ".join(f"{name}: {' and '.join(map(str, v))}" for name, v in differ.items())
        raise ValueError(f"the rows were not measured alike ({said}); --anyway draws them")
    return found


def frontier(found: dict[str, dict]):
    """A figure of points (entropy, perplexity): a marker a number of steps; a colour a run or, of
    one run, a number of steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8.5, 4.8), layout="constrained")
    rows, alone = list(found.values()), len(found) == 1
    every = {p["steps"] for row in rows for p in row["points"] if p["of"] == "model"}
    steps = sorted(every - {None})
    marker = {None: "X"} | {n: MARKERS[i % len(MARKERS)] for i, n in enumerate(steps)}
    for number, (run, row) in enumerate(found.items()):
        points = {of: [p for p in row["points"] if p["of"] == of] for of in OF}
        run = "" if alone else f"{run.rstrip('/')}, "
        color = "black" if alone else f"C{number}"
        for index, n in enumerate(dict.fromkeys(p["steps"] for p in points["model"])):
            line = [p for p in points["model"] if p["steps"] == n]
            look = {"color": f"C{index}" if alone else color, "marker": marker[n], "zorder": 3}
            _draw(axis, line, label=f"{run}{row['sampler']}{_steps(n)}", **look)
        _temperatures(axis, line)  # those of its other lines are the same
        for p in points["control"]:
            label = f"control: {run}{row['sampler']}{_steps(p['steps'])}, T={p['temperature']:g}"
            look = {"marker": "x", "markersize": 9, "markeredgewidth": 2, "zorder": 4}
            _draw(axis, [p], label=label, color=color, **look)
        one = not compare.differences(rows)  # then the real texts are the same, too
        if number == 0 or not one:
            look = {"color": "black" if one else color, "marker": "*", "markersize": 15}
            _draw(axis, points["data"], label=f"{'' if one else run}real data", zorder=5, **look)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    axis.yaxis.set_minor_formatter(matplotlib.ticker.LogFormatter(minor_thresholds=(2, 0.5)))
    axis.set_xlabel("entropy of tokens in a sample, nats (mean over samples)")
    judge = " and ".join(dict.fromkeys(row["protocol"]["judge"] for row in rows))
    axis.set_ylabel(
        f"generative perplexity, judge: {judge}\n(per judged token, token-weighted, log scale)"
    )
    axis.margins(0.1)
    axis.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _steps(number: int | None) -> str:
    return "" if number is None else f", {number} steps"


def _draw(axis, points: list[dict], **look) -> None:
    """Points with bars of a standard error, joined in order of temperature."""
    points = sorted(points, key=lambda p: p.get("temperature") or 0)
    y = [p["perplexity_token_weighted"] for p in points]
    error = [p["perplexity_token_weighted"] * p["standard_error"] for p in points]
    wide = [p["entropy_standard_error"] for p in points]
    x = [p["entropy"] for p in points]
    look["linestyle"] = "-" if len(points) > 1 else "none"
    axis.errorbar(x, y, yerr=error, xerr=wide, capsize=0, elinewidth=0.8, **look)


def _temperatures(axis, points: list[dict]) -> None:
    for p in points:
        if p["temperature"] is not None:
            at = (p["entropy"], p["perplexity_token_weighted"])
            text = f"T={p['temperature']:g}"
            look = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
            axis.annotate(
                text, at, xytext=(7, -10), textcoords="offset points", fontsize=7, bbox=look
            )


def main(argv: list[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    try:
        if not flags.to.endswith(".png"):
            raise ValueError(f"--to wants a name that ends in .png, got {flags.to!r}")
        figure = frontier(frontiers(flags.runs, flags.evaluator, flags.anyway))
        figure.savefig(flags.to, dpi=130)
    except ModuleNotFoundError as error:
        print(f"diffusion_lm: {error}: plots want pip install 'diffusion_lm[plots]'",
              file=sys.stderr)  # fmt: skip
        return 2
    except (ValueError, OSError) as error:
        print(f"diffusion_lm: {error}", file=sys.stderr)
        return 2
    print(flags.to)
    return 0


if __name__ == "__main__":
    sys.exit(main())

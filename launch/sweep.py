"""Trains one config at every point of a grid over its fields, and lays the results side by side.

    python launch/sweep.py --config=configs/md4_sotu.py --workdir=runs/sweep \
        --over config.optimizer.learning_rate=1e-3,3e-3 --over config.seed=0,1,2 \
        [--together] [--jobs=1] [--dry_run] [--config.FIELD=VALUE ...]

With --together the first values of all fields are a point, the second ones, and so on, in place of
the grid. Each point is a run in a folder of its own, with its output in log.txt. The same line goes
on after a stop: what is finished is not run again. A point that fails does not stop the others; it
is named at the end, and the exit code is 1. Ctrl-C and SIGTERM go to the runs as well, which save.
The table and WORKDIR/sweep.json hold the last evaluation in bits of each point, the best first; if
config.seed is swept, the mean and standard error over seeds.
"""

import argparse
import itertools
import json
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

BITS = ("bits_per_char", "bits_per_dim", "bits_per_token")
SEED = "config.seed"


class Point(NamedTuple):
    fields: dict[str, str]
    folder: pathlib.Path


def points(over: list[str], workdir: pathlib.Path, together: bool) -> list[Point]:
    """Raises ValueError if `over` are not FIELD=VALUE,VALUE."""
    lists = {}
    for text in over:
        field, equals, values = text.partition("=")
        if not field.startswith("config.") or not equals or "" in values.split(","):
            raise ValueError(f"--over wants config.FIELD=VALUE,VALUE,..., got {text!r}")
        if field in lists:
            raise ValueError(f"--over has {field} twice")
        lists[field] = values.split(",")
    if together and len({len(values) for values in lists.values()}) > 1:
        raise ValueError("--together wants as many values of each field")
    rows = zip(*lists.values(), strict=True) if together else itertools.product(*lists.values())
    out = []
    for values in rows:
        fields = dict(zip(lists, values, strict=True))
        name = ",".join(f"{f.removeprefix('config.')}={value}" for f, value in fields.items())
        out.append(Point(fields, workdir / name.replace("/", "_")))
    if len({point.folder for point in out}) < len(out):
        raise ValueError("two points would share a folder: a value is there twice")
    return out


def train(commands: dict[pathlib.Path, list[str]], jobs: int) -> tuple[dict, int]:
    """Runs folder -> command, `jobs` at a time. Returns folder -> exit code of those that ended,
    and the signal that stopped it all, or 0."""
    waiting, running, codes, signals, stopped = list(commands), {}, {}, [], 0
    old = {
        number: signal.signal(number, lambda number, frame: signals.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    while running or (waiting and not stopped):
        while waiting and len(running) < jobs and not stopped:
            folder = waiting.pop(0)
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / "log.txt", "a", encoding="utf-8") as log:
                # a session of its own, or Ctrl-C would reach it twice, and the second ends at once
                running[folder] = subprocess.Popen(
                    commands[folder], stdout=log, stderr=log, start_new_session=True
                )
            print(f"{folder.name}: started", flush=True)
        time.sleep(0.1)
        while signals:
            stopped = signals.pop(0)
            for process in running.values():
                process.send_signal(stopped)
        for folder in [f for f, process in running.items() if process.poll() is not None]:
            codes[folder] = running.pop(folder).returncode
            print(f"{folder.name}: ended with code {codes[folder]}", flush=True)
    for number, handler in old.items():
        signal.signal(number, handler)
    return codes, stopped


def last_evaluation(folder: pathlib.Path) -> dict | None:
    """The newest row of metrics.jsonl that an evaluator wrote in bits."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if '"evaluator"' in line and line.endswith("}")]
    return next((row for row in reversed(rows) if bits(row)), None)


def bits(row: dict) -> str | None:
    """The name of the bits that a row is compared by."""
    return next((name for name in BITS if row.get(name) is not None), None)


def summary(results: list[dict]) -> list[dict]:
    """One row for each point, those that differ in the seed alone as one; the best first."""
    groups = {}
    for result in results:
        fields = {field: v for field, v in result["fields"].items() if field != SEED}
        groups.setdefault(json.dumps(fields), []).append(result)
    out = []
    for key, group in groups.items():
        rows = [result["row"] for result in group if result["row"]]
        name = bits(rows[0]) if rows else None
        values = [row[name] for row in rows]
        spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        row = {"fields": json.loads(key), "bits": name, "runs": len(values)}
        row["mean"] = statistics.mean(values) if values else None
        row |= {"standard_error": spread, "steps": sorted({row["step"] for row in rows})}
        out.append(row)
    return sorted(out, key=lambda row: float("inf") if row["mean"] is None else row["mean"])


def table(rows: list[dict]) -> str:
    """In markdown."""
    fields = [field.removeprefix("config.") for field in rows[0]["fields"]]
    name = next((row["bits"] for row in rows if row["bits"]), "bits").replace("_", " ")
    lines = [" | ".join([*fields, name, "runs", "step"])]
    lines.append(" | ".join(["---"] * (len(fields) + 3)))
    for row in rows:
        value = "none" if row["mean"] is None else f"{row['mean']:.4f}"
        if row["standard_error"] is not None:
            value += f" ± {row['standard_error']:.4f}"
        steps = ", ".join(map(str, row["steps"]))
        lines.append(" | ".join([*row["fields"].values(), value, str(row["runs"]), steps]))
    return "\n".join(f"| {line} |" for line in lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--over", action="append", required=True, metavar="config.FIELD=V,V")
    parser.add_argument("--together", action="store_true", help="a list of points, not a grid")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--dry_run", action="store_true", help="print the commands only")
    flags, overrides = parser.parse_known_args(argv)
    for override in overrides:
        if not override.startswith("--config."):
            parser.error(f"unknown argument {override}")
    if flags.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {flags.jobs}")
    try:
        grid = points(flags.over, flags.workdir, flags.together)
    except ValueError as error:
        parser.error(str(error))
    base = [sys.executable, "-m", "diffusion_lm.main", f"--config={flags.config}"]
    commands = {}
    for fields, folder in grid:
        own = [f"--{field}={value}" for field, value in fields.items()]
        commands[folder] = [*base, f"--workdir={folder}", *overrides, *own]
    if flags.dry_run:
        for command in commands.values():
            print(*command)
        return 0
    codes, stopped = train(commands, flags.jobs)
    results = [
        {"fields": fields, "code": codes.get(folder), "row": last_evaluation(folder)}
        for fields, folder in grid
    ]
    rows = summary(results)
    text = json.dumps({"summary": rows, "points": results}, indent=1)
    (flags.workdir / "sweep.json").write_text(text + "\n", encoding="utf-8")
    print(table(rows))
    if stopped:
        print("stopped; the same command goes on", file=sys.stderr)
        return 128 + stopped
    failed = [folder for folder, code in codes.items() if code]
    for folder in failed:
        print(f"failed with code {codes[folder]}, see {folder / 'log.txt'}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

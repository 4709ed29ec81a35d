"""Figures of several runs side by side: python -m diffusion_lm.compare RUN RUN ..."""

import argparse
import json
import pathlib
import sys

EPILOG = """\
examples:
  python -m diffusion_lm.compare runs/md4_sotu runs/ar_sotu
  python -m diffusion_lm.compare runs/* --evaluator=ptb --json
The last row of each evaluator in a run's eval.jsonl is shown; of one that is not there, the last in
its metrics.jsonl. Rows are compared if every fact of their protocols is the same: tokenizer, split,
data, context and so on. If one is not, it is named and nothing is shown, but with --anyway.
exit codes: 0 done; 1 the protocols differ; 2 bad input.
"""
# What is shown of a row, where it is there.
COLUMNS = ("kind", "perplexity", "bits_per_token", "bits_per_char", "bits_per_byte", "bits_per_dim")
COLUMNS += ("standard_error", "draws", "bleu", "chrf", "candidates", "choice", "calls")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"diffusion_lm: {message}\n")


def parser() -> argparse.ArgumentParser:
    out = _Parser(
        "diffusion_lm.compare",
        description="Figures of several runs side by side, if they were measured alike.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    out.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    out.add_argument("--evaluator", metavar="LABEL", help="only this one of the config's")
    out.add_argument("--anyway", action="store_true", help="show rows whose protocols differ")
    out.add_argument("--json", action="store_true", help="print one JSON object a row")
    return out


def rows_of(run: str) -> dict[str, dict]:
    """evaluator -> its last row in a run's folder. Raises OSError or ValueError in one line."""
    # of the later file, later lines count
    rows = [row for name in ("metrics.jsonl", "eval.jsonl") for row in lines_of(run, name)]
    return {row["evaluator"]: row for row in rows if "protocol" in row}


def lines_of(run: str, name: str) -> list[dict]:
    """The rows of a file of JSON lines in a run's folder, none if it is not there. Raises OSError
    or ValueError in one line."""
    folder, found = pathlib.Path(run), []
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no run in {run!r}: it has no config.json")
    path = folder / name
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            raise ValueError(f"{path}, line {number} is not JSON") from None
    return found


def differences(rows: list[dict]) -> dict[str, list]:
    """The facts of the rows' protocols that are not the same in all, with what each row says."""
    protocols = [row["protocol"] for row in rows]
    names = dict.fromkeys(name for protocol in protocols for name in protocol)
    said = {name: [protocol.get(name) for protocol in protocols] for name in names}
    return {name: values for name, values in said.items() if any(v != values[0] for v in values)}


def table(runs: list[str], rows: list[dict]) -> str:
    """The rows as aligned text; the bound of a likelihood is marked <=."""
    shown = [c for c in COLUMNS if any(row.get(c) is not None for row in rows)]
    cells = [["run", "step", *shown]]
    for run, row in zip(runs, rows, strict=True):
        cells.append([run, str(row["step"]), *(_cell(row, column) for column in shown)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def _cell(row: dict, column: str) -> str:
    value = row.get(column)
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    bound = row["kind"] == "upper bound" and column.startswith(("bits", "perplexity"))
    return f"{'<= ' if bound else ''}{value:.4f}"


def main(argv: list[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    try:
        found = {run: rows_of(run) for run in flags.runs}
    except (ValueError, OSError) as error:
        print(f"diffusion_lm: {error}", file=sys.stderr)
        return 2
    labels = dict.fromkeys(label for rows in found.values() for label in rows)
    if flags.evaluator is not None and flags.evaluator not in labels or not labels:
        wanted = flags.evaluator or "likelihood or translation"
        print(
            f"diffusion_lm: no row of {wanted} in {', '.join(flags.runs)}; "
            f"there are: {', '.join(labels) or 'none'}; --mode=eval writes them",
            file=sys.stderr,
        )
        return 2
    refused = False
    for label in [flags.evaluator] if flags.evaluator else labels:
        runs = [run for run in found if label in found[run]]
        rows = [found[run][label] for run in runs]
        if all("points" in row for row in rows):
            print(f"{label}: a frontier, which python -m diffusion_lm.plot frontier draws")
            continue
        differ = differences(rows)
        for name, values in differ.items():
            said = "; ".join(f"{run}: {value}" for run, value in zip(runs, values, strict=True))
            print(f"{label}: {name} differs: {said}", file=sys.stderr)
        if differ and not flags.anyway:
            refused = True
            print(f"{label}: not compared; --anyway shows the rows", file=sys.stderr)
            continue
        if flags.json:
            for run, row in zip(runs, rows, strict=True):
                print(json.dumps({"run": run, **row}))
        else:
            print(f"{label} ({', '.join(f'{k} {v}' for k, v in _shared(rows).items())})")
            print(table(runs, rows), end="\n\n")
    return int(refused)


def _shared(rows: list[dict]) -> dict:
    """The facts of the protocol that all rows share."""
    differ = differences(rows)
    return {name: value for name, value in rows[0]["protocol"].items() if name not in differ}


if __name__ == "__main__":
    sys.exit(main())

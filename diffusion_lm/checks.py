"""Does a run come through faults unharmed: python -m diffusion_lm.checks torture --help."""

import argparse
import collections
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

EPILOG = """\
examples:
  train once in peace and once under 25 faults, and compare:
    python -m diffusion_lm.checks torture --config=configs/md4_markov.py --workdir=runs/torture \\
        --faults=25 --config.train.steps=400 --config.train.checkpoint_every=20
  for ten minutes, with other faults at other times:
    python -m diffusion_lm.checks torture --config=configs/md4_markov.py --workdir=runs/torture2 \\
        --minutes=10 --seed=1
The run is started again with the same command line until it is finished; if faults are left then,
another one begins. The faults: kill -9 at any moment, and while a checkpoint is being written;
SIGTERM, two of them, SIGINT; between two starts a flipped bit in, a cut through or the loss of a
file of the newest checkpoint. All that is written lies in --workdir: calm/ is the run in peace,
run1/, run2/, ... those under faults, *.log what they said, cache/ compiled programs.
The last line says which faults there were, how many the run survived, how many steps had to be done
again, and whether the parameters, the optimiser's state, the average (by checksum) and the rows of
metrics and samples, timings aside, are those of the run in peace. With train.log_every=1 the steps
are counted exactly; otherwise only up to the last row.
exit codes: 0 all equal; 1 something is not; 2 bad input.
"""
SIGNALS = ("kill", "kill in a save", "SIGTERM", "two SIGTERMs", "SIGINT")
DAMAGES = ("flipped bit", "cut file", "lost file")
TIMINGS = ("tokens_per_second", "flops_per_second", "matmul_fraction")
ENDS = {0, 130, 143, -signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL}  # exit codes
PATIENCE = 900  # seconds for what should take a few


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"diffusion_lm: {message}\n")


def parser() -> argparse.ArgumentParser:
    out = _Parser(
        "diffusion_lm.checks",
        description="Does a run come through faults unharmed?",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    kinds = out.add_subparsers(dest="check", required=True, metavar="torture")
    torture = kinds.add_parser(
        "torture",
        help="train under random faults, compare with a run in peace",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    torture.add_argument(
        "--config", metavar="FILE", type=os.path.expanduser, required=True, help="of the run"
    )
    torture.add_argument(
        "--workdir",
        metavar="DIR",
        type=os.path.expanduser,
        required=True,
        help="a new or empty folder",
    )
    until = torture.add_mutually_exclusive_group(required=True)
    until.add_argument("--faults", type=int, metavar="N", help="end after N faults")
    until.add_argument("--minutes", type=float, metavar="N", help="or after N minutes of them")
    torture.add_argument("--seed", type=int, default=0, help="of the faults; 0 if left out")
    torture.add_argument(
        "--config.SECTION.FIELD", metavar="VALUE", dest="_", help="override a field of the run"
    )
    return out


class Lost(Exception):
    """What should not have happened."""


class Torture:
    """Runs of one command line in subfolders of `folder`, and the faults they meet."""

    def __init__(self, folder: pathlib.Path, run: list[str], *, seed: int):
        self.folder, self.run, self.random = folder, run, random.Random(seed)
        cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
        cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        self.environment = os.environ | cache
        self.faults = collections.Counter()
        self.restarts: list[float] = []  # seconds from a start to its first row
        self.again = 0  # steps that were done again
        self.process = None  # the newest
        self.damaged: set[int] = set()  # folders of checkpoints, by inode

    def start(self, name: str) -> subprocess.Popen:
        """A process of the command line, which begins or goes on in the subfolder `name`."""
        argv = [sys.executable, "-m", "diffusion_lm.main", *self.run]
        with open(self.log(name), "ab") as log:
            self.process = subprocess.Popen(
                [*argv, f"--workdir={self.folder / name}"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
            )
        return self.process

    def end(self) -> None:
        """Leaves no process behind."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()

    def said(self, name: str, start: int) -> str:
        """What a run has said since its log was so long."""
        with open(self.log(name), "rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")

    def log(self, name: str) -> pathlib.Path:
        """The file of all that the run of this name has said."""
        return self.folder / f"{name}.log"

    def wait(self, process: subprocess.Popen, name: str, after: str, ends: set[int]) -> int:
        """The exit code of a run that has ended, which must be one of `ends`. Raises Lost if it is
        not, or if the run does not end in PATIENCE seconds."""
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Lost(f"{name} did not end in {PATIENCE} s after: {after}") from None
        if code not in ends:
            said = self.said(name, 0).splitlines()[-3:]
            raise Lost(f"{name} ended with exit code {code} after: {after}; it said: {said}")
        return code

    def disturbed(self, name: str, more: Callable[[], bool]) -> None:
        """A run that is started until it is finished, under faults as long as more()."""
        self.log(name).touch()
        while True:
            kind = self.random.choice(SIGNALS + DAMAGES) if more() else None
            if kind in DAMAGES:
                if self.damage(self.folder / name / "checkpoints", kind):
                    self.faults[kind] += 1
                continue
            if self.life(name, kind) == 0:
                return

    def life(self, name: str, kind: str | None) -> int:
        """One start of the run, and a fault at a random moment; the exit code."""
        reached, size = self.last_step(name), self.log(name).stat().st_size
        row, process = self.row_after(size, name), self.start(name)
        starting = kind in SIGNALS and kind != "kill in a save" and self.random.random() < 0.25
        usual = statistics.median(self.restarts) if self.restarts else 10
        self.until(process, row, self.random.uniform(0, usual) if starting else PATIENCE)
        if kind == "kill in a save":
            self.until(process, lambda: _saving(self.folder / name / "checkpoints"))
            time.sleep(self.random.uniform(0, 0.05))
        elif kind and not starting:
            self.until(process, lambda: False, self.random.expovariate(1))
        if process.poll() is None and kind is not None:
            self.faults[kind] += 1
            self.send(process, kind)
        code = self.wait(process, name, kind or "nothing", ENDS if kind else {0})
        self.count_again(self.said(name, size), reached)
        return code

    def send(self, process: subprocess.Popen, kind: str) -> None:
        """Sends a signal, or two: `kind` is "kill...", "SIGINT", "SIGTERM" or "two SIGTERMs"."""
        if kind.startswith("kill"):
            process.kill()
            return
        process.send_signal(signal.SIGINT if kind == "SIGINT" else signal.SIGTERM)
        if kind == "two SIGTERMs":
            time.sleep(self.random.uniform(0, 0.2))
            process.send_signal(signal.SIGTERM)

    def until(
        self, process: subprocess.Popen, seen: Callable[[], bool], seconds: float = PATIENCE
    ) -> None:
        """Waits for seen(), at most until the process ends and for so long."""
        end = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < end and not seen():
            time.sleep(0.002)

    def row_after(self, size: int, name: str) -> Callable[[], bool]:
        """() -> whether the run has done a step since its log was so long; notes how long a restart
        took to it."""
        begun, found = time.monotonic(), []

        def seen() -> bool:
            if not found and "\nstep " in "\n" + self.said(name, size):
                found.append(time.monotonic() - begun)
                self.restarts.extend(found if size else [])
            return bool(found)

        return seen

    def damage(self, folder: pathlib.Path, kind: str) -> bool:
        """Harms a file of the newest checkpoint, if an older one is whole."""
        folders = (path for path in _listed(folder) if path.name.isdigit())
        steps = sorted(folders, key=lambda path: int(path.name))
        if len(steps) < 2 or any(path.stat().st_ino in self.damaged for path in steps):
            return False
        files = [p for p in sorted(steps[-1].rglob("*")) if p.is_file() and p.stat().st_size]
        file = self.random.choices(files, [path.stat().st_size for path in files])[0]
        self.damaged.add(steps[-1].stat().st_ino)
        if kind == "lost file":
            file.unlink()
        elif kind == "cut file":
            os.truncate(file, self.random.randrange(file.stat().st_size))
        else:
            content = bytearray(file.read_bytes())
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
            file.write_bytes(content)
        return True

    def last_step(self, name: str) -> int:
        """Of the newest row of training."""
        rows = _rows(self.folder / name / "metrics.jsonl")
        return max((row["step"] for row in rows if "evaluator" not in row), default=0)

    def count_again(self, said: str, reached: int) -> None:
        """Counts the steps up to `reached` that a run which said this had to do again."""
        for line in said.splitlines():
            if line.startswith("going on from step "):
                self.again += max(reached - int(line.split()[4]), 0)
            elif line.startswith("new run in "):
                self.again += reached

    def differences(self, name: str) -> dict[str, bool]:
        """What is compared -> whether it is the same as in the run in peace."""
        from diffusion_lm import checkpoint

        sums = []
        for run in ("calm", name):
            saves = checkpoint.Checkpoints(str(self.folder / run), read_only=True)
            sums.append({"step": saves.latest()} | saves.record()[checkpoint.SUMS])
            saves.close()
        parts = {"params": "parameters", "opt_state": "optimiser", "ema": "average", "step": "step"}
        found = {said: True for said in parts.values()}
        for path in sums[0].keys() | sums[1].keys():
            part = parts[path.strip("[']").partition("'")[0]]
            found[part] &= sums[0].get(path) == sums[1].get(path)
        for said, file in (("metrics", "metrics.jsonl"), ("samples", "samples.jsonl")):
            calm, other = (_rows(self.folder / run / file) for run in ("calm", name))
            found[said] = calm == other
        return found


def _listed(folder: pathlib.Path) -> list[pathlib.Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _saving(folder: pathlib.Path) -> bool:
    """Whether Orbax's temporary folder is there; what a kill leaves of one is gone in training."""
    return any("tmp" in path.name for path in _listed(folder))


def _rows(path: pathlib.Path) -> list[dict]:
    """The rows of a log without their timings; a line that a kill has cut off is none."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append({k: v for k, v in json.loads(line).items() if k not in TIMINGS})
        except ValueError:
            continue
    return rows


def torture(flags: argparse.Namespace, overrides: list[str]) -> int:
    """A run in peace and others under faults, which must come to the same state; the exit code.
    Raises ValueError for what a user can mend."""
    folder = pathlib.Path(flags.workdir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"--workdir must be a new or empty folder, {flags.workdir} is not")
    if (flags.faults if flags.minutes is None else flags.minutes) <= 0:
        raise ValueError("--faults and --minutes must be positive")
    run = [f"--config={flags.config}", *(f"--config.{override}" for override in overrides)]
    # jobs that a shell starts in the background ignore it, and so would the runs
    signal.signal(signal.SIGINT, signal.default_int_handler)
    test = Torture(folder, run, seed=flags.seed)
    try:
        test.wait(test.start("calm"), "calm", "no fault", {0})
    except Lost as error:
        raise ValueError(str(error)) from None
    print(f"the run in peace is finished: {folder / 'calm'}", flush=True)
    end = time.monotonic() + 60 * (flags.minutes or 1e9)

    def more() -> bool:
        return test.faults.total() < (flags.faults or 1e9) and time.monotonic() < end

    number, equal, lost = 0, collections.Counter(), None
    while more() or not number:
        number += 1
        name = f"run{number}"
        try:
            test.disturbed(name, more)
            # once more: a finished run reads its state and checks it
            test.wait(test.start(name), name, "the end", {0})
        except Lost as error:
            lost = error
            break
        finally:
            test.end()
        found = test.differences(name)
        equal.update(found)
        print(f"{name} finished after {test.faults.total()} faults: {_told(found)}", flush=True)
    if test.restarts:
        print(
            f"from a restart to its first row: median {statistics.median(test.restarts):.1f} s, "
            f"longest {max(test.restarts):.1f} s, of {len(test.restarts)}"
        )
    injected = ", ".join(f"{kind} {count}" for kind, count in sorted(test.faults.items()))
    total = test.faults.total()
    told = f"NOT FINISHED: {lost}" if lost else _told({k: n == number for k, n in equal.items()})
    print(
        f"{total} faults ({injected}), {total - bool(lost)} survived, {test.again} steps done "
        f"again; {told}"
    )
    return int(bool(lost) or any(count < number for count in equal.values()))


def _told(found: dict[str, bool]) -> str:
    return ", ".join(f"{name} {'equal' if same else 'NOT EQUAL'}" for name, same in found.items())


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    overrides = [a.removeprefix("--config.") for a in argv if a.startswith("--config.")]
    flags = parser().parse_args([a for a in argv if not a.startswith("--config.")])
    try:
        return torture(flags, overrides)
    except (ValueError, OSError) as error:
        print(f"diffusion_lm: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""A run that stands still ends, and says who was last seen where.

JAX itself ends a job one of whose processes is dead or stopped, 100 s after its last heartbeat. A
process that lives and does nothing (a file system that does not answer, a deadlock) it waits for.
"""

import contextlib
import faulthandler
import json
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax

FOLDER = ".alive"  # in the workdir: one report a process


class Watchdog:
    """While it is entered, a thread reports every few seconds which step this process is at. After
    `patience` seconds without a new one it prints the reports of all processes and the stack of
    this one, and ends this process with exit code 4. 0 seconds: never.

    Compiling counts; evaluations, of unknown length, do not (`paused`).
    """

    def __init__(self, workdir: str, patience: float):
        self.patience, self.step = patience, 0
        self._folder = pathlib.Path(workdir) / FOLDER
        self._every = min(10, patience / 4)
        self._ended, self._paused = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        if self.patience:
            self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._ended.set()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is in here may take any time."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _watch(self) -> None:
        waited, seen, last = 0.0, -1, time.monotonic()
        while not self._ended.wait(self._every):
            now = time.monotonic()
            # a process that was itself stopped has not waited
            waited, last = waited + min(now - last, 2 * self._every), now
            if self._paused or self.step != seen:
                waited, seen = 0.0, self.step
            with contextlib.suppress(OSError):  # a full disk is for others to tell
                self._report()
            if waited >= self.patience:
                print(
                    f"diffusion_lm: {self.told(jax.process_count())}", file=sys.stderr, flush=True
                )
                faulthandler.dump_traceback()
                sys.stdout.flush()
                os._exit(4)

    def _report(self) -> None:
        rank = jax.process_index()
        report = {"rank": rank, "step": self.step, "time": time.time()}
        report |= {"pid": os.getpid(), "host": socket.gethostname()}
        self._folder.mkdir(exist_ok=True)
        (self._folder / f"{rank}.new").write_text(json.dumps(report))
        os.replace(self._folder / f"{rank}.new", self._folder / str(rank))

    def told(self, count: int) -> str:
        """Who is behind, of `count` processes, by their reports."""
        reports = [self._read(rank) for rank in range(count)]
        # behind the others; or, at the same step, silent
        worst = min(reports, key=lambda r: (r["step"], r["time"]))
        said = "; ".join(
            f"process {r['rank']} (pid {r['pid']} on {r['host']}) is at step {r['step']}, last "
            f"heard of {time.time() - r['time']:.0f} s ago"
            for r in reports
        )
        return f"no step in {self.patience:.0f} s, it seems for process {worst['rank']}: {said}"

    def _read(self, rank: int) -> dict:
        try:
            return json.loads((self._folder / str(rank)).read_text())
        except (OSError, ValueError):
            return {"rank": rank, "step": -1, "time": 0, "pid": "unknown", "host": "unknown"}

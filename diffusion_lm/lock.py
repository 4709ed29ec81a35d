"""One run a folder: a lock that ends with its process, however that ends."""

import fcntl
import json
import os
import socket
import sys
import time

import jax

FILE = ".lock"


class Lock:
    """Held from its making to `close` or the end of the process. Only the first process of a job
    takes it. Raises ValueError, naming the holder, if another run has it, and OSError if the folder
    cannot be written."""

    def __init__(self, workdir: str):
        self._file = None
        if jax.process_index():
            return
        os.makedirs(workdir, exist_ok=True)
        file = open(os.path.join(workdir, FILE), "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            held = file.read()
            file.close()
            raise ValueError(f"{workdir} is in use by another run: {_named(held)}") from None
        except OSError as error:
            print(
                f"{workdir} cannot be locked ({error}): make sure that no other run uses it",
                file=sys.stderr,
            )
        file.truncate(0)
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        file.write(json.dumps(holder))
        file.flush()
        self._file = file

    def close(self) -> None:
        """Gives the lock back; a second time does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _named(held: str) -> str:
    try:
        holder = json.loads(held)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
        return f"process {holder['pid']} on {holder['host']}, since {since}"
    except (ValueError, KeyError, TypeError):
        return "it has not said which"

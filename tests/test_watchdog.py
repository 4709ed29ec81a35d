"""A process that stands still ends, naming who is behind; one that was merely stopped does not."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

from test_runs import ROOT, launcher, write_config

from diffusion_lm import watchdog

ALONE = """\
import sys, time
from diffusion_lm import watchdog
with watchdog.Watchdog(sys.argv[1], 2) as watch:
    for step in range(1, 5):
        watch.step = step
        time.sleep(0.8)
    with watch.paused():
        time.sleep(4)
    print("going to hang", flush=True)
    time.sleep(60)
"""


def test_only_standing_still_ends_a_process(tmp_path):
    """Not steps shorter than its patience, nor an evaluation that is longer; a stack is shown."""
    argv = [sys.executable, "-c", ALONE, str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4 and done.stdout == "going to hang\n"
    assert "no step in 2 s, it seems for process 0: process 0 (pid " in done.stderr
    assert (
        "is at step 4, last heard of" in done.stderr and 'File "<string>", line 10' in done.stderr
    )


def test_a_process_that_was_stopped_has_not_waited(tmp_path):
    argv = [sys.executable, "-c", ALONE, str(tmp_path)]
    process = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    while not (tmp_path / ".alive/0").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    assert process.stdout.readline() == b"going to hang\n"
    process.kill()
    process.communicate()


def test_the_process_that_is_behind_is_named(tmp_path):
    """The one at an earlier step; at the same step, the one not heard of; or that of no report."""
    watch = watchdog.Watchdog(str(tmp_path), 60)
    (tmp_path / ".alive").mkdir()

    def reports(*seen):
        for rank, (step, ago) in enumerate(seen):
            report = {"rank": rank, "step": step, "time": time.time() - ago, "pid": 1, "host": "h"}
            (tmp_path / ".alive" / str(rank)).write_text(json.dumps(report))
        return watch.told(len(seen))

    assert "for process 1: process 0 (pid 1 on h) is at step 7" in reports((7, 0), (6, 1), (7, 9))
    assert "for process 2: " in reports((7, 0), (7, 1), (7, 9))
    (tmp_path / ".alive/0").unlink()
    assert "for process 0: process 0 (pid unknown" in watch.told(3)


def test_a_stopped_process_ends_its_job(tmp_path, text_file):
    """SIGSTOP to the second of two processes: the first says so, and the job ends."""
    changes = {"train.steps": 100000, "train.eval_every": 100000, "train.patience": 20}
    path = write_config(tmp_path, text_file, **changes, **{"train.checkpoint_every": 100000})
    argv, env = launcher(2, f"--config={path}", f"--workdir={tmp_path / 'run'}")
    process = subprocess.Popen(
        argv, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    killer = threading.Timer(200, process.kill)
    killer.start()
    second = None
    try:
        next(line for line in process.stdout if line.startswith("step 5/"))
        report = tmp_path / "run/.alive/1"
        while not report.exists():
            time.sleep(0.1)
        second = json.loads(report.read_text())["pid"]
        os.kill(second, signal.SIGSTOP)
        begun = time.monotonic()
        process.wait(60)  # the one that is stopped holds its output open
        took = time.monotonic() - begun
    finally:
        if second:
            os.kill(second, signal.SIGKILL)
        killer.cancel()
        process.kill()
        err = process.communicate()[1]
    assert process.returncode == 4 and took < 40, took
    assert "no step in 20 s, it seems for process 1: process 0 (pid " in err
    assert f"process 1 (pid {second} on " in err

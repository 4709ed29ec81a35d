"""The training loop, and nothing else: data in; steps, rows, samples and checkpoints out."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tqdm import tqdm

from diffusion_lm import build, checkpoint, evaluate, lock, metrics, parallel, step, watchdog
from diffusion_lm import config as configs
from diffusion_lm import sample as sampling

MOST_SKIPPED = 20  # updates in a row that may be skipped since they are not finite


def prepare(config: ConfigDict, workdir: str) -> Callable[[], int]:
    """Checks and builds everything for a run in `workdir`; compiles and writes nothing yet.

    Returns the run: it trains to `config.train.steps`, going on from the newest checkpoint, and
    returns 0, or 128 + the number of the signal (SIGINT, SIGTERM) that asked it to stop, the state
    saved. Raises ValueError or OSError for what a user can mend; the run raises OSError if a
    checkpoint cannot be written, and FloatingPointError after MOST_SKIPPED updates in a row that
    were skipped. No other run can use `workdir` before this one has ended.
    """
    setup = build.setup(config, workdir)
    build.check_batches(config, setup, train=True)
    translator = build.translator(config, setup)
    held = lock.Lock(workdir)
    try:
        saves = checkpoint.Checkpoints(workdir, keep=config.train.keep)
        record = record_of(config, setup)
        if saves.latest() is not None:
            check_record(saves.record(), config, setup, workdir)
    except BaseException:
        held.close()
        raise

    def run() -> int:
        with contextlib.closing(held):
            return trained()

    def trained() -> int:
        state = None if saves.latest() is None else saves.restore(setup.abstract)
        number = -1 if state is None else int(state.step)
        # that of the state, which need not be the newest record; an older run's has none
        unlogged = {} if state is None else saves.record().get("unlogged", {})
        record["unlogged"] = unlogged
        samples = config.train.num_samples
        if translator:
            samples = min(samples, len(setup.parts.data.windows("valid").texts))
        if number >= config.train.steps and _inspected(config, samples, workdir):
            say(f"{workdir} is finished: step {number} of {config.train.steps}")
            saves.close()
            return 0
        # config.json last: it says that a run has begun here
        _write(workdir, setup.parts.data.files | {"config.json": configs.to_json(config)})
        with Stop() as stop, watchdog.Watchdog(workdir, config.train.patience) as watch:
            if state is None:
                state = setup.init()
                size = f"{sum(leaf.size for leaf in jax.tree.leaves(state.params)):,} parameters"
                say(f"new run in {workdir}: {size}, mesh {dict(setup.mesh.shape)}")
                rules = config.rules.to_dict()
                for line in parallel.undivided(setup.mesh, state.params, setup.parts.axes, rules):
                    say(line)
                for name, other in setup.parts.others.items():
                    say(f"{name}: {other.workdir} at step {other.step}")
            else:
                say(f"going on from step {int(state.step)} in {workdir}")
            try:
                state, number = _loop(
                    config, setup, translator, state, saves, record, workdir, stop, watch
                )
                saves.save(number, state, record)
            finally:
                saves.close()
        if stop.asked:
            say(f"stopped at step {number}, saved; the same command goes on from there")
            return 128 + stop.asked
        say(f"finished: step {number}, results in {workdir}")
        return 0

    return run


def record_of(config: ConfigDict, setup: build.Setup) -> dict:
    """What a checkpoint remembers beside its state: the config, and the text it has seen."""
    text = setup.parts.data.windows("train").fingerprint
    return {"config": json.loads(configs.to_json(config)), "data": text, "others": _others(setup)}


def _others(setup: build.Setup) -> dict:
    """How the parts that come from other runs are to be used."""
    sections = ("objective", "schedule", "network")
    return {
        name: {section: other.config[section].to_dict() for section in sections}
        for name, other in setup.parts.others.items()
    }


def check_record(record: dict, config: ConfigDict, setup: build.Setup, workdir: str) -> None:
    """Raises ValueError if a checkpoint is of another model, or of another training text."""
    configs.check_resumable(record["config"], config, workdir)
    now = setup.parts.data.windows("train").fingerprint
    if record["data"] != now:
        raise ValueError(
            f"{workdir} was trained on another text (fingerprint {record['data']}, now {now}): its "
            "files have changed, and with them what is training and what is test"
        )
    for name, there in record.get("others", {}).items():
        if there != _others(setup).get(name):
            raise ValueError(
                f"{workdir} took its {name} from a run with another objective, schedule or network "
                f"than the one in {config.objective[name]}"
            )


def _write(workdir: str, files: dict[str, str]) -> None:
    """Writes name -> content, each file whole or not at all."""
    if jax.process_index():
        return
    for name, content in files.items():
        path = os.path.join(workdir, name)
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(content)
        os.replace(path + ".new", path)


def _loop(
    config: ConfigDict,
    setup: build.Setup,
    translator,
    state: step.TrainState,
    saves: checkpoint.Checkpoints,
    record: dict,
    workdir: str,
    stop: "Stop",
    watch: watchdog.Watchdog,
):
    """Trains until the last step or a stop; returns the state and its step."""
    parts, mesh, options = setup.parts, setup.mesh, step.settings(**config.train)
    start = int(state.step)
    log = metrics.Log(workdir, "metrics.jsonl", tensorboard=options.tensorboard)
    # the stop may have come before what is due here
    due = start > 0 and (start % options.eval_every == 0 or start == options.steps)
    again = due or saves.latest() is None  # a run that died before its first save starts anew
    log.rewind(start, again=again)
    inspect = _inspection(config, setup, translator, workdir, log, start, again)
    if due:
        with stop.interruptible(), watch.paused():
            inspect(state, start)
        if stop.asked:
            return state, start
    meter = metrics.Meter(
        parts.objective,
        parts.data,
        setup.abstract.params,
        options.batch_size,
        unlogged=record["unlogged"],
    )
    train_step = build.train_step(config, setup)
    batches = parts.data.batches(
        "train",
        batch_size=options.batch_size,
        seed=config.seed,
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    number = start
    if not options.steps:
        inspect(state, number)
    waiting = None  # metrics of the step before, read while the next one runs
    watched = sys.stderr.isatty() and jax.process_index() == 0
    with tqdm(total=options.steps, initial=start, unit="step", disable=not watched) as bar:
        for number in range(start + 1, options.steps + 1):
            batch = parallel.global_batch(mesh, next(batches))
            watch.step = number
            state, out = train_step(state, batch)
            if waiting is not None:
                _take(meter, *waiting)
            waiting = out, number
            stopping = stop.agreed(number)
            ended = number == options.steps
            logging = ended or number % options.log_every == 0
            saving = ended or stopping or number % options.checkpoint_every == 0
            inspecting = (ended or number % options.eval_every == 0) and not stopping
            # an evaluation of a job of many processes goes on after a signal, maybe for too long
            saving |= inspecting and jax.process_count() > 1
            if logging or saving or inspecting:
                _take(meter, *waiting)
                waiting = None
            if logging:
                saves.check()
                row = meter.row(number, parts.optimizer.learning_rate(number - 1))
                log.write(row)
                text = f"{meter.headline(row)}, {_speed(row)}"
                with _heard():
                    bar.set_postfix_str(text)
                if not watched:
                    tokens = (options.steps - number) * setup.tokens_per_step
                    minutes = tokens / row["tokens_per_second"] / 60
                    say(f"step {number}/{options.steps}: {text}, {minutes:.1f} min of steps left")
            with _heard():
                bar.update()
            with meter.paused():
                if saving:
                    saves.save(number, state, record)
                if inspecting:
                    with stop.interruptible(), watch.paused():
                        inspect(state, number)
            if stop.asked:
                break
    return state, number


def _take(meter: metrics.Meter, out, number: int) -> None:
    """Hands the metrics of step `number` to the meter, and speaks of an update that was skipped."""
    if meter.add(out):
        return
    seen = metrics.means(out)
    why = "the loss or its gradient is not finite"
    if seen["skipped"] == step.SPIKE:
        why = f"the gradient's norm is {seen['grad_norm']:.3g}, a spike"
    say(f"step {number}: {why}; this update is skipped")
    if meter.unlogged["skipped_in_a_row"] == MOST_SKIPPED:
        raise FloatingPointError(
            f"stopped at step {number}: {MOST_SKIPPED} updates in a row were skipped, the last "
            f"since {why}. They are in no checkpoint. A lower optimizer.learning_rate may help: in "
            "a new workdir, with train.start=THIS_WORKDIR to go on from these parameters"
        )


def _inspected(config: ConfigDict, samples: int, workdir: str) -> bool:
    """Whether every evaluator has had its turn at the last step, and so many samples were drawn."""

    def last(name: str) -> list[dict]:
        path = os.path.join(workdir, name)
        if not os.path.exists(path):
            return []
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.endswith("}\n")]
        return [row for row in rows if row["step"] >= config.train.steps]

    done = {row.get("evaluator") for row in last("metrics.jsonl")}
    return done >= set(config.evaluators) and len(last("samples.jsonl")) >= samples


def _inspection(
    config: ConfigDict, setup: build.Setup, translator, workdir: str, log, start: int, again: bool
) -> Callable:
    """(state, number) -> None: evaluates, draws samples, prints and logs both."""
    parts, options = setup.parts, config.train
    texts = metrics.Log(workdir, "samples.jsonl")
    texts.rewind(start, again=again)
    eval_step = evaluate.make_eval_step(parts.objective, setup.mesh)
    sampler = sampling.compiled(parts.sampler, setup.mesh)

    def inspect(state: step.TrainState, number: int) -> None:
        params = step.eval_params(state)
        run = evaluate.Run(
            parts.data, parts.objective, params, setup.mesh, config.seed, eval_step, translator
        )
        for row in evaluate.evaluate(parts, run, number):
            log.write(row)
            say(evaluate.describe(row))
        if options.num_samples and translator:
            for (source, wanted), made in zip(
                parts.data.windows("valid").texts,
                run.translate("valid", options.num_samples, options.num_samples),
                strict=False,
            ):
                row = {"source": source, "text": made.text, "reference": wanted}
                texts.write({"step": number, **row, "calls": made.calls})
                say("\n".join(["---", *(f"{name}: {text}" for name, text in row.items())]))
            say("---")
        elif options.num_samples:
            drawn = list(
                sampling.samples(
                    parts,
                    params,
                    sampler,
                    num=options.num_samples,
                    seed=config.seed,
                    batch_size=options.num_samples,
                )
            )
            if parts.data.shape and jax.process_index() == 0:
                path = sampling.save_images(parts.data, drawn, workdir, f"step-{number:07d}")
                say(f"samples at step {number}: {path}")
            for out in drawn:
                texts.write({"step": number, **{k: v for k, v in out.items() if k != "tokens"}})
                if not parts.data.shape:
                    say(f"--- sample {out['index']} at step {number}\n{out['text']}")
            say("---")

    return inspect


class _Interrupted(BaseException):
    """Leaves an evaluation; no `except Exception` on the way takes it for a failure."""


class Stop:
    """Notes SIGINT and SIGTERM, so that the loop can save and end; a second one ends at once: what
    waits for a save could wait for ever, so nothing is waited for."""

    EVERY = 10  # steps between two talks of the processes of a job about stopping

    signal = 0  # that this process got
    asked = 0  # that the job stops for
    _inside = False  # of `interruptible`

    def __enter__(self) -> "Stop":
        self._old = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def agreed(self, number: int) -> bool:
        """Whether to stop after step `number`; the same answer in every process of the job."""
        if jax.process_count() == 1:
            self.asked = self.signal
        elif number % self.EVERY == 0:
            self.asked = int(multihost_utils.process_allgather(np.int32(self.signal)).max())
        return self.asked > 0

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """What is in here ends at a signal: evaluation changes no state. In a job of many processes
        it does not, for these would wait for each other."""
        self._inside = jax.process_count() == 1
        try:
            yield
        except _Interrupted:
            self.asked = self.signal
        finally:
            self._inside = False

    def _note(self, number, frame) -> None:
        if self.signal:
            with contextlib.suppress(OSError):
                os.write(2, b"\ndiffusion_lm: ended at once; nothing since the newest checkpoint\n")
            os._exit(130)
        self.signal = number
        name = signal.Signals(number).name
        # not print, which may be what the signal has interrupted
        with contextlib.suppress(OSError):
            os.write(2, f"\n{name}: saving at the next step; once more ends at once\n".encode())
        if self._inside:
            raise _Interrupted

    def __exit__(self, *error) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def say(text: str) -> None:
    """One process speaks; a progress bar stays on its own line."""
    if jax.process_index() == 0:
        with _heard():
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """Nobody listening any more (Ctrl-C ends `| tee`, too) ends no run: what has lost its reader
    goes nowhere from then on."""
    try:
        yield
    except OSError:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.write("\n")
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _speed(row: dict) -> str:
    speed = f"{row['tokens_per_second']:,.0f} tokens/s"
    return f"{speed}, {row['matmul_fraction']:.0%} of matmul rate"

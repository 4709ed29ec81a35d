"""Counting work and writing rows: FLOPs of a function, the machine's matmul rate, JSON lines."""

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_lm import keys
from diffusion_lm.ops.rows import SELDOM
from diffusion_lm.types import Array, Data, Objective, Params, Ratio


def means(metrics: dict[str, Ratio]) -> dict[str, float]:
    """dict of Ratio -> dict of floats, read from the device."""
    host = jax.device_get(metrics)
    return {name: float(r.sum) / max(float(r.count), 1e-30) for name, r in host.items()}


def matmul_flops(function: Callable, *args) -> int:
    """FLOPs of the matrix products and convolutions that `function` does, counted in its jaxpr.

    Loops count as often as they run (`scan`), branches as their most expensive one that is not in
    the scope SELDOM.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def train_flops(loss: Callable, params: Params, *args) -> tuple[int, int]:
    """FLOPs of the products in loss(params, *args) and the gradient of its sum: those that are
    required, and those inside of jax.checkpoint that do a part of the forward pass again."""
    jaxpr = jax.make_jaxpr(jax.grad(lambda *args: loss(*args).sum()))(params, *args).jaxpr
    again = _again(jaxpr)
    return _count(jaxpr) - again, again


def _count(jaxpr) -> int:
    return sum(_flops(eqn) for eqn in jaxpr.eqns)


def _flops(eqn) -> int:
    name = eqn.primitive.name
    if name == "dot_general":
        (contract, _), _ = eqn.params["dimension_numbers"]
        summed = math.prod(eqn.invars[0].aval.shape[i] for i in contract)
        return 2 * summed * math.prod(eqn.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // features
    if "dot_product_attention" in name:  # cuDNN's: two products, and four on the way back
        q, k = (v.aval.shape for v in eqn.invars[:2])  # [B, L, H, K]
        return (8 if "bwd" in name else 4) * math.prod(q) * k[1]
    if name == "cond":
        often = [j.jaxpr for j in eqn.params["branches"] if not _seldom(j.jaxpr)]
        return max(map(_count, often), default=0)
    return sum(map(_count, _subjaxprs(eqn.params))) * eqn.params.get("length", 1)


def _seldom(jaxpr) -> bool:
    return any(SELDOM in str(eqn.source_info.name_stack) for eqn in jaxpr.eqns)


def _again(jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if "rematted_computation" in str(eqn.source_info.name_stack):  # JAX's own name for it
            total += _flops(eqn)
        else:
            total += sum(map(_again, _subjaxprs(eqn.params))) * eqn.params.get("length", 1)
    return total


def _subjaxprs(params):
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


def calibrate(size: int = 2048, repeats: int = 3) -> float:
    """The machine's rate in FLOP/s on one size^3 float32 matrix product: the best of `repeats`."""
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


class Meter:
    """Means of metrics and the speed of training between two rows of the log.

    `unlogged` is what is known of the steps since the last row, for JSON. A checkpoint remembers
    it, so that a row is the same whether or not the run stopped before it.
    """

    def __init__(
        self, objective: Objective, data: Data, params: Params, batch_size: int, *, unlogged: dict
    ):
        batch = data.example(batch_size)

        def forward(params, batch, key):
            return objective.loss(params, keys.number(batch), key, train=True).loss

        # as arguments, or what depends on them alone would be computed here
        example = params, batch, jax.eval_shape(lambda: jax.random.key(0))
        self._flops = train_flops(forward, *example)[0]
        self._tokens = batch_size * data.length
        windows = data.windows("train")
        self._chars_per_token = windows.chars / data.scored("train", len(windows.tokens))
        # All CPU devices of a process share its cores.
        machines = jax.process_count() if jax.default_backend() == "cpu" else jax.device_count()
        self._peak = calibrate() * machines
        self.unlogged = unlogged  # changed in place
        for name, nothing in (("seen", []), ("skipped", 0), ("skipped_in_a_row", 0)):
            unlogged.setdefault(name, nothing)
        self._steps = 0  # since the last row or the start of the process
        self._start = time.perf_counter()

    def add(self, metrics: dict[str, Ratio]) -> bool:
        """Takes the metrics of one step, waiting for the device if it has to. Returns False for a
        step whose update was skipped, which counts in no mean."""
        seen = means(metrics)
        self._steps += 1
        if seen.pop("skipped", 0):
            self.unlogged["skipped"] += 1
            self.unlogged["skipped_in_a_row"] += 1
            return False
        self.unlogged["seen"].append(seen)
        self.unlogged["skipped_in_a_row"] = 0
        return True

    def headline(self, row: dict) -> str:
        """What the loss says, for people: nats per token, or all that it measures."""
        skipped = f", {row['skipped']} updates skipped" if "skipped" in row else ""
        if "nats_per_token" in row:
            return f"{row['nats_per_token']:.3f} nats/token{skipped}"
        names = [name for name in self._names if name != "grad_norm"]
        return ", ".join(f"{name} {row[name]:.3f}" for name in names) + skipped

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here does not count as training."""
        before = time.perf_counter()
        yield
        self._start += time.perf_counter() - before

    def row(self, step: int, learning_rate: float | Array) -> dict:
        """One row for the steps since the last; standard_error is over these steps, of the nats
        per token, if the loss is a likelihood."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        all_seen, skipped = self.unlogged["seen"], self.unlogged["skipped"]
        count, self._names = len(all_seen), sorted(all_seen[0]) if all_seen else []
        mean = {name: sum(v[name] for v in all_seen) / count for name in self._names}
        row = {"step": step, "split": "train"}
        if "nats_per_token" in mean:
            nats = [v["nats_per_token"] for v in all_seen]
            bits, chars = mean["nats_per_token"] / math.log(2), self._chars_per_token
            row |= {
                "bits_per_token": bits,
                "bits_per_char": bits / chars if chars else None,
                "standard_error": np.std(nats, ddof=1) / math.sqrt(count) if count > 1 else None,
            }
        if "grad_norm" in mean:
            row["largest_grad_norm"] = max(v["grad_norm"] for v in all_seen)
        if skipped:
            row["skipped"] = skipped
        rate = self._steps * self._flops / seconds
        tokens_rate = self._steps * self._tokens / seconds
        self.unlogged |= {"seen": [], "skipped": 0}
        self._steps, self._start = 0, time.perf_counter()
        return {
            **row,
            **mean,
            "learning_rate": float(learning_rate),
            "tokens_per_second": tokens_rate,
            "flops_per_second": rate,
            "matmul_fraction": rate / self._peak,
        }


class Log:
    """Appends rows to workdir/name, one JSON object a line; only the first process writes.

    With `tensorboard`, numbers also go to event files in workdir/tensorboard (extra: tensorboard).
    """

    def __init__(self, workdir: str, name: str, *, tensorboard: bool = False):
        self.path = os.path.join(workdir, name)
        self._folder = None
        if tensorboard and jax.process_index() == 0:
            self._folder = os.path.join(workdir, "tensorboard")
        self._events, self._again = None, None  # opened late: it must know what is written again

    def rewind(self, step: int, *, again: bool) -> None:
        """Drops what a run resumed at `step` writes again: later rows and, if it evaluates `again`
        there, all of that step but the row of training.

        The file as it was stays beside it as `<name>.<n>.bak`, so nothing is lost.
        """
        self._again = step + 1
        if jax.process_index() or not os.path.exists(self.path):
            return
        with open(self.path, encoding="utf-8") as file:
            lines = file.readlines()
        kept = [line for line in lines if _stands(line, step, again)]
        if len(kept) == len(lines):
            return
        n = 1
        while os.path.exists(f"{self.path}.{n}.bak"):
            n += 1
        with open(f"{self.path}.new", "w", encoding="utf-8") as file:
            file.writelines(kept)
        shutil.copyfile(self.path, f"{self.path}.{n}.bak")  # not a link, which buckets lack
        os.replace(f"{self.path}.new", self.path)

    def write(self, row: dict) -> None:
        """Appends a row, and its numbers to the event files if there are any."""
        if jax.process_index():
            return
        row = jsonable(row)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._folder is not None:
            if self._events is None:
                from tensorboardX import SummaryWriter

                self._events = SummaryWriter(self._folder, purge_step=self._again)
            for name, value in row.items():
                if isinstance(value, (int, float)) and name != "step":
                    group = row["evaluator"] if "evaluator" in row else row["split"]
                    self._events.add_scalar(f"{group}/{name}", value, row["step"])
            self._events.flush()


def _stands(line: str, step: int, again: bool) -> bool:
    try:
        row = json.loads(line)
        trained = row.get("split") == "train" and "evaluator" not in row
        return row["step"] < step or (row["step"] == step and (trained or not again))
    except (ValueError, KeyError, TypeError):
        return False  # cut off by a crash


def jsonable(row: dict) -> dict:
    """Plain numbers with six significant digits; non-finite ones as strings (JSON has none)."""

    def plain(value):
        if isinstance(value, (np.generic, jax.Array)):
            value = value.item()
        if isinstance(value, float):
            return float(f"{value:.6g}") if math.isfinite(value) else str(value)
        if isinstance(value, dict):
            return jsonable(value)
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return {key: plain(value) for key, value in row.items()}

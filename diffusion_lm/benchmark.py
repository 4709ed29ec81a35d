"""Speed as ratios measured on this machine: python -m diffusion_lm.benchmark NAME."""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from diffusion_lm.main import huge_pages

EPILOG = """\
names:
  train     a train step of MD4 against a 2048^3 float32 matrix product, at 27 and 50257 tokens:
            4 layers, width 256, windows of 256; FLOPs are those required, the head at masked rows;
            by dtype of the network, whose parameters and losses are float32 in either case
  head      head and cross entropy, with their gradient, against one-hot times log-softmax, and
            against their three products of matrices alone, the least that either can take
  sampling  8 texts of 256 of 50257 tokens in 1000 steps, against the textbook loop, which runs
            the network, and draws every token anew, at every step (of it 5 steps are timed)
  start     the default run to its first step, bigram start included, three times, without and
            with JAX's compilation cache; the imports alone; compiling 24 layers against 4
  gpu       tokens/s and the share of the peak FLOP/s of md4_owt; without a GPU it says so
What is compared runs in turns, so that a busy machine is unfair to neither. One JSON object a line:
medians, of wall-clock and of CPU seconds of all cores; "temporaries_mib" are the compiler's.
"""
LAYERS, WIDTH, LENGTH = 4, 256, 256
# bfloat16 TFLOP/s without sparsity, by a GPU's name, as its maker gives them; others differ.
PEAKS = {"NVIDIA H100 80GB HBM3": 989, "NVIDIA H200": 989}
PEAKS |= dict.fromkeys(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"), 312)


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        "diffusion_lm.benchmark",
        description="Speed as ratios measured on this machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    out.add_argument("name", choices=tuple(BENCHMARKS))
    out.add_argument("--repeats", type=int, default=9, help="of each thing that is timed; 9")
    return out


def main(argv: list[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    if flags.repeats < 1:
        print(f"diffusion_lm: --repeats must be at least 1, got {flags.repeats}", file=sys.stderr)
        return 2
    for row in BENCHMARKS[flags.name](flags.repeats):
        print(json.dumps({"benchmark": flags.name, **row, **_machine()}), flush=True)
    return 0


def _machine() -> dict:
    import jax

    names = [line for line in open("/proc/cpuinfo") if line.startswith("model name")]  # noqa: SIM115
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": names[0].partition(":")[2].strip() if names else "",
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
    }


def in_turns(cases: dict, repeats: int) -> dict[str, tuple[float, float]]:
    """name -> median (wall-clock, CPU) seconds of each function, called in turns after once."""
    import jax

    seconds = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, run in cases.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            spent = time.perf_counter() - wall, time.process_time() - cpu
            if turn:
                seconds[name].append(spent)
    return {
        name: tuple(statistics.median(s) for s in zip(*spent, strict=True))
        for name, spent in seconds.items()
    }


def _against(name: str, found: dict, least: str) -> dict:
    """Seconds of both, and how many times faster `least` is."""
    (wall, cpu), (mine, mine_cpu) = found[name], found[least]
    row = {f"{n}_seconds": found[n][0] for n in found} | {f"{n}_cpu": found[n][1] for n in found}
    return row | {"faster": wall / mine, "faster_by_cpu": cpu / mine_cpu}


def _mib(compiled) -> float:
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


def _model(vocab_size: int, layers: int = LAYERS, dtype: str = "float32"):
    from diffusion_lm import schedules
    from diffusion_lm.networks import transformer
    from diffusion_lm.objectives import md4

    network = partial(transformer.make, layers=layers, width=WIDTH, heads=4, dtype=dtype)
    linear = schedules.linear()
    return md4.make(
        network=network, vocab_size=vocab_size, length=LENGTH, schedule=linear, estimator="paired"
    )


def train_step(
    vocab_size: int,
    batch_size: int,
    microbatches: int = 1,
    layers: int = LAYERS,
    dtype: str = "float32",
) -> tuple[Any, Any, dict, int]:
    """(compiled step, state, batch, required FLOPs) of MD4 by AdamW."""
    import jax
    import jax.numpy as jnp

    from diffusion_lm import keys, metrics, optim, parallel, step

    objective, optimizer = _model(vocab_size, layers, dtype), optim.adamw(steps=1000)
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    state = jax.jit(partial(step.init_state, objective, optimizer, seed=0, ema=0.0))()
    tokens = jax.random.randint(jax.random.key(0), (batch_size, LENGTH), 0, vocab_size)
    batch = {"x": tokens.astype(jnp.int32)}

    def forward(params):
        return objective.loss(params, keys.number(batch), jax.random.key(0), train=True).loss

    made = step.make_train_step(objective, optimizer, mesh=mesh, seed=0, microbatches=microbatches)
    compiled = jax.jit(made, donate_argnums=0).lower(state, batch).compile()
    return compiled, state, batch, metrics.train_flops(forward, state.params)[0]


def train(repeats: int) -> Iterator[dict]:
    """A row for each vocabulary and batch: train steps against a matrix product, see EPILOG."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(jnp.matmul)
    sizes = ((27, 16, 4), (50257, 2, 1), (50257, 16, 1))
    for size, dtype in itertools.product(sizes, ("float32", "bfloat16")):
        vocab_size, batch_size, microbatches = size
        compiled, state, batch, flops = train_step(*size, dtype=dtype)
        times = max(1, round(4 * 2048**3 / flops))

        def steps(compiled=compiled, batch=batch, times=times):
            nonlocal state
            for _ in range(times):
                state, _ = compiled(state, batch)
            return state

        found = in_turns(
            {"product": lambda: [product(a, a) for _ in range(2)], "steps": steps}, repeats
        )
        (wall, cpu), (mine, mine_cpu) = found["product"], found["steps"]
        work = times * flops / (4 * 2048**3)  # in products
        yield {
            "dtype": dtype,
            "vocab_size": vocab_size,
            "batch_size": batch_size,
            "microbatches": microbatches,
            "step_seconds": mine / times,
            "step_cpu": mine_cpu / times,
            "gflop": flops / 1e9,
            "product_gflops": 4 * 2048**3 / wall / 1e9,
            "ratio": work * wall / mine,
            "ratio_by_cpu": work * cpu / mine_cpu,
            "temporaries_mib": _mib(compiled),
        }


def head(repeats: int) -> Iterator[dict]:
    """A row: the head at chosen rows and its gradient, against one-hot times log-softmax."""
    import jax
    import jax.numpy as jnp

    from diffusion_lm.ops import rows
    from diffusion_lm.ops.cross_entropy import token_log_prob
    from diffusion_lm.ops.product import product

    size, vocab_size = 4, 50257
    key_w, key_h, key_x = jax.random.split(jax.random.key(0), 3)
    params = jax.random.normal(key_w, (WIDTH, vocab_size)) / WIDTH**0.5
    h = jax.random.normal(key_h, (size, LENGTH, WIDTH))
    x = jax.random.randint(key_x, (size, LENGTH), 0, vocab_size)
    weight = jnp.ones(x.shape) / x.size

    def nats(w, h, x):
        return -token_log_prob(product(jnp.float32, h, w), x)

    def ours(w, h):
        return rows.weighted(nats, w, weight, h, x, width=vocab_size).sum()

    def textbook(w, h):
        return -(weight * (jax.nn.one_hot(x, vocab_size) * jax.nn.log_softmax(h @ w)).sum(-1)).sum()

    @jax.jit
    def products(w, h):
        out, back = jax.vjp(partial(product, jnp.float32), h, w)
        return back(out)

    made = {
        f.__name__: jax.jit(jax.grad(f, argnums=(0, 1))).lower(params, h).compile()
        for f in (textbook, ours)
    }
    cases = made | {"products": products}
    found = in_turns({name: partial(f, params, h) for name, f in cases.items()}, repeats)
    both = [made[name](params, h) for name in ("ours", "textbook")]
    differ = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), *both)
    yield {
        "vocab_size": vocab_size,
        "rows": x.size,
        **_against("textbook", found, "ours"),
        "faster_at_most": found["textbook"][0] / found["products"][0],
        "temporaries_mib": _mib(made["ours"]),
        "textbook_temporaries_mib": _mib(made["textbook"]),
        "gradients_differ": max(jax.tree.leaves(differ)),
    }


def sampling(repeats: int) -> Iterator[dict]:
    """A row: the sampler against the textbook loop."""
    import jax
    import jax.numpy as jnp

    from diffusion_lm import keys
    from diffusion_lm.ops import categorical
    from diffusion_lm.samplers import ancestral

    size, vocab_size, num_steps, timed = 8, 50257, 1000, 5
    objective = _model(vocab_size)
    params = jax.jit(objective.init)(jax.random.key(0))
    keys_B = keys.samples(0, jnp.arange(size))
    prompt, free = jnp.full((size, LENGTH), vocab_size), jnp.ones((size, LENGTH), bool)
    ours = ancestral.make(objective=objective, num_steps=num_steps)
    draw = jax.jit(ours.sample).lower(params, keys_B, prompt, free).compile()

    @jax.jit
    def textbook(params, z_BL):
        """The first steps of T = 1000, from t = 1 down, on a uniform grid."""
        denoiser, mask = objective.predict(params), vocab_size

        def step(z_BL, i):
            h = denoiser.trunk(z_BL, jnp.full(size, i / num_steps))
            keys_BL = keys.places(keys.rows_fold(keys_B, i), LENGTH)
            reveal = 1 / i.astype(jnp.float32)
            drawn = categorical.draw_or_mask_float32(keys_BL, denoiser.head(h), reveal)
            return jnp.where(z_BL == mask, drawn, z_BL), None

        return jax.lax.scan(step, z_BL, jnp.arange(num_steps, num_steps - timed, -1))[0]

    calls = []

    def drawn():
        out = draw(params, keys_B, prompt, free)
        calls.append(out.calls)
        return out

    cases = {"textbook": lambda: textbook(params, prompt), "ours": drawn}
    found = in_turns(cases, min(repeats, 3))
    whole = num_steps / timed
    found["textbook"] = tuple(whole * s for s in found["textbook"])
    yield {
        "vocab_size": vocab_size,
        "num_steps": num_steps,
        "network_calls": int(calls[-1]),
        **_against("textbook", found, "ours"),
        "temporaries_mib": _mib(draw),
    }


def start(repeats: int) -> Iterator[dict]:
    """Rows of seconds: the default run to its first step, cold and warm, imports, deep networks."""
    first = ["--config=configs/md4_sotu.py", "--config.train.log_every=1"]
    importing = [sys.executable, "-c", "import diffusion_lm.train"]
    with tempfile.TemporaryDirectory() as folder:
        env = dict(os.environ, JAX_COMPILATION_CACHE_DIR="")
        warm = dict(env, JAX_COMPILATION_CACHE_DIR=os.path.join(folder, "cache"))
        warm["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        for turn in range(min(repeats, 3) + 1):
            row = {"import": _child(importing, env)}
            for name, env_of in (("cold", env), ("cached", warm)):
                workdir = os.path.join(folder, f"{name}{turn}")
                line = [sys.executable, "-m", "diffusion_lm.main", *first, f"--workdir={workdir}"]
                row[name] = _child(line, env_of, until="step 1/")
            if turn:  # the first fills the cache
                yield {
                    f"{name}_{kind}": seconds
                    for name, spent in row.items()
                    for kind, seconds in zip(("seconds", "cpu"), spent, strict=True)
                }
    seconds = {}
    for layers in (4, 24):
        before = time.process_time()
        train_step(27, 16, layers=layers)
        seconds[f"compile_{layers}_layers_cpu"] = time.process_time() - before
    yield seconds


def _child(line: list[str], env: dict, until: str | None = None) -> tuple[float, float]:
    """(wall-clock, CPU) seconds of a command, or of what it does before it prints `until`."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    # stderr, too: a run whose stderr is a terminal shows a bar instead
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(line, env=env, **pipes) as process:
        reached = until is not None and any(said.startswith(until) for said in process.stdout)
        if reached:
            process.kill()
    if not reached and (until or process.returncode):
        raise SystemExit(f"diffusion_lm: {' '.join(line)} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - wall, cpu


def gpu(repeats: int) -> Iterator[dict]:
    """Rows of tokens/s and of the share of the peak, on a GPU; elsewhere a row that says so."""
    import jax

    from diffusion_lm import build, config, keys, metrics, parallel, plan

    if jax.default_backend() != "gpu":
        yield {"skipped": "there is no GPU here"}
        return
    kind = jax.devices()[0].device_kind
    peak = PEAKS.get(kind)
    for size in ("small", "medium"):
        for batch_size in (64, 32, 16, 8):
            changes = [f"train.batch_size={batch_size * jax.device_count()}", "network.remat=false"]
            changes.append(f"evaluators.valid.batch_size={batch_size * jax.device_count()}")
            resolved = config.resolve(config.load(f"configs/md4_owt.py:{size}"), changes)
            made = build.setup(plan.without_data(resolved))
            batch = made.parts.data.example(resolved.train.batch_size)
            batch = parallel.global_batch(made.mesh, batch)
            state, run = made.init(), build.train_step(resolved, made)

            def forward(params, batch=batch, made=made):
                key = jax.random.key(0)
                return made.parts.objective.loss(params, keys.number(batch), key, train=True).loss

            flops = metrics.train_flops(forward, state.params)[0]

            def steps(run=run, batch=batch):
                nonlocal state
                state, out = run(state, batch)
                return out

            try:
                seconds = in_turns({"step": steps}, repeats)["step"][0]
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                continue
            rate = flops / seconds / jax.device_count() / 1e12
            yield {
                "model": size,
                "batch_size": resolved.train.batch_size,
                "tokens_per_second": made.tokens_per_step / seconds,
                "tflops_per_device": rate,
                "mfu": rate / peak if peak else None,
            }
            break


BENCHMARKS = {f.__name__: f for f in (train, head, sampling, start, gpu)}

if __name__ == "__main__":
    huge_pages()
    sys.exit(main())

"""Measures how much each estimator of MD4's bound varies, at equal numbers of network rows.

    python launch/estimator_variance.py --out=results/estimator_variance.json [--workdir=runs/md4]

Takes the model of a finished run of MD4 without time input; without one it first trains a smaller
configs/md4_sotu.py for a minute or two. On two cores all of it takes some ten minutes.

Every estimator scores the same 32 windows with 32 network rows, `--repeats` times, and so for each
of 4 sets of windows; "complementary", which takes two rows an example, scores half of the windows
at a time. The variance is that of the mean over a batch for given windows, the part that drawing
again makes smaller: what is left of the text's own spread is the same for all. The one row more
that "control_variate" takes is charged. The last column is by floating-point operations of matrix
products instead of rows, where it counts how many positions the head runs on.
"""

import argparse
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_lm import build, checkpoint, config, keys, main, metrics, step
from diffusion_lm.objectives import md4

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROWS, SETS, BLOCKS = 32, 4, 20


def train(workdir: str) -> None:
    options = {"data.vocab_size": 2048, "network.layers": 3, "network.width": 128}
    options |= {"network.heads": 2, "network.hidden": 352, "evaluators.valid.max_windows": 32}
    options |= {"train.steps": 300, "train.num_samples": 0, "train.checkpoint_every": 300}
    flags = [f"--config.{name}={value}" for name, value in options.items()]
    if main.main([f"--config={ROOT}/configs/md4_sotu.py", f"--workdir={workdir}", *flags]):
        raise SystemExit(1)


def load(workdir: str):
    """(config, setup, parameters) of a finished run."""
    resolved = config.resolve(config.load(f"{workdir}/config.json"), [])
    setup = build.setup(resolved)
    saves = checkpoint.Checkpoints(workdir, read_only=True)
    state = saves.restore(setup.abstract)
    saves.close()
    return resolved, setup, step.eval_params(state)


def objectives(resolved):
    """(estimator, the run's objective with it) for each."""
    for name in md4.ESTIMATORS:
        resolved.objective.update(estimator=name, draws=1)
        yield name, build.parts(resolved).objective


def measure(objective, params, sets, repeats: int, rows: int):
    """(means f64[sets, repeats] of batches of `rows` windows in nats per token, FLOPs of one)."""

    def mean(params, x, key):
        batch = keys.number({"x": x})
        out = objective.loss(params, batch, key, train=False)
        return out.loss.sum() / out.tokens.sum()

    x = [jnp.asarray(tokens[:rows], jnp.int32) for tokens in sets]
    flops = metrics.matmul_flops(mean, params, x[0], jax.random.key(0))
    mean = jax.jit(mean)
    values = [
        [
            float(mean(params, tokens, keys.stream(i, "variance", repeat)))
            for repeat in range(repeats)
        ]
        for i, tokens in enumerate(x)
    ]
    return np.array(values), flops


def ratios(base, values):
    """Variance of `base` over that of `values`, and its standard error: a jackknife over blocks of
    repeats, the same for both."""

    def ratio(keep):
        return base[:, keep].var(1, ddof=1).mean() / values[:, keep].var(1, ddof=1).mean()

    block = np.arange(base.shape[1]) * BLOCKS // base.shape[1]
    left_out = np.array([ratio(block != b) for b in range(BLOCKS)])
    error = np.sqrt((BLOCKS - 1) * left_out.var())
    return ratio(slice(None)), error


def table(rows: list[dict]) -> str:
    lines = [
        "| estimator | nats/token | lower variance per network row | per operation |",
        "|---|---|---|---|",
    ]
    for r in rows:
        mean = f"{r['mean']:.4f} ± {r['mean_error']:.4f}"
        by_row = f"{r['gain']:.2f} ± {r['gain_error']:.2f}"
        lines.append(f"| {r['estimator']} | {mean} | {by_row} | {r['gain_per_flop']:.2f} |")
    return "\n".join(lines)


def run(workdir: str, repeats: int) -> dict:
    resolved, setup, params = load(workdir)
    data = setup.parts.data
    windows = data.windows("valid").tokens
    chosen = np.random.default_rng(0).choice(len(windows), SETS * ROWS, replace=False)
    sets = np.asarray(windows[np.sort(chosen)]).reshape(SETS, ROWS, -1)
    rows, base = [], None
    for name, objective in objectives(resolved):
        half = name == "complementary"
        # Both halves of a set are scored, half as often each.
        mine = sets.reshape(2 * SETS, ROWS // 2, -1) if half else sets
        values, flops = measure(objective, params, mine, repeats, ROWS // 2 if half else ROWS)
        base = (values, flops) if base is None else base
        gain, error = ratios(base[0], values)
        charge = ROWS / (ROWS + 1) if name == "control_variate" else 1.0
        mean_error = np.sqrt(values.var(1, ddof=1).mean() / values.size)
        rows.append(
            {
                "estimator": name,
                "mean": float(values.mean()),
                "mean_error": float(mean_error),
                "gain": gain * charge,
                "gain_error": error * charge,
                "gain_per_flop": gain * base[1] / flops,
            }
        )
        print(table(rows).splitlines()[-1], flush=True)
    return {
        "model": resolved.to_dict()["network"],
        "steps": resolved.train.steps,
        "length": data.length,
        "rows": rows,
        "repeats": repeats * SETS,
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", help="a finished run of md4 without time input")
    parser.add_argument("--out", required=True, help="the JSON file that is written")
    parser.add_argument("--repeats", type=int, default=100, help="batches for each set of windows")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if flags.workdir is None:
            train(folder)
        results = run(flags.workdir or folder, flags.repeats)
    pathlib.Path(flags.out).write_text(json.dumps(results, indent=1) + "\n")
    print(table(results["rows"]))

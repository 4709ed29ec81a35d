"""EDLM's claims at CPU size, judged by the true probabilities of a Markov source.

    pip install -e '.[plots]' && python launch/edlm_claims.py --workdir=runs/edlm_claims [--seeds=3]

Trains configs/md4_markov.py, ar_markov.py and edlm_markov.py for each seed (finished runs are not
run again), draws samples from the denoiser and from the three energies with T = 4 .. 64 steps, and
asks (a) whether the corrected samples are nearer to the source at equal steps, (b) what that costs
or saves in time at equal quality, (c) what the likelihood bounds say. Writes
results/edlm_markov.json and, from that file alone, docs/edlm_markov.md and docs/edlm_markov.png.

Quality is the Kullback-Leibler divergence, in nats, of the law of three adjacent tokens in the
samples from the source's: what a finite number of perfect samples would have is a row of its own.
Beside it stands the true negative log-likelihood, over the source's entropy, per token: it is 0
for perfect samples, but can be negative for samples that lack variety, so it is no measure by
itself.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = (4, 8, 16, 32, 64)
CANDIDATES = 4
NUM, BATCH = 256, 128
# label -> (run, overrides of its sampler)
METHODS = {
    "MD4": ("md4_markov", []),
    "EDLM, nce": ("edlm_nce", [f"sampler.candidates={CANDIDATES}"]),
    "EDLM, ar": ("edlm_ar", [f"sampler.candidates={CANDIDATES}"]),
    "EDLM, coar": ("edlm_coar", [f"sampler.candidates={CANDIDATES}"]),
}
PAPER = "paper_joint_not_a_bound_"
RESULTS = ROOT / "results" / "edlm_markov.json"


def train(workdir: pathlib.Path, seed: int) -> None:
    """The runs of one seed, in workdir/seed."""
    folder = workdir / str(seed)
    proposal, ar = folder / "md4_markov", folder / "ar_markov"
    runs = [("md4_markov.py", proposal, []), ("ar_markov.py", ar, [])]
    for energy in ("nce", "ar", "coar"):
        options = [f"--config.objective.proposal={proposal}"]
        options += [] if energy == "nce" else [f"--config.objective.ar={ar}"]
        runs.append((f"edlm_markov.py:{energy}", folder / f"edlm_{energy}", options))
    for config, path, options in runs:
        base = [sys.executable, "-m", "diffusion_lm.main", f"--config={ROOT / 'configs' / config}"]
        subprocess.run(
            [*base, f"--workdir={path}", f"--config.seed={seed}", *options], cwd=ROOT, check=True
        )


def opened(folder: pathlib.Path, overrides: list[str]):
    """(parts, params, mesh) of a finished run, its sampler changed."""
    from diffusion_lm import build, checkpoint, config, step

    resolved = config.resolve(config.load(str(folder / "config.json")), overrides)
    setup = build.setup(resolved)
    saves = checkpoint.Checkpoints(str(folder), read_only=True)
    state = saves.restore(setup.abstract)
    saves.close()
    return setup.parts, step.eval_params(state), setup.mesh


def judged(x, source) -> dict:
    """How far int[N, L] is from the source, in nats."""
    import numpy as np

    from diffusion_lm.data import markov

    length = x.shape[1]
    excess = -markov.log_prob(source, x).mean() - markov.entropy(source, length)
    law = np.zeros_like(source)
    for first in range(length - source.ndim + 1):
        np.add.at(law, tuple(x[:, first : first + source.ndim].T), 1)
    law /= law.sum()
    seen = law > 0
    kl = (law[seen] * np.log(law[seen] / markov.tuples(source, length)[seen])).sum()
    return {"excess": float(excess) / length, "kl": float(kl)}


def sampled(folder: pathlib.Path, overrides: list[str], seed: int) -> dict:
    """Samples of one model and setting, judged, and the least seconds that a batch took."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from diffusion_lm import keys

    parts, params, _ = opened(folder, overrides)
    run = jax.jit(parts.sampler.sample)
    prompt = jnp.full((BATCH, parts.data.length), parts.data.vocab_size)
    tokens, seconds = [], []
    for start in range(0, NUM, BATCH):
        row_keys = keys.rows(keys.stream(seed, "claims"), start + jnp.arange(BATCH))
        begin = time.perf_counter()
        out = jax.block_until_ready(run(params, row_keys, prompt, prompt == prompt))
        seconds.append(time.perf_counter() - begin)
        tokens.append(np.asarray(out.tokens))
    effective = np.nan if out.effective is None else float(np.nanmean(out.effective))
    return judged(np.concatenate(tokens), parts.data.source) | {
        "seconds": min(seconds[1:]),  # the first one compiled
        "calls": int(out.calls),
        "effective": None if np.isnan(effective) else effective,
    }


def measure(workdir: pathlib.Path, seed: int) -> list[dict]:
    from diffusion_lm.data import markov

    done = workdir / str(seed) / "claims.json"
    if done.exists():
        return json.loads(done.read_text())
    train(workdir, seed)
    folder, rows = workdir / str(seed), []
    for steps in STEPS:
        for label, (run, overrides) in METHODS.items():
            row = {"seed": seed, "method": label, "steps": steps}
            row |= sampled(folder / run, [f"sampler.num_steps={steps}", *overrides], seed)
            rows.append(row)
            print(row, flush=True)
    data = opened(folder / "md4_markov", [])[0].data
    perfect = judged(data.windows("test").tokens[:NUM].astype(int), data.source)
    rows.append({"seed": seed, "method": "source", **perfect})
    entropy = markov.entropy(data.source, data.length) / data.length
    rows.append({"seed": seed, "bound": "entropy of the source", "nats_per_token": entropy})
    for run in ("md4_markov", "ar_markov", "edlm_nce", "edlm_ar", "edlm_coar"):
        lines = (folder / run / "metrics.jsonl").read_text().splitlines()
        log = [json.loads(line) for line in lines]
        score = [r for r in log if r.get("evaluator") == "valid"][-1]
        kept = {k: v for k, v in score.items() if "nats_per_token" in k}
        rows.append({"seed": seed, "bound": run, "kind": score["kind"], **kept})
    done.write_text(json.dumps(rows))
    return rows


def mean(values: list[float], form: str = "{:.3f}") -> str:
    if len(values) < 2:
        return form.format(values[0])
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{form.format(statistics.mean(values))} ± {form.format(error)}"


def picked(rows: list[dict], field: str, **which) -> list[float]:
    return [r[field] for r in rows if all(r.get(k) == v for k, v in which.items())]


def speed_up(rows: list[dict], method: str) -> list[float]:
    """By seed: seconds of MD4 at the most steps over the least seconds of `method` at which its
    divergence is no larger; 0 if none of its settings gets there."""
    out = []
    for seed in sorted({r["seed"] for r in rows}):
        mine = [r for r in rows if r["seed"] == seed and "steps" in r]
        (want,) = [r for r in mine if r["method"] == "MD4" and r["steps"] == max(STEPS)]
        fits = [r["seconds"] for r in mine if r["method"] == method and r["kl"] <= want["kl"]]
        out.append(want["seconds"] / min(fits) if fits else 0.0)
    return out


def render(results: dict) -> str:
    """docs/edlm_markov.md, from results/edlm_markov.json."""
    rows = results["rows"]
    seeds = len({r["seed"] for r in rows})
    lines = [
        "# EDLM's claims, judged by a source with known probabilities",
        "",
        f"Mean and standard error over {seeds} seeds (networks and noise; the source is one), "
        f"{NUM} samples of 64 tokens each, k = {CANDIDATES} candidates at every step; "
        f"{results['hardware']}; jax {results['jax']}. Written by `python launch/edlm_claims.py` "
        "from `results/edlm_markov.json`; what the columns mean stands at its top.",
        "",
        "## At equal steps",
        "",
        "| steps | method | divergence of triples | excess nats per token | network calls | "
        f"effective sample size | seconds for {BATCH} |",
        "|---|---|---|---|---|---|---|",
    ]
    for steps in STEPS:
        for label in METHODS:
            which = {"steps": steps, "method": label}
            cells = [mean(picked(rows, f, **which), "{:.4f}") for f in ("kl", "excess")]
            cells.append(str(picked(rows, "calls", **which)[0]))
            size = [e for e in picked(rows, "effective", **which) if e is not None]
            cells.append(mean(size, "{:.2f}") if size else "")
            cells.append(mean(picked(rows, "seconds", **which), "{:.2f}"))
            lines.append(f"| {steps} | {label} | {' | '.join(cells)} |")
    cells = [mean(picked(rows, f, method="source"), "{:.4f}") for f in ("kl", "excess")]
    lines.append(f"| | the source itself | {' | '.join(cells)} | | | |")
    lines += [
        "",
        "![divergence against steps and against seconds](edlm_markov.png)",
        "",
        "## In time, at equal quality",
        "",
        f"Seconds of MD4 with {max(STEPS)} steps over those of the cheapest setting above whose "
        "divergence is no larger (0: none is). The paper reports 1.3.",
        "",
        "| method | speed-up |",
        "|---|---|",
    ]
    lines += [f"| {m} | {mean(speed_up(rows, m), '{:.2f}')} |" for m in METHODS if m != "MD4"]
    lines += [
        "",
        "## Likelihood",
        "",
        "Nats per token of validation. What the paper would have reported is in a column of its "
        "own: it is not a bound ([why](edlm_likelihood.md)).",
        "",
        "| model | bound, or exact | plug-in, log Z from below | from above | the paper's figure |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(r["bound"] for r in rows if "bound" in r):
        cells = []
        for field in ("", "plug_in_log_z_below_", "plug_in_log_z_above_", PAPER):
            values = [r.get(f"{field}nats_per_token") for r in rows if r.get("bound") == name]
            cells.append("" if None in values else mean(values, "{:.4f}"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "## In short", "", *findings(rows)]
    return "\n".join(lines) + "\n"


def findings(rows: list[dict]) -> list[str]:
    """The answers, counted from the rows; a difference counts beyond twice its standard error."""

    def nearer(label, steps):
        ours, theirs = (picked(rows, "kl", steps=steps, method=m) for m in (label, "MD4"))
        gap = [b - a for a, b in zip(ours, theirs, strict=True)]
        return statistics.mean(gap) > 2 * statistics.stdev(gap) / len(gap) ** 0.5

    counts = {m: sum(nearer(m, steps) for steps in STEPS) for m in METHODS if m != "MD4"}
    at = ", ".join(f"{m} at {n} of {len(STEPS)} numbers of steps" for m, n in counts.items())
    fastest = max(statistics.mean(speed_up(rows, m)) for m in counts)
    words = "a speed-up" if fastest > 1 else "no speed-up on this machine"
    own, plain = (
        [r["nats_per_token"] for r in rows if r.get("bound") == name]
        for name in ("edlm_nce", "md4_markov")
    )
    gain = [b - a for a, b in zip(own, plain, strict=True)]
    error = statistics.stdev(gain) / len(gain) ** 0.5
    exact = [r["nats_per_token"] for r in rows if r.get("bound") == "ar_markov"]
    gap = statistics.mean(own) - statistics.mean(exact)
    name = f"{PAPER}nats_per_token"
    paper = [r[name] for r in rows if r.get("bound") == "edlm_nce"]
    entropy = [r["nats_per_token"] for r in rows if r.get("bound") == "entropy of the source"]
    return [
        f"- At equal steps the corrected samples are nearer to the source than MD4's, by paired "
        f"seeds and more than two standard errors: {at}.",
        f"- In time at equal quality there is {words}: the best ratio is {fastest:.2f}. A step "
        f"of {CANDIDATES} candidates costs {1 + CANDIDATES} network calls, and a CPU gains little "
        "from making them in one batch; an accelerator that one sequence does not fill, where the "
        "paper measured, is another matter and was not tried.",
        f"- The valid bound of the learned energy gains {statistics.mean(gain):.3f} ± {error:.3f} "
        f"nats per token on MD4's; its gap to the autoregressive model is {gap:.3f}. The paper's "
        f"figure would have been {statistics.mean(paper):.3f}, where the entropy of the source, "
        f"which no likelihood can undercut, is {statistics.mean(entropy):.3f}.",
    ]


def plot(results: dict, path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = results["rows"]
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for label in METHODS:
        kl = [statistics.mean(picked(rows, "kl", steps=s, method=label)) for s in STEPS]
        seconds = [statistics.mean(picked(rows, "seconds", steps=s, method=label)) for s in STEPS]
        for axis, at in zip(axes, (STEPS, seconds), strict=True):
            axis.loglog(at, kl, marker="o", label=label)
    floor = statistics.mean(picked(rows, "kl", method="source"))
    for axis, name in zip(axes, ("steps", f"seconds for {BATCH} samples"), strict=True):
        axis.axhline(floor, color="grey", linestyle=":", label="the source itself")
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("divergence of triples, nats")
    axes[0].set_xticks(STEPS, STEPS)
    axes[0].minorticks_off()
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    flags = parser.parse_args()
    import jax
    from sotu_table import hardware

    rows = [r for s in range(flags.seeds) for r in measure(flags.workdir.resolve(), s)]
    results = {"hardware": hardware(), "jax": jax.__version__, "rows": rows}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    (ROOT / "docs" / "edlm_markov.md").write_text(render(results))
    plot(results, ROOT / "docs" / "edlm_markov.png")
    print(render(results))


if __name__ == "__main__":
    main()

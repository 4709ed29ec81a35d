"""Train, evaluate, sample, plan: python -m diffusion_lm.main --config=FILE --workdir=DIR."""

import argparse
import contextlib
import difflib
import json
import os
import sys

EPILOG = """\
examples:
  train, and go on after a stop (the same line again):
    python -m diffusion_lm.main --config=configs/md4_sotu.py --workdir=runs/md4
  on your own text (a file, or a folder of .txt, .md, .jsonl):
    python -m diffusion_lm.main --config=configs/md4_sotu.py --workdir=runs/mine \\
        --config.data.source=files --config.data.path=my_texts/
  score a finished run on its test split:
    python -m diffusion_lm.main --workdir=runs/md4 --mode=eval --config.evaluators.valid.split=test
  and by an evaluator that its config does not have, under a new label: what it writes, judged by
  another run (python -m diffusion_lm.plot --help makes a figure of it):
    python -m diffusion_lm.main --workdir=runs/md4 --mode=eval \\
        --config.evaluators.quality.name=generative --config.evaluators.quality.judge=runs/ar \\
        --config.evaluators.quality.steps=16,64 --config.evaluators.quality.temperatures=0.7,1.0
  write, continue, fill in:
    python -m diffusion_lm.main --workdir=runs/md4 --mode=sample --num_samples=3
    python -m diffusion_lm.main --workdir=runs/md4 --mode=sample --prompt="The state of the union"
    python -m diffusion_lm.main --workdir=runs/md4 --mode=sample --prompt="Our [MASK:12] must grow."
    python -m diffusion_lm.main --workdir=runs/md4 --mode=sample --length=512 --block=32
    python -m diffusion_lm.main --workdir=runs/md4 --mode=sample --config.sampler.name=first_hitting
  and see how it came about, step by step, in a browser:
    python -m diffusion_lm.main --workdir=runs/md4 --mode=sample --num_samples=3 --html=steps.html
  what a train step would need on a TPU slice, without one (extra: tpu):
    python -m diffusion_lm.main --config=configs/md4_owt.py --mode=plan --topology=v5e:8x8
exit codes: 0 done; 2 bad input (one line says what); 3 the run could not go on (one line says why),
what was saved before stays; 4 no step in train.patience seconds, the same line goes on; 130 or 143
stopped by a signal, state saved (130 also at the second signal, which saves nothing).
"""

# Read when numpy is first imported. It has no large products here, and in small ones, those of the
# bigram start, threads that wait for each other take ten times as long on busy cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

SAMPLING = ("num_samples", "num_steps", "seed", "temperature", "top_p", "prompt", "length", "block")
SAMPLING += ("label", "guidance", "json", "html")


def parser() -> argparse.ArgumentParser:
    out = _Parser(
        "diffusion_lm",
        description="Diffusion language models in JAX: train, evaluate, sample.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    out.add_argument(
        "--config",
        metavar="FILE",
        type=os.path.expanduser,
        help="a config file, or FILE:ARGUMENT; eval and "
        "sample take the run's own if it is left out",
    )
    out.add_argument(
        "--workdir", metavar="DIR", type=os.path.expanduser, help="the folder of the run"
    )
    out.add_argument("--mode", choices=("train", "eval", "sample", "plan"), default="train")
    out.add_argument("--config.SECTION.FIELD", metavar="VALUE", dest="_", help="override a field")
    group = out.add_argument_group("for --mode=plan")
    group.add_argument("--topology", metavar="NAME", help="a TPU slice, such as v5e:8x8")
    group.add_argument("--search", action="store_true", help="plan other meshes and remat too")
    group = out.add_argument_group("for --mode=sample")
    group.add_argument("--num_samples", type=int, help="1 if left out")
    group.add_argument("--num_steps", type=int, help="sampling steps of a diffusion model")
    group.add_argument("--seed", type=int, help="0 if left out")
    group.add_argument("--temperature", type=float)
    group.add_argument("--top_p", type=float)
    group.add_argument(
        "--prompt",
        help="text to continue, or text with [MASK:n] spans; of a model of pairs, sources to "
        "translate, one a line",
    )
    group.add_argument(
        "--length", type=int, help="most tokens of the text, also more than the model's"
    )
    group.add_argument("--block", type=int, help="tokens written at a time, from left to right")
    group.add_argument("--label", type=int, help="class of the images")
    group.add_argument("--guidance", type=float, help="strength of the label; 1 is the model's own")
    group.add_argument("--json", action="store_true", help="print one JSON object a line")
    group.add_argument(
        "--html",
        metavar="FILE",
        type=os.path.expanduser,
        help="also write a page that plays the steps; a new file",
    )
    return out


def _parse(argv: list[str]) -> argparse.Namespace:
    """Parses all but overrides; an unknown flag ends with the nearest known one."""
    out = parser()
    flags, unknown = out.parse_known_args(argv)
    if unknown:
        known = [option for action in out._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; see --help"
        out.error(f"unknown argument {unknown[0]}{hint}")
    for name in SAMPLING:
        given = getattr(flags, name)
        if flags.mode != "sample" and given is not None and given is not False:
            out.error(f"--{name} is for --mode=sample")
    if flags.mode != "plan" and flags.workdir is None:
        out.error("--workdir=DIR is missing")
    if flags.mode != "plan" and (flags.topology or flags.search):
        out.error("--topology and --search are for --mode=plan")
    return flags


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"diffusion_lm: {message}\n")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    overrides = [a.removeprefix("--config.") for a in argv if a.startswith("--config.")]
    flags = _parse([a for a in argv if not a.startswith("--config.")])
    prepare = {"train": _train, "eval": _eval, "sample": _sample, "plan": _plan}[flags.mode]
    try:
        run = prepare(flags, overrides)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"diffusion_lm: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    try:
        return run()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"diffusion_lm: {' '.join(str(error).split())}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("diffusion_lm: ended at once; nothing since the newest checkpoint", file=sys.stderr)
        return 130


# Each mode checks and builds first, in a call whose errors are the user's, and returns what is
# left to run. JAX is imported only here, so that --help and mistyped flags answer at once.


def _train(flags, overrides):
    from diffusion_lm import config, parallel, train

    if flags.config is None:
        raise ValueError("--mode=train needs --config=FILE")
    resolved = config.resolve(config.load(flags.config), overrides)
    parallel.initialize()
    return train.prepare(resolved, flags.workdir)


def _plan(flags, overrides):
    from diffusion_lm import config, plan

    if flags.config is None or flags.topology is None:
        raise ValueError("--mode=plan needs --config=FILE and --topology=NAME, such as v5e:8x8")
    resolved = config.resolve(config.load(flags.config), overrides)
    return plan.prepare(resolved, flags.topology, search=flags.search)


def _config(flags, overrides):
    """The config that is given, or that of the run in --workdir."""
    from diffusion_lm import config

    own = os.path.join(flags.workdir, "config.json")
    if not os.path.isfile(own):
        raise FileNotFoundError(f"no run in {flags.workdir!r}: it has no config.json")
    return config.resolve(config.load(flags.config or own), overrides)


def _restored(flags, overrides):
    """(setup, config, newest state) of the run in --workdir."""
    from diffusion_lm import build, checkpoint, parallel, train

    resolved = _config(flags, overrides)
    parallel.initialize()
    setup = build.setup(resolved, flags.workdir)
    build.check_batches(resolved, setup, train=False)
    saves = checkpoint.Checkpoints(flags.workdir, read_only=True)
    train.check_record(saves.record(), resolved, setup, flags.workdir)
    state = saves.restore(setup.abstract)
    saves.close()
    return setup, resolved, state


def _eval(flags, overrides):
    import jax

    from diffusion_lm import build, evaluate, metrics, step

    setup, config, state = _restored(flags, overrides)
    if not config.evaluators:
        raise ValueError("the config has no evaluators")
    run = evaluate.Run(
        setup.parts.data,
        setup.parts.objective,
        step.eval_params(state),
        setup.mesh,
        config.seed,
        evaluate.make_eval_step(setup.parts.objective, setup.mesh),
        build.translator(config, setup),
    )
    log = metrics.Log(flags.workdir, "eval.jsonl")

    def score() -> int:
        for row in evaluate.evaluate(setup.parts, run, int(state.step)):
            log.write(row)
            if jax.process_index() == 0:
                print(json.dumps(metrics.jsonable(row)), flush=True)
                print(evaluate.describe(row), file=sys.stderr)
        return 0

    return score


def _sample(flags, overrides):
    import jax

    from diffusion_lm import build, page, sample, step, translate

    if flags.html is not None:
        page.check(flags.html)
    asked = {f: getattr(flags, f) for f in ("num_steps", "temperature", "top_p")}
    asked = {field: value for field, value in asked.items() if value is not None}
    chosen = _config(flags, overrides).sampler
    for field in asked:
        if field not in chosen:
            raise ValueError(f"the {chosen.name} sampler has no --{field}")
    overrides = [*overrides, *(f"sampler.{field}={value}" for field, value in asked.items())]
    seed = flags.seed or 0
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed must lie in [0, 2^32), got {seed}")
    setup, resolved, state = _restored(flags, overrides)
    params, data = step.eval_params(state), setup.parts.data
    if translator := build.translator(resolved, setup):
        drawn = translate.samples(translator, params, data, _sources(flags), seed=seed)
    else:
        drawn = sample.samples(
            setup.parts,
            params,
            sample.compiled(setup.parts.sampler, setup.mesh, traced=flags.html is not None),
            num=1 if flags.num_samples is None else flags.num_samples,
            seed=seed,
            prompt=flags.prompt or "",
            length=flags.length or 0,
            block=flags.block or 0,
            label=flags.label,
            guidance=flags.guidance,
        )

    def write() -> int:
        images, played = [], []
        for out in drawn:
            if jax.process_index():
                continue
            if flags.html is not None:
                played.append(out)
                out = {k: v for k, v in out.items() if k not in ("prompt", "steps")}
            if data.shape:
                images.append(out)
                out = {**out, "tokens": out["tokens"].tolist()}
            if flags.json:
                print(json.dumps(out), flush=True)
            else:
                title = f"--- sample {out['index']}, seed {out['seed']}"
                if sizes := out.get("effective_sample_size"):
                    title += f", effective sample size {sum(sizes) / len(sizes):.2f} in the mean"
                print(f"{title}\n{out['text']}", flush=True)
        if images:
            stem = f"step-{int(state.step):07d}-seed-{seed}"
            path = sample.save_images(data, images, flags.workdir, stem)
            print(f"images in {path}", file=sys.stderr)
        if played:
            page.write(flags.html, data, played, _facts(resolved, state, flags.workdir, seed))
            print(f"the steps in {flags.html}", file=sys.stderr)
        return 0

    return write


def _facts(config, state, workdir: str, seed: int) -> dict[str, str]:
    """What the page of --html says about how its samples were made."""
    options = {k: v for k, v in config.sampler.items() if k != "name"}
    settings = ", ".join(f"{name} {value}" for name, value in options.items())
    return {
        "run": f"{os.path.basename(os.path.abspath(workdir))}, trained {int(state.step)} steps",
        "model": config.objective.name,
        "sampler": config.sampler.name + (f" ({settings})" if settings else ""),
        "seed": str(seed),
    }


def _sources(flags) -> list[str]:
    """What a model of pairs is to write for: the lines of --prompt, each num_samples times."""
    for name in ("length", "block", "label", "guidance", "html"):
        if getattr(flags, name) is not None:
            raise ValueError(f"--{name} is not for a model of pairs: give it sources by --prompt")
    if not (flags.prompt or "").strip():
        raise ValueError("a model of pairs wants --prompt=SOURCE, one source a line")
    times = 1 if flags.num_samples is None else flags.num_samples
    if times < 1:
        raise ValueError(f"the number of samples must be at least 1, got {times}")
    lines = [line.removesuffix("\r") for line in flags.prompt.split("\n")]
    return [line for line in lines if line.strip() for _ in range(times)]


STARTED = "DIFFUSION_LM_STARTED_AGAIN"


def huge_pages(state: str = "/sys/kernel/mm/transparent_hugepage/enabled") -> None:
    """Has glibc ask for huge pages where Linux gives them to who asks: XLA on CPUs allocates anew
    at every step, and small pages take long to fill. glibc reads this only when a process starts,
    so `python -m ...` starts itself again, once; nothing else does, such as a debugger or Jupyter.
    """
    module, line = sys.modules["__main__"].__spec__, sys.orig_argv[1:]
    mine = ["-m", module.name if module else "", *sys.argv[1:]]
    flags = line[: len(line) - len(mine)]
    if [*flags, *mine] != line or not all(flag.startswith("-") for flag in flags):
        return
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    with contextlib.suppress(OSError):
        with open(state, encoding="utf-8") as file:
            asked = "[madvise]" in file.read()
        if asked and STARTED not in os.environ and "glibc.malloc.hugetlb" not in tunables:
            again = {"GLIBC_TUNABLES": f"{tunables}:glibc.malloc.hugetlb=1".removeprefix(":")}
            again[STARTED] = "1"  # GLIBC_TUNABLES is taken away from processes with privileges
            os.execve(sys.executable, sys.orig_argv, os.environ | again)


if __name__ == "__main__":
    huge_pages()
    sys.exit(main())

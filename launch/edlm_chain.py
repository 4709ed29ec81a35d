"""Trains the chain of EDLM on the CPU-sized text: denoiser, autoregressive model, energies.

    python launch/edlm_chain.py --workdir=runs [--energies=nce,ar,coar] [--config.data.FIELD=VALUE]

Runs, one after the other, what one would type: configs/md4_sotu.py, configs/ar_sotu.py (if an
energy wants it) and configs/edlm_sotu.py for each energy, in folders of these names. What is
finished is not run again, so it can be stopped and started. Overrides of the section config.data go
to all of them.
"""

import argparse
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def commands(workdir: pathlib.Path, energies: list[str], overrides: list[str]) -> list[list[str]]:
    """The arguments of diffusion_lm.main, run by run."""
    proposal, ar = workdir / "md4_sotu", workdir / "ar_sotu"
    chain = [("md4_sotu", proposal, [])]
    if set(energies) - {"nce"}:
        chain.append(("ar_sotu", ar, []))
    for energy in energies:
        options = [f"--config.objective.proposal={proposal}"]
        options += [] if energy == "nce" else [f"--config.objective.ar={ar}"]
        chain.append((f"edlm_sotu.py:{energy}", workdir / f"edlm_sotu_{energy}", options))
    out = []
    for name, folder, options in chain:
        config = ROOT / "configs" / (name if ":" in name else f"{name}.py")
        out.append([f"--config={config}", f"--workdir={folder}", *options, *overrides])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--energies", default="nce,ar,coar")
    flags, overrides = parser.parse_known_args()
    for override in overrides:
        if not override.startswith("--config.data."):
            parser.error(f"only overrides of config.data go to all runs, got {override!r}")
    energies = flags.energies.split(",")
    if set(energies) - {"nce", "ar", "coar"}:
        parser.error(f"--energies are some of nce,ar,coar, got {flags.energies!r}")
    for arguments in commands(flags.workdir.resolve(), energies, overrides):
        print("python -m diffusion_lm.main", *arguments, flush=True)
        code = subprocess.run([sys.executable, "-m", "diffusion_lm.main", *arguments]).returncode
        if code:
            sys.exit(code)


if __name__ == "__main__":
    main()

"""What checksums cost: python launch/checksum_cost.py --parameters=30e6.

Saves a state of so many parameters, with Adam's two moments, again and again, with checksums and
with nothing in their place, and counts the CPU seconds of the process (getrusage), all threads
together; the first of each is left out, since it compiles. Prints means and their standard errors.
"""

import argparse
import math
import resource
import statistics
import tempfile

import jax
import jax.numpy as jnp

from diffusion_lm import checkpoint, step

WIDTH = 512


def state_of(parameters: float) -> step.TrainState:
    rows = int(parameters) // (12 * WIDTH)
    names = jax.random.split(jax.random.key(0), 12)
    params = {"network": {str(i): jax.random.normal(k, (rows, WIDTH)) for i, k in enumerate(names)}}
    moments = {name: jax.tree.map(lambda a: a * 0.1, params) for name in ("mu", "nu")}
    return step.TrainState(jnp.int32(0), params, moments, None)


def seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def cost(state: step.TrainState, number: int) -> float:
    """CPU seconds of a save, from its start until it is on disk."""
    with tempfile.TemporaryDirectory() as folder:
        saves = checkpoint.Checkpoints(folder)
        before = seconds()
        saves.save(number, state, {})
        saves._manager.wait_until_finished()
        used = seconds() - before
        saves.close()
    return used


def told(name: str, values: list[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{name}: {statistics.mean(values):.3f} +- {error:.3f} s"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--parameters", type=float, default=30e6)
    options.add_argument("--repeats", type=int, default=10)
    flags = options.parse_args()
    state = jax.block_until_ready(state_of(flags.parameters))
    real, found = checkpoint.checksums, {"with": [], "without": [], "checksums alone": []}
    for number in range(flags.repeats + 1):
        for kind in ("with", "without"):
            checkpoint.checksums = real if kind == "with" else lambda state: {}
            found[kind].append(cost(state, number))
        before = seconds()
        real(state)
        found["checksums alone"].append(seconds() - before)
    found = {kind: values[1:] for kind, values in found.items()}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    print(f"{size / 1e6:.0f} MB, {flags.repeats} saves of each kind, CPU seconds of one")
    for kind, values in found.items():
        print(told(kind, values))
    share = [c / w for c, w in zip(found["checksums alone"], found["without"], strict=True)]
    error = statistics.stdev(share) / math.sqrt(len(share))
    print(f"checksums / save without them: {statistics.mean(share):.1%} +- {error:.1%}")


if __name__ == "__main__":
    main()

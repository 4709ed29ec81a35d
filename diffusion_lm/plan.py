"""Compiles a config's own train step for a TPU slice that is not there, and says what it needs.

The extra `tpu` brings the compiler; no TPU is touched. Memory is the compiler's own account.
FLOPs are those of the matrix products of the loss and its gradient; what remat does again is named
apart. Bytes moved are of main memory, bytes received come from other
chips; both are read from the compiled program (hlo.py). The roofline step is the longest of all
FLOPs and of either bytes at the chip's peak rates, as if each hid the others, and the bound on MFU
is the part of it that the FLOPs that were asked for would take.
"""

import json
import math
import os
import resource
from collections.abc import Callable, Iterator

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from diffusion_lm import build, hlo, keys, metrics, parallel, step
from diffusion_lm import config as configs

# By device kind: GB of memory, bfloat16 TFLOP/s, GB/s of memory and GB/s from all its neighbours of
# one device, as published for Cloud TPU. The last is half of what is given for both directions;
# v4's is a pod's all-reduce by its chips, TPU7x's assumed to be v5p's (its device is half a chip).
CHIPS = {
    "TPU v4": (32, 275, 1228, 270),
    "TPU v5 lite": (16, 197, 819, 200),
    "TPU v5": (95, 459, 2765, 600),
    "TPU v6 lite": (32, 918, 1640, 400),
    "TPU7x": (96, 1153, 3690, 300),
}


def prepare(config: ConfigDict, topology: str, *, search: bool) -> Callable[[], int]:
    """The plan of a config, to be run: prints it as JSON, one object a line, and returns 0 if it
    fits, else 1. With `search` it plans meshes, remat and microbatches too, and prints the fastest
    that fits last. Raises ValueError for what a user can mend."""
    devices = devices_of(topology)
    config = without_data(config)
    kind = devices[0].device_kind
    if kind not in CHIPS:
        raise ValueError(f"nothing is known of {kind!r}; known chips: {', '.join(CHIPS)}")

    def run() -> int:
        plans = []
        for candidate in _candidates(config, len(devices)) if search else [config]:
            plans.append(plan(candidate, devices, topology))
            print(json.dumps(plans[-1]), flush=True)
        fitting = [p for p in plans if p["fits"]]
        if search and fitting:
            print(json.dumps({"best": min(fitting, key=lambda p: p["roofline_step_seconds"])}))
        return 0 if fitting else 1

    return run


def devices_of(topology: str) -> list:
    """The devices of a topology such as "v5e:8x8". Raises ValueError if the compiler has none."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # there is no compiler, or it does not know the name
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"--topology={topology}: {said}; it wants pip install 'diffusion_lm[tpu]' and a name "
            "such as v5e:8x8, v5p:8x8x16 or v6e:16x16"
        ) from error


def without_data(config: ConfigDict) -> ConfigDict:
    """The config with the default text for one that has to be fetched: the train step depends on
    the number of tokens and the length alone."""
    config = ConfigDict(config.to_dict())
    data = config.data
    if data.name == "text" and data.tokenizer in ("gpt2", "bytes") and data.source != "sotu":
        options = {name: data[name] for name in ("tokenizer", "length", "vocab_size")}
        config.data = ConfigDict({"name": "text", "source": "sotu", **options})
    return configs.resolve(config, [])


def _candidates(config: ConfigDict, devices: int) -> Iterator[ConfigDict]:
    """The config on other meshes, with and without remat, in more microbatches."""
    for fsdp in sorted({1, min(8, devices), devices}):
        for remat in (False, True) if "remat" in config.network else (None,):
            for microbatches in (1, 4):
                if config.train.batch_size % (devices * microbatches):
                    continue
                changes = [
                    f"mesh.fsdp={fsdp}",
                    "mesh.data=-1",
                    f"train.microbatches={microbatches}",
                ]
                changes += [] if remat is None else [f"network.remat={remat}"]
                yield configs.resolve(config, changes)


def plan(config: ConfigDict, devices: list, topology: str) -> dict:
    """What one train step needs on these devices, figures a device; see the top of this file."""
    setup = build.setup(config, devices=devices)
    parts, options = setup.parts, step.settings(**config.train)
    sharding = parallel.batch_sharding(setup.mesh)
    batch = {
        name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
        for name, a in parts.data.example(options.batch_size).items()
    }
    params = setup.abstract.params
    facts = {
        "topology": topology,
        "chip": devices[0].device_kind,
        "devices": len(devices),
        "mesh": dict(setup.mesh.shape),
        "remat": config.network.get("remat", False),
        "batch_size": options.batch_size,
        "microbatches": options.microbatches,
        "tokens_per_device": options.batch_size * parts.data.length / len(devices),
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        "undivided": parallel.undivided(setup.mesh, params, parts.axes, config.rules.to_dict()),
    }

    def forward(params, batch, key):
        return parts.objective.loss(params, keys.number(batch), key, train=True).loss

    args = params, batch, jax.eval_shape(lambda: jax.random.key(0))
    asked, again = (n / len(devices) for n in metrics.train_flops(forward, *args))
    before = _cpu_seconds()
    lowered = build.train_step(config, setup).lower(setup.abstract, batch)
    memory, flops, bandwidth, links = CHIPS[devices[0].device_kind]
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**facts, "fits": False, "said": " ".join(str(error).split())[:300]}
    facts["compile_cpu_seconds"] = round(_cpu_seconds() - before, 1)
    found = compiled.memory_analysis()
    text = compiled.as_text()
    moved, received = hlo.bytes_moved(text), hlo.bytes_received(text)
    seconds = max((asked + again) / flops / 1e12, moved / bandwidth / 1e9, received / links / 1e9)
    return facts | {
        "fits": True,  # or the compiler would have refused
        "memory_gb": memory,
        "peak_gb": found.peak_memory_in_bytes / 1e9,
        "state_and_batch_gb": found.argument_size_in_bytes / 1e9,
        "temporaries_gb": found.temp_size_in_bytes / 1e9,
        "program_gb": found.generated_code_size_in_bytes / 1e9,
        "tflop": asked / 1e12,
        "tflop_again": again / 1e12,
        "moved_gb": moved / 1e9,
        "received_gb": received / 1e9,
        "roofline_step_seconds": seconds,
        "mfu_bound": asked / flops / 1e12 / seconds,
    }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

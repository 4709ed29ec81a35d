"""Processes, meshes and shardings. One device is the 1 x 1 x 1 mesh; nothing else changes."""

import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffusion_lm.types import BATCH_AXES, Batch

MESH_AXES = (*BATCH_AXES, "tensor")


def initialize() -> None:
    """Joins a multi-process job if the environment names one; otherwise does nothing.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID describe a job started by hand
    (launch/local.sh). On TPU pods and under SLURM set DIFFUSION_LM_DISTRIBUTED=1 instead: JAX finds
    the rest itself.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, number, index = (os.environ.get(name) for name in names)
    if number is not None:
        if address is None or index is None:
            raise ValueError(f"a job of several processes needs all of {', '.join(names)}")
        jax.distributed.initialize(address, int(number), int(index))
    elif os.environ.get("DIFFUSION_LM_DISTRIBUTED") == "1":
        jax.distributed.initialize()


def make_mesh(
    *, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over all devices; one axis may be -1 and takes what is left."""
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    if any(size == 0 or size < -1 for size in sizes.values()):
        raise ValueError(f"mesh axes must be positive, or -1 for the rest, got {sizes}")
    free = [axis for axis, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or len(devices) % known or (not free and known != len(devices)):
        raise ValueError(f"mesh {sizes} does not fit {len(devices)} devices")
    if free:
        sizes[free[0]] = len(devices) // known
    if sizes["data"] * sizes["fsdp"] % jax.process_count():
        raise ValueError(
            f"mesh {sizes}: data x fsdp must be a multiple of the {jax.process_count()} processes, "
            "each of which brings its own rows of a batch"
        )
    shape = tuple(sizes[axis] for axis in MESH_AXES)
    types = (AxisType.Auto,) * len(shape)
    try:
        return jax.make_mesh(shape, MESH_AXES, types, devices=devices)
    except NotImplementedError as error:  # on a torus of chips
        raise ValueError(
            f"mesh {sizes} does not lie on the axes of these {len(devices)} chips; an axis of the "
            "mesh must be a product of some of theirs"
        ) from error


def jit(function: Callable, mesh: Mesh, **options) -> jax.stages.Wrapped:
    """jax.jit, of a function whose parts may ask for the mesh that it runs on."""

    @functools.wraps(function)
    def on_mesh(*args, **kwargs):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **kwargs)

    return jax.jit(on_mesh, **options)


def batch_shards(mesh: Mesh) -> int:
    """Over how many shards the batch axis is spread."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def name(path: tuple) -> str:
    """A key path as "a/b/c"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def logical_axes(axes: dict, path: tuple) -> tuple | None:
    """The logical axes of a parameter, found by the last names of its path; None if it has none.

    Optimiser states keep the names of the parameters they belong to, so they are found as well.
    """
    full = "/" + name(path)
    return next((value for key, value in axes.items() if full.endswith("/" + key)), None)


def shardings(mesh: Mesh, tree: Any, axes: dict, rules: dict) -> Any:
    """A NamedSharding for each leaf: `rules` maps logical axes to mesh axes (or to "").

    A mesh axis is used once per leaf, and only where it divides the leaf's axis.
    """
    unknown = [axis for axis in rules.values() if axis not in (*MESH_AXES, "")]
    if unknown:
        raise ValueError(f"mesh rules name unknown axes {unknown}; choices: {', '.join(MESH_AXES)}")

    def of(path, leaf):
        names = logical_axes(axes, path)
        if names is None or len(names) != len(leaf.shape):
            return NamedSharding(mesh, PartitionSpec())
        spec = []
        for logical, size in zip(names, leaf.shape, strict=True):
            axis = rules.get(logical) or None
            if axis in spec or (axis and size % mesh.shape[axis]):
                axis = None
            spec.append(axis)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(of, tree)


def undivided(mesh: Mesh, tree: Any, axes: dict, rules: dict) -> list[str]:
    """What `rules` would spread over an axis of the mesh that does not divide it, a line each."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = logical_axes(axes, path)
        if names is None or len(names) != len(leaf.shape):
            continue
        for logical, size in zip(names, leaf.shape, strict=True):
            axis = rules.get(logical) or None
            if axis and size % mesh.shape[axis]:
                found[logical, size, axis] = found.get((logical, size, axis), 0) + leaf.size
    return [
        f"mesh.{axis}={mesh.shape[axis]} does not divide {logical} {size}: "
        f"{count:,} parameters are not spread over it"
        for (logical, size, axis), count in found.items()
    ]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch spread over BATCH_AXES."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """All of an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def global_batch(mesh: Mesh, local: dict[str, np.ndarray]) -> Batch:
    """Global arrays from each process's contiguous rows."""
    sharding, count = batch_sharding(mesh), jax.process_count()

    def whole(v):
        shape = (v.shape[0] * count, *v.shape[1:])
        return jax.make_array_from_process_local_data(sharding, v, shape)

    return {name: whole(v) for name, v in local.items()}


def spread_microbatches(batch: Batch, num: int, shards: int) -> Batch:
    """[B, ...] -> [num, B/num, ...] without moving rows between the shards of the batch axis.

    Every shard cuts its own contiguous rows, so pairs of rows stay together.
    """

    def cut(a):
        a = a.reshape(shards, num, a.shape[0] // (shards * num), *a.shape[1:])
        return a.swapaxes(0, 1).reshape(num, -1, *a.shape[3:])

    return {key: cut(a) for key, a in batch.items()}

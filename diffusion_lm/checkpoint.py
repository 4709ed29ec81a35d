"""Checkpoints: Orbax behind one small face. A checkpoint holds a state and a record of the run.

Orbax restores an array with a flipped bit in silence and does not go back to an older checkpoint if
the newest is damaged. So a record carries a checksum of each array and of itself; they are checked
when it is read, and what does not agree is named, put aside and passed over for the next older one.
"""

import copy
import json
import logging
import os
import sys
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from diffusion_lm.step import TrainState

# In a record: the checksums of arrays. Older runs have "checksums", of a slower kind, which are not
# looked at.
SUMS = "sums"


class Checkpoints:
    """The checkpoints of a working directory, in `workdir/checkpoints/<step>/`.

    Saving is asynchronous: `save` returns once the arrays are copied, `close` waits until they are
    on disk. The step is the position in the data, so nothing else is needed to go on.
    """

    def __init__(self, workdir: str, *, keep: int = 2, read_only: bool = False):
        # Orbax warns of options that we set on purpose.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder = os.path.abspath(os.path.join(workdir, "checkpoints"))
        self._read_only = read_only
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
        )
        self._manager = self._reader = None
        if not read_only or os.path.isdir(self.folder):
            items = ("state", "record")
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=items)
            self._reader = ocp.CheckpointManager(self.folder, options=_alone(), item_names=items)

    def latest(self) -> int | None:
        """The newest step that was saved completely."""
        return self._manager.latest_step() if self._manager else None

    def save(self, step: int, state: TrainState, record: dict) -> None:
        """Saves a state and a JSON record of the run under its step, once. Raises OSError if this
        save or the one before it cannot be written."""
        if step == self.latest():
            return
        # a copy: it is written while the caller goes on
        whole = copy.deepcopy(record) | {SUMS: checksums(state)}
        whole["own_checksum"] = _of_json(whole)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()), record=ocp.args.JsonSave(whole)
        )
        try:
            self._manager.save(step, args=args)
        except Exception as error:
            raise self._unwritten(error) from error

    def check(self) -> None:
        """Raises OSError if a save that is under way has failed."""
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._unwritten(error) from error

    def record(self) -> dict:
        """The record beside the newest state that can be read. Raises FileNotFoundError if there is
        no checkpoint and ValueError if none can be read."""
        return self._newest(self._record)

    def restore(self, abstract: TrainState) -> TrainState:
        """The newest state that agrees with its checksums, laid out as `abstract` says.

        `abstract` holds jax.ShapeDtypeStructs with shardings, which need not be those of the run
        that saved. Raises FileNotFoundError if there is no checkpoint and ValueError if none is
        whole. Damaged ones are moved to `workdir/damaged`, if this is not read-only.
        """

        def read(step: int):
            wanted = self._record(step).get(SUMS)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract._asdict()))
            return wanted, TrainState(**self._reader.restore(step, args=args)["state"])

        def wrong(found) -> str | None:
            wanted, state = found
            sums = checksums(state) if wanted is not None else {}  # an older run has none
            names = [name for name, value in sums.items() if value != wanted.get(name)]
            return f"the array {names[0]} is not as it was saved (checksum)" if names else None

        return self._newest(read, wrong)[1]

    def close(self) -> None:
        """Waits until all is on disk. Raises OSError if it cannot be written."""
        if self._manager:
            try:
                self._manager.wait_until_finished()
            except Exception as error:
                raise self._unwritten(error) from error
            finally:
                self._manager.close()
                self._reader.close()

    def _record(self, step: int) -> dict:
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        record = self._reader.restore(step, args=args)["record"]
        own = record.pop("own_checksum", None)
        if own is not None and own != _of_json(record):
            raise ValueError("the record of the run is not as it was saved (checksum)")
        return record

    def _newest(self, read: Callable, wrong: Callable = lambda found: None):
        """What `read(step)` returns for the newest step for which it raises in no process of the
        job and `wrong` of it, which all processes ask together, is None."""
        steps = sorted(self._manager.all_steps(), reverse=True) if self._manager else []
        if not steps:
            raise FileNotFoundError(f"no checkpoint in {self.folder}")
        failures = []
        for step in steps:
            found, said = _tried(read, step)
            if _all_agree(said is None):
                said = wrong(found)
                if said is None:
                    break
            found = None  # a second state would not fit beside it
            failures.append((step, f"step {step}: {said or 'another process could not read it'}"))
        told = "; ".join(said for _, said in failures)
        if len(failures) == len(steps):
            raise ValueError(f"no checkpoint in {self.folder} can be used: {told}")
        if failures:
            print(
                f"damaged checkpoint in {self.folder}: {told}; step {step} is used",
                file=sys.stderr,
            )
            self._put_aside([step for step, _ in failures])
        return found

    def _put_aside(self, steps: list[int]) -> None:
        if self._read_only:
            return
        if jax.process_index() == 0:
            aside = os.path.join(os.path.dirname(self.folder), "damaged")
            os.makedirs(aside, exist_ok=True)
            for step in steps:
                free = (n for n in range(1000) if not os.path.exists(f"{aside}/{step}.{n}"))
                os.rename(os.path.join(self.folder, str(step)), f"{aside}/{step}.{next(free)}")
        _all_agree(True)  # none goes on before they are gone
        self._manager.reload()

    def _unwritten(self, error: Exception) -> OSError:
        self._manager.reload()  # it may count the step as saved
        said = " ".join(str(error).split())
        return OSError(
            f"a checkpoint could not be written to {self.folder}: {said[:300]}; "
            f"the newest whole one is step {self.latest()}"
        )


def _alone() -> ocp.CheckpointManagerOptions:
    """To read without waiting for other processes, of which one may fail where others do not."""
    options = {"read_only": True}
    if jax.process_count() > 1:
        me = jax.process_index()
        options["multiprocessing_options"] = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"reader{me}"
        )
    return ocp.CheckpointManagerOptions(**options)


def _tried(read: Callable, step: int) -> tuple:
    """(what it returns, None), or (None, what whatever it raises says)."""
    try:
        return read(step), None
    except Exception as error:  # Orbax raises many things of a damaged file
        return None, " ".join(f"{type(error).__name__}: {error}".split())[:300]


def checksums(state: TrainState) -> dict[str, str]:
    """One for each array by its path, 8 hex digits; they do not depend on the layout."""
    named = {jax.tree_util.keystr(path): leaf for path, leaf in _leaves(state)}
    # One after the other: processes that add up several at once may do so in different orders, and
    # then wait for each other for ever.
    return {name: f"{int(_checksum(leaf)):08x}" for name, leaf in named.items()}


def _leaves(state: TrainState):
    return jax.tree_util.tree_flatten_with_path(state._asdict())[0]


@jax.jit  # array by array, which is quicker than all in one program
def _checksum(a):
    """uint32[]: the sum, modulo 2^32, of a hash of each element and its place. A change of one
    element changes it for certain, since the hash is one to one in it."""
    a = a.astype(jnp.uint8) if a.dtype == jnp.bool_ else a
    bits = jax.lax.bitcast_convert_type(a, f"uint{8 * a.dtype.itemsize}").astype(jnp.uint32)
    place, stride = jnp.zeros(a.shape, jnp.uint32), 0x9E3779B1
    for axis in reversed(range(a.ndim)):
        iota = jax.lax.broadcasted_iota(jnp.uint32, a.shape, axis)
        place += iota * jnp.uint32(stride % 2**32)
        stride *= a.shape[axis]
    # as MurmurHash3 ends, one to one on uint32
    x = bits ^ place
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    # Eight rows in one pass and the last axis last: loops of vectors, in half the time of one sum.
    if a.ndim > 1:
        axis = int(np.argmax(a.shape[:-1]))
        eights = a.shape[axis] // 8
        x, rest = jnp.split(x, [8 * eights], axis)
        x = x.reshape(*a.shape[:axis], eights, 8, *a.shape[axis + 1 :])
        x = sum(jax.lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in range(8))
        return _sum(x) + _sum(rest)
    return _sum(x)


def _sum(x):
    return x.sum(tuple(range(x.ndim - 1)), dtype=jnp.uint32).sum(dtype=jnp.uint32)


def _of_json(record: dict) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def _all_agree(fine: bool) -> bool:
    """Whether all processes of the job say so."""
    if jax.process_count() == 1:
        return fine
    return bool(np.asarray(multihost_utils.process_allgather(np.int32(fine))).all())

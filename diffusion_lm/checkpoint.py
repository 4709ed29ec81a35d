"""Checkpoints: Orbax behind one small face. A checkpoint holds a state and a record of the run."""

import logging
import os

import orbax.checkpoint as ocp

from diffusion_lm.step import TrainState


class Checkpoints:
    """The checkpoints of a working directory, in `workdir/checkpoints/<step>/`.

    Saving is asynchronous: `save` returns once the arrays are copied, `close` waits until they are
    on disk. The step is the position in the data, so nothing else is needed to go on.
    """

    def __init__(self, workdir: str, *, keep: int = 2, read_only: bool = False):
        # Orbax warns of options that we set on purpose.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder = os.path.abspath(os.path.join(workdir, "checkpoints"))
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
        )
        self._manager = None
        if not read_only or os.path.isdir(self.folder):
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_names=("state", "record")
            )

    def latest(self) -> int | None:
        """The newest step that was saved completely."""
        return self._manager.latest_step() if self._manager else None

    def save(self, step: int, state: TrainState, record: dict) -> None:
        """Saves a state and a JSON record of the run under its step, once."""
        if step == self.latest():
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()), record=ocp.args.JsonSave(record)
        )
        self._manager.save(step, args=args)

    def record(self) -> dict:
        """The record beside the newest state. Raises FileNotFoundError if there is none."""
        if self.latest() is None:
            raise FileNotFoundError(f"no checkpoint in {self.folder}")
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        return self._manager.restore(self.latest(), args=args)["record"]

    def restore(self, abstract: TrainState) -> TrainState:
        """The newest state, laid out as `abstract` says.

        `abstract` holds jax.ShapeDtypeStructs with shardings, which need not be those of the run
        that saved. Raises FileNotFoundError if there is no checkpoint.
        """
        if self.latest() is None:
            raise FileNotFoundError(f"no checkpoint in {self.folder}")
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract._asdict()))
        return TrainState(**self._manager.restore(self.latest(), args=args)["state"])

    def close(self) -> None:
        if self._manager:
            self._manager.wait_until_finished()
            self._manager.close()

"""Checkpoints: Orbax behind one small face. A checkpoint holds the state and the config."""

import json
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
                self.folder, options=options, item_names=("state", "config")
            )

    def latest(self) -> int | None:
        """The newest step that was saved completely."""
        return self._manager.latest_step() if self._manager else None

    def save(self, state: TrainState, config_json: str) -> None:
        """Saves a state under its own step, once."""
        step = int(state.step)
        if step == self.latest():
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()),
            config=ocp.args.JsonSave(json.loads(config_json)),
        )
        self._manager.save(step, args=args)

    def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
        """The state of a step (the newest if None), laid out as `abstract` says.

        `abstract` holds jax.ShapeDtypeStructs with shardings, which need not be those of the run
        that saved. Raises FileNotFoundError if there is no checkpoint, ValueError if the arrays do
        not fit.
        """
        steps = sorted(self._manager.all_steps()) if self._manager else []
        if not steps:
            raise FileNotFoundError(f"no checkpoint in {self.folder}")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise FileNotFoundError(f"no checkpoint of step {step}; there are {steps}")
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract._asdict()))
        return TrainState(**self._manager.restore(step, args=args)["state"])

    def close(self) -> None:
        if self._manager:
            self._manager.wait_until_finished()
            self._manager.close()

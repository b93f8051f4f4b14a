"""Checkpoints of a training with orbax: an interrupted run goes on where it was."""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """The checkpoints of one training, in a folder named after its settings.

    Saved whole or not at all: a kill while saving leaves the one before. A run with
    other settings has another folder.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        # What fails is raised here; orbax also logs it, thread by thread.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        text = json.dumps(settings, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.folder = (folder / name).resolve()
        # One replica writes an array: to share the work, each would slice its part off
        # in a program of its own, which takes seconds to compile for all arrays.
        whole = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
        handlers = ocp.type_handlers.create_type_handler_registry((jax.Array, whole))
        self.manager = ocp.CheckpointManager(
            self.folder,
            item_handlers=ocp.PyTreeCheckpointHandler(type_handler_registry=handlers),
        )

    def steps(self) -> list[int]:
        """The steps that are saved, ascending."""
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: Any) -> None:
        """Saves the state after `step` steps, and waits until it is on the disk.

        Raises:
            OSError: It cannot be written; those saved before are kept.
        """
        try:
            self.manager.save(step, args=ocp.args.PyTreeSave(state))
            self.manager.wait_until_finished()
        except Exception as error:
            reason = "no space left" if "No space left" in str(error) else str(error)
            raise OSError(
                f"the checkpoint of step {step} cannot be written to {self.folder} "
                f"({reason}); make room or choose another --out: the same command goes "
                "on from the checkpoint before."
            ) from error

    def restore(self, step: int, like: Any) -> Any:
        """The state after `step` steps, laid out on the devices like `like`.

        Raises:
            ValueError: The checkpoint is damaged, or of another network.
        """
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        layout = ocp.checkpoint_utils.construct_restore_args(shapes)
        try:
            wanted = ocp.args.PyTreeRestore(shapes, restore_args=layout)
            return self.manager.restore(step, args=wanted)
        except Exception as error:
            raise ValueError(
                f"the checkpoint {self.folder / str(step)} cannot be read "
                f"({type(error).__name__}); delete that folder to go on from the one "
                "before, or choose another --out."
            ) from error

    def discard(self) -> None:
        """Deletes all checkpoints of this training."""
        self.manager.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Lets go of the folder."""
        self.manager.close()

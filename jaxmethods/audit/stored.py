"""Checkpoints that orbax wrote, read as nested dicts and lists of numpy arrays."""

import logging
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .problems import one_line

_MARK = "_METADATA"  # what orbax leaves in the folder of a tree
_NEWEST = 5


def read_orbax(folder: Path) -> list[Any]:
    """The trees in a folder, oldest first.

    Args:
        folder: Of one tree, of a step, or of a `CheckpointManager`, of which the last
            five steps are read.

    Raises:
        ValueError: No tree is there, several are, or one is damaged.
    """
    return [_read(place) for place in _places(folder)]


def _places(folder: Path) -> list[Path]:
    if (folder / _MARK).is_file():
        return [folder]
    inside = [p for p in folder.iterdir() if p.is_dir()]
    numbers = {p: re.search(r"(?:^|_)(\d+)$", p.name) for p in inside}
    steps = sorted((int(m[1]), p) for p, m in numbers.items() if m is not None)
    if steps:
        return [_item(step) for _, step in steps[-_NEWEST:]]
    return [_item(folder)]


def _item(step: Path) -> Path:
    """Where the parameters lie in the folder of a step."""
    if (step / _MARK).is_file():
        return step
    items = sorted(p for p in step.iterdir() if (p / _MARK).is_file())
    usual = [p for p in items if p.name in ("params", "default")]
    if len(items) == 1 or len(usual) == 1:
        return (usual or items)[0]
    names = ", ".join(sorted(p.name for p in step.iterdir())) or "nothing"
    wanted = "give the folder of one of them" if items else "wanted what orbax writes"
    raise ValueError(f"{step} holds no single checkpoint but {names}; {wanted}.")


def _read(folder: Path) -> Any:
    # Loading orbax takes a second and a half, which an npz file need not wait for.
    import orbax.checkpoint as ocp

    # What fails is raised here; orbax also logs it, thread by thread.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    folder = folder.resolve()
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            metadata = reader.metadata(folder).item_metadata
            # Of numpy, whatever devices wrote it.
            arrays = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree
            )
            return reader.restore(
                folder, args=ocp.args.PyTreeRestore(restore_args=arrays)
            )
    except Exception as error:
        raise ValueError(
            f"the checkpoint {folder} cannot be read ({one_line(error, named=True)}); "
            "wanted a tree of arrays that orbax saved whole: save it again."
        ) from error

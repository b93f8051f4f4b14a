"""What a tour is asked to do, checked before anything starts."""

import math
from pathlib import Path
from typing import NamedTuple

from ..audit.folder import check_writable
from ..data import Split, load_digits, load_mnist

_ROOM = 50_000_000  # bytes: several times what a tour on MNIST writes


class TourConfig(NamedTuple):
    """The settings that decide every number of a tour.

    Attributes:
        data: Folder of MNIST's idx files, or None for the digits that are shipped.
        out: Folder of the report and the checkpoints.
        seed: Decides initial weights, order, planted label errors and all noise.
        steps: Training steps; None: what suits the data.
        eps: The radius of the perturbation, in units of the pixel range.
        batch: Examples a step, over all devices.
        mesh: Devices along "data" and along "model"; None: what is there, 4 x 2 of 8.
        quick: A small training and small test sets.
    """

    data: Path | None = None
    out: Path = Path("report")
    seed: int = 0
    steps: int | None = None
    eps: float = 0.1
    batch: int = 64
    mesh: tuple[int, int] | None = None
    quick: bool = False

    @property
    def num_steps(self) -> int:
        """The number of training steps, the default filled in."""
        if self.steps is not None:
            return self.steps
        if self.quick:
            return 60
        return 500 if self.data is None else 1500


class Settled(NamedTuple):
    """A checked config with what it names: the data and the shape of the mesh."""

    config: TourConfig
    split: Split
    mesh: tuple[int, int]


def settle(config: TourConfig, num_devices: int) -> Settled:
    """Checks a config against the data and the devices; raises before any work.

    Raises:
        FileNotFoundError, ValueError: As the readers of `jaxmethods.data` do.
        ValueError: A setting out of range, a mesh that needs more devices than there
            are, or a batch that does not divide over it.
        OSError: The report folder cannot be written, or its disk is full.
    """
    if not (0 < config.eps < 1 and math.isfinite(config.eps)):
        raise ValueError(f"--eps is {config.eps}; wanted a number between 0 and 1.")
    if config.num_steps < 1:
        raise ValueError(f"--steps is {config.num_steps}; wanted at least 1.")
    if config.seed < 0:
        raise ValueError(f"--seed is {config.seed}; wanted 0 or more.")
    mesh = config.mesh or _default_mesh(num_devices)
    if min(mesh) < 1 or mesh[0] * mesh[1] > num_devices:
        raise ValueError(
            f"--mesh {mesh[0]}x{mesh[1]} needs {mesh[0] * mesh[1]} devices and "
            f"{num_devices} are there; choose a smaller one, such as 1x1."
        )
    count = mesh[0] * mesh[1]
    if config.batch < 1 or config.batch % count:
        raise ValueError(
            f"--batch {config.batch} does not divide over the {count} devices of the "
            f"mesh {mesh[0]}x{mesh[1]}; wanted a multiple of {count}."
        )
    check_writable(config.out, _ROOM)
    split = load_digits() if config.data is None else load_mnist(config.data)
    if config.batch > len(split.train.labels):
        raise ValueError(
            f"--batch {config.batch} is more than the {len(split.train.labels)} "
            "training images; wanted at most that."
        )
    return Settled(config, split, mesh)


def _default_mesh(num_devices: int) -> tuple[int, int]:
    model = 2 if num_devices % 2 == 0 else 1
    data = 2 ** int(math.log2(num_devices // model))
    return min(data, 4), model

"""The command line: reads options, turns every failure into one line."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from .. import __version__
from ..audit.command import prepare_cache
from ..audit.command import run as run_audit
from ..audit.options import add_parser
from ..audit.problems import one_line
from .config import TourConfig

_EPILOG = """\
Without --data the tour uses the 1,797 UCI digits that ship with the package, or the
folder that the environment variable JAXMETHODS_DATA names. An interrupted tour, started
again with the same options, goes on where it was.
"""


def _mesh(text: str) -> tuple[int, int]:
    data, _, model = text.partition("x")
    return int(data), int(model or 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxmethods",
        description="Five transforms of any JAX function. `jaxmethods tour` trains, "
        "certifies, explains and shards one network on real digits, and reports; "
        "`jaxmethods audit` asks of your own model how far it can be trusted.",
    )
    version = f"jaxmethods {__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    tour = commands.add_parser(
        "tour",
        help="the five transforms composed in one training run, with a report",
        description="Trains a conv net on digits with a certified bound in its loss, "
        "5-bit gradients, compressed exchange and split dense layers; then reports.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_options(tour)
    add_parser(commands)
    return parser


def _add_options(tour: argparse.ArgumentParser) -> None:
    add = tour.add_argument
    standard = TourConfig()
    add("--data", type=Path, metavar="DIR", help="folder with MNIST's four idx files")
    add(
        "--out",
        type=Path,
        default=standard.out,
        metavar="DIR",
        help="folder of the report (default: %(default)s)",
    )
    add(
        "--seed",
        type=int,
        default=standard.seed,
        metavar="N",
        help="decides every random number (default: %(default)s)",
    )
    add("--steps", type=int, metavar="N", help="training steps (default: by the data)")
    add(
        "--eps",
        type=float,
        default=standard.eps,
        metavar="E",
        help="radius of the perturbation, pixels in [0, 1] (default: %(default)s)",
    )
    add(
        "--batch",
        type=int,
        default=standard.batch,
        metavar="N",
        help="examples a step, over all devices (default: %(default)s)",
    )
    add(
        "--mesh",
        type=_mesh,
        metavar="DxM",
        help="devices along data x model (default: 4x2 of 8 virtual ones on a CPU)",
    )
    add("--quick", action="store_true", help="a short run to see that it works")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code.

    0: done; 1: the one line on stderr says what went wrong and what to do; 2: an
    unknown option; 130: interrupted (start again to go on).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (
        argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--version")
    ):
        argv.insert(0, "tour")
    options = _parser().parse_args(argv)
    if options.command == "audit":
        return run_audit(options)
    folder = options.data or os.environ.get("JAXMETHODS_DATA")
    config = TourConfig(
        data=Path(folder) if folder else None,
        out=options.out,
        seed=options.seed,
        steps=options.steps,
        eps=options.eps,
        batch=options.batch,
        mesh=options.mesh,
        quick=options.quick,
    )
    try:
        _prepare_devices()
        from .journey import run_tour  # flax and orbax load only for a tour

        run_tour(config)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"jaxmethods tour: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _prepare_devices() -> None:
    """Eight virtual devices on a CPU, unless the user set their number."""
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    config: Any = jax.config  # it gets its options as attributes when jax loads
    if not chosen and config.jax_num_cpu_devices < 0:
        config.update("jax_num_cpu_devices", 8)
    # XLA gives its CPU pool a thread a device; collectives of all devices then block
    # the pool, and a device that lags behind finds no thread to catch up on.
    os.environ.setdefault("NPROC", "32")
    prepare_cache()

"""`python -m benchmarks NAME [--quick] [--out DIR]`: runs the benchmarks of an area."""

import argparse
import importlib
import os
from pathlib import Path

import jax

from .harness import machine, save, table

NOT_AREAS = ("__init__", "__main__", "harness")
AREAS = sorted(
    path.stem
    for path in Path(__file__).parent.glob("*.py")
    if path.stem not in NOT_AREAS
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "areas",
        nargs="+",
        choices=[*AREAS, "all"],
        metavar="NAME",
        help=", ".join([*AREAS, "all"]),
    )
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)  # for the benchmarks of shard
    # Threads for the collectives of eight devices to wait on, and some to work with.
    os.environ.setdefault("NPROC", "32")
    print(machine())
    for area in AREAS if "all" in options.areas else options.areas:
        rows = importlib.import_module(f"benchmarks.{area}").run(options.quick)
        print(f"\n{area}\n{table(rows)}")
        save(options.out / f"{area}.json", area, rows)


if __name__ == "__main__":
    main()

"""What the scripts of papers share: options, the time they took, where results go."""

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def read_options(
    script: str, doc: str | None, *, data: str = "", seeds: str = "", quick: str
) -> argparse.Namespace:
    """`--data`, `--quick`, `--out` and, where there is a help for it, `--seeds`.

    Args:
        script: its name in this folder.
        doc: its docstring.
        data: the folder of its data in the shared one.
        seeds: what is repeated; 3 times by default.
        quick: what `--quick` does.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.papers.{script}",
        description=(doc or "").split("\n")[0],
    )
    shared = Path(os.environ.get("JAXMETHODS_SHARED", "../shared"))
    parser.add_argument("--data", type=Path, default=shared / "data" / data)
    if seeds:
        parser.add_argument("--seeds", type=int, default=3, help=seeds)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--out", type=Path, help="a folder for the JSON and the plot")
    options = parser.parse_args()
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    return options


@contextmanager
def timed() -> Iterator[None]:
    """Prints the seconds that its body took, by the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"\n{wall:.0f} s, {cpu:.0f} CPU s")

"""Times functions side by side: warm, interleaved, blocked on, as ratios.

An area's module has `run(quick) -> list of rows`; a row is a dict with `name`, the
seconds `ours_s`, `peer_s`, `floor_s` (a peer or a floor may be missing), the `ratio` of
ours to the peer, and whatever else was measured. `race` times contestants in turns
within one process, so that a ratio does not depend on what else the machine does.
"""

import functools
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Timing(NamedTuple):
    """Seconds of one contestant: its first call, then each round and their medians.

    Wall time, and of the fields named so processor time of all threads.
    """

    first_s: float
    rounds_s: tuple[float, ...]
    median_s: float
    cpu_s: float
    cpu_rounds_s: tuple[float, ...]


def _once(fn: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(fn())
    return time.perf_counter() - wall, time.process_time() - cpu


def race(
    contestants: Mapping[str, Callable[[], Any]], *, rounds: int = 7
) -> dict[str, Timing]:
    """Times each contestant in turn, `rounds` times, after one call to warm it.

    Args:
        contestants: Name -> a function of nothing that returns its result.
        rounds: At least 5 for a number that is published.

    Returns:
        Name -> `Timing`.
    """
    first = {name: _once(fn)[0] for name, fn in contestants.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, fn in contestants.items():
            taken[name].append(_once(fn))
    return {
        name: Timing(
            first[name],
            tuple(wall for wall, _ in times),
            float(np.median([wall for wall, _ in times])),
            float(np.median([cpu for _, cpu in times])),
            tuple(cpu for _, cpu in times),
        )
        for name, times in taken.items()
    }


def machine() -> str:
    """One line that says what the numbers were measured on."""
    device = jax.devices()[0]
    return (
        f"{device.device_kind} ({device.platform}), {os.cpu_count()} cores, "
        f"{platform.machine()}, Python {platform.python_version()}, "
        f"jax {jax.__version__}"
    )


def ratios(ours: Timing, peer: Timing, *, cpu: bool, scale: float = 1) -> list[float]:
    """Our seconds over the peer's, `scale` times as many, round by round.

    With `cpu`, processor time where jax runs on the processor: what else runs counts
    less.
    """
    rounds = zip(_seconds(ours, cpu), _seconds(peer, cpu), strict=True)
    return [a / (scale * b) for a, b in rounds]


def _seconds(timing: Timing, cpu: bool) -> tuple[float, ...]:
    cpu = cpu and jax.default_backend() == "cpu"
    return timing.cpu_rounds_s if cpu else timing.rounds_s


def compare(
    name: str,
    *,
    rounds: int = 7,
    cpu: bool = False,
    **contestants: Callable[[], Any],
) -> dict[str, Any]:
    """Races `ours` against `peer` and `floor`, where given; returns a row.

    The ratio is the median of the rounds' own ratios, with its extremes beside it. With
    `cpu`, all but the first call is processor time where jax runs on the processor:
    what else runs counts less.
    """
    taken = race(contestants, rounds=rounds)
    row: dict[str, Any] = {"name": name}
    for label, timing in taken.items():
        row[f"{label}_s"] = float(np.median(_seconds(timing, cpu)))
    row["first_s"] = taken["ours"].first_s
    if "peer" in taken:
        found = ratios(taken["ours"], taken["peer"], cpu=cpu)
        row |= {"ratio": float(np.median(found))}
        row |= {"ratio_min": min(found), "ratio_max": max(found)}
    return row


def matmul_row(
    peer: Callable[[jax.Array], Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """A row for a matrix product of size 1024, with its speed in `gflops`.

    Args:
        peer: From a matrix to a function that multiplies it with itself.
    """
    size = 1024
    x = jax.random.normal(jax.random.key(0), (size, size))
    contestants = {"ours": functools.partial(jax.jit(jnp.matmul), x, x)}
    if peer is not None:
        contestants["peer"] = peer(x)
    row = compare(f"matmul {size}", cpu=True, rounds=9, **contestants)
    return row | {"gflops": 2e-9 * size**3 / row["ours_s"]}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as text, times in milliseconds; a dash where nothing was measured."""
    columns = ["ours_s", "peer_s", "floor_s", "first_s", "ratio"]
    titles = ["benchmark", "ours ms", "peer ms", "floor ms", "first ms", "ours/peer"]
    if any("width_ratio" in row for row in rows):
        columns, titles = [*columns, "width_ratio"], [*titles, "width/peer's"]
    lines = [tuple(titles)]
    for row in rows:
        cells = [row["name"]]
        for column in columns:
            scale = 1e3 if column.endswith("_s") else 1
            value = row.get(column)
            cells.append("-" if value is None else f"{scale * value:.3g}")
        lines.append(tuple(cells))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def save(path: Path, area: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the rows of an area as JSON, with the machine line."""
    content = {"area": area, "machine": machine(), "rows": list(rows)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")

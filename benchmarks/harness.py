"""Times functions side by side: warm, interleaved, blocked on, as ratios.

An area's module has `run(quick) -> list[Row]`; `race` times its contestants in turns
within one process, so that a ratio does not depend on what else the machine does.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np


class Timing(NamedTuple):
    """Seconds of one contestant: first call, then median, least and CPU time warm."""

    first_s: float
    median_s: float
    least_s: float
    cpu_s: float


class Row(NamedTuple):
    """One line of a table: ours beside its best peer and the floor.

    Attributes:
        name: What was computed, with its size.
        ours: Our timing.
        peer: The peer's name and timing, or None.
        floor: The floor's name and timing, or None.
        note: Anything else that was measured, with its unit.
    """

    name: str
    ours: Timing
    peer: tuple[str, Timing] | None = None
    floor: tuple[str, Timing] | None = None
    note: str = ""


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
            float(np.median([wall for wall, _ in times])),
            min(wall for wall, _ in times),
            float(np.median([cpu for _, cpu in times])),
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


def table(rows: Sequence[Row]) -> str:
    """The rows as text: milliseconds, and ratios to peer and floor."""
    head = ("benchmark", "ours ms", "peer", "peer ms", "ours/peer", "floor", "floor ms")
    lines = [head]
    for row in rows:
        peer, floor = row.peer, row.floor
        lines.append(
            (
                row.name + (f"  [{row.note}]" if row.note else ""),
                f"{1e3 * row.ours.median_s:.3g}",
                peer[0] if peer else "-",
                f"{1e3 * peer[1].median_s:.3g}" if peer else "-",
                f"{row.ours.median_s / peer[1].median_s:.3g}" if peer else "-",
                floor[0] if floor else "-",
                f"{1e3 * floor[1].median_s:.3g}" if floor else "-",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {k: _plain(v) for k, v in value._asdict().items()}
    return list(map(_plain, value)) if isinstance(value, tuple) else value


def save(path: Path, area: str, rows: Sequence[Row]) -> None:
    """Writes the rows of an area as JSON, with the machine line."""
    content = {"area": area, "machine": machine(), "rows": [_plain(r) for r in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")

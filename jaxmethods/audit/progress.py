"""A progress bar for the terminal; silent where the output is no terminal."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")

_WIDTH = 24


def progress(
    items: Iterable[T],
    label: str,
    total: int,
    *,
    start: int = 0,
    stream: TextIO | None = None,
) -> Iterator[T]:
    """Yields the items, drawing how many of `total` are done and the time left.

    Args:
        items: What to iterate over; `total - start` of them.
        label: Written before the bar.
        total: The number at the end.
        start: The number done before, by an earlier run.
        stream: Where to draw; stderr unless given. Redrawn at most ten times a second
            on a terminal; elsewhere one line at the end.
    """
    stream = sys.stderr if stream is None else stream
    live = stream.isatty()
    began = drawn = time.monotonic()
    done = start
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if live and (now - drawn > 0.1 or done == total):
            drawn = now
            left = (now - began) / max(done - start, 1) * (total - done)
            full = _WIDTH * done // max(total, 1)
            bar = "█" * full + "·" * (_WIDTH - full)
            stream.write(f"\r{label:<28} {bar} {done}/{total}  {left:4.0f} s left ")
            stream.flush()
    took = time.monotonic() - began
    stream.write(
        f"{chr(13) if live else ''}{label:<28} done in {took:.1f} s\033[K\n"
        if live
        else f"{label}: done in {took:.1f} s\n"
    )
    stream.flush()

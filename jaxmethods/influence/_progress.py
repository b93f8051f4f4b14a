"""A line on standard error that says how far a long run is."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds after which a run is long.
LONG = 2.0


class Meter:
    """Draws how far a run is, ten times a second at most.

    Attributes:
        show: Whether to draw; None: on a terminal, once it takes long.
        total: The work in all, None where it is not known.
    """

    def __init__(self, show: bool | None, total: int | None) -> None:
        self.show, self.total = show, total
        self._began = time.monotonic()
        self._drawn: float | None = None

    def tell(self, done: float, note: str) -> None:
        """Says how much of the total is done, and what comes now."""
        now = time.monotonic()
        long = now - self._began > LONG and sys.stderr.isatty()
        again = self._drawn is None or now - self._drawn > 0.1
        if not (again and (long if self.show is None else self.show)):
            return
        self._drawn = now
        bar = ""
        if self.total is not None:
            bar = f"[{'#' * round(20 * done / self.total):<20}] "
        sys.stderr.write(f"\rinfluence {bar}{note}, {now - self._began:.1f} s ")
        sys.stderr.flush()

    def close(self) -> None:
        """Ends the line, where one was drawn."""
        if self._drawn is not None:
            sys.stderr.write("\n")


@contextmanager
def meter(show: bool | None, total: int | None) -> Iterator[Meter]:
    """A meter that is closed at the end, whatever happens."""
    drawn = Meter(show, total)
    try:
        yield drawn
    finally:
        drawn.close()

"""Which inputs something holds for, level by level: radii that grow, bits that fall."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .progress import progress


def pieces(rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Cuts row numbers into pieces of one length; the last repeats its first row.

    Args:
        rows: (n,) numbers.
        size: The length of a piece.

    Yields:
        (size,) numbers, and how many of them count.

    Example:
        >>> [(piece.tolist(), count) for piece, count in pieces(np.arange(3), 2)]
        [([0, 1], 2), ([2, 2], 1)]
    """
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield np.append(part, np.repeat(part[:1], size - len(part))), len(part)


def held(
    holds: Callable[..., Any],
    levels: Sequence[Any],
    inputs: np.ndarray,
    labels: np.ndarray,
    *,
    chunk: int,
    start: np.ndarray | None = None,
    first: np.ndarray | None = None,
    label: str | None = None,
) -> np.ndarray:
    """For which inputs a predicate holds at a level and at all before it.

    An input that fails at one level is not tried at the next: levels are to be ordered
    such that what fails at one fails at all after it, as a larger ball contains what
    leads astray in a smaller one.

    Args:
        holds: `holds(level, inputs, labels) -> (chunk,) bool`, compiled.
        levels: What it is called with, one after the other.
        inputs: (n, ...).
        labels: (n,).
        chunk: How many inputs a call takes.
        start: (n,) bool, the inputs to try; None for all.
        first: (levels, n) bool, the inputs that come in the first calls of a level;
            None for the order that they have.
        label: What the progress bar says; None for no bar.

    Returns:
        (levels, n) bool.

    Example:
        >>> below = lambda level, x, y: x[:, 0] > level
        >>> x = np.array([[1.0], [3.0], [2.0]])
        >>> held(below, [0, 1, 2], x, np.zeros(3), chunk=2).sum(1)
        array([3, 2, 1])
    """
    found = np.zeros((len(levels), len(labels)), bool)
    most = -(-len(labels) // chunk)

    def work() -> Iterator[None]:
        alive = np.arange(len(labels)) if start is None else np.flatnonzero(start)
        for number, level in enumerate(levels):
            if first is not None:
                alive = alive[np.argsort(~first[number, alive], kind="stable")]
            steps = list(pieces(alive, chunk))
            for rows, count in steps:
                answer = np.asarray(holds(level, inputs[rows], labels[rows]))
                found[number, rows[:count]] = answer[:count]
                yield
            yield from [None] * (most - len(steps))
            alive = np.flatnonzero(found[number])

    steps = work()
    for _ in steps if label is None else progress(steps, label, len(levels) * most):
        pass
    return found


def reached(
    holds: Callable[..., Any],
    levels: np.ndarray,
    inputs: np.ndarray,
    labels: np.ndarray,
    *,
    chunk: int,
    label: str | None = None,
) -> np.ndarray:
    """How many of the first levels a predicate holds at, found by halving.

    What holds at one level holds at all before it, as what is proven of a ball is
    proven of the smaller ones in it; so an input is tried at a few levels only.

    Args:
        holds: `holds(levels, inputs, labels) -> (chunk,) bool`, with the level of each
            input, compiled.
        levels: (L,) numbers, easiest first.
        inputs: (n, ...).
        labels: (n,).
        chunk: How many inputs a call takes.
        label: What the progress bar says; None for no bar.

    Returns:
        (n,) integers, 0..L.

    Example:
        >>> below = lambda levels, x, y: x[:, 0] > levels
        >>> x = np.array([[1.0], [3.0], [2.0]])
        >>> reached(below, np.array([0.0, 1.0, 2.0]), x, np.zeros(3), chunk=2)
        array([1, 3, 2])
    """
    least = np.zeros(len(labels), int)
    most = np.full(len(labels), len(levels))
    rounds = len(levels).bit_length()
    per_round = -(-len(labels) // chunk)

    def work() -> Iterator[None]:
        for _ in range(rounds):
            steps = list(pieces(np.flatnonzero(least < most), chunk))
            for rows, count in steps:
                middle = (least + most)[rows] // 2
                answer = np.asarray(holds(levels[middle], inputs[rows], labels[rows]))
                rows, middle, yes = rows[:count], middle[:count], answer[:count]
                least[rows] = np.where(yes, middle + 1, least[rows])
                most[rows] = np.where(yes, most[rows], middle)
                yield
            yield from [None] * (per_round - len(steps))

    steps = work()
    for _ in steps if label is None else progress(steps, label, rounds * per_round):
        pass
    return least

"""Decides whether a classifier keeps its label on a whole set."""

import heapq
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import check_integer, check_nonnegative, describe, is_concrete
from ._counterexample import lowest_margin
from ._hidden_splits import HiddenSplits
from ._input_splits import InputSplits
from ._margins import margins
from ._methods import alpha_crown, crown, ibp
from ._sets import Ball, Box, Intersection, Set, is_set

# With so many inputs at most their box is cut, with more the values inside.
_FEW_INPUTS = 16


class Verdict(NamedTuple):
    """What is known about a classifier on a set.

    Attributes:
        status: "verified", "falsified" or "unknown".
        margin: If verified or unknown, a proven lower bound of all margins on the set;
            if falsified, the margin at the counterexample, at most 0.
        counterexample: A point of the set that gets another label, or None.
        method: What gave it: "attack", "ibp", "crown", "alpha_crown" or "branching".
        num_open: How many parts are left to decide, where it branches.
        seconds: Since the start.
    """

    status: str
    margin: float
    counterexample: Any
    method: str
    num_open: int
    seconds: float


def verify(
    fn: Callable[[Any], Any],
    region: Set,
    label: int,
    *,
    time_limit: float = 10.0,
    batch_size: int = 32,
    progress: bool = False,
) -> Verdict:
    """Proves that `fn` gives all points of a set one label, or finds one that differs.

    The cheap comes first: a search for a counterexample, `ibp`, `crown`,
    `alpha_crown`; then branch and bound, on the inputs where they are few and on the
    values inside where they are many. Stops as soon as it is decided. Compiles what it
    needs and looks at values, so it runs outside of `jit`.

    Args:
        fn: From one example to logits (n,).
        region: The set, for the only argument of `fn`.
        label: int in 0..n-1.
        time_limit: Seconds, compilation included; looked at between steps.
        batch_size: How many parts are bounded at once.
        progress: Whether to show on standard error how far it is.

    Returns:
        A `Verdict`.

    Raises:
        ValueError: `region` is no set or empty, the label is none of the classes, a
            limit is not positive; else as `crown`.
        TypeError: The label is no integer, the time limit no number, the logits are
            not floating, or values are traced.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> fn = lambda x: jnp.array([[1.0, 2.0], [2.0, 1.0]]) @ jnp.abs(x)
        >>> verdict = bound.verify(fn, bound.Ball(jnp.array([0.1, 2.0]), 0.9), 0)
        >>> verdict.status, verdict.margin > 0
        ('verified', True)

    References:
        Bunel et al. 2018, arXiv:1711.00455; Wang et al. 2021, arXiv:2103.06624.
    """
    last = None
    for last in verifying(fn, region, label, time_limit, batch_size):
        if progress:
            _show(last, time_limit)
    if progress:
        sys.stderr.write("\n")
    assert last is not None
    return last


def verifying(
    fn: Callable[[Any], Any],
    region: Set,
    label: int,
    time_limit: float = float("inf"),
    batch_size: int = 32,
) -> Iterator[Verdict]:
    """Iterates over verdicts that get better, up to the last, which `verify` returns.

    Args:
        fn: As for `verify`.
        region: As for `verify`.
        label: As for `verify`.
        time_limit: As for `verify`.
        batch_size: As for `verify`.

    Yields:
        A `Verdict` after each step; its margin never falls while it is "unknown".

    Raises:
        As `verify`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> fn = lambda x: jnp.array([[1.0, 2.0], [2.0, 1.0]]) @ jnp.abs(x)
        >>> steps = bound.verifying(fn, bound.Ball(jnp.array([0.1, 2.0]), 0.9), 0)
        >>> [verdict.status for verdict in steps][-1]
        'verified'
    """
    _check(region, label, time_limit, batch_size)
    begin = time.monotonic()
    rows = margins(fn, label)

    def verdict(
        status: str, margin: Any, method: str, point: Any = None, num_open: int = 0
    ) -> Verdict:
        seconds = time.monotonic() - begin
        return Verdict(status, float(margin), point, method, num_open, seconds)

    low, point = jax.jit(lambda r: lowest_margin(rows, r))(region)
    if low <= 0:
        yield verdict("falsified", low, "attack", point)
        return
    margin = -np.inf
    methods = {
        "ibp": ibp(rows),
        "crown": crown(rows, side="lower"),
        "alpha_crown": alpha_crown(rows, side="lower"),
    }
    for name, bounded in methods.items():
        found = jax.jit(lambda region, b=bounded: b(region).lower)(region)
        margin = max(margin, float(jnp.min(found)))
        status = "verified" if margin > 0 else "unknown"
        yield verdict(status, margin, name)
        if margin > 0 or time.monotonic() - begin > time_limit:
            return
    for splits in _searches(region):
        search = splits(rows, region)
        for low, point, num_open in _branch(search, rows, margin, batch_size):
            if point is not None:
                yield verdict("falsified", low, "branching", point, num_open)
                return
            margin = max(margin, low)
            status = "verified" if margin > 0 else "unknown"
            yield verdict(status, margin, "branching", None, num_open)
            if margin > 0 or time.monotonic() - begin > time_limit:
                return


def _check(region: Any, label: Any, time_limit: Any, batch_size: Any) -> None:
    if not is_set(region):
        raise ValueError(
            f"region is {describe(region)}; wanted a set such as Ball(center, radius)."
        )
    if not all(map(is_concrete, jax.tree.leaves((region, label)))):
        raise TypeError(
            "verify got traced values, inside of jit, grad or vmap; it looks at them "
            "to choose its next step: call it outside, or use bound.radius or crown "
            "of margins."
        )
    region.check()
    check_nonnegative(time_limit, "time_limit")
    if not time_limit > 0:
        raise ValueError(f"time_limit is {time_limit}; wanted seconds above 0.")
    check_integer(batch_size, "batch_size", 2)


def _searches(region: Set) -> list[type[InputSplits] | type[HiddenSplits]]:
    """How to cut: the inputs, or what is inside; the second where the first fails."""
    is_box = isinstance(region, Box)
    ball = region.ball if isinstance(region, Intersection) else region
    is_box |= isinstance(ball, Ball) and ball.p == np.inf
    if not is_box:
        return [HiddenSplits]
    if sum(ends.lower.size for ends in region.hull()) <= _FEW_INPUTS:
        return [InputSplits]
    return [HiddenSplits, InputSplits]


def _branch(
    search: InputSplits | HiddenSplits,
    rows: Callable[[Any], Any],
    margin: float,
    batch_size: int,
) -> Iterator[tuple[float, Any, int]]:
    """Cuts the part with the lowest margin first, a batch of them at a time.

    Yields:
        The proven margin of the whole, a counterexample or None, the number of parts
        that are not decided. Ends when nothing is left, or nothing can be cut.
    """
    number = itertools.count()
    decided = np.inf  # the lowest margin of the parts that need no cut, or allow none
    waiting: list[tuple[float, int, Any, Any]] = []
    parts = [(margin, search.root)]
    while parts:
        padding = [parts[-1]] * (batch_size - len(parts))
        bounds, scores, point = search.bound([part for _, part in parts + padding])
        if point is not None:
            low = float(jnp.min(rows(point)))
            if low <= 0:
                yield low, point, len(waiting) + len(parts)
                return
        for (parent, part), low, score in zip(parts, bounds, scores, strict=False):
            low = max(float(low), parent)
            if low > 0:
                decided = min(decided, low)
            else:
                heapq.heappush(waiting, (low, next(number), part, score))
        parts = []
        while waiting and len(parts) + 2 <= batch_size:
            low, _, part, score = heapq.heappop(waiting)
            halves = search.split(part, score)
            parts += [(low, half) for half in halves]
            decided = decided if halves else min(decided, low)
        lows = [decided, *(low for low, _ in parts), *(item[0] for item in waiting[:1])]
        yield min(lows), None, len(waiting) + len(parts)


def _show(verdict: Verdict, time_limit: float) -> None:
    share = min(verdict.seconds / time_limit, 1.0)
    bar = "#" * round(20 * share)
    sys.stderr.write(
        f"\r{verdict.method:<12} [{bar:<20}] {verdict.seconds:6.1f} s  "
        f"margin {verdict.margin:.4g}  open parts {verdict.num_open}   "
    )
    sys.stderr.flush()

"""Operations that choose among their inputs: rectifiers, max, min, pooling, select.

The lower plane of a maximum is the input with the largest lower end. The upper plane
is that input too where its lower end beats every other upper end, else a constant; of
two values, the chord of the larger.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..core import Node, is_concrete
from ._planes import Family, Lines, Planes
from ._rounding import largest
from ._sets import Bounds
from ._windows import WindowSum, entries


def rectifier(x: Bounds, leak: Any = 0.0) -> Family:
    """max(x, leak x) for a leak below 1: the chord above, below any slope in between.

    The first lower line is x where the chord is steeper than 1/2, which for a leak of 0
    is the piece that encloses less area; below 0, than the mean of both slopes.
    """
    lower, upper = x
    unstable = (lower < 0) & (upper > 0)
    width = jnp.where(unstable, upper - lower, 1)
    stable = jnp.where(upper <= 0, leak, 1).astype(lower.dtype)
    slope = jnp.where(unstable, (upper - leak * lower) / width, stable)
    bias = jnp.where(unstable, (leak - 1) * lower * (upper / width), 0)
    zero = jnp.zeros_like(lower)

    def member(share: Any) -> Lines:
        below = jnp.where(unstable, leak + share * (1 - leak), stable)
        return Lines(below.astype(lower.dtype), zero, slope, bias)

    steep = slope > jnp.minimum(1 + leak, 1) / 2
    return Family(steep.astype(lower.dtype), member)


def maximum(node: Node, x: Any, y: Any) -> Family:
    """The larger of two values, or of a value and a constant."""
    del node
    if not isinstance(x, Bounds):
        x, y = y, x
    if isinstance(y, Bounds):
        return _larger_of_two(x, y)
    if is_concrete(y) and not np.any(np.asarray(y)):
        return rectifier(x)
    # A floor that is never reached may be -inf: any other such floor will do.
    floor = jnp.maximum(y, 2 * x.lower - x.upper - 1)

    def raised(lines: Lines) -> Lines:
        return Lines(
            lines.lower_slope,
            floor * (1 - lines.lower_slope),
            lines.upper_slope,
            lines.upper_bias + floor * (1 - lines.upper_slope),
        )

    return rectifier(Bounds(x.lower - floor, x.upper - floor)).map(raised)


def minimum(node: Node, x: Any, y: Any) -> Family:
    """The smaller of two values, or of a value and a constant."""
    return maximum(node, _opposite(x), _opposite(y)).map(_turned)


def _opposite(x: Any) -> Any:
    return Bounds(-x.upper, -x.lower) if isinstance(x, Bounds) else -x


def _turned(relaxation: Any) -> Any:
    """Lines or planes round -f(-x) from those round f(x)."""
    if isinstance(relaxation, Lines):
        below, base, above, top = relaxation
        return Lines(above, -top, below, -base)
    below, base, above, top, terms = relaxation
    return Planes(above, -top, below, -base, terms)


def _larger_of_two(x: Bounds, y: Bounds) -> Family:
    """max(x, y) = y + max(x - y, 0)."""
    difference = Bounds(x.lower - y.upper, x.upper - y.lower)
    chord = rectifier(difference).first()
    share, bias = chord.upper_slope, chord.upper_bias
    stable = (difference.lower >= 0) | (difference.upper <= 0)

    def member(choice: Any) -> Planes:
        mine = jnp.where(stable, share, choice)
        return Planes(
            lambda u, v: mine * u + (1 - mine) * v,
            jnp.zeros_like(bias),
            lambda u, v: share * u + (1 - share) * v,
            bias,
            jnp.maximum(largest(x), largest(y)) + bias,
        )

    return Family((x.lower >= y.lower).astype(bias.dtype), member)


def reduce_max(node: Node, x: Bounds) -> Planes:
    """The maximum over some axes."""
    listed = lambda v, _: _entries_of_axes(v, node.params["axes"])  # noqa: E731

    def sum_of(chosen: Any) -> Callable[[Any], Any]:
        return lambda v: jnp.sum(jnp.where(chosen, listed(v, 0.0), 0), axis=0)

    return _largest_entry(x, listed, sum_of)


def reduce_min(node: Node, x: Bounds) -> Planes:
    """The minimum over some axes."""
    return _turned(reduce_max(node, _opposite(x)))


def reduce_window_max(node: Node, x: Bounds) -> Planes:
    """The maximum over each window."""
    listed = lambda v, fill: entries(v, node.params, fill)  # noqa: E731
    return _largest_entry(x, listed, partial(WindowSum, node.params))


def reduce_window_min(node: Node, x: Bounds) -> Planes:
    """The minimum over each window."""
    return _turned(reduce_window_max(node, _opposite(x)))


def _largest_entry(
    x: Bounds,
    entries: Callable[[Any, float], Any],
    sum_of: Callable[[Any], Callable[[Any], Any]],
) -> Planes:
    """Planes for the largest of some entries.

    Args:
        x: The bounds of what they are entries of.
        entries: Lists them along axis 0; padding reads as its second argument.
        sum_of: From which of them are chosen to the function that sums those.
    """
    low, high = entries(x.lower, -jnp.inf), entries(x.upper, -jnp.inf)
    best = jnp.argmax(low, axis=0)
    index = jnp.arange(low.shape[0]).reshape(-1, *[1] * (low.ndim - 1))
    chosen = index == best[None]
    others = jnp.max(jnp.where(chosen, -jnp.inf, high), axis=0)
    wins = jnp.max(low, axis=0) >= others
    top = jnp.where(wins, 0, jnp.max(high, axis=0))
    # A window may hold nothing but padding.
    base = jnp.where(jnp.max(low, axis=0) == -jnp.inf, -jnp.inf, jnp.zeros_like(top))
    terms = jnp.max(entries(largest(x), 0.0), axis=0)
    return Planes(sum_of(chosen), base, sum_of(chosen & wins[None]), top, terms)


def _entries_of_axes(x: Any, axes: tuple[int, ...]) -> Any:
    kept = [i for i in range(x.ndim) if i not in axes]
    return x.transpose(*axes, *kept).reshape(-1, *[x.shape[i] for i in kept])


def select(node: Node, which: Any, *cases: Any) -> Planes:
    """`select_n`: a case where the predicate decides, else the ends of all cases."""
    decided = which.lower == which.upper
    dtype = node.outputs[0].dtype
    lower = jnp.full_like(decided, jnp.inf, dtype)
    upper, offset, chosen = -lower, jnp.zeros_like(lower), []
    for i, case in enumerate(cases):
        possible = (which.lower.astype(int) <= i) & (i <= which.upper.astype(int))
        low, high = case if isinstance(case, Bounds) else (case, case)
        lower = jnp.where(possible, jnp.minimum(lower, low), lower)
        upper = jnp.where(possible, jnp.maximum(upper, high), upper)
        if isinstance(case, Bounds):
            chosen.append(possible & decided)
        else:
            offset = jnp.where(possible & decided, case, offset)

    def pick(*values: Any) -> Any:
        pairs = zip(chosen, values, strict=True)
        return sum(jnp.where(mine, value, 0) for mine, value in pairs)

    return Planes(
        pick if chosen else None,
        jnp.where(decided, offset, lower),
        pick if chosen else None,
        jnp.where(decided, offset, upper),
        largest(Bounds(lower, upper)),
    )

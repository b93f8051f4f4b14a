"""Bounds of any elementwise function of one variable, from its derivative's bounds.

The interval is cut into cells. On each, interval arithmetic bounds the function at both
ends and its derivative in between, which encloses the function in a wedge; so what is
lost is of the order of a cell's width squared. The range is that of the wedges. A line
may have any slope: its intercept is the least value of f(x) - slope x in the wedges.
The slope is that of the convex hull at the middle of the interval: of all lines, the
one with the least area between it and the function.

Functions may jump, but only where the variable itself is compared with a constant: the
height of the jump there is bounded, and added to the wedges.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Node, materialized
from ._planes import Family, Lines, between
from ._products import without_nan
from ._rounding import largest, unit
from ._sets import Bounds, meet
from ._steep import finite_derivatives

_NUM_CELLS = 16  # even, so that the middle of the interval is an end of a cell


class Univariate(NamedTuple):
    """An elementwise function of one variable, as interval extensions.

    Attributes:
        value: From an interval to one that holds the function's values there.
        slope: The same of its derivative; None where that has no interval rule.
        thresholds: The constants that the variable is compared with.
    """

    value: Callable[[Bounds], Bounds]
    slope: Callable[[Bounds], Bounds] | None
    thresholds: Sequence[Any]


class Wedges(NamedTuple):
    """What is known of a function on the cells of an interval; axis 0 runs over cells.

    Attributes:
        points: The ends of the cells, (cells + 1, *shape).
        values: The function there.
        inside: The function on each cell, by interval arithmetic.
        slopes: Its derivative on each cell; infinite where it is not known.
        jump: How much the function may jump within each cell.
        usable: (*shape), whether the interval has ends and a width that are finite; the
            rest is of another interval, finite too, elsewhere.
    """

    points: Any
    values: Bounds
    inside: Bounds
    slopes: Bounds
    jump: Any
    usable: Any


def interval(node: Node, x: Bounds) -> Bounds:
    """The interval of a node "univariate"."""
    fn = node.params["function"]
    return materialized(meet(without_nan(fn.value(x)), range_in(wedges(fn, x))))


def relax(node: Node, x: Bounds, bounds: Bounds) -> Family:
    """The lines of a node "univariate"."""
    return family(wedges(node.params["function"], x), bounds)


def wedges(fn: Univariate, x: Bounds) -> Wedges:
    """Encloses a function over an interval, cell by cell."""
    # Infinities would come back in derivatives, as NaN, even from where nobody reads.
    finite = jnp.isfinite(x.upper - x.lower)
    x = finite_derivatives(Bounds(*(jnp.where(finite, end, 0) for end in x)))
    share = jnp.arange(_NUM_CELLS, dtype=x.lower.dtype) / _NUM_CELLS
    share = share.reshape(-1, *[1] * x.lower.ndim)
    points = jnp.minimum(
        x.lower[None] + (x.upper - x.lower)[None] * share, x.upper[None]
    )
    points = jnp.concatenate([points, x.upper[None]])
    a, b = points[:-1], points[1:]

    unknown = jnp.full_like(a, jnp.inf)
    slopes = Bounds(-unknown, unknown)
    if fn.slope is not None:
        # A derivative that may be infinite may belong to a pole, beyond which the
        # function starts anew.
        (found,) = _over(fn.slope, [Bounds(a, b)])
        smooth = jnp.isfinite(found.lower) & jnp.isfinite(found.upper)
        slopes = Bounds(*map(partial(jnp.where, smooth), found, slopes))
    near = [_around(t, x.lower) for t in fn.thresholds]
    values, inside, *jumps = _over(
        fn.value, [Bounds(points, points), Bounds(a, b), *(at for _, at in near)]
    )
    jump = jnp.zeros_like(a)
    for (t, _), found in zip(near, jumps, strict=True):
        height = jax.lax.stop_gradient(found.upper - found.lower)
        jump = jump + jnp.where((a <= t[None]) & (t[None] <= b), height, 0)
    return Wedges(points, values, inside, slopes, jump, finite)


def _around(threshold: Any, like: Any) -> tuple[Any, Bounds]:
    """A constant as an array, and the interval (1, *shape) of numbers next to it."""
    t = jnp.broadcast_to(jnp.asarray(threshold, like.dtype), like.shape)
    # Normal numbers: the next float of 0 is one that processors take for 0.
    near = jnp.maximum(unit(1, t.dtype) * jnp.abs(t), jnp.finfo(t.dtype).tiny)
    return t, Bounds((t - near)[None], (t + near)[None])


def _over(extension: Any, cells: list[Bounds]) -> list[Bounds]:
    """Values of an interval extension on some stacks of intervals, (cells, *shape).

    Mapped over the cells values are traced: leaving a domain there gives infinity, and
    not the error that leaving it in the whole interval deserves.
    """
    sizes = np.cumsum([len(c.lower) for c in cells])[:-1]
    joined = Bounds(*(jnp.concatenate(end) for end in zip(*cells, strict=True)))
    found = materialized(without_nan(jax.vmap(extension)(materialized(joined))))
    parts = (jnp.split(end, sizes) for end in found)
    return [Bounds(*pair) for pair in zip(*parts, strict=True)]


def negated(w: Wedges) -> Wedges:
    """Wedges of minus the function."""
    turned = [Bounds(-v.upper, -v.lower) for v in (w.values, w.inside, w.slopes)]
    return Wedges(w.points, turned[0], turned[1], turned[2], w.jump, w.usable)


def least(w: Wedges, slope: Any) -> Any:
    """A lower bound of f(x) - slope x over the whole interval."""
    a, b = w.points[:-1], w.points[1:]
    slope = jnp.broadcast_to(jnp.asarray(slope, a.dtype), a.shape[1:])[None]
    at_a, at_b = w.values.lower[:-1] - slope * a, w.values.lower[1:] - slope * b
    fall, rise = w.slopes.lower - slope, w.slopes.upper - slope
    turns = (fall < 0) & (rise > 0)
    known = jnp.isfinite(fall) & jnp.isfinite(rise)
    fall, rise = jnp.where(known, fall, -1), jnp.where(known, rise, 1)
    bottom = jnp.where(known, _bottom(at_a, at_b, fall, rise, b - a), -jnp.inf)
    ends = jnp.minimum(at_a, at_b)
    wedge = jnp.where(turns, jnp.minimum(bottom, ends), ends) - w.jump
    plain = w.inside.lower - jnp.maximum(slope * a, slope * b)
    found = jnp.where(wedge > plain, wedge, plain)
    size = largest(w.values)
    size = jnp.maximum(size[:-1], size[1:]) + jnp.abs(slope) * largest(Bounds(a, b))
    lowest = jnp.min(found - unit(4, size.dtype) * size, axis=0)
    return jnp.where(w.usable, lowest, -jnp.inf)


def _bottom(at_a: Any, at_b: Any, fall: Any, rise: Any, width: Any) -> Any:
    """Where a line that falls from a and one that rises to b meet.

    The mean of the lines with weights that cancel their slopes, which is the same
    everywhere: so its derivatives are those for fixed weights at a fixed point, the
    meeting point. Those of the quotients would divide by the square of a difference of
    slopes, which underflows where the function is nearly constant.
    """
    both = jnp.where((fall < 0) & (rise > 0), rise - fall, 1)
    at = jnp.clip((at_a - at_b + rise * width) / both, 0, width)
    share, rest, at = jax.lax.stop_gradient((rise / both, -fall / both, at))
    return share * (at_a + fall * at) + rest * (at_b + rise * (at - width))


def range_in(w: Wedges) -> Bounds:
    """The range of the function over the whole interval."""
    return Bounds(least(w, 0.0), -least(negated(w), 0.0))


def family(w: Wedges, bounds: Bounds) -> Family:
    """Lines that touch the convex hulls: in the middle, or on either side of it."""
    # Both sides by one program: two would take twice as long to compile.
    sides = jax.tree.map(lambda *ends: jnp.stack(ends), w, negated(w))

    def touching(place: int) -> Lines:
        def below(w: Wedges) -> tuple[Any, Any]:
            slope = hull_slope(w, place)
            return slope, least(w, slope)

        (low, high), (base, top) = jax.vmap(below)(sides)
        return usable(Lines(low, base, -high, -top), bounds)

    half = _NUM_CELLS // 2
    return between([touching(place) for place in (half // 2, half, half + half // 2)])


def usable(lines: Lines, bounds: Bounds) -> Lines:
    """Constant lines where a slope overflows or an end is infinite."""
    below, base, above, top = lines
    fits = jnp.isfinite(below) & jnp.isfinite(base)
    below, base = jnp.where(fits, below, 0), jnp.where(fits, base, bounds.lower)
    fits = jnp.isfinite(above) & jnp.isfinite(top)
    return Lines(
        below, base, jnp.where(fits, above, 0), jnp.where(fits, top, bounds.upper)
    )


def hull_slope(w: Wedges, place: int) -> Any:
    """The slope of the convex hull from below at one of the points."""
    t, f = w.points, w.values.lower
    left, right = (t[:place], f[:place]), (t[place + 1 :], f[place + 1 :])
    here = t[place][None], f[place][None]
    to_left, to_right = _secant(*left, *here), _secant(*here, *right)
    steepest, flattest = jnp.max(to_left, axis=0), jnp.min(to_right, axis=0)
    tangent = (to_left[-1] + to_right[0]) / 2
    tangent = jnp.clip(tangent, steepest, jnp.maximum(steepest, flattest))

    # Of all secants across the point from one on its left the flattest is lowest there.
    secants = [_secant(*left, x[None], y[None]) for x, y in zip(*right, strict=True)]
    flat = reduce(jnp.minimum, secants)
    heights = jax.lax.stop_gradient(left[1] + flat * (here[0] - left[0]))
    chord, lowest = flat[0], heights[0]
    for secant, height in zip(flat[1:], heights[1:], strict=True):
        lower = height < lowest
        chord, lowest = (
            jnp.where(lower, secant, chord),
            jnp.where(lower, height, lowest),
        )
    slope = jnp.where(steepest <= flattest, tangent, chord)
    scale = jnp.maximum(jnp.abs(t[0]), jnp.abs(t[-1]))
    wide = t[-1] - t[0] > jnp.sqrt(jnp.finfo(t.dtype).eps) * scale
    inner = (w.slopes.lower[place] + w.slopes.upper[place]) / 2
    return _finite_or(jnp.where(wide, slope, inner), jnp.zeros_like(slope))


def _secant(x0: Any, y0: Any, x1: Any, y1: Any) -> Any:
    apart = x1 > x0
    return jnp.where(apart, (y1 - y0) / jnp.where(apart, x1 - x0, 1), 0)


def _finite_or(x: Any, other: Any) -> Any:
    return jnp.where(jnp.isfinite(x), x, other)

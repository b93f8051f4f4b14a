"""Two lines round a smooth function of one variable, from its shape alone.

A rule takes the function and an interval. Slopes come from chords and tangents; the
intercept is then the extreme of f(x) - slope x over the interval, which the shape
places at an end or at the tangent point. So a line is sound whatever its slope, and a
search for the best slope may stop early.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core import materialized
from ._planes import Family, Lines, between
from ._sets import Bounds

Function = Callable[[Any], Any]

_BISECTIONS, _NEWTON_STEPS = 6, 4


def derivative(f: Function) -> Function:
    """The derivative of an elementwise function."""
    return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]


def middle(x: Bounds) -> Any:
    """Where a tangent encloses the least area with a chord: half way."""
    return (x.lower + x.upper) / 2


def convex(f: Function, x: Bounds, at: Function = middle) -> Family:
    """A chord above and a tangent below, which touches at `at(x)` or on either side."""
    above = chord(f, x)
    top = jnp.maximum(*(f(end) - above * end for end in x))

    def touching(point: Any) -> Lines:
        below = derivative(f)(point)
        return Lines(below, f(point) - below * point, above, top)

    center = at(x)
    sides = ((x.lower + center) / 2, center, (center + x.upper) / 2)
    return between([touching(point) for point in sides])


def concave(f: Function, x: Bounds, at: Function = middle) -> Family:
    """A chord below and a tangent above."""
    return convex(lambda v: -f(v), x, at).map(negated)


def negated(lines: Lines) -> Lines:
    """Lines round -f from lines round f."""
    return Lines(
        -lines.upper_slope, -lines.upper_bias, -lines.lower_slope, -lines.lower_bias
    )


def mirrored(lines: Lines) -> Lines:
    """Lines round f(-x) from lines round f, on the mirrored interval."""
    return Lines(
        -lines.lower_slope, lines.lower_bias, -lines.upper_slope, lines.upper_bias
    )


def chord(f: Function, x: Bounds) -> Any:
    """The slope between the ends; of a narrow interval, the derivative inside it."""
    width = x.upper - x.lower
    scale = jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper))
    wide = width > jnp.sqrt(jnp.finfo(width.dtype).eps) * scale
    slope = (f(x.upper) - f(x.lower)) / jnp.where(wide, width, 1)
    return jnp.where(wide, slope, derivative(f)(middle(x)))


def sigmoidal(f: Function, x: Bounds) -> Family:
    """A function that is convex below 0 and concave above, such as tanh.

    The line below f is the one above -f(-x), mirrored: both come from one program.
    """

    def above(sign: Any, lower: Any, upper: Any) -> list[tuple[Any, Any]]:
        return _above_sigmoidal(lambda v: sign * f(sign * v), Bounds(lower, upper))

    sign = jnp.array([1, -1], x.lower.dtype)
    lower, upper = jnp.stack([x.lower, -x.upper]), jnp.stack([x.upper, -x.lower])
    found = jax.vmap(above)(sign, *materialized((lower, upper)))
    pairs = materialized(found)
    return between([Lines(s[1], -b[1], s[0], b[0]) for s, b in pairs])


def _above_sigmoidal(f: Function, x: Bounds) -> list[tuple[Any, Any]]:
    """Slopes and intercepts of three lines above a convex, then concave function.

    The line from the lower end that is tangent at some d >= 0 touches the upper hull;
    a tangent further right lies above as well, and the one at the middle encloses
    least area, so that tangent point is the larger of the two. Where d would lie right
    of the interval the hull is the chord. The other two touch at d and further right.
    """
    slope_of = derivative(f)
    start, end = jnp.minimum(x.lower, 0), jnp.maximum(x.upper, 0)
    point = jnp.clip(jnp.maximum(tangent_point(f, start, end), x.lower), 0, end)
    beyond = (f(end) + slope_of(end) * (start - end) < f(start)) | (x.upper <= 0)

    def touching(at: Any) -> tuple[Any, Any]:
        slope = jnp.where(beyond, chord(f, x), slope_of(at))
        at = jnp.where(beyond, x.upper, at)
        heights = [f(v) - slope * v for v in (x.lower, x.upper, at)]
        return slope, jnp.maximum(jnp.maximum(heights[0], heights[1]), heights[2])

    center = jnp.clip(jnp.maximum(point, middle(x)), 0, end)
    return [touching(at) for at in (point, center, (center + end) / 2)]


def tangent_point(f: Function, start: Any, end: Any) -> Any:
    """D in [0, end] whose tangent passes through (start, f(start)), start <= 0.

    Bisection, then Newton steps within the bracket; the last step alone is
    differentiated, which by the implicit function theorem gives the derivative of d.
    """
    slope_of = derivative(f)

    def miss(d: Any, start: Any) -> Any:
        return f(d) + slope_of(d) * (start - d) - f(start)

    def newton(d: Any, start: Any) -> Any:
        rate = derivative(slope_of)(d) * (start - d)
        usable = jnp.abs(rate) > jnp.finfo(d.dtype).tiny ** 0.5
        return d - jnp.where(usable, miss(d, start) / jnp.where(usable, rate, 1), 0)

    fixed_start, low, high = lax.stop_gradient((start, jnp.zeros_like(end), end))
    for _ in range(_BISECTIONS):
        d = (low + high) / 2
        below = miss(d, fixed_start) < 0
        low, high = jnp.where(below, d, low), jnp.where(below, high, d)
    d = (low + high) / 2
    for _ in range(_NEWTON_STEPS):
        d = jnp.clip(newton(d, fixed_start), low, high)
    return jnp.clip(newton(lax.stop_gradient(d), start), low, high)

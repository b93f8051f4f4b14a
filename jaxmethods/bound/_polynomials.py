"""Taylor models: a polynomial of few inputs, and how far a value may be from it.

With t_i in [-1, 1] the place of input i in its interval, a value is

    middle + sum_i slope_i t_i + sum_ij bend_ij t_i t_j + e,   |e| <= error.

Affine operations and products act on the coefficients; what a product has of higher
degree goes to the error. A smooth function of one variable is its own Taylor polynomial
with the remainder of Lagrange, from an interval of a derivative of one variable. No
derivative is taken of anything larger, so that a custom rule for one, such as that of a
straight-through estimator, does no harm. Models of degree 1 have no bend.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import Node, flatten, linear_part, offset
from ._interval import absolute
from ._interval import range_of as range_of_graph
from ._prepare import simplified
from ._products import center_radius, without_nan
from ._rounding import largest, num_terms, underflow, unit
from ._sets import Bounds


class Model(NamedTuple):
    """A polynomial of the places of n inputs, and what a value is away from it.

    Attributes:
        middle: (*shape).
        slope: (n, *shape).
        bend: (n, n, *shape).
        error: (*shape), at least 0; infinite where nothing is known.
    """

    middle: Any
    slope: Any
    bend: Any
    error: Any


def inputs(hull: Sequence[Bounds]) -> list[Model]:
    """The models of arrays that lie in intervals, in terms of all of their entries."""
    num, place = sum(ends.lower.size for ends in hull), 0
    models = []
    for ends in hull:
        middle, _ = center_radius(ends)
        error, least = unit(1, middle.dtype), underflow(middle.dtype)
        radius = largest(Bounds(ends.lower - middle, ends.upper - middle))
        radius = jnp.where(ends.upper > ends.lower, radius * (1 + error) + least, 0)
        rows = jnp.eye(num, middle.size, -place, middle.dtype)
        slope = (rows * radius.reshape(1, -1)).reshape(num, *middle.shape)
        bend = jnp.zeros((num, *slope.shape), slope.dtype)
        models.append(Model(middle, slope, bend, error * jnp.abs(middle)))
        place += middle.size
    return models


def affine(node: Node, models: Sequence[Model]) -> list[Model]:
    """The outputs of an affine node."""
    linear, sizes, added = linear_part(node), absolute(node), offset(node)
    middles, slopes, bends = (
        list(part) for part in zip(*(m[:3] for m in models), strict=True)
    )
    middles = linear(*middles)
    if added is not None:
        middles = [m + a for m, a in zip(middles, added, strict=True)]
    slopes = jax.vmap(linear)(*slopes)
    bends = jax.vmap(jax.vmap(linear))(*bends)
    errors = sizes(*(m.error for m in models))
    moved = [
        Model(*parts) for parts in zip(middles, slopes, bends, errors, strict=True)
    ]
    if not num_terms(node):  # what only moves numbers takes no time to compile either
        return moved
    totals = sizes(*(_size(m) for m in models))
    if added is not None:
        totals = [t + jnp.abs(a) for t, a in zip(totals, added, strict=True)]
    lost = (unit(num_terms(node), out.dtype) for out in node.outputs)
    return [_rounded(*parts) for parts in zip(moved, totals, lost, strict=True)]


def product(node: Node, x: Model, y: Model, degree: int) -> Model:
    """A product of any kind of two values that both vary."""

    def times(a: Any, b: Any) -> Any:
        return node.evaluate(a, b)[0]

    left, right = jax.vmap(times, (0, None)), jax.vmap(times, (None, 0))
    slope = left(x.slope, y.middle) + right(x.middle, y.slope)
    bend = jax.vmap(left, (0, None))(x.bend, y.middle)
    bend = bend + jax.vmap(right, (None, 0))(x.middle, y.bend)
    (a, p, q), (b, r, s) = _sizes(x), _sizes(y)
    x_high, y_high = q + x.error, s + y.error
    error = times(a, y.error) + times(x.error, b)
    error = error + times(p, y_high) + times(x_high, r + y_high)
    if degree == 1:
        error = error + times(p, r)
    else:
        bend = bend + jax.vmap(right, (0, None))(x.slope, y.slope)
    terms = times(_size(x), _size(y))
    model = Model(times(x.middle, y.middle), slope, bend, error)
    return _rounded(model, terms, unit(num_terms(node) + 4, terms.dtype))


def univariate(tower: Sequence[Callable[[Any], Any]], x: Model) -> Model:
    """An elementwise function, given with its derivatives.

    Args:
        tower: The function and its slope for degree 1, two derivatives more for 2.
        x: Its operand.
    """
    size, linear, high = _sizes(x)
    high = high + x.error
    away = linear + high + unit(x.bend.shape[0] ** 2 + 8, size.dtype) * _size(x)
    reach = Bounds(x.middle - away, x.middle + away)
    at, around = _ranges(tower, Bounds(x.middle, x.middle), reach)
    degree = len(tower) // 2
    value, lost = center_radius(at[0])
    slope, spread = center_radius(around[1] if degree == 1 else at[1])
    error, bend = lost + spread * away, jnp.zeros_like(value)
    if degree == 2:
        slope, bend, rest = _remainder(slope, at[2], around, away)
        error = error + rest + jnp.abs(bend) * high * (2 * linear + high)
    squares = x.slope[:, None] * x.slope[None]
    model = Model(
        value,
        slope[None] * x.slope,
        slope[None, None] * x.bend + bend[None, None] * squares,
        error + jnp.abs(slope) * x.error,
    )
    terms = jnp.abs(value) + (jnp.abs(slope) + jnp.abs(bend) * _size(x)) * _size(x)
    return _rounded(model, terms, unit(16, terms.dtype))


def _remainder(
    slope: Any, second: Bounds, around: Sequence[Bounds], away: Any
) -> tuple[Any, Any, Any]:
    """The factors of u and u^2, and how far a function is from it, for |u| <= away.

    By the second derivative between the ends, or by the third one: its term is replaced
    by the nearest line, 3/4 a^2 u for u^3, which leaves a quarter of it.
    """
    at_middle, spread = center_radius(second)
    between, plain = center_radius(around[2])
    third, wide = center_radius(around[3])
    plain = plain / 2 * away**2
    cubic = spread / 2 * away**2 + (jnp.abs(third) / 24 + wide / 6) * away**3
    better = cubic < plain
    tilted = slope + jnp.where(better, third, 0) / 8 * away**2
    bend = jnp.where(better, at_middle, between) / 2
    return tilted, bend, jnp.where(better, cubic, plain)


def _ranges(fns: Sequence[Callable[[Any], Any]], *boxes: Bounds) -> list[list[Bounds]]:
    """The intervals of elementwise functions in each box."""
    ends = [jnp.stack(side) for side in zip(*boxes, strict=True)]
    like = jax.ShapeDtypeStruct(ends[0].shape[1:], ends[0].dtype)
    graphs = [simplified(flatten(fn, like)) for fn in fns]
    # Mapped over, ends are traced: outside of a domain there is infinity, not an error.
    find = jax.vmap(lambda *box: [range_of_graph(g, Bounds(*box)) for g in graphs])
    found = [without_nan(bounds) for bounds in find(*ends)]
    return [[Bounds(b.lower[i], b.upper[i]) for b in found] for i in range(len(boxes))]


def range_of(m: Model) -> Bounds:
    """The interval of a value."""
    room = m.error + unit(m.bend.shape[0] ** 2 + 8, m.error.dtype) * _size(m)
    room = room + underflow(room.dtype)
    low, high = _highest(-m.slope, -m.bend), _highest(m.slope, m.bend)
    return Bounds(m.middle - low - room, m.middle + high + room)


def _highest(slope: Any, bend: Any) -> Any:
    """An upper bound of sum_i slope_i t_i + sum_ij bend_ij t_i t_j over |t_i| <= 1.

    An input along which the sum keeps rising, or falling, is at an end. Of the others
    each has its parabola, and products of two are as large as they may be.
    """
    bend = (bend + bend.swapaxes(0, 1)) / 2
    change = 2 * jnp.sum(jnp.abs(bend), axis=1) * (1 + unit(len(bend), bend.dtype))
    free = jnp.abs(slope) < change
    ends = jnp.where(free, 0, jnp.sign(slope))
    pulled = jnp.sum(bend * ends[None], axis=1)
    curve = jnp.moveaxis(jnp.diagonal(bend), -1, 0)
    tilt = jnp.abs(slope + 2 * pulled)
    turns = tilt < -2 * curve
    top = jnp.where(turns, tilt**2 / jnp.where(turns, -4 * curve, 1), tilt + curve)
    among = jnp.sum(jnp.where(free[None], jnp.abs(bend), 0), axis=1) - jnp.abs(curve)
    each = jnp.where(free, top + among, (slope + pulled) * ends)
    return jnp.sum(each, axis=0)


def _sizes(m: Model) -> tuple[Any, Any, Any]:
    """The largest sum of the absolute values of the terms of each degree."""
    slope, bend = jnp.abs(m.slope).sum(0), jnp.abs(m.bend).sum((0, 1))
    return jnp.abs(m.middle), slope, bend


def _size(m: Model) -> Any:
    return sum(_sizes(m)) + m.error


def _rounded(m: Model, terms: Any, lost: float) -> Model:
    """A model with room for rounding; where it overflows nothing is known.

    Args:
        m: The model.
        terms: At least the sum of the absolute values of all of its terms.
        lost: The relative error that they have.
    """
    num, info = m.bend.shape[0] ** 2 + 16, jnp.finfo(m.error.dtype)
    error = m.error + jax.lax.stop_gradient(lost * terms)
    error = error * (1 + unit(num, error.dtype)) + num * underflow(error.dtype)
    known = terms + error < info.max / 4  # neither infinite nor NaN
    middle, slope, bend = (
        jnp.where(jnp.broadcast_to(known, c.shape), c, 0) for c in m[:3]
    )
    return Model(middle, slope, bend, jnp.where(known, error, jnp.inf))

"""Bounds of vectors divided by their root mean square: layer, group and RMS norms.

The divisor N(y) = sqrt(scale sum(y^2) + eps) is a norm, a convex function: its tangent
plane lies below, and above it the tangent of the square root of the squares' chords.
It is a value of its own, so that backward passes find its range as they find that of y.
The quotient y_k / N is bounded as a function of two variables, by planes that touch it
at corners of their box or, where y_k keeps its sign, by a tangent of the convex

    (y_k + sqrt(l u))^2 / (N (sqrt(l) + sqrt(u))^2) <= y_k / N,    0 <= l <= y_k <= u.

As an interval the quotient has its exact range over the box of y. Where squares
overflow it has what it has anywhere, +-1 / sqrt(scale), which holds also the zero that
is computed there.

References:
    Zamora, Grossmann. A branch and contract algorithm for problems with concave
    univariate, bilinear and linear fractional terms. J. Global Optimization 14, 1999.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..core import Node, is_concrete, materialized, source_line
from ._planes import Planes
from ._rounding import largest, unit
from ._sets import Bounds, safe_sqrt


def _squares(y: Bounds) -> Bounds:
    """The range of each square."""
    nearest = jnp.clip(jnp.zeros_like(y.lower), y.lower, y.upper)
    return Bounds(nearest * nearest, largest(y) ** 2)


def _size(node: Node) -> int:
    return math.prod(node.inputs[0].shape[a] for a in node.params["axes"])


def _total(node: Node, x: Any) -> Any:
    return jnp.sum(x, node.params["axes"], keepdims=True)


def _radicand(node: Node, squares: Any, eps: Any) -> Any:
    return node.params["scale"] * _total(node, squares) + eps


def interval_of_norm(node: Node, y: Bounds, eps: Any) -> Bounds:
    """The range over the box of y, which each entry reaches by itself."""
    low, high = (_radicand(node, s, eps) for s in _squares(y))
    if is_concrete(low) and bool(np.any(np.asarray(low) < 0)):
        raise ValueError(
            f"the root at {source_line(node.equation)} may get values down to "
            f"{np.min(np.asarray(low)):.4g} in this set; wanted at least 0 everywhere: "
            "use a smaller set, or a larger constant under the root."
        )
    error = unit(_size(node) + 8, low.dtype)
    at_least = jnp.minimum(low, jnp.finfo(low.dtype).max)
    lower, upper = safe_sqrt(at_least) * (1 - error), safe_sqrt(high) * (1 + error)
    return Bounds(jnp.where(low < 0, -jnp.inf, lower), upper)


def relax_norm(node: Node, y: Bounds, eps: Any) -> Planes:
    """The tangent at the centre, and that of the root of chords."""
    scale, center = node.params["scale"], (y.lower + y.upper) / 2
    low, high = _at_center(node, y, eps)
    finite = high < jnp.inf
    low, high = jnp.where(finite, low, 0), jnp.where(finite, high, 0)
    below = scale * center / jnp.where(low > 0, low, jnp.inf)
    above = scale * (y.lower + y.upper) / (2 * jnp.where(high > 0, high, jnp.inf))
    size = largest(y)
    error = unit(_size(node) + 16, center.dtype)
    terms = _total(node, (jnp.abs(below) + jnp.abs(above)) * size) + low + high
    upper = high - _total(node, above * center) + error * terms
    return Planes(
        lambda v: _total(node, below * v),
        low - _total(node, below * center) - error * terms,
        lambda v: _total(node, above * v),
        jnp.where(finite, upper, jnp.inf),
        terms,
    )


def _at_center(node: Node, y: Bounds, eps: Any) -> tuple[Any, Any]:
    """The norm's planes at the centre of the box."""
    center, squares = (y.lower + y.upper) / 2, (y.lower**2 + y.upper**2) / 2
    low, high = (_radicand(node, s, eps) for s in (center * center, squares))
    return safe_sqrt(low), safe_sqrt(high)


def interval_of_normalize(node: Node, y: Bounds, norm: Bounds, eps: Any) -> Bounds:
    """The exact range over the box of y, met with that of the quotient."""
    if is_concrete(norm.lower) and bool(np.any(np.asarray(norm.lower) <= 0)):
        raise ValueError(
            f"the division at {source_line(node.equation)} may divide by a norm of 0 "
            "in this set; wanted a norm above 0: use a smaller set, or add a constant "
            "under the root."
        )
    turned = Bounds(-y.upper, -y.lower)
    lower = -_largest_ratio(node, turned, norm, eps)
    upper = _largest_ratio(node, y, norm, eps)
    positive = norm.lower > 0
    return Bounds(
        jnp.where(positive, lower, -jnp.inf), jnp.where(positive, upper, jnp.inf)
    )


def _largest_ratio(node: Node, y: Bounds, norm: Bounds, eps: Any) -> Any:
    """The greatest y_k / N, which rises with y_k, and falls with the others if > 0."""
    top, is_positive = y.upper, y.upper >= 0
    error = unit(_size(node) + 16, top.dtype)
    mine = _squares(y)
    least, most = _total(node, mine.lower), _total(node, mine.upper)
    others = jnp.where(
        is_positive,
        jnp.maximum(least - mine.lower - error * least, 0),
        most - mine.upper + error * most,
    )
    radicand = node.params["scale"] * (top * top + others) + eps
    divisor = safe_sqrt(radicand)
    found = top / jnp.where(divisor > 0, divisor, 1)
    near = jnp.where(norm.lower > 0, norm.lower, 1)
    found = jnp.minimum(found, top / jnp.where(is_positive, near, norm.upper))
    limit = jnp.where(is_positive, 1 / math.sqrt(node.params["scale"]), 0)
    found = jnp.where(most < jnp.inf, found, limit.astype(top.dtype))
    return found + error * jnp.abs(found)


class _Plane(NamedTuple):
    """A plane slope y + rate N + bias."""

    slope: Any
    rate: Any
    bias: Any

    def at(self, y: Any, norms: Bounds) -> Any:
        """The value where N is what bounds it from the side that matters."""
        norm = jnp.where(self.rate < 0, norms.lower, norms.upper)
        return self.slope * y + self.rate * norm + self.bias


def relax_normalize(node: Node, y: Bounds, norm: Bounds, eps: Any) -> Planes:
    """For each entry the planes of y / N that are closest at the centre of the box."""
    # Elsewhere the square of 1 / N overflows, or underflows to a zero slope.
    small = 2 * math.sqrt(jnp.finfo(y.lower.dtype).tiny)
    known = (norm.lower > small) & (norm.upper < 1 / small)
    ends = Bounds(*(jnp.where(known, end, 1) for end in norm))
    center = Bounds(*(jnp.clip(c, *ends) for c in _at_center(node, y, eps)))
    range_ = interval_of_normalize(node, y, norm, eps)
    above = _above(y, ends, center, range_.upper)
    below = _above(Bounds(-y.upper, -y.lower), ends, center, -range_.lower)
    size, error = largest(y), unit(16, y.lower.dtype)
    terms = sum(
        jnp.abs(p.slope) * size + jnp.abs(p.rate) * ends.upper + jnp.abs(p.bias)
        for p in (above, below)
    )

    def usable(plane: _Plane) -> tuple[Any, Any]:
        return materialized([jnp.where(known, p, 0) for p in plane[:2]])

    (down, shrink), (up, grow) = usable(below), usable(above)
    low, high = -below.bias - error * terms, above.bias + error * terms
    return Planes(
        lambda v, n: down * v - shrink * n,
        jnp.where(known, low, range_.lower),
        lambda v, n: up * v + grow * n,
        jnp.where(known, high, range_.upper),
        terms,
    )


def _above(y: Bounds, norm: Bounds, center: Bounds, most: Any) -> _Plane:
    """The plane above y / N that is closest at the centre."""
    middle = (y.lower + y.upper) / 2
    best = _Plane(jnp.zeros_like(middle), jnp.zeros_like(middle), most)
    for plane, valid in (
        (_at_corner(y.upper, norm, center), True),
        (_at_negative(y, center), y.upper <= 0),
    ):
        better = valid & (plane.at(middle, center) < best.at(middle, center))
        best = _Plane(
            *(jnp.where(better, a, b) for a, b in zip(plane, best, strict=True))
        )
    return best


def _at_corner(end: Any, norm: Bounds, center: Bounds) -> _Plane:
    """McCormick: (u - y) (1 / N - 1 / N_u) >= 0, with a line above u / N in its place.

    The other plane of McCormick, at the lower ends, is steeper in y and flatter in N.
    All entries share N, so that in a sum over them its coefficients cancel in part,
    which those of the entries do not: the flatter in y the better.
    """
    chord = _Plane(0, -1 / (norm.lower * norm.upper), 1 / norm.lower + 1 / norm.upper)
    tangent = _Plane(0, -1 / center.upper**2, 2 / center.upper)
    rate, bias = (
        end * jnp.where(end >= 0, a, b)
        for a, b in ((chord.rate, tangent.rate), (chord.bias, tangent.bias))
    )
    slope = 1 / norm.upper + jnp.zeros_like(end)
    return _Plane(slope, rate, bias - end * slope)


def _at_negative(y: Bounds, center: Bounds) -> _Plane:
    """The tangent of -(sqrt(a b) - y)^2 / (N (sqrt(a) + sqrt(b))^2), y in [-b, -a]."""
    near, far = (safe_sqrt(jnp.maximum(-end, 0)) for end in (y.upper, y.lower))
    total = near + far
    inverse = 1 / jnp.where(total > 0, total, 1)
    middle = (y.lower + y.upper) / 2
    root = (near * far - middle) * inverse
    slope = 2 * root * inverse / center.upper
    rate = root**2 / center.upper**2
    value = -(root**2) / center.upper
    return _Plane(slope, rate, value - slope * middle - rate * center.upper)

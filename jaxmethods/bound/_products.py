"""Products of two values that both vary: elementwise, matrix products, convolutions.

All of them are sums of products x y, so the exact interval of one product and the
planes of McCormick carry over term by term.

References:
    McCormick. Computability of global solutions to factorable nonconvex programs.
    Mathematical Programming 10, 1976.
"""

import math
from typing import Any

import jax.numpy as jnp

from ..core import Node
from ._planes import Family, Planes
from ._rounding import largest, num_terms, outward, unit
from ._sets import Bounds

# Up to so many single products a matrix product is bounded term by term.
_TERM_BY_TERM = 2**20


def corners(node: Node, x: Bounds, y: Bounds) -> Bounds:
    """The interval of an elementwise product: its extremes are at corners."""
    del node
    products = [a * b for a in x for b in y]
    lower, upper = products[0], products[0]
    for product in products[1:]:
        lower, upper = jnp.minimum(lower, product), jnp.maximum(upper, product)
    return without_nan(Bounds(lower, upper))


def center_radius(x: Bounds) -> tuple[Any, Any]:
    """The middle of an interval and half its width."""
    return (x.lower + x.upper) / 2, (x.upper - x.lower) / 2


def without_nan(bounds: Bounds) -> Bounds:
    """Replaces an end that infinities have made NaN by infinity, which is sound."""
    lower, upper = bounds
    if not jnp.issubdtype(jnp.result_type(lower), jnp.floating):
        return bounds
    return Bounds(
        jnp.where(jnp.isnan(lower), -jnp.inf, lower),
        jnp.where(jnp.isnan(upper), jnp.inf, upper),
    )


def interval_of_contraction(node: Node, x: Bounds, y: Bounds) -> Bounds:
    """The interval of a matrix product or convolution of two variables."""
    if not jnp.issubdtype(x.lower.dtype, jnp.floating):
        return _by_signs(node, x, y)
    error = unit(num_terms(node), x.lower.dtype)
    if node.name == "dot_general" and _num_products(node) <= _TERM_BY_TERM:
        low = outer(node, x.lower, y.lower)
        high = outer(node, x.upper, y.upper)
        terms = corners(node, *map(Bounds, low, high))
        num_summed = len(node.params["dimension_numbers"][0][0])
        axes = tuple(range(terms.lower.ndim - num_summed, terms.lower.ndim))
        return Bounds(*(end.sum(axes) for end in outward(terms, error)))
    found = _by_signs(node, x, y)
    slack = error * _apply(node, largest(x), largest(y))
    return without_nan(Bounds(found.lower - slack, found.upper + slack))


def _apply(node: Node, x: Any, y: Any) -> Any:
    return node.evaluate(x, y)[0]


def _num_products(node: Node) -> int:
    return math.prod(node.outputs[0].shape) * int(num_terms(node))


def outer(node: Node, x: Any, y: Any) -> tuple[Any, Any]:
    """Operands that broadcast to all products of a `dot_general`, summed axes last."""
    (x_summed, y_summed), (x_batch, y_batch) = node.params["dimension_numbers"]
    x_free = [i for i in range(x.ndim) if i not in (*x_summed, *x_batch)]
    y_free = [i for i in range(y.ndim) if i not in (*y_summed, *y_batch)]
    x = x.transpose(*x_batch, *x_free, *x_summed)
    y = y.transpose(*y_batch, *y_free, *y_summed)
    num_batch = len(x_batch)
    rows = tuple(range(num_batch + len(x_free), num_batch + len(x_free) + len(y_free)))
    columns = tuple(range(num_batch, num_batch + len(x_free)))
    return jnp.expand_dims(x, rows), jnp.expand_dims(y, columns)


def _by_signs(node: Node, x: Bounds, y: Bounds) -> Bounds:
    """Ends by the signs of the factors, met with the centre-radius form.

    The first are exact for each product but those whose factors both hold zero.
    """
    up, down = (lambda v: jnp.maximum(v, 0)), (lambda v: jnp.minimum(v, 0))
    (a, b), (c, d) = x, y
    lower = (
        _apply(node, up(a), up(c))
        + _apply(node, up(b), down(c))
        + _apply(node, down(a), up(d))
        + _apply(node, down(b), down(d))
    )
    upper = (
        _apply(node, up(b), up(d))
        + _apply(node, up(a), down(d))
        + _apply(node, down(b), up(c))
        + _apply(node, down(a), down(c))
    )
    if not jnp.issubdtype(lower.dtype, jnp.floating):
        return Bounds(lower, upper)
    (xc, xr), (yc, yr) = center_radius(x), center_radius(y)
    middle = _apply(node, xc, yc)
    spread = _apply(node, jnp.abs(xc) + xr, yr) + _apply(node, xr, jnp.abs(yc))
    return Bounds(
        jnp.maximum(lower, middle - spread), jnp.minimum(upper, middle + spread)
    )


def mccormick(node: Node, x: Bounds, y: Bounds) -> Family:
    """Planes on either side that touch the products at corners, or lie between two.

    x y >= y_l x + x_l y - x_l y_l and >= y_u x + x_u y - x_u y_u; from above likewise
    with x_l, y_u and x_u, y_l. All of them, and what lies between, are as close at the
    centre; which is better depends on what follows. The first choice is the mean, the
    other one leans on a factor that keeps its sign, so that the coefficient that the
    second factor gets is small.
    """
    (x_center, x_radius), (y_center, y_radius) = center_radius(x), center_radius(y)
    spread = _apply(node, x_radius, y_radius)
    terms = 6 * _apply(node, largest(x), largest(y))
    signs = _sign(x)
    if node.name == "mul":
        # The roles of the factors are swapped where only the second keeps its sign.
        swap = (signs == 0) & (_sign(y) != 0)
        tilts = jnp.where(swap, _sign(y), signs)
        below, above = -tilts, jnp.where(swap, -tilts, tilts)
    else:
        below, above = -signs, signs

    # With x = x_c + x_r s and y = y_c + y_r t, all in all |s| <= 1 and |t| <= 1:
    # s t >= tilt (s + t) - 1 and s t <= tilt (s - t) + 1 for any tilt in [-1, 1].
    def plane(tilt: Any, sign: int) -> tuple[Any, Any]:
        x_at = x_center - sign * tilt * x_radius

        def linear(u: Any, v: Any) -> Any:
            tilted = _apply(node, u * tilt, y_radius)
            return _apply(node, u, y_center) + tilted + _apply(node, x_at, v)

        base = _apply(node, x_at, y_center) + _apply(node, x_center * tilt, y_radius)
        return linear, sign * spread - base

    def member(choices: tuple[Any, Any]) -> Planes:
        low, high = (2 * choice - 1 for choice in choices)
        return Planes(*plane(low, -1), *plane(high, 1), terms)

    half = jnp.full_like(x_center, 0.5)
    lean = tuple((tilt + 1) / 2 for tilt in (below, above))
    return Family((half, half), member, (lean,))


def _sign(x: Bounds) -> Any:
    """1 or -1 where an interval lies on one side of 0, else 0."""
    positive, negative = x.lower >= 0, x.upper <= 0
    return positive.astype(x.lower.dtype) - negative.astype(x.lower.dtype)

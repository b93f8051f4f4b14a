"""Intervals of elementwise operations that turn, jump or have poles."""

import dataclasses
import itertools
from functools import reduce
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..core import Node, is_concrete, source_line
from ._monotone import ends, increasing, with_vertex
from ._products import without_nan
from ._sets import Bounds


def reciprocal(node: Node, x: Bounds) -> Bounds:
    """1 / x."""
    apart = (x.lower > 0) | (x.upper < 0)
    _check_divisor(node, apart)
    inverse = Bounds(1 / jnp.where(apart, x.upper, 1), 1 / jnp.where(apart, x.lower, 1))
    return Bounds(
        jnp.where(apart, inverse.lower, -jnp.inf),
        jnp.where(apart, inverse.upper, jnp.inf),
    )


def _check_divisor(node: Node, apart: Any) -> None:
    if is_concrete(apart) and not bool(np.all(np.asarray(apart))):
        raise ValueError(
            f"the division at {source_line(node.equation)} may divide by zero in this "
            "set; wanted a divisor that keeps its sign: use a smaller set, or clamp it."
        )


def integer_power(node: Node, x: Bounds) -> Any:
    """X to the power params["y"]."""
    power = node.params["y"]
    if power > 0:
        return with_vertex(node, x) if power % 2 == 0 else increasing(node, x)
    positive = dataclasses.replace(node, evaluate=lambda v: [v ** (-power)])
    even = power % 2 == 0
    inside = with_vertex(positive, x) if even else increasing(positive, x)[0]
    return reciprocal(node, inside)


def quotient(node: Node, x: Any, y: Any) -> Bounds:
    """A quotient by a constant, or of integers, which is rounded towards zero."""
    low, high = ends((x, y), 0), ends((x, y), 1)
    if isinstance(y, Bounds):
        _check_divisor(node, (y.lower > 0) | (y.upper < 0))
    corners = itertools.product((low[0], high[0]), (low[1], high[1]))
    found = [node.evaluate(a, b)[0] for a, b in corners]
    return without_nan(Bounds(reduce(jnp.minimum, found), reduce(jnp.maximum, found)))


def sine(node: Node, x: Bounds) -> Bounds:
    """sin, which turns at odd multiples of pi / 2."""
    return _periodic(node, x, np.pi / 2)


def cosine(node: Node, x: Bounds) -> Bounds:
    """cos, which turns at multiples of pi."""
    return _periodic(node, x, 0.0)


def _periodic(node: Node, x: Bounds, peak: float) -> Bounds:
    a, b = (node.evaluate(end)[0] for end in x)
    least, most = jnp.minimum(a, b), jnp.maximum(a, b)
    return without_nan(
        Bounds(
            jnp.where(_meets(x, peak + np.pi, 2 * np.pi), -1, least),
            jnp.where(_meets(x, peak, 2 * np.pi), 1, most),
        )
    )


def tangent(node: Node, x: Bounds) -> Bounds:
    """tan, which rises between its poles."""
    pole = _meets(x, np.pi / 2, np.pi)
    if is_concrete(pole) and bool(np.any(np.asarray(pole))):
        raise ValueError(
            f"tan at {source_line(node.equation)} may meet a pole in this set; wanted "
            "an interval between two odd multiples of pi / 2: use a smaller set."
        )
    (found,) = increasing(node, x)
    return Bounds(
        jnp.where(pole, -jnp.inf, found.lower), jnp.where(pole, jnp.inf, found.upper)
    )


def _meets(x: Bounds, phase: float, period: float) -> Any:
    """Whether an interval holds phase + k period for some integer k, or may do so."""
    slack = 8 * float(jnp.finfo(x.lower.dtype).eps)
    low, high = ((end - phase) / period for end in x)
    room = slack * (1 + jnp.maximum(jnp.abs(low), jnp.abs(high)))
    return jnp.ceil(low - room) <= jnp.floor(high + room)


def angle(node: Node, y: Any, x: Any) -> Bounds:
    """atan2(y, x): extreme at corners, unless the interval meets its cut x <= 0 = y."""
    (y_low, x_low), (y_high, x_high) = ends((y, x), 0), ends((y, x), 1)
    corners = itertools.product((y_low, y_high), (x_low, x_high))
    found = [node.evaluate(a, b)[0] for a, b in corners]
    least, most = reduce(jnp.minimum, found), reduce(jnp.maximum, found)
    cut = (x_low <= 0) & (y_low <= 0) & (y_high >= 0)
    return Bounds(
        jnp.where(cut, -np.pi, least).astype(least.dtype),
        jnp.where(cut, np.pi, most).astype(most.dtype),
    )


def remainder(node: Node, x: Any, y: Any) -> Bounds:
    """X less the multiple of y next to it towards 0: of x's sign, below |y| and |x|."""
    low, high = ends((x, y), 0), ends((x, y), 1)
    if isinstance(y, Bounds):
        _check_divisor(node, (y.lower > 0) | (y.upper < 0))
    size = jnp.maximum(jnp.abs(low[1]), jnp.abs(high[1]))
    zero = jnp.zeros((), size.dtype)
    least = jnp.where(low[0] < 0, jnp.maximum(low[0], -size), zero)
    most = jnp.where(high[0] > 0, jnp.minimum(high[0], size), zero)
    a, b = node.evaluate(low[0], low[1])[0], node.evaluate(high[0], high[1])[0]
    # It rises with slope 1 and jumps by |y| at multiples of y.
    width = high[0] - low[0]
    straight = (width < size) & (jnp.abs(width - (b - a)) <= size / 2)
    straight = straight & (low[1] == high[1])
    return without_nan(
        Bounds(jnp.where(straight, a, least), jnp.where(straight, b, most))
    )


def neighbour(node: Node, x: Any, y: Any) -> Bounds:
    """The number next to x in the direction of y."""
    del node
    (low, _), (high, _) = ends((x, y), 0), ends((x, y), 1)
    return Bounds(jnp.nextafter(low, -jnp.inf), jnp.nextafter(high, jnp.inf))

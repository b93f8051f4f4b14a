"""Sums of exponentials over a box: what softmax and logsumexp have in common.

An entry so far below the largest that its exponential underflows, such as a masked key,
is out of reach: it gets no slope, and no infinity of it enters a computation.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from ..core import Node, materialized
from ._rounding import unit
from ._sets import Bounds


class Box(NamedTuple):
    """The box of each group (..., K), less a shift of the group.

    Attributes:
        lower: Finite; where `open`, the true end may be lower still.
        upper: At most 0, finite.
        open: Where the lower end is out of reach of any sum of exponentials.
        dead: Where even the upper end is: the entry of a softmax is 0.
        usable: (..., 1), whether the group's ends are numbers at all.
        shift: (..., 1), what was subtracted.
        error: The relative error of an exponential, and of sums of them; the absolute
            one of their logarithms.
    """

    lower: Any
    upper: Any
    open: Any
    dead: Any
    usable: Any
    shift: Any
    error: Any

    @property
    def center(self) -> Any:
        """The middle of the box."""
        return (self.lower + self.upper) / 2

    @property
    def largest(self) -> Any:
        """The largest absolute value in it, the shift added again."""
        ends = (self.lower + self.shift, self.upper + self.shift)
        return jnp.maximum(jnp.abs(ends[0]), jnp.abs(ends[1]))


class Plane(NamedTuple):
    """slope_k x_k - rank_k (vector . x without its entry k) + bias_k, for each k.

    The vector is not negative. What it is without an entry is a difference, but for its
    largest entry, where that would lose digits, a sum without it.
    """

    slope: Any
    rank: Any
    vector: Any
    bias: Any

    def linear(self, x: Any) -> Any:
        """Without the bias."""
        return self.slope * x - self.rank * without_own(self.vector, self.vector * x)

    def at(self, x: Any) -> Any:
        """The values at a point."""
        return self.linear(x) + self.bias

    def spread(self, x: Any) -> Any:
        """The sum of the absolute values of the linear terms, for x >= 0."""
        rest = without_own(self.vector, self.vector * x)
        return jnp.abs(self.slope) * x + jnp.abs(self.rank) * rest


def without_own(sizes: Any, terms: Any) -> Any:
    """The sum of each group without the entry itself."""
    first = first_largest(sizes)
    apart = total(jnp.where(first, 0, terms))
    return jnp.where(first, apart, total(terms) - terms)


def first_largest(x: Any) -> Any:
    """True at one entry of each group, a largest one."""
    place = lax.broadcasted_iota(int, x.shape, x.ndim - 1)
    return jnp.argmax(x, -1, keepdims=True) == place


def total(x: Any) -> Any:
    """The sum of each group."""
    return jnp.sum(x, -1, keepdims=True)


def where(test: Any, first: Plane, second: Plane) -> Plane:
    """A choice for each entry between planes with the same vector."""
    slope, rank, _, bias = (
        jnp.where(test, a, b) for a, b in zip(first, second, strict=True)
    )
    return Plane(slope, rank, second.vector, bias)


def negated(plane: Plane) -> Plane:
    """Minus the plane."""
    return Plane(-plane.slope, -plane.rank, plane.vector, -plane.bias)


def constant_plane(like: Plane, value: Any, loss: Any) -> Plane:
    """A number for each entry, lowered by what rounding may have lost."""
    flat = jnp.zeros_like(value)
    return Plane(flat, flat, like.vector, value - lax.stop_gradient(loss))


def grouped(node: Node, x: Any) -> Any:
    """The entries of each group along a last axis."""
    axes = node.params["axes"]
    kept = [i for i in range(x.ndim) if i not in axes]
    return x.transpose(*kept, *axes).reshape(*(x.shape[i] for i in kept), -1)


def restored(node: Node, x: Any) -> Any:
    """The inverse of `grouped`."""
    axes, shape = node.params["axes"], node.outputs[0].shape
    order = [*(i for i in range(len(shape)) if i not in axes), *axes]
    moved = x.reshape(*(shape[i] for i in order))
    return moved.transpose(*(order.index(i) for i in range(len(shape))))


def depth_of(dtype: Any) -> float:
    """Below minus this, exp is 0."""
    return 2 - math.log(float(jnp.finfo(dtype).smallest_subnormal))


def box_of(node: Node, x: Bounds) -> Box:
    """The box of an operand, in groups."""
    lower, upper = (grouped(node, end) for end in x)
    dtype = lower.dtype
    depth = depth_of(dtype)
    top = jnp.max(upper, -1, keepdims=True)
    usable = jnp.isfinite(top)
    shift = lax.stop_gradient(jnp.where(usable, top, 0))
    upper = jnp.where(usable, upper - shift, 0)
    lower = lower - shift
    surely = jnp.max(lower, -1, keepdims=True)
    surely = lax.stop_gradient(jnp.where(jnp.isfinite(surely), surely, 0))
    dead = upper < surely - depth
    floor = 2 * surely - 4 * depth
    is_open = ~(lower > floor) | dead
    lower, upper = jnp.where(is_open, floor, lower), jnp.where(dead, floor, upper)
    size = jnp.maximum(-lower, jnp.minimum(-surely, -floor))
    error = unit(lower.shape[-1] + 16, dtype) + unit(2, dtype) * size
    error = lax.stop_gradient(error)
    return Box(lower, upper, is_open, dead, usable, shift, error)


def log_sum_of_others(x: Any) -> Any:
    """Logsumexp of a group of two entries or more, without the entry itself.

    No entry but the largest is more than half of a sum, so that only there does a
    difference lose digits: its own others are added up without it.
    """
    first = first_largest(x)
    top = lax.stop_gradient(jnp.max(x, -1, keepdims=True))
    powers = jnp.exp(x - top)
    rest = jnp.where(first, 1, total(powers) - powers)
    apart = jnp.where(first, -jnp.inf, x)
    second = lax.stop_gradient(jnp.max(apart, -1, keepdims=True))
    powers = jnp.where(first, 0, jnp.exp(jnp.where(first, second, x) - second))
    return jnp.where(first, second + jnp.log(total(powers)), top + jnp.log(rest))


def logits(box: Box) -> tuple[Any, Any]:
    """The range of x_k less the logsumexp of the others."""
    return (
        box.lower - log_sum_of_others(box.upper),
        box.upper - log_sum_of_others(box.lower),
    )


class Chords(NamedTuple):
    """The chord of each exponential: its slope, and the logarithm of its middle."""

    slope: Any
    log_middle: Any


def chords_of(box: Box) -> Chords:
    """Chords; constant where the interval is open below."""
    width = jnp.where(box.open, 1, box.upper - box.lower)
    narrow = width < jnp.finfo(width.dtype).eps
    safe = jnp.where(narrow, 1, width)
    slope = jnp.exp(box.upper) * jnp.where(narrow, 1, -jnp.expm1(-safe) / safe)
    middle = box.upper + jnp.log1p(jnp.exp(-width)) - math.log(2)
    return Chords(jnp.where(box.open, 0, slope), jnp.where(box.open, box.upper, middle))


def powers_of(box: Box) -> tuple[Any, Any]:
    """The exponentials at the centre over their largest, and its logarithm."""
    top = lax.stop_gradient(jnp.max(box.center, -1, keepdims=True))
    return jnp.exp(box.center - top), top


def fixed(slope: Any, rank: Any, vector: Any) -> Plane:
    """A plane without a bias whose coefficients are computed once.

    Fused into what reads them, a bias and a pass might round them in different ways,
    which the size of x would multiply.
    """
    parts = jnp.broadcast_arrays(slope, rank, vector)
    slope, rank, vector = materialized(parts)
    return Plane(slope, rank, vector, 0)


def read_line(box: Box, slope: Any, bias: Any, at: Any) -> Any:
    """A line below a function of a logit, lowered by what rounding may have lost."""
    terms = jnp.abs(slope * at) + jnp.abs(bias)
    lost = unit(4, terms.dtype) * terms + jnp.abs(slope) * box.error
    return slope * at + bias - lax.stop_gradient(lost)


def tangent(
    box: Box, slope: Any, value: Any, vector: Any, log_others: Any
) -> tuple[Plane, Any]:
    """The plane value + slope (d_k - (vector . d without d_k) / others), d = x - c.

    Returns:
        The plane, lowered by its own rounding, and where it is of use: where the end of
        an entry and the exponentials of the others are within reach.
    """
    reached = ~box.open & (log_others > -depth_of(value.dtype) / 2)
    reached = reached & jnp.isfinite(value)
    slope, value = jnp.where(reached, slope, 0), jnp.where(reached, value, 0)
    rank = slope * jnp.exp(jnp.where(reached, -log_others, 0))
    plane = fixed(slope, rank, vector)
    return plane._replace(bias=through_center(box, plane, value)), reached


def through_center(box: Box, plane: Plane, value: Any) -> Any:
    """The bias of a plane with a value at the centre, lowered by its own rounding."""
    radius = (box.upper - box.lower) / 2
    loss = box.error * jnp.abs(value) + plane.spread(box.error * radius)
    value = value - lax.stop_gradient(loss)
    return value - plane.linear(box.center + box.shift)

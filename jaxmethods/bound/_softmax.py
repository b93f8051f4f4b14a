"""Bounds of softmax as one operation.

Entry k of a softmax is sigmoid(s_k), where s_k = x_k - logsumexp of the others is a
concave function of x. A rising line above the sigmoid, read at s_k, is therefore
concave, and its tangent plane lies above the softmax. Below, the others' exponentials
are under their chords, so that s_k >= x_k - log(sum of chords), which is convex, and
the tangent plane of a line below the sigmoid lies below. Since the entries add up to 1,
one minus the planes of all others is a plane as well; each entry takes the plane that
is closest at the centre of its box. Every Jacobian is diagonal plus rank one.

References:
    Wei, Wu, Wu, Chen, Barrett, Farchi. Convex bounds on the softmax function with
    applications to robustness verification. AISTATS 2023, arXiv:2303.01713; for planes
    from the logarithm of an entry in place of its logit.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ..core import Node, materialized
from . import _lines as lines
from ._exponentials import (
    Box,
    Plane,
    box_of,
    chords_of,
    constant_plane,
    grouped,
    log_sum_of_others,
    logits,
    negated,
    powers_of,
    read_line,
    restored,
    tangent,
    total,
    where,
)
from ._planes import Planes, constant
from ._sets import Bounds


def interval_of_softmax(node: Node, x: Bounds) -> Bounds:
    """The range of each entry: it is extreme where all others are at the other end."""
    box = box_of(node, x)
    if box.lower.shape[-1] == 1:
        return Bounds(jnp.ones_like(x.lower), jnp.ones_like(x.upper))
    lower, upper = logits(box)
    tiny = jnp.finfo(box.lower.dtype).tiny
    lower = jax.nn.sigmoid(lower) * (1 - box.error) - tiny
    upper = jax.nn.sigmoid(upper) * (1 + box.error) + tiny
    lower = jnp.where(box.usable & ~box.open, jnp.maximum(lower, 0), 0)
    upper = jnp.where(box.usable, jnp.minimum(upper, 1), 1)
    upper = jnp.where(box.dead, 0, upper)
    return Bounds(restored(node, lower), restored(node, upper))


def _below(box: Box) -> Plane:
    """Tangents, at the centre, of lines below the sigmoid."""
    chords = chords_of(box)
    others = log_sum_of_others(chords.log_middle)
    ends = Bounds(
        box.lower - log_sum_of_others(box.upper),
        box.upper - log_sum_of_others(jnp.where(box.open, box.upper, box.lower)),
    )
    logit = box.center - others
    turned = Bounds(-ends.upper, -ends.lower)
    slope, bias = _line_above(lambda v: -jax.nn.sigmoid(-v), turned, -logit)
    value = read_line(box, slope, -bias, logit)
    plane, reached = tangent(box, slope, value, chords.slope, others)
    least = jnp.where(box.open, 0, jax.nn.sigmoid(ends.lower))
    return where(reached, plane, constant_plane(plane, least, box.error * least))


def _above(box: Box) -> Plane:
    """Tangents, at the centre, of lines above the sigmoid."""
    (powers, top), others = powers_of(box), log_sum_of_others(box.center)
    ends, logit = Bounds(*logits(box)), box.center - others
    slope, bias = _line_above(jax.nn.sigmoid, ends, logit)
    value = read_line(box, -slope, -bias, logit)
    plane, reached = tangent(box, -slope, value, powers, others - top)
    most = jnp.where(box.dead, 0, jax.nn.sigmoid(ends.upper))
    return negated(
        where(reached, plane, constant_plane(plane, -most, box.error * most))
    )


def _line_above(f: lines.Function, x: Bounds, at: Any) -> tuple[Any, Any]:
    """The slope and intercept of the line above a sigmoid that is lowest at `at`.

    Right of the point d whose tangent passes through the lower end it is the tangent
    there; left of it, that of d, and the chord where d is beyond the interval.
    """
    slope_of = lines.derivative(f)
    start, end = jnp.minimum(x.lower, 0), jnp.maximum(x.upper, 0)
    beyond = (f(end) + slope_of(end) * (start - end) < f(start)) | (x.upper <= 0)
    touch = jnp.clip(jnp.maximum(lines.tangent_point(f, start, end), at), 0, end)
    slope = jnp.where(beyond, lines.chord(f, x), slope_of(touch))
    touch = jnp.where(beyond, x.upper, jnp.maximum(touch, x.lower))
    heights = [f(v) - slope * v for v in (x.lower, x.upper, touch)]
    return slope, jnp.maximum(jnp.maximum(heights[0], heights[1]), heights[2])


def relax_softmax(node: Node, x: Bounds) -> Planes:
    """Planes round every entry, closest at the centre of the box."""
    box = box_of(node, x)
    if box.lower.shape[-1] == 1:
        return constant(interval_of_softmax(node, x))
    flat = jnp.zeros_like(box.lower)
    below, above = _below(box), _above(box)
    below = where(box.usable, below, constant_plane(below, flat, flat))
    above = where(box.usable, above, constant_plane(above, flat + 1, flat))
    below, above = materialized((below, above))
    center = box.center + box.shift
    low, high = below.at(center), above.at(center)
    # The others' planes, from the total of 1.
    rest = Bounds(1 - (total(high) - high), 1 - (total(low) - low))
    from_above = (rest.lower > low) & ~box.open & box.usable
    from_below = (rest.upper < high) & ~box.dead & box.usable
    low_bias = jnp.where(from_above, 1 - (total(above.bias) - above.bias), below.bias)
    high_bias = jnp.where(from_below, 1 - (total(below.bias) - below.bias), above.bias)
    terms = sum(p.spread(box.largest) + jnp.abs(p.bias) for p in (below, above))
    terms = jnp.where(from_above | from_below, 1 + total(terms), terms)

    def lower(v: Any) -> Any:
        v = grouped(node, v)
        return restored(node, _linear(from_above, below, above, v))

    def upper(v: Any) -> Any:
        v = grouped(node, v)
        return restored(node, _linear(from_below, above, below, v))

    low_bias, high_bias, terms = (
        restored(node, part) for part in (low_bias, high_bias, terms)
    )
    return Planes(lower, low_bias, upper, high_bias, terms)


def _linear(test: Any, plane: Plane, others: Plane, x: Any) -> Any:
    """The linear part of a plane; where `test`, of minus the sum of all others."""
    rest = others.linear(x)
    return jnp.where(test, rest - total(rest), plane.linear(x))

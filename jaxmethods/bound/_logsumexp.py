"""Bounds of logsumexp and log_softmax, each as one operation.

Logsumexp is convex: its tangent plane lies below. Above lies the tangent plane of the
logarithm of a sum of chords, which is concave. An entry of log_softmax is x_k -
logsumexp(x), and also log sigmoid of x_k less the logsumexp of the others, which a
chord bounds from below: each entry takes what is closer at the centre of the box.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core import Node
from . import _lines as lines
from ._exponentials import (
    Box,
    Plane,
    box_of,
    chords_of,
    first_largest,
    fixed,
    grouped,
    log_sum_of_others,
    negated,
    powers_of,
    read_line,
    restored,
    tangent,
    through_center,
    total,
    where,
)
from ._planes import Planes, constant
from ._rounding import unit
from ._sets import Bounds


def interval_of_logsumexp(node: Node, x: Bounds) -> Bounds:
    """Logsumexp rises with every entry: the values at the ends.

    Where all entries are masked they are large and negative in place of infinite.
    """
    lower, upper = (node.evaluate(end)[0] for end in x)
    error = unit(grouped(node, x.lower).shape[-1] + 16, lower.dtype)
    lower = jnp.where(lower < _masked(x), -jnp.inf, lower - error)
    return Bounds(lower, upper + error)


def _masked(x: Bounds) -> float:
    """What no score is below that is not masked."""
    return float(jnp.finfo(x.lower.dtype).min) / 16


def interval_of_log_softmax(node: Node, x: Bounds) -> Bounds:
    """The range of each entry: it is extreme where all others are at the other end."""
    box = box_of(node, x)
    if box.lower.shape[-1] == 1:
        return Bounds(jnp.zeros_like(x.lower), jnp.zeros_like(x.upper))
    low, high = (grouped(node, end) for end in x)
    # An entry itself may be as low as it likes.
    finite = jnp.isfinite(low)
    lower = jnp.where(finite, low, 0) - box.shift - log_sum_of_others(box.upper)
    upper = jnp.maximum(high - box.shift, jnp.finfo(high.dtype).min / 2)
    upper = upper - log_sum_of_others(box.lower)
    lower = jax.nn.log_sigmoid(lower) - box.error
    upper = jnp.minimum(jax.nn.log_sigmoid(upper) + box.error, 0)
    lower = jnp.where(finite & box.usable, lower, -jnp.inf)
    upper = jnp.where(box.usable, upper, 0)
    return Bounds(restored(node, lower), restored(node, upper))


def relax_logsumexp(node: Node, x: Bounds) -> Planes:
    """The tangent at the centre below; above, that of the logarithm of chords."""
    box, shape = box_of(node, x), node.outputs[0].shape
    below, above = _tangent_less(box, 0.0), negated(_less_chords(box, 0.0))
    masked = jnp.max(grouped(node, x.upper), axis=-1, keepdims=True) < _masked(x)
    usable = (box.usable & ~masked).reshape(shape)

    def read(plane: Plane, v: Any) -> Any:
        found = total(plane.vector * grouped(node, v)) * plane.rank[..., :1]
        return jnp.where(usable, -found.reshape(shape), 0)

    # The planes of all k are the same but for what rounding may have lost.
    low, high = (
        total(jnp.where(first_largest(sign * p.bias), p.bias, 0)).reshape(shape)
        for p, sign in ((below, 1), (above, -1))
    )
    size = total((below.vector + jnp.abs(above.rank) * above.vector) * box.largest)
    terms = jnp.abs(size).reshape(shape) + jnp.abs(low) + jnp.abs(high)
    return Planes(
        lambda v: read(below, v),
        jnp.where(usable, low, -jnp.inf),
        lambda v: read(above, v),
        jnp.where(usable, high, jnp.inf),
        terms,
    )


def relax_log_softmax(node: Node, x: Bounds) -> Planes:
    """Planes round every entry, closest at the centre of the box."""
    box = box_of(node, x)
    if box.lower.shape[-1] == 1:
        return constant(interval_of_log_softmax(node, x))
    first, (second, reached) = _less_chords(box, 1.0), _chord_of_logarithm(box)
    center = box.center + box.shift
    closer = reached & (second.at(center) > first.at(center))
    below, above = where(closer, second, first), negated(_tangent_less(box, 1.0))
    terms = sum(p.spread(box.largest) + jnp.abs(p.bias) for p in (below, above))

    def read(plane: Plane, v: Any) -> Any:
        found = jnp.where(box.usable, plane.linear(grouped(node, v)), 0)
        return restored(node, found)

    low = jnp.where(box.usable, below.bias, -jnp.inf)
    high = jnp.where(box.usable, above.bias, 0)
    low, high, terms = (restored(node, part) for part in (low, high, terms))
    return Planes(lambda v: read(below, v), low, lambda v: read(above, v), high, terms)


def _less_chords(box: Box, share: float) -> Plane:
    """Below share x_k - logsumexp(x): a tangent of the logarithm of chords."""
    chords = chords_of(box)
    top = lax.stop_gradient(jnp.max(chords.log_middle, -1, keepdims=True))
    log_sum = top + jnp.log(total(jnp.exp(chords.log_middle - top)))
    rank = jnp.exp(-log_sum) + jnp.zeros_like(box.lower)
    return _less(box, share, rank, chords.slope, log_sum)


def _tangent_less(box: Box, share: float) -> Plane:
    """Below logsumexp(x) - share x_k: its tangent."""
    powers, top = powers_of(box)
    whole = total(powers)
    rank = jnp.full_like(box.lower, -1)
    return _less(box, -share, rank, powers / whole, -top - jnp.log(whole))


def _less(box: Box, share: float, rank: Any, vector: Any, log_sum: Any) -> Plane:
    """The plane share x_k - rank (vector . x), and -log_sum for x = 0 at the centre."""
    plane = fixed(share - rank * vector, rank, vector)
    part = 1 - abs(share)
    value = share * box.center - log_sum - jnp.sign(rank) * part * box.shift
    # The slope is a difference of numbers up to 1.
    loss = box.error * (1 + box.upper - box.lower)
    value = value - lax.stop_gradient(loss)
    return plane._replace(bias=through_center(box, plane, value))


def _chord_of_logarithm(box: Box) -> tuple[Plane, Any]:
    """Below x_k - logsumexp(x): the chord of log sigmoid, at the others' chords."""
    chords = chords_of(box)
    others = log_sum_of_others(chords.log_middle)
    ends = Bounds(
        box.lower - log_sum_of_others(box.upper),
        box.upper - log_sum_of_others(jnp.where(box.open, box.upper, box.lower)),
    )
    slope = lines.chord(jax.nn.log_sigmoid, ends)
    bias = jnp.minimum(*(jax.nn.log_sigmoid(end) - slope * end for end in ends))
    value = read_line(box, slope, bias, box.center - others)
    # The function adds up numbers up to 1, however small its value is.
    value = value - box.error
    return tangent(box, slope, value, chords.slope, others)

"""Intervals of operations along an axis: sorts, largest entries, products, windows."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import Node
from ._monotone import ends, increasing
from ._products import corners
from ._rounding import largest, outward, unit
from ._sets import Bounds


def sort(node: Node, *operands: Any) -> list[Bounds]:
    """The first key sorted; what is sorted along with it lies among its entries."""
    if not isinstance(operands[0], Bounds) and not any(
        isinstance(x, Bounds) for x in operands[: node.params["num_keys"]]
    ):
        return increasing(node, *operands)
    low, high = (node.evaluate(*ends(operands, side)) for side in (0, 1))
    found = [Bounds(low[0], high[0])]
    known = jnp.asarray(True)
    for x in operands:
        if isinstance(x, Bounds):
            known = known & jnp.all(x.lower == x.upper)
    axis = node.params["dimension"]
    for x, a, b in zip(operands[1:], low[1:], high[1:], strict=True):
        x_low, x_high = ends((x,), 0)[0], ends((x,), 1)[0]
        least = jnp.broadcast_to(jnp.min(x_low, axis, keepdims=True), a.shape)
        most = jnp.broadcast_to(jnp.max(x_high, axis, keepdims=True), b.shape)
        found.append(Bounds(jnp.where(known, a, least), jnp.where(known, b, most)))
    return found


def top_k(node: Node, x: Bounds) -> list[Bounds]:
    """The k largest entries of an interval, and any places."""
    (low, first), (high, _) = (node.evaluate(end) for end in x)
    known = jnp.all(x.lower == x.upper)
    axis = node.params.get("axis", x.lower.ndim - 1)
    last = jnp.full_like(first, x.lower.shape[axis] - 1)
    places = Bounds(
        jnp.where(known, first, jnp.zeros_like(first)), jnp.where(known, first, last)
    )
    return [Bounds(low, high), places]


def place_of_largest(node: Node, x: Bounds) -> Bounds:
    """`argmax`: from the first to the last place that may hold the largest entry."""
    (axis,) = node.params["axes"]
    floor = jnp.max(x.lower, axis, keepdims=True)
    possible = x.upper >= floor
    first = jnp.argmax(possible, axis)
    last = possible.shape[axis] - 1 - jnp.argmax(jnp.flip(possible, axis), axis)
    dtype = node.outputs[0].dtype
    return Bounds(first.astype(dtype), last.astype(dtype))


def place_of_smallest(node: Node, x: Bounds) -> Bounds:
    """`argmin`."""
    return place_of_largest(node, Bounds(-x.upper, -x.lower))


def product(node: Node, x: Bounds) -> Bounds:
    """`reduce_prod`: the exact interval, by halves."""
    axes = node.params["axes"]
    kept = [i for i in range(x.lower.ndim) if i not in axes]
    shape = [x.lower.shape[i] for i in kept]
    found = Bounds(*(end.transpose(*axes, *kept).reshape(-1, *shape) for end in x))
    size = found.lower.shape[0]
    if not size:
        one = jnp.ones(shape, found.lower.dtype)
        return Bounds(one, one)
    while size > 1:
        half = size // 2
        left, right, rest = (
            Bounds(*(end[part] for end in found))
            for part in (slice(half), slice(half, 2 * half), slice(2 * half, None))
        )
        pairs = corners(node, left, right)
        found = Bounds(*(jnp.concatenate(v) for v in zip(pairs, rest, strict=True)))
        size = found.lower.shape[0]
    num = math.prod(x.lower.shape[i] for i in axes)
    return _widened(Bounds(*(end[0] for end in found)), num)


def cumulative_product(node: Node, x: Bounds) -> Bounds:
    """`cumprod`: the exact interval of each product."""
    axis = node.params["axis"]
    found = lax.associative_scan(
        lambda a, b: corners(node, a, b), x, reverse=node.params["reverse"], axis=axis
    )
    return _widened(found, x.lower.shape[axis])


def cumulative_logsumexp(node: Node, x: Bounds) -> Bounds:
    """`cumlogsumexp`, whose rounding is that of its operand and of a sum."""
    (found,) = increasing(node, x)
    dtype, num = x.lower.dtype, x.lower.shape[node.params["axis"]]
    size = jnp.max(largest(x), node.params["axis"], keepdims=True, initial=1.0)
    error = unit(num + 4, dtype) * size
    return Bounds(found.lower - error, found.upper + error)


def _widened(bounds: Bounds, num_factors: int) -> Bounds:
    """A product of many factors, rounded outward."""
    dtype = bounds.lower.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        return bounds
    return outward(bounds, unit(num_factors, dtype))


def gather_at_largest(node: Node, values: Any, keys: Any) -> Bounds:
    """`select_and_gather_add`: in each window the value where the key is largest."""
    if not isinstance(keys, Bounds):
        return increasing(node, values, keys)[0]
    params = node.params
    low, high = ends((values,), 0)[0], ends((values,), 1)[0]
    window = (
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        params["base_dilation"],
        params["window_dilation"],
    )
    infinity = np.asarray(np.inf, low.dtype)
    return Bounds(
        lax.reduce_window(low, infinity, lax.min, *window),
        lax.reduce_window(high, -infinity, lax.max, *window),
    )


def scatter_to_largest(node: Node, source: Any, keys: Any) -> Bounds:
    """`select_and_scatter_add`: each number goes to one entry of its window."""
    if not isinstance(keys, Bounds):
        return increasing(node, source, keys)[0]
    params, zero = node.params, np.zeros((), keys.lower.dtype)

    def total(x: Any) -> Any:
        return lax.reduce_window(
            x,
            zero,
            lax.add,
            params["window_dimensions"],
            params["window_strides"],
            params["padding"],
        )

    spread = jax.linear_transpose(total, keys.lower)
    low, high = ends((source,), 0)[0], ends((source,), 1)[0]
    return Bounds(spread(jnp.minimum(low, 0))[0], spread(jnp.maximum(high, 0))[0])

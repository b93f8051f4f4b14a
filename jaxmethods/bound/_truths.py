"""Intervals of truth values and integers, and of what is chosen by them."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ..core import Node
from ._monotone import ends, increasing
from ._products import without_nan
from ._sets import Bounds


def greater(node: Node, x: Any, y: Any) -> Bounds:
    """X > y or x >= y."""
    low, high = ends((x, y), 0), ends((x, y), 1)
    return Bounds(node.evaluate(low[0], high[1])[0], node.evaluate(high[0], low[1])[0])


def less(node: Node, x: Any, y: Any) -> Bounds:
    """X < y or x <= y."""
    found = greater(node, x, y)
    return Bounds(found.upper, found.lower)


def equal(node: Node, x: Any, y: Any) -> Bounds:
    """X == y."""
    del node
    low, high = ends((x, y), 0), ends((x, y), 1)
    surely = (low[0] == high[1]) & (high[0] == low[1])
    return Bounds(surely, (low[0] <= high[1]) & (low[1] <= high[0]))


def unequal(node: Node, x: Any, y: Any) -> Bounds:
    """X != y."""
    found = equal(node, x, y)
    return Bounds(~found.upper, ~found.lower)


def exclusive_or(node: Node, x: Any, y: Any) -> Bounds:
    """`xor` of truth values: whether they differ."""
    return unequal(node, x, y)


def is_finite(node: Node, x: Bounds) -> Bounds:
    """Surely finite where both ends are."""
    del node
    finite = jnp.isfinite(x.lower) & jnp.isfinite(x.upper)
    return Bounds(finite, jnp.ones_like(finite))


def is_nan(node: Node, x: Bounds) -> Bounds:
    """X != x: surely not where both ends are finite."""
    finite = is_finite(node, x).lower
    return Bounds(jnp.zeros_like(finite), ~finite)


def convert(node: Node, x: Bounds) -> Bounds:
    """A cast: monotone as long as the values fit."""
    source, target = x.lower.dtype, node.outputs[0].dtype
    if target == jnp.bool_:
        return unequal(node, x, jnp.zeros((), source))
    (found,) = increasing(node, x)
    if not jnp.issubdtype(target, jnp.integer) or np.can_cast(source, target):
        return found
    info = jnp.iinfo(target)
    fits = (x.lower >= info.min) & (x.upper <= _largest_below(info.max, source))
    return Bounds(
        jnp.where(fits, found.lower, info.min), jnp.where(fits, found.upper, info.max)
    )


def _largest_below(limit: int, dtype: Any) -> Any:
    """The largest number of a dtype that is not above an integer."""
    if jnp.issubdtype(dtype, jnp.integer):
        return min(limit, int(jnp.iinfo(dtype).max))
    rounded = np.asarray(limit, dtype)
    return rounded if int(rounded) <= limit else np.nextafter(rounded, rounded * 0)


def select(node: Node, which: Any, *cases: Any) -> Bounds:
    """`select_n`: a case that the predicate decides on, else any that it may mean."""
    low, high = ends(cases, 0), ends(cases, 1)
    if not isinstance(which, Bounds):
        found = Bounds(node.evaluate(which, *low)[0], node.evaluate(which, *high)[0])
        return without_nan(found)
    least, most = _limits(node.outputs[0].dtype)
    shape = node.outputs[0].shape
    lower, upper = jnp.full(shape, most), jnp.full(shape, least)
    for i, (a, b) in enumerate(zip(low, high, strict=True)):
        possible = (which.lower.astype(int) <= i) & (i <= which.upper.astype(int))
        a, b = without_nan(Bounds(jnp.asarray(a), jnp.asarray(b)))
        lower = jnp.where(possible, jnp.minimum(lower, a), lower)
        upper = jnp.where(possible, jnp.maximum(upper, b), upper)
    return Bounds(lower, upper)


def _limits(dtype: Any) -> tuple[Any, Any]:
    """The least and the largest value of a dtype."""
    if dtype == jnp.bool_:
        return np.bool_(False), np.bool_(True)
    if jnp.issubdtype(dtype, jnp.integer):
        info = jnp.iinfo(dtype)
        return jnp.asarray(info.min, dtype), jnp.asarray(info.max, dtype)
    return jnp.asarray(-jnp.inf, dtype), jnp.asarray(jnp.inf, dtype)

"""Whole numbers of a fixed width wrap round where their exact result does not fit."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ..core import Node
from ._rounding import SUMS, num_terms
from ._sets import Bounds

# How large the exact result is at most, of operands that are so large at most.
_SIZES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("abs", "neg"), lambda node, x: x),
    **dict.fromkeys(("add", "add_any", "sub"), lambda node, x, y: x + y),
    "mul": lambda node, x, y: x * y,
    "square": lambda node, x: x * x,
    "integer_pow": lambda node, x: jnp.maximum(x, 1) ** abs(node.params["y"]),
    **dict.fromkeys(
        ("reduce_prod", "cumprod"),
        lambda node, x: jnp.maximum(x, 1) ** _num_factors(node),
    ),
    **dict.fromkeys(
        SUMS, lambda node, *x: num_terms(node) * math.prod(x[:2]) + sum(x[2:])
    ),
}


def _num_factors(node: Node) -> int:
    """How many factors a product along axes has."""
    shape, params = node.inputs[0].shape, node.params
    axes = params.get("axes", (params.get("axis"),))
    return math.prod(shape[axis] for axis in axes)


def unless_wrapped(node: Node, operands: list[Any], bounds: Bounds) -> Bounds:
    """Bounds of whole numbers; the whole range where the exact result may not fit.

    Args:
        node: The node.
        operands: `Bounds` for each variable operand, the array of each constant.
        bounds: Its bounds, computed in its dtype.
    """
    dtype, size = bounds.lower.dtype, _SIZES.get(node.name)
    if size is None or not jnp.issubdtype(dtype, jnp.integer):
        return bounds
    info = jnp.iinfo(dtype)
    whole = node.name in SUMS or node.name in ("reduce_prod", "cumprod")
    sizes = [_size(x) for x in operands]
    if whole:
        sizes = [jnp.max(s, initial=0) for s in sizes]
    fits = size(node, *sizes) <= info.max * (1 - 1e-5)  # of float32's own rounding
    if info.min == 0 and node.name in ("sub", "neg"):
        first, last = (0, operands[0]) if node.name == "neg" else operands
        fits = fits & (_end(first, 0) >= _end(last, 1))
    least, most = jnp.asarray(info.min, dtype), jnp.asarray(info.max, dtype)
    return Bounds(
        jnp.where(fits, bounds.lower, least), jnp.where(fits, bounds.upper, most)
    )


def _end(x: Any, side: int) -> Any:
    return x[side] if isinstance(x, Bounds) else x


def _size(x: Any) -> Any:
    """The largest absolute value, as a float: that of the least number has none."""
    ends = (jnp.asarray(_end(x, side)).astype(float) for side in (0, 1))
    return jnp.maximum(*map(jnp.abs, ends))

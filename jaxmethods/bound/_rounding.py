"""Rounding is accounted for: every bound is moved outward by what it may have lost.

A sum of n products carries a relative error of at most n u in the worst case (u the
unit roundoff) and, by the probabilistic analysis of Higham and Mary, of at most
8 sqrt(n) u but for odds of about 1e-13; `unit` takes the smaller of the two, times
two: once for the bound, once for the function that is bounded and is rounded as well.
In float64 this never shows; in float32 it widens a bound by some 1e-5 of the terms
that were added up.

Intervals are widened operation by operation. Linear bounds are widened where a pass
starts or leaves a nonlinear operation: there the coefficients are known, and what the
pass may lose in the affine operations below is at most `unit` times the coefficients'
absolute values times a `magnitude` that one forward pass computes.

References:
    Higham, Mary. A new approach to probabilistic rounding error analysis. SIAM J. Sci.
    Comput. 41(5), 2019.
"""

import math
from typing import Any

import jax.numpy as jnp

from ..core import Node, linear_rule
from ._bounds import Bounds

# Operations that only move numbers, or choose among them.
_EXACT = frozenset(
    {
        "abs",
        "broadcast_in_dim",
        "ceil",
        "clamp",
        "concatenate",
        "copy",
        "copy_p",
        "cummax",
        "cummin",
        "device_put",
        "dynamic_slice",
        "dynamic_update_slice",
        "expand_dims",
        "floor",
        "gather",
        "max",
        "min",
        "name",
        "neg",
        "optimization_barrier",
        "pad",
        "pbroadcast",
        "pvary",
        "reduce_max",
        "reduce_min",
        "reduce_precision",
        "reduce_window_max",
        "reduce_window_min",
        "reshape",
        "reshard",
        "rev",
        "round",
        "scatter",
        "scatter-max",
        "scatter-min",
        "select_n",
        "sharding_constraint",
        "sign",
        "slice",
        "sort",
        "split",
        "squeeze",
        "stack",
        "stop_gradient",
        "tile",
        "top_k",
        "transpose",
        "unstack",
    }
)


def unit(num_terms: float, dtype: Any) -> float:
    """The relative error that a sum of so many products may carry."""
    return float(jnp.finfo(dtype).eps) * min(num_terms, 4 * math.sqrt(num_terms))


def underflow(dtype: Any) -> float:
    """What a result of any size may lose: below the normal numbers it may become 0."""
    return float(jnp.finfo(dtype).tiny)


# Operations whose outputs are sums of many operands.
SUMS = frozenset(
    {
        "conv_general_dilated",
        "cumsum",
        "dot_general",
        "reduce_sum",
        "reduce_window_sum",
        "scatter-add",
        "select_and_scatter_add",
    }
)


def num_terms(node: Node) -> int:
    """How many numbers one output of a node is a sum of; 0 where none is rounded."""
    if node.name in _EXACT:
        return 0
    rule = linear_rule(node.name)
    if rule is not None:
        return rule.num_terms(node)
    if node.name not in SUMS:
        return 4  # elementwise; exp and its like are right to a few units
    shapes = [getattr(atom, "shape", ()) for atom in node.inputs]
    if node.name == "dot_general":
        (contracted, _), _ = node.params["dimension_numbers"]
        return math.prod(shapes[0][i] for i in contracted)
    if node.name == "conv_general_dilated":
        features = node.params["dimension_numbers"].rhs_spec[0]
        return math.prod(shapes[1]) // shapes[1][features]
    if node.name == "reduce_window_sum":
        return math.prod(node.params["window_dimensions"])
    if node.name == "cumsum":
        return shapes[0][node.params["axis"]]
    return max(math.prod(shape) for shape in shapes)


def outward(bounds: Bounds, error: float) -> Bounds:
    """Moves both ends outward by a relative error; keeps zeros and signs.

    A lower end that has overflowed to infinity becomes the largest finite number, so
    that it stays below the value; likewise an upper end.
    """
    lower, upper = bounds
    info = jnp.finfo(lower.dtype)
    shrink, grow = 1 - error, 1 + error

    def least(x: Any) -> Any:
        return jnp.where(x == 0, 0, underflow(x.dtype)).astype(x.dtype)

    low = lower * _factor(lower, shrink, grow) - least(lower)
    high = upper * _factor(upper, grow, shrink) + least(upper)
    return Bounds(jnp.minimum(low, info.max), jnp.maximum(high, -info.max))


def _factor(x: Any, positive: float, negative: float) -> Any:
    return jnp.where(x > 0, positive, negative).astype(x.dtype)


def largest(bounds: Bounds) -> Any:
    """The largest absolute value that an interval holds."""
    return jnp.maximum(jnp.abs(bounds.lower), jnp.abs(bounds.upper))

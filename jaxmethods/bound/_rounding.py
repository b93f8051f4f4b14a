"""Rounding is accounted for: every bound is moved outward by what it may have lost.

A sum of n products carries an error of at most n u times the sum of their absolute
values in the worst case (u the unit roundoff). By the probabilistic analysis of Higham
and Mary it is at most c sqrt(n) u but for odds of 2 exp(-c^2 / 2) were every rounding
as large as u, and of 2 exp(-3 c^2 / 2), 1e-10 for the c = 4 here, with roundings spread
evenly. `unit` takes the smaller of the two, times two: once for the bound, once for
the function that is bounded and is rounded as well. In float64 this never shows; in
float32 it widens a bound by some 1e-5 of the terms that were added up.

Intervals are widened operation by operation. What a backward pass loses in an affine
operation is at most `unit` times the sum of the absolute values of coefficient, weight
and value. A forward walk adds that up for all the affine operations below a value, for
a coefficient of one; the pass multiplies it by the coefficients that it has where it
starts, where it leaves a nonlinear operation, and at landmarks between. What it loses
in a nonlinear operation is part of the lines or planes that stand for it.

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


def of_bound(num_terms: float, dtype: Any) -> float:
    """`unit` of a sum that the bound has and the function has not."""
    return unit(num_terms, dtype) / 2


def underflow(dtype: Any) -> float:
    """What a result of any size may lose: below the normal numbers it may become 0."""
    return float(jnp.finfo(dtype).tiny)


# Functions that XLA evaluates to more than two units in the last place, and to how
# many: the most that was found on CPUs and an H100 over all magnitudes, rounded up.
_UNITS = {
    **dict.fromkeys(("acosh", "asinh", "erf", "expm1", "silu", "tanh"), 4),
    **dict.fromkeys(("bessel_i0e", "bessel_i1e"), 16),
}
# An exponential of what has been rounded: its error grows with the exponent.
_EXPONENTIALS = frozenset({"cosh", "erfc", "exp2", "gelu", "pow", "real_pow", "sinh"})

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


def num_terms(node: Node) -> float:
    """How many numbers one output of a node is a sum of; 0 where none is rounded.

    An elementwise function counts as a sum that loses as much.
    """
    if node.name in _EXACT:
        return 0
    rule = linear_rule(node.name)
    if rule is not None:
        return rule.num_terms(node)
    if node.name not in SUMS:
        return _elementwise(node)
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


def _elementwise(node: Node) -> float:
    units = _UNITS.get(node.name, 2)
    if node.name in _EXPONENTIALS:
        dtype = node.outputs[0].dtype
        units = math.log(float(jnp.finfo(dtype).max)) / 2
    return max(2 * units, (2 * units / 4) ** 2)  # so that `unit` of it is 2 * units


def outward(bounds: Bounds, error: float) -> Bounds:
    """Moves both ends outward by a relative error; keeps zeros and signs.

    A lower end that has overflowed to infinity becomes the largest finite number, so
    that it stays below the value; likewise an upper end.
    """
    info = jnp.finfo(bounds.lower.dtype)
    lower = jnp.minimum(bounds.lower, info.max)
    upper = jnp.maximum(bounds.upper, -info.max)

    def lost(x: Any) -> Any:
        return jnp.where(x == 0, 0, jnp.abs(x) * error + info.tiny)

    return Bounds(lower - lost(lower), upper + lost(upper))


def lowered(x: Any, dtype: Any) -> Any:
    """A lower end in the dtype of what it bounds, where it has another."""
    if x.dtype == dtype:
        return x
    info, exact = jnp.finfo(dtype), jnp.promote_types(x.dtype, dtype) == dtype
    x = jnp.minimum(x.astype(dtype), info.max)
    return x if exact else x - (jnp.abs(x) * info.eps + info.tiny)


def as_dtype(bounds: Bounds, dtype: Any) -> Bounds:
    """Bounds in the dtype of what they bound, where they have another."""
    floating = all(jnp.issubdtype(d, jnp.floating) for d in (dtype, bounds.lower.dtype))
    if not floating:
        return bounds
    return Bounds(lowered(bounds.lower, dtype), -lowered(-bounds.upper, dtype))


def coarser(first: Any, second: Any) -> Any:
    """Of two floating dtypes the one that keeps fewer digits."""
    return max(first, second, key=lambda dtype: float(jnp.finfo(dtype).eps))


def largest(bounds: Bounds) -> Any:
    """The largest absolute value that an interval holds."""
    return jnp.maximum(jnp.abs(bounds.lower), jnp.abs(bounds.upper))

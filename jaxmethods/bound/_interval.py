"""Interval arithmetic: the ends of an operation's output from those of its operands.

A rule is `rule(node, *operands) -> Bounds, or a list of them`; an operand is `Bounds`
where a set reaches it and an array where none does.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from . import _univariate as univariate
from ..core import (
    Graph,
    Node,
    Variable,
    is_affine,
    is_bilinear,
    is_concrete,
    linear_part,
    linear_rule,
    missing_rule,
    source_line,
)
from ._products import (
    center_radius,
    corners,
    interval_of_contraction,
    without_nan,
)
from ._registry import REMEDY, registered_interval
from ._rounding import SUMS, num_terms, outward, unit
from ._sets import Bounds

Rule = Callable[..., Any]

# Non-decreasing in every operand: the ends are the values at the ends.
_INCREASING = frozenset(
    {
        *("add", "add_any", "concatenate", "pad", "scatter", "scatter-add", "stack"),
        *("dynamic_update_slice", "broadcast_in_dim", "convert_element_type", "copy"),
        *("copy_p", "cumsum", "device_put", "dynamic_slice", "expand_dims", "gather"),
        *("optimization_barrier", "pbroadcast", "pvary", "reduce_sum", "reshape"),
        *("reduce_window_sum", "reshard", "rev", "select_and_gather_add", "squeeze"),
        *("select_and_scatter_add", "sharding_constraint", "slice", "split", "tile"),
        *("transpose", "unstack"),
        *("max", "min", "reduce_max", "reduce_min", "cummax", "cummin"),
        *("reduce_window_max", "reduce_window_min", "sort", "and", "or", "reduce_and"),
        *("reduce_or", "sign", "floor", "ceil", "round", "exp", "exp2", "expm1"),
        *("tanh", "logistic", "erf", "atan", "asinh", "sinh", "cbrt", "softplus"),
        "selu",
    }
)
# Defined above a limit only: the limit, and whether it belongs to the domain.
_ABOVE = {
    "log": (0.0, False),
    "log1p": (-1.0, False),
    "sqrt": (0.0, True),
    "rsqrt": (0.0, False),
}


def interval(node: Node, operands: list[Any], method: str) -> list[Bounds]:
    """The bounds of a node's outputs, rounded outward.

    Args:
        node: The node.
        operands: `Bounds` for each variable operand, the array of each constant.
        method: Who asks, for the message.

    Raises:
        NotImplementedError: There is no rule for the node.
        ValueError: The interval leaves the domain of a logarithm, root or quotient,
            where its values are concrete.
    """
    rule = registered_interval(node.name) or _rule(node)
    if rule is None:
        raise missing_rule(method, node.equation, REMEDY.format(node.name))
    if node.name in SUMS:
        operands = [_before_sum(node, x) for x in operands]
    bounds = rule(node, *operands)
    bounds = [bounds] if isinstance(bounds, Bounds) else list(bounds)
    if not jnp.issubdtype(node.outputs[0].dtype, jnp.floating):
        return bounds
    error = unit(min(num_terms(node), 4), node.outputs[0].dtype)
    return [outward(b, error) if error else b for b in bounds]


def range_of(graph: Graph, x: Bounds) -> Bounds:
    """The interval of a graph of one variable, operation by operation."""
    known: dict[Any, Bounds] = {graph.inputs[0]: x}
    for node in graph.nodes:
        operands = [known[a] if isinstance(a, Variable) else a for a in node.inputs]
        outs = interval(node, operands, "bound")
        known.update(zip(node.outputs, outs, strict=True))
    (out,) = graph.outputs
    if isinstance(out, Variable):
        return known[out]
    value = jnp.broadcast_to(jnp.asarray(out), x.lower.shape)
    return Bounds(value, value)


def has_interval(node: Node) -> bool:
    """Whether a node has an interval rule, of the package or of its users."""
    return (registered_interval(node.name) or _rule(node)) is not None


def _rule(node: Node) -> Rule | None:
    if is_bilinear(node):
        return corners if node.name == "mul" else interval_of_contraction
    if linear_rule(node.name) is not None:
        return _contraction if is_affine(node) else None
    if node.name in _RULES:
        return _RULES[node.name]
    if node.name in _ABOVE:
        return _above
    return _increasing if node.name in _INCREASING else None


def _before_sum(node: Node, x: Any) -> Any:
    """Widens what is about to be summed, by what the sum may lose to rounding."""
    if is_contraction(node) or not jnp.issubdtype(_dtype(x), jnp.floating):
        return x
    both = x if isinstance(x, Bounds) else Bounds(x, x)
    return outward(both, unit(num_terms(node), _dtype(x)))


def _dtype(x: Any) -> Any:
    return x.lower.dtype if isinstance(x, Bounds) else jnp.asarray(x).dtype


def is_contraction(node: Node) -> bool:
    """Whether a node sums products with factors of any sign."""
    products = ("dot_general", "conv_general_dilated")
    return node.name in products or linear_rule(node.name) is not None


def ends(operands: tuple[Any, ...], side: int) -> list[Any]:
    """One end of each operand; a constant is both of its ends."""
    return [x[side] if isinstance(x, Bounds) else x for x in operands]


def _increasing(node: Node, *operands: Any) -> list[Bounds]:
    low, high = (node.evaluate(*ends(operands, side)) for side in (0, 1))
    return [Bounds(a, b) for a, b in zip(low, high, strict=True)]


def _decreasing(node: Node, *operands: Any) -> list[Bounds]:
    return [Bounds(b.upper, b.lower) for b in _increasing(node, *operands)]


def _above(node: Node, x: Bounds) -> list[Bounds]:
    limit, closed = _ABOVE[node.name]
    if is_concrete(x.lower):
        lowest = np.min(np.asarray(x.lower), initial=np.inf)
        if lowest < limit or (lowest == limit and not closed):
            raise ValueError(
                f"{node.name} at {source_line(node.equation)} may get values down to "
                f"{lowest:.4g} in this set; wanted {'at least' if closed else 'above'} "
                f"{limit:g} everywhere: use a smaller set, or clamp its argument."
            )
    inside = Bounds(jnp.maximum(x.lower, limit), jnp.maximum(x.upper, limit))
    return (_decreasing if node.name == "rsqrt" else _increasing)(node, inside)


def _reciprocal(node: Node, x: Bounds) -> Bounds:
    apart = (x.lower > 0) | (x.upper < 0)
    if is_concrete(apart) and not bool(np.all(np.asarray(apart))):
        raise ValueError(
            f"the division at {source_line(node.equation)} may divide by zero in this "
            "set; wanted a divisor that keeps its sign: use a smaller set, or clamp it."
        )
    inverse = Bounds(1 / jnp.where(apart, x.upper, 1), 1 / jnp.where(apart, x.lower, 1))
    return Bounds(
        jnp.where(apart, inverse.lower, -jnp.inf),
        jnp.where(apart, inverse.upper, jnp.inf),
    )


def _subtract(node: Node, x: Any, y: Any) -> Bounds:
    low, high = ends((x, y), 0), ends((x, y), 1)
    return Bounds(node.evaluate(low[0], high[1])[0], node.evaluate(high[0], low[1])[0])


def _scale(node: Node, *operands: Any) -> Bounds:
    """A product with a constant, or a quotient by one."""
    a, b = (node.evaluate(*ends(operands, side))[0] for side in (0, 1))
    return without_nan(Bounds(jnp.minimum(a, b), jnp.maximum(a, b)))


def _with_vertex(node: Node, x: Bounds, *constants: Any) -> Bounds:
    """A function of one variable that may turn at 0 and is monotone on each side."""
    at_zero = jnp.clip(0.0, x.lower, x.upper).astype(x.lower.dtype)
    a, b, c = (node.evaluate(v, *constants)[0] for v in (x.lower, x.upper, at_zero))
    least = jnp.minimum(jnp.minimum(a, b), c)
    return Bounds(least, jnp.maximum(jnp.maximum(a, b), c))


def _integer_power(node: Node, x: Bounds) -> Any:
    power = node.params["y"]
    if power > 0:
        return _with_vertex(node, x) if power % 2 == 0 else _increasing(node, x)
    positive = dataclasses.replace(node, evaluate=lambda v: [v ** (-power)])
    inside = (
        _with_vertex(positive, x) if power % 2 == 0 else _increasing(positive, x)[0]
    )
    return _reciprocal(node, inside)


def _select(node: Node, which: Any, *cases: Any) -> Bounds:
    low, high = ends(cases, 0), ends(cases, 1)
    if not isinstance(which, Bounds):
        return Bounds(node.evaluate(which, *low)[0], node.evaluate(which, *high)[0])
    # An undecided predicate: any of the cases from its lower to its upper end.
    possible = [
        (which.lower.astype(int) <= i) & (i <= which.upper.astype(int))
        for i in range(len(cases))
    ]
    lower = [jnp.where(p, a, jnp.inf) for p, a in zip(possible, low, strict=True)]
    upper = [jnp.where(p, a, -jnp.inf) for p, a in zip(possible, high, strict=True)]
    return Bounds(jnp.min(jnp.stack(lower), 0), jnp.max(jnp.stack(upper), 0))


def _greater(node: Node, x: Any, y: Any) -> Bounds:
    low, high = ends((x, y), 0), ends((x, y), 1)
    return Bounds(node.evaluate(low[0], high[1])[0], node.evaluate(high[0], low[1])[0])


def _less(node: Node, x: Any, y: Any) -> Bounds:
    found = _greater(node, x, y)
    return Bounds(found.upper, found.lower)


def _equal(node: Node, x: Any, y: Any) -> Bounds:
    low, high = ends((x, y), 0), ends((x, y), 1)
    surely = (low[0] == high[1]) & (high[0] == low[1])
    return Bounds(surely, (low[0] <= high[1]) & (low[1] <= high[0]))


def _unequal(node: Node, x: Any, y: Any) -> Bounds:
    found = _equal(node, x, y)
    return Bounds(~found.upper, ~found.lower)


def _is_finite(node: Node, x: Bounds) -> Bounds:
    del node
    finite = jnp.isfinite(x.lower) & jnp.isfinite(x.upper)
    return Bounds(finite, jnp.ones_like(finite))


def _contraction(node: Node, *operands: Any) -> Bounds:
    """A matrix product, convolution or linear map, in centre-radius form."""
    (x,) = (x for x in operands if isinstance(x, Bounds))
    center, radius = center_radius(x)
    error = unit(num_terms(node), x.lower.dtype)
    radius = radius + error * (jnp.abs(center) + radius)
    middle = node.evaluate(*(center if isinstance(a, Bounds) else a for a in operands))
    spread = absolute(node)(radius)
    return without_nan(Bounds(middle[0] - spread[0], middle[0] + spread[0]))


def absolute(node: Node, power: int = 1) -> Callable[..., list[Any]]:
    """The linear part of an affine node with |coefficient| ** power in their place."""
    rule = linear_rule(node.name)
    if rule is not None:
        return rule.absolute(node, power)
    if node.name == "neg":
        return lambda x: [x]
    if node.name == "sub":
        node = dataclasses.replace(node, evaluate=lambda x, y: [jnp.add(x, y)])
    elif node.name in ("mul", "div") or is_contraction(node):
        inputs = (
            a if isinstance(a, Variable) else jnp.abs(a) ** power for a in node.inputs
        )
        node = dataclasses.replace(node, inputs=tuple(inputs))
    return linear_part(node)


_RULES: dict[str, Rule] = {
    "abs": _with_vertex,
    "celu": _with_vertex,
    "conv_general_dilated": _contraction,
    "div": _scale,
    "dot_general": _contraction,
    "elu": _with_vertex,
    "eq": _equal,
    "erfc": _decreasing,
    "ge": _greater,
    "gt": _greater,
    "integer_pow": _integer_power,
    "is_finite": _is_finite,
    "le": _less,
    "leaky_relu": _with_vertex,
    "lt": _less,
    "mul": _scale,
    "ne": _unequal,
    "neg": _decreasing,
    "not": _decreasing,
    "reciprocal": _reciprocal,
    "select_n": _select,
    "square": _with_vertex,
    "sub": _subtract,
    "univariate": univariate.interval,
}

"""Interval arithmetic: the ends of an operation's output from those of its operands.

A rule is `rule(node, *operands) -> Bounds, or a list of them`; an operand is `Bounds`
where a set reaches it and an array where none does.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ..core import (
    ANNOTATED,
    Graph,
    Node,
    Variable,
    is_affine,
    is_bilinear,
    linear_part,
    linear_rule,
    missing_rule,
    source_line,
)
from . import _monotone as monotone
from . import _orders as orders
from . import _truths as truths
from . import _turning as turning
from . import _univariate as univariate
from ._extension import interval_of_annotated
from ._logsumexp import interval_of_log_softmax, interval_of_logsumexp
from ._normalization import interval_of_norm, interval_of_normalize
from ._products import (
    center_radius,
    corners,
    interval_of_contraction,
    without_nan,
)
from ._registry import registered_interval, remedy
from ._rounding import SUMS, as_dtype, num_terms, outward, unit
from ._sets import Bounds
from ._softmax import interval_of_softmax
from ._steep import STEEP, finite_derivatives
from ._wrapping import unless_wrapped

Rule = Callable[..., Any]


def interval(node: Node, operands: list[Any], method: str) -> list[Bounds]:
    """The bounds of a node's outputs, rounded outward.

    Args:
        node: The node.
        operands: `Bounds` for each variable operand, the array of each constant.
        method: Who asks, for the message.

    Raises:
        NotImplementedError: There is no rule for the node, or it has complex values.
        ValueError: The interval leaves the domain of a logarithm, root or quotient,
            where its values are concrete.
    """
    rule = registered_interval(node.name) or _rule(node)
    if rule is None:
        raise missing_rule(method, node.equation, remedy(node.name))
    _check_real(node, method)
    # A product that is not chosen hands back 0 times what may have overflowed.
    if node.name in STEEP or (node.name == "mul" and len(node.variables) > 1):
        operands = [finite_derivatives(x) for x in operands]
    if node.name in SUMS:
        operands = [_before_sum(node, x) for x in operands]
    bounds = rule(node, *operands)
    bounds = [bounds] if isinstance(bounds, Bounds) else list(bounds)
    bounds = [unless_wrapped(node, operands, _outward(node, b)) for b in bounds]
    return [as_dtype(b, v.dtype) for b, v in zip(bounds, node.outputs, strict=True)]


def _outward(node: Node, bounds: Bounds) -> Bounds:
    dtype = jnp.result_type(bounds.lower)
    if not jnp.issubdtype(dtype, jnp.floating):
        return bounds
    terms = num_terms(node)
    if node.name in SUMS or linear_rule(node.name) is not None:
        terms = min(terms, 4)  # their rules account for the sum
    return outward(bounds, unit(terms, dtype)) if terms else bounds


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


def _check_real(node: Node, method: str) -> None:
    for v in (*node.variables, *node.outputs):
        if jnp.issubdtype(v.dtype, jnp.complexfloating):
            raise NotImplementedError(
                f"{method} meets complex values ({v.dtype}) at "
                f"{source_line(node.equation)}, in {node.name!r}; wanted real ones: "
                "carry real and imaginary parts apart."
            )


def has_interval(node: Node) -> bool:
    """Whether a node has an interval rule, of the package or of its users."""
    return (registered_interval(node.name) or _rule(node)) is not None


def _rule(node: Node) -> Rule | None:
    if is_bilinear(node):
        return corners if node.name == "mul" else interval_of_contraction
    if linear_rule(node.name) is not None:
        return _contraction if is_affine(node) else None
    if node.name in _OF_TRUTHS and node.outputs[0].dtype != bool:
        return None
    return _RULES.get(node.name)


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


def _product(node: Node, x: Any, y: Any) -> Bounds:
    """A product with a constant, or of integers."""
    if isinstance(x, Bounds) and isinstance(y, Bounds):
        return corners(node, x, y)
    a, b = (node.evaluate(*monotone.ends((x, y), side))[0] for side in (0, 1))
    return without_nan(Bounds(jnp.minimum(a, b), jnp.maximum(a, b)))


def _contraction(node: Node, *operands: Any) -> Bounds:
    """A matrix product, convolution or linear map, in centre-radius form."""
    if not jnp.issubdtype(node.outputs[0].dtype, jnp.floating):
        both = (x if isinstance(x, Bounds) else Bounds(x, x) for x in operands)
        return interval_of_contraction(node, *both)
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
    **dict.fromkeys(monotone.INCREASING, monotone.increasing),
    **dict.fromkeys(monotone.DOMAINS, monotone.on_domain),
    **dict.fromkeys(monotone.VERTICES, monotone.with_vertex),
    ANNOTATED: interval_of_annotated,
    "argmax": orders.place_of_largest,
    "argmin": orders.place_of_smallest,
    "atan2": turning.angle,
    "conv_general_dilated": _contraction,
    "convert_element_type": truths.convert,
    "cos": turning.cosine,
    "cumlogsumexp": orders.cumulative_logsumexp,
    "cumprod": orders.cumulative_product,
    "div": turning.quotient,
    "dot_general": _contraction,
    "eq": truths.equal,
    "eq_to": truths.equal,
    "erfc": monotone.decreasing,
    "ge": truths.greater,
    "gt": truths.greater,
    "integer_pow": turning.integer_power,
    "is_finite": truths.is_finite,
    "is_nan": truths.is_nan,
    "le": truths.less,
    "le_to": truths.less,
    "log_softmax": interval_of_log_softmax,
    "logsumexp": interval_of_logsumexp,
    "lt": truths.less,
    "lt_to": truths.less,
    "mul": _product,
    "ne": truths.unequal,
    "neg": monotone.decreasing,
    "nextafter": turning.neighbour,
    "norm": interval_of_norm,
    "normalize": interval_of_normalize,
    "not": monotone.decreasing,
    "real_pow": monotone.on_domain,
    "reciprocal": turning.reciprocal,
    "reduce_prod": orders.product,
    "rem": turning.remainder,
    "select_and_gather_add": orders.gather_at_largest,
    "select_and_scatter_add": orders.scatter_to_largest,
    "select_n": truths.select,
    "sin": turning.sine,
    "softmax": interval_of_softmax,
    "sort": orders.sort,
    "sub": monotone.subtract,
    "tan": turning.tangent,
    "top_k": orders.top_k,
    "univariate": univariate.interval,
    "xor": truths.exclusive_or,
}
# On integers these work bit by bit.
_OF_TRUTHS = frozenset({"and", "or", "xor"})

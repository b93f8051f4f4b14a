"""Which lines or planes stand for each nonlinear operation."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..core import ANNOTATED, Node, is_bilinear, is_concrete
from . import _choices as choices
from . import _lines as lines
from . import _univariate as univariate
from ._extension import relax_annotated
from ._logsumexp import relax_log_softmax, relax_logsumexp
from ._normalization import relax_norm, relax_normalize
from ._planes import Family, Lines, Relaxation, constant, either
from ._products import mccormick
from ._registry import registered_interval, registered_relaxation
from ._rounding import largest, num_terms, unit
from ._sets import Bounds
from ._softmax import relax_softmax
from ._steep import STEEP, finite_derivatives
from ._univariate import usable

Shape = Callable[..., Family]


def relax(node: Node, operands: list[Any], bounds: list[Bounds]) -> Relaxation:
    """Lines or planes round a nonlinear node; its own interval where it has no rule.

    Args:
        node: A node that is not affine.
        operands: `Bounds` for each variable operand, the array of each constant.
        bounds: The bounds of the node's outputs.
    """
    if node.name in STEEP:
        operands = [finite_derivatives(x) for x in operands]
    rule = registered_relaxation(node.name)
    if rule is None and registered_interval(node.name) is None:
        rule = mccormick if is_bilinear(node) else _RULES.get(node.name)
    if rule is not None:
        return rule(node, *operands)
    if node.name == ANNOTATED:
        return relax_annotated(node, operands, bounds[0])
    if node.name == "univariate":
        return univariate.relax(node, operands[0], bounds[0])
    shape = _shape(node)
    if shape is None:
        return constant(bounds[0])
    found = _apart(node, shape(_function(node, operands), operands[0]), bounds[0])
    return found.map(lambda lines: usable(lines, bounds[0]))


def _apart(node: Node, family: Family, bounds: Bounds) -> Family:
    """Lines moved apart where a function is less accurate than lines allow for."""
    error = unit(num_terms(node), bounds.lower.dtype)
    if error <= unit(16, bounds.lower.dtype):
        return family
    lost = error * largest(bounds)
    return family.map(
        lambda found: found._replace(
            lower_bias=found.lower_bias - lost, upper_bias=found.upper_bias + lost
        )
    )


def has_lines(node: Node) -> bool:
    """Whether the lines or planes of an operation are more than its interval."""
    known = node.name in _RULES or _shape(node) is not None
    return known or registered_interval(node.name) is not None


def _function(node: Node, operands: list[Any]) -> Callable[[Any], Any]:
    """The node as a function of its first operand."""
    return lambda x: node.evaluate(x, *operands[1:])[0]


def _early(x: Bounds) -> Any:
    """Keeps the tangent of exp positive at the lower end, so that 1 / it may follow."""
    return jnp.minimum(lines.middle(x), x.lower + 0.99)


def _reversed_sigmoidal(f: Callable[[Any], Any], x: Bounds) -> Family:
    return lines.sigmoidal(lambda v: -f(v), x).map(lines.negated)


def _by_sign(f: Callable[[Any], Any], x: Bounds) -> Family:
    """Convex above 0 and concave below, with a pole between: 1 / x."""
    return either(x.lower > 0, lines.convex(f, x), lines.concave(f, x))


def _leaky(node: Node, x: Bounds, slope: Any) -> Family:
    direct = choices.rectifier(x, slope)
    if is_concrete(slope) and bool(np.all(np.asarray(slope) <= 1)):
        return direct
    # Beyond 1 the kink is concave: slope * max(z, z / slope) of z = -x, turned round.
    safe = jnp.where(slope > 1, slope, 1)
    turned = choices.rectifier(Bounds(-x.upper, -x.lower), 1 / safe)
    concave = turned.map(
        lambda found: lines.negated(lines.mirrored(Lines(*(safe * v for v in found))))
    )
    return either(slope > 1, concave, direct)


def _elu(node: Node, x: Bounds, alpha: Any) -> Family:
    f = _function(node, [x, alpha])
    usual = either(alpha > 1, lines.sigmoidal(f, x), lines.convex(f, x))
    ends = jnp.stack([f(x.lower), f(x.upper), f(jnp.clip(0, x.lower, x.upper))])
    flat = jnp.zeros_like(x.lower)
    constant = Family((), lambda _: Lines(flat, ends.min(0), flat, ends.max(0)))
    return either(alpha < 0, constant, usual)


def _celu(node: Node, x: Bounds, alpha: Any) -> Family:
    f = _function(node, [x, alpha])
    return either(alpha < 0, lines.concave(f, x), lines.convex(f, x))


def _integer_power(node: Node, x: Bounds) -> Family:
    power, f = node.params["y"], _function(node, [x])
    if power > 0:
        return lines.convex(f, x) if power % 2 == 0 else _reversed_sigmoidal(f, x)
    return lines.convex(f, x) if power % 2 == 0 else _by_sign(f, x)


def _shape(node: Node) -> Shape | None:
    """How the graph of a function of one variable bends, where it is known."""
    if node.name == "real_pow":
        return lines.concave if 0 < node.params["y"] < 1 else lines.convex
    return _SHAPES.get(node.name)


_SHAPES: dict[str, Shape] = {
    "asinh": lines.sigmoidal,
    "atan": lines.sigmoidal,
    "erf": lines.sigmoidal,
    "erfc": _reversed_sigmoidal,
    "exp": partial(lines.convex, at=_early),
    "exp2": lines.convex,
    "expm1": lines.convex,
    "log": lines.concave,
    "log1p": lines.concave,
    "logistic": lines.sigmoidal,
    "reciprocal": _by_sign,
    "rsqrt": lines.convex,
    "selu": lines.sigmoidal,
    "sinh": _reversed_sigmoidal,
    "softplus": lines.convex,
    "sqrt": lines.concave,
    "square": lines.convex,
    "tanh": lines.sigmoidal,
}
_RULES: dict[str, Callable[..., Relaxation]] = {
    "abs": lambda node, x: choices.rectifier(x, -1.0),
    "celu": _celu,
    "elu": _elu,
    "integer_pow": _integer_power,
    "leaky_relu": _leaky,
    "log_softmax": relax_log_softmax,
    "logsumexp": relax_logsumexp,
    "max": choices.maximum,
    "min": choices.minimum,
    "norm": relax_norm,
    "normalize": relax_normalize,
    "reduce_max": choices.reduce_max,
    "reduce_min": choices.reduce_min,
    "reduce_window_max": choices.reduce_window_max,
    "reduce_window_min": choices.reduce_window_min,
    "select_n": choices.select,
    "softmax": relax_softmax,
}

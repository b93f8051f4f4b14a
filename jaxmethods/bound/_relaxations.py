"""Which lines or planes stand for each nonlinear operation."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..core import Node, is_bilinear, is_concrete
from . import _choices as choices
from . import _lines as lines
from ._planes import Lines, Relaxation, constant
from ._products import mccormick
from ._registry import registered_interval, registered_relaxation
from ._sets import Bounds

Shape = Callable[..., Lines]


def relax(node: Node, operands: list[Any], bounds: list[Bounds]) -> Relaxation:
    """Lines or planes round a nonlinear node; its own interval where it has no rule.

    Args:
        node: A node that is not affine.
        operands: `Bounds` for each variable operand, the array of each constant.
        bounds: The bounds of the node's outputs.
    """
    rule = registered_relaxation(node.name)
    if rule is None and registered_interval(node.name) is None:
        rule = mccormick if is_bilinear(node) else _RULES.get(node.name)
    if rule is not None:
        return rule(node, *operands)
    shape = _SHAPES.get(node.name)
    if shape is None:
        return constant(bounds[0])
    found = shape(_function(node, operands), operands[0])
    return _finite(found, bounds[0])


def _function(node: Node, operands: list[Any]) -> Callable[[Any], Any]:
    """The node as a function of its first operand."""
    return lambda x: node.evaluate(x, *operands[1:])[0]


def _finite(found: Lines, bounds: Bounds) -> Lines:
    """Constant lines where a slope overflows or an end is infinite."""
    usable = jnp.isfinite(found.lower_slope) & jnp.isfinite(found.lower_bias)
    below = jnp.where(usable, found.lower_slope, 0)
    base = jnp.where(usable, found.lower_bias, bounds.lower)
    usable = jnp.isfinite(found.upper_slope) & jnp.isfinite(found.upper_bias)
    above = jnp.where(usable, found.upper_slope, 0)
    return Lines(below, base, above, jnp.where(usable, found.upper_bias, bounds.upper))


def _where(test: Any, first: Lines, second: Lines) -> Lines:
    pairs = zip(first, second, strict=True)
    return Lines(*(jnp.where(test, a, b) for a, b in pairs))


def _early(x: Bounds) -> Any:
    """Keeps the tangent of exp positive at the lower end, so that 1 / it may follow."""
    return jnp.minimum(lines.middle(x), x.lower + 0.99)


def _reversed_sigmoidal(f: Callable[[Any], Any], x: Bounds) -> Lines:
    return lines.negated(lines.sigmoidal(lambda v: -f(v), x))


def _by_sign(f: Callable[[Any], Any], x: Bounds) -> Lines:
    """Convex above 0 and concave below, with a pole between: 1 / x."""
    return _where(x.lower > 0, lines.convex(f, x), lines.concave(f, x))


def _leaky(node: Node, x: Bounds, slope: Any) -> Lines:
    direct = choices.rectifier(x, slope)
    if is_concrete(slope) and bool(np.all(np.asarray(slope) <= 1)):
        return direct
    # Beyond 1 the kink is concave: slope * max(z, z / slope) of z = -x, turned round.
    safe = jnp.where(slope > 1, slope, 1)
    turned = choices.rectifier(Bounds(-x.upper, -x.lower), 1 / safe)
    scaled = Lines(*(safe * part for part in turned))
    concave = lines.negated(lines.mirrored(scaled))
    return _where(slope > 1, concave, direct)


def _elu(node: Node, x: Bounds, alpha: Any) -> Lines:
    f = _function(node, [x, alpha])
    usual = _where(alpha > 1, lines.sigmoidal(f, x), lines.convex(f, x))
    ends = jnp.stack([f(x.lower), f(x.upper), f(jnp.clip(0, x.lower, x.upper))])
    flat = jnp.zeros_like(x.lower)
    return _where(alpha < 0, Lines(flat, ends.min(0), flat, ends.max(0)), usual)


def _integer_power(node: Node, x: Bounds) -> Lines:
    power, f = node.params["y"], _function(node, [x])
    if power > 0:
        return lines.convex(f, x) if power % 2 == 0 else _reversed_sigmoidal(f, x)
    return lines.convex(f, x) if power % 2 == 0 else _by_sign(f, x)


_SHAPES: dict[str, Shape] = {
    "asinh": lines.sigmoidal,
    "atan": lines.sigmoidal,
    "celu": lines.convex,
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
    "elu": _elu,
    "integer_pow": _integer_power,
    "leaky_relu": _leaky,
    "max": choices.maximum,
    "min": choices.minimum,
    "reduce_max": choices.reduce_max,
    "reduce_min": choices.reduce_min,
    "reduce_window_max": choices.reduce_window_max,
    "reduce_window_min": choices.reduce_window_min,
    "select_n": choices.select,
}

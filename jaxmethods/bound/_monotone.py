"""Intervals of monotone operations: the ends are the values at the ends.

An operation that is defined on a part of the line only is bounded there; an interval
that leaves the part is an error where its values are known, else (-inf, inf).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..core import Node, is_concrete, source_line
from ._products import without_nan
from ._rounding import largest
from ._sets import Bounds

# Non-decreasing in every operand.
INCREASING = frozenset(
    {
        *("add", "add_any", "concatenate", "pad", "scatter", "scatter-add", "stack"),
        *("dynamic_update_slice", "broadcast_in_dim", "copy", "scatter-min"),
        *("copy_p", "cumsum", "device_put", "dynamic_slice", "expand_dims", "gather"),
        *("optimization_barrier", "pbroadcast", "pvary", "reduce_sum", "reshape"),
        *("reduce_window_sum", "reshard", "rev", "squeeze", "scatter-max", "clamp"),
        *("sharding_constraint", "slice", "split", "tile", "name", "transpose"),
        *("max", "min", "reduce_max", "reduce_min", "cummax", "cummin", "unstack"),
        *("reduce_window_max", "reduce_window_min", "and", "or", "reduce_and"),
        *("reduce_or", "sign", "floor", "ceil", "round", "exp", "exp2", "expm1"),
        *("tanh", "logistic", "erf", "atan", "asinh", "sinh", "cbrt", "softplus"),
        *("selu", "reduce_precision"),
    }
)
# Monotone on each side of a point.
VERTICES = {
    "abs": 0.0,
    "bessel_i0e": 0.0,
    "celu": 0.0,
    "cosh": 0.0,
    "elu": 0.0,
    "gelu": -0.7517915246935644,
    "gelu_tanh": -0.7524614220710163,
    "leaky_relu": 0.0,
    "silu": -1.278464542761074,
    "square": 0.0,
}
# Those of them that are 0 far below their vertex.
_VANISHING = frozenset({"gelu", "gelu_tanh", "silu"})
# Beyond, 1 + tanh in GELU is 0 or 2 in every dtype.
_FAR = 16.0
# Which operands say where to read or write.
_FIRST_INDEX = {
    "dynamic_slice": 1,
    "dynamic_update_slice": 2,
    "gather": 1,
    "scatter": 1,
    "scatter-add": 1,
    "scatter-max": 1,
    "scatter-min": 1,
}


class _Domain(NamedTuple):
    """Where a function is defined.

    Attributes:
        low: The lower limit.
        high: The upper limit.
        closed: Whether the function is finite at the limits.
        vertex: Where the function turns, from falling to rising; None: it rises.
        falls: Whether the function falls everywhere.
    """

    low: float
    high: float = np.inf
    closed: bool = False
    vertex: float | None = None
    falls: bool = False


DOMAINS = {
    "acos": _Domain(-1.0, 1.0, closed=True, falls=True),
    "acosh": _Domain(1.0, closed=True),
    "asin": _Domain(-1.0, 1.0, closed=True),
    "atanh": _Domain(-1.0, 1.0),
    "digamma": _Domain(0.0),
    "erf_inv": _Domain(-1.0, 1.0),
    "lgamma": _Domain(0.0, vertex=1.4616321449683622),
    "log": _Domain(0.0),
    "log1p": _Domain(-1.0),
    "rsqrt": _Domain(0.0, falls=True),
    "sqrt": _Domain(0.0, closed=True),
}


def _to_the_end(x: Bounds) -> Any:
    """How far an interval is from -1 and 1, some units in the last place at least."""
    return jnp.maximum(1 - largest(x), jnp.finfo(x.lower.dtype).eps / 2)


# What these lose beyond units in the last place, in units of 1: two about their zeros,
# the others near the ends of their domain.
_LOST: dict[str, Callable[[Bounds], Any]] = {
    "acos": lambda x: 2 / jnp.sqrt(_to_the_end(x)),
    "asin": lambda x: 2 / jnp.sqrt(_to_the_end(x)),
    "digamma": lambda x: 8,
    "erf_inv": lambda x: 2 / _to_the_end(x),
    "lgamma": lambda x: 32,
}


def ends(operands: Sequence[Any], side: int) -> list[Any]:
    """One end of each operand; a constant is both of its ends."""
    return [x[side] if isinstance(x, Bounds) else x for x in operands]


def increasing(node: Node, *operands: Any) -> list[Bounds]:
    """An operation that is non-decreasing in every operand."""
    first = _FIRST_INDEX.get(node.name)
    stop = 2 if node.name.startswith(("gather", "scatter")) else None
    if first is not None and any(isinstance(x, Bounds) for x in operands[first:stop]):
        raise NotImplementedError(
            f"the primitive {node.name!r} at {source_line(node.equation)} has indices "
            "that depend on a set; wanted indices that no set reaches: choose with "
            "jnp.where, or multiply by jax.nn.one_hot."
        )
    low, high = (node.evaluate(*ends(operands, side)) for side in (0, 1))
    return [Bounds(a, b) for a, b in zip(low, high, strict=True)]


def decreasing(node: Node, *operands: Any) -> list[Bounds]:
    """An operation that is non-increasing in every operand."""
    return [Bounds(b.upper, b.lower) for b in increasing(node, *operands)]


def subtract(node: Node, x: Any, y: Any) -> Bounds:
    """A difference."""
    low, high = ends((x, y), 0), ends((x, y), 1)
    return Bounds(node.evaluate(low[0], high[1])[0], node.evaluate(high[0], low[1])[0])


def with_vertex(node: Node, x: Bounds, *constants: Any) -> Bounds:
    """A function of `VERTICES`, or an even power."""
    if node.name in _VANISHING:
        # At -inf they are 0 but come out as NaN; at the least number they are 0 too.
        least = float(jnp.finfo(x.lower.dtype).min)
        x = Bounds(*(jnp.where(end == -jnp.inf, least, end) for end in x))
    found = turning_at(VERTICES.get(node.name, 0.0), node, x, *constants)
    if node.name != "gelu_tanh":
        return found
    # What 1 + tanh loses; it is 0 or 2 exactly for larger arguments.
    error = 4 * float(jnp.finfo(x.lower.dtype).eps) * jnp.minimum(largest(x), _FAR)
    return Bounds(found.lower - error, found.upper + error)


def turning_at(point: float, node: Node, x: Bounds, *constants: Any) -> Bounds:
    """A function of one variable that may turn at a point, monotone on each side."""
    # At a constant, where compilers need no loop to evaluate it.
    turn = jnp.full_like(x.lower, point)
    a, b, c = (node.evaluate(v, *constants)[0] for v in (x.lower, x.upper, turn))
    c = jnp.where((x.lower <= turn) & (turn <= x.upper), c, a)
    least = jnp.minimum(jnp.minimum(a, b), c)
    return Bounds(least, jnp.maximum(jnp.maximum(a, b), c))


def on_domain(node: Node, x: Bounds) -> Bounds:
    """A function of `DOMAINS`, or a power that is no whole number."""
    domain = DOMAINS.get(node.name) or _domain_of_power(node)
    low, high, _, vertex, falls = domain
    # What is rounded outward from a value at a limit is taken for the limit.
    slack = 8 * float(jnp.finfo(x.lower.dtype).eps) if np.isfinite(high) else 0.0
    if is_concrete(x.lower):
        _check_domain(node, x, domain, slack)
    outside = (x.lower < low - slack) | (x.upper > high + slack)
    inside = Bounds(*(jnp.clip(end, low, high).astype(end.dtype) for end in x))
    if vertex is not None:
        found = turning_at(vertex, node, inside)
    else:
        (found,) = (decreasing if falls else increasing)(node, inside)
    if node.name in _LOST:
        error = float(jnp.finfo(x.lower.dtype).eps) * _LOST[node.name](inside)
        found = Bounds(found.lower - error, found.upper + error)
    found = without_nan(found)
    return Bounds(
        jnp.where(outside, -jnp.inf, found.lower),
        jnp.where(outside, jnp.inf, found.upper),
    )


def _domain_of_power(node: Node) -> _Domain:
    power = node.params["y"]
    return _Domain(0.0, closed=power > 0, falls=power < 0)


def _check_domain(node: Node, x: Bounds, domain: _Domain, slack: float) -> None:
    low, high, closed = domain[:3]
    lowest = np.min(np.asarray(x.lower), initial=np.inf)
    highest = np.max(np.asarray(x.upper), initial=-np.inf)
    below = lowest < low - slack or (lowest <= low and not closed)
    above = highest > high + slack or (highest >= high and not closed)
    if not below and not (above and np.isfinite(high)):
        return
    got = f"down to {lowest:.4g}" if below else f"up to {highest:.4g}"
    least, most = ("at least", "at most") if closed else ("above", "below")
    wanted = f"{least} {low:g}" if below else f"{most} {high:g}"
    name = node.name.removeprefix("real_")
    raise ValueError(
        f"{name} at {source_line(node.equation)} may get values {got} in this set; "
        f"wanted {wanted} everywhere: use a smaller set, or clamp its argument."
    )

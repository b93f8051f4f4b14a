"""Which elementwise operations are smooth, and what their derivatives are."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Node, Variable

Tower = Sequence[Callable[[Any], Any]]  # a function and its derivatives

# Analytic wherever all of their derivatives have finite intervals.
SMOOTH = frozenset(
    {
        *("acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "erf"),
        *("erf_inv", "erfc", "exp", "exp2", "expm1", "log"),
        *("integer_pow", "log1p", "logistic", "rsqrt", "sin", "sinh"),
        *("softplus", "sqrt", "square", "tan", "tanh"),
    }
)
# Continuous, with a slope but for some points: enough for degree 1.
KINKED = frozenset(
    {"abs", "celu", "clamp", "elu", "hard_tanh", "leaky_relu", "max", "min", "selu"}
)


def tower(node: Node, degree: int) -> Tower:
    """An elementwise function and as many derivatives as its model needs."""
    order = 1 if degree == 1 else 3
    if node.name in _CLOSED_FORMS:
        return _CLOSED_FORMS[node.name][: order + 1]

    def value(v: Any) -> Any:
        operands = (v if isinstance(a, Variable) else scalar(a) for a in node.inputs)
        return node.evaluate(*operands)[0]

    found: list[Callable[[Any], Any]] = [value]
    for _ in range(order):
        found.append(_derivative(found[-1]))
    return found


def _derivative(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda v: jax.jvp(fn, (v,), (jnp.ones_like(v),))[1]


def _tanh_slope(v: Any) -> Any:
    return 1 - jnp.square(jnp.tanh(v))


def _logistic_slope(v: Any) -> Any:
    return jax.nn.sigmoid(v) * jax.nn.sigmoid(-v)


def _logistic_bend(v: Any) -> Any:
    return -_logistic_slope(v) * jnp.tanh(v / 2)


# Functions and their derivatives, in forms that intervals are narrow for.
_TANH: Tower = (
    jnp.tanh,
    _tanh_slope,
    lambda v: -2 * jnp.tanh(v) * _tanh_slope(v),
    lambda v: _tanh_slope(v) * (4 - 6 * _tanh_slope(v)),
)
_LOGISTIC: Tower = (
    jax.nn.sigmoid,
    _logistic_slope,
    _logistic_bend,
    lambda v: _logistic_slope(v) * (1 - 6 * _logistic_slope(v)),
)
_CLOSED_FORMS: dict[str, Tower] = {
    "logistic": _LOGISTIC,
    "softplus": (jax.nn.softplus, *_LOGISTIC),
    "tanh": _TANH,
}


def scalar(constant: Any) -> Any:
    """The number that an array is or repeats; None for another array."""
    if isinstance(constant, Variable):
        return None
    if np.shape(constant) == ():
        return constant
    spread = isinstance(constant, np.ndarray) and not any(constant.strides)
    return constant.flat[0] if spread and constant.size else None

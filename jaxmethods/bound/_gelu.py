"""The interval of the derivative of GELU, which turns at two points only.

By interval arithmetic, operation by operation, it is wider and takes most of the time
of a bound on a network of GELUs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._sets import Bounds

# Beyond, the slope is 0 or 1 but for less than the smallest float.
_FAR = 16.0
_SCALE, _CUBIC = float(np.sqrt(2 / np.pi)), 0.044715
_DENSITY = float(1 / np.sqrt(2 * np.pi))


def _slope_of_gelu(x: Any) -> Any:
    """Phi(x) + x phi(x)."""
    return jax.scipy.special.ndtr(x) + _DENSITY * x * jnp.exp(-x * x / 2)


def _slope_of_gelu_tanh(x: Any) -> Any:
    """Of x s(z), with s the logistic function and z = 2 sqrt(2 / pi) (x + c x^3)."""
    square = x * x
    z = 2 * _SCALE * x * (1 + _CUBIC * square)
    rate = 2 * _SCALE * (1 + 3 * _CUBIC * square)
    bend = jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)
    return jax.nn.sigmoid(z) + x * rate * bend


# Each falls up to -at, rises up to at and falls beyond; the slopes there are the
# extreme ones, `most` and 1 - `most`.
_TURNS: dict[str, tuple[Callable[[Any], Any], float, float]] = {
    "gelu": (_slope_of_gelu, float(np.sqrt(2)), 1.128904145185155),
    "gelu_tanh": (_slope_of_gelu_tanh, 1.418504008790828, 1.128993068658772),
}


def slope_of_gelu(name: str) -> Callable[[Bounds], Bounds] | None:
    """From an interval to one of slopes of "gelu" or "gelu_tanh"; None of others."""
    if name not in _TURNS:
        return None
    slope, at, most = _TURNS[name]

    def slopes(x: Bounds) -> Bounds:
        dtype = x.lower.dtype
        wide = jnp.promote_types(dtype, jnp.float32)
        x = Bounds(*(end.astype(wide) for end in x))
        a, b = (slope(jnp.clip(end, -_FAR, _FAR)) for end in x)

        def holds(point: float) -> Any:
            # The point is known to some units in the last place only.
            near = 4 * jnp.finfo(a.dtype).eps * abs(point)
            return (x.lower <= point + near) & (point - near <= x.upper)

        least, largest = jnp.minimum(a, b), jnp.maximum(a, b)
        least = jnp.where(holds(-at), 1 - most, least)
        largest = jnp.where(holds(at), most, largest)
        # An argument of z loses |z| units in the last place of a factor that is at most
        # 1 / |z|: some units of 1 in all.
        error = 64 * float(jnp.finfo(wide).eps)
        if wide != dtype:
            # A cast moves slopes, which are at most 1.13, by half of that.
            error += 1.2 * float(jnp.finfo(dtype).eps)
        unknown = jnp.isnan(least) | jnp.isnan(largest)
        return Bounds(
            jnp.where(unknown, -jnp.inf, least - error).astype(dtype),
            jnp.where(unknown, jnp.inf, largest + error).astype(dtype),
        )

    return slopes

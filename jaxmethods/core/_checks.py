"""Argument checks: what was got, what is wanted, what to do, in one sentence."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_concrete(x: Any) -> bool:
    """Whether the values of `x` can be looked at now (no tracer)."""
    return not isinstance(x, jax.core.Tracer)


def describe(x: Any) -> str:
    """The dtype and shape of an array, or the type of anything else: `float32[3,4]`."""
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"{x.dtype}[{','.join(map(str, x.shape))}]"
    return f"{type(x).__name__} {x!r}"[:80]


def check_floating(x: Any, name: str) -> jax.Array:
    """Returns `x` as an array, or raises TypeError unless its dtype is floating."""
    if isinstance(x, str):  # jax would read it as the name of a dtype
        raise TypeError(
            f"{name} is {describe(x)}; wanted an array of a floating dtype."
        )
    array = jnp.asarray(x)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(
            f"{name} is {describe(array)}; wanted a real floating dtype: pass real and "
            "imaginary parts apart."
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{name} is {describe(array)}; wanted a floating dtype: cast it with "
            ".astype(jnp.float32)."
        )
    return array


def check_choice(value: Any, choices: Sequence[Any], name: str) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; wanted one of {list(choices)}.")


def check_integer(value: Any, name: str, low: int, high: int | float = math.inf) -> int:
    """Returns `value` as an int, or raises unless it is one in low..high."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {describe(value)}; wanted a Python int.")
    if not low <= value <= high:
        wanted = f"{low}..{high}" if high < math.inf else f"at least {low}"
        raise ValueError(f"{name} is {value}; wanted {wanted}.")
    return int(value)


def check_nonnegative(value: Any, name: str) -> None:
    """Raises where a `value` is no real number, or, concrete, negative or NaN."""
    dtype = getattr(value, "dtype", None) or np.asarray(value).dtype
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.integer, jnp.floating)):
        raise TypeError(
            f"{name} is {describe(value)}; wanted a real number, 0 or more."
        )
    if is_concrete(value) and not bool(np.all(np.asarray(value) >= 0)):
        raise ValueError(
            f"{name} is {np.min(np.asarray(value))}; wanted 0 or more, no NaN."
        )


def check_fraction(value: Any, name: str) -> None:
    """Raises unless `value` is a Python number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} is {describe(value)}; wanted a Python float.")
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}; wanted 0 <= {name} < 1.")


def check_positive(value: Any, name: str) -> None:
    """Raises unless `value` is a Python number above 0 and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} is {describe(value)}; wanted a Python number.")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; wanted a finite number above 0.")


def check_key(key: Any, name: str = "key") -> None:
    """Raises TypeError unless `key` is a typed key made by `jax.random.key`."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"{name} is {describe(key)}; wanted a typed key: jax.random.key(0)."
        )

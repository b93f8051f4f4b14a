"""Checks of what policies and critics return, and of options."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import (
    check_floating,
    check_key,
    check_nonnegative,
    describe,
    is_concrete,
    vary_as,
)


def check_vector(value: Any, name: str) -> jax.Array:
    """Returns the result of a policy as an array, or raises unless it is a vector."""
    if getattr(value, "ndim", None) != 1 or not value.size:
        raise ValueError(
            f"{name} is {describe(value)}; wanted a vector (A,) of at least one action "
            "for one state: batch with vmap."
        )
    return check_floating(value, name)


def check_scalar(value: Any, name: str) -> jax.Array:
    """Returns the result of a critic as an array, or raises unless it is a scalar."""
    if getattr(value, "ndim", None) != 0:
        raise ValueError(
            f"{name} is {describe(value)}; wanted a scalar for one state: take the "
            "entry, value[0], and batch with vmap."
        )
    return check_floating(value, name)


def check_sigma(sigma: Any, action: jax.Array) -> jax.Array:
    """Returns standard deviations that fit an action (A,), or raises.

    Args:
        sigma: A number above 0, or one an action.
        action: The mean action, (A,).

    Raises:
        ValueError: Another shape; a concrete value is not above 0.
    """
    check_nonnegative(sigma, "sigma")
    if np.shape(sigma) not in ((), action.shape):
        raise ValueError(
            f"sigma has shape {np.shape(sigma)} for actions of shape {action.shape}; "
            "wanted one number, or one an action."
        )
    if is_concrete(sigma) and not np.all(np.asarray(sigma) > 0):
        raise ValueError("sigma holds 0; wanted standard deviations above 0.")
    return jnp.asarray(sigma, action.dtype)


def check_share(value: Any, name: str) -> None:
    """Raises unless `value` is one number, where concrete in [0, 1]."""
    check_nonnegative(value, name)
    if np.shape(value):
        raise ValueError(
            f"{name} is {describe(value)}; wanted one number: batch with vmap."
        )
    # A schedule may end at 1 but for rounding.
    if is_concrete(value) and float(value) > 1 + 1e-6:
        raise ValueError(f"{name} is {value}; wanted a share, 0..1.")


def check_gamma(gamma: Any) -> None:
    """Raises unless a discount is one number, where concrete in [0, 1)."""
    check_nonnegative(gamma, "gamma")
    if np.shape(gamma):
        raise ValueError(
            f"gamma is {describe(gamma)}; wanted one number: batch with vmap."
        )
    if is_concrete(gamma) and not float(gamma) < 1:
        raise ValueError(f"gamma is {gamma}; wanted a discount, 0 <= gamma < 1.")


def check_drawn(key: Any, what: str) -> None:
    """Raises unless a key is given to what cannot do without one."""
    if key is None:
        raise ValueError(
            f"key is None, and {what}; wanted a typed key: jax.random.key(0)."
        )
    check_key(key)


def vary_with(x: Any, *others: Any) -> Any:
    """Casts a value to vary over the mesh axes over which one of the others does."""
    return functools.reduce(vary_as, map(jax.typeof, others), x)

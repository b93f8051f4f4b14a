"""Balls of inputs: projection that rounding cannot leave, ascent, random starts.

Every function takes the norm by name: "linf" is the cube |x' - x| <= eps, "l2" the
Euclidean ball, one an input. Lengths are computed in float32 at least, and a point is
rounded *towards* the centre, so |x' - x| <= eps holds in the dtype of `x` for any eps,
bfloat16 included, not only up to the spacing of floats around `x`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import (
    check_choice,
    check_floating,
    check_nonnegative,
    describe,
    is_concrete,
)

NORMS = ("linf", "l2")


def check_inputs(x: Any, norm: str, bounds: tuple[Any, Any]) -> jax.Array:
    """Returns `x` as an array, or raises where it cannot be attacked.

    Args:
      x: A batch of floating inputs, (B, ...).
      norm: "linf" or "l2".
      bounds: The least and the greatest value of an entry.

    Returns:
      `x` as an array.

    Raises:
      TypeError: `x` is not floating.
      ValueError: Unknown norm; no batch axis; bounds out of order; a concrete `x` has
        entries outside the bounds.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxmethods.robust.balls import check_inputs
      >>> check_inputs(jnp.zeros((2, 3)), "l2", (0.0, 1.0)).shape
      (2, 3)
    """
    check_choice(norm, NORMS, "norm")
    x = check_floating(x, "x")
    if x.ndim == 0:
        raise ValueError(f"x is {describe(x)}; wanted a batch (B, ...): x[None].")
    low, high = bounds
    if is_concrete(low) and is_concrete(high) and not low < high:
        raise ValueError(f"bounds is {bounds}; wanted (low, high) with low < high.")
    if all(map(is_concrete, (x, low, high))) and x.size:
        least, most = np.asarray(x).min(), np.asarray(x).max()
        if least < low or most > high:
            raise ValueError(
                f"x is {describe(x)} with entries in [{least}, {most}], outside "
                f"bounds {bounds}: pass the bounds of the data, or clip x."
            )
    return x


def per_input(value: Any, x: jax.Array, name: str) -> jax.Array:
    """A scalar, or one number an input, shaped to broadcast against `x`.

    Args:
      value: Scalar or (B,), 0 or more.
      x: (B, ...).
      name: What errors call it.

    Returns:
      (1, 1, ...) or (B, 1, ...), float32 at least.

    Raises:
      ValueError: Another shape; a concrete value is negative or NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxmethods.robust.balls import per_input
      >>> per_input(jnp.array([0.1, 0.2]), jnp.zeros((2, 8, 8)), "eps").shape
      (2, 1, 1)
    """
    check_nonnegative(value, name)
    array = jnp.asarray(value, _wide(x.dtype))
    if array.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"{name} is {describe(array)} for x {describe(x)}; wanted a scalar or "
            f"one number an input, shape ({len(x)},): vmap over other axes."
        )
    return array.reshape(*(array.shape or (1,)), *(1,) * (x.ndim - 1))


def direction(gradient: jax.Array, norm: str, floor: float = 0.0) -> jax.Array:
    """The move of length 1 in `norm` that raises the loss most.

    sign(g) for linf, g / (||g|| + floor) for l2; zero where the gradient is, and where
    it is NaN, as that of a norm at 0. Without a floor only the direction of `gradient`
    counts, however faint it is; where it is infinite, only its infinite entries.

    Args:
      gradient: (B, ...) floating.
      norm: "linf" or "l2".
      floor: Length at which an l2 gradient is taken for rounding noise.

    Returns:
      (B, ...), float32 at least.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxmethods.robust.balls import direction
      >>> direction(jnp.array([[3e-30, -4e-30]]), "l2").round(3)
      Array([[ 0.6, -0.8]], dtype=float32)
    """
    gradient = gradient.astype(_wide(gradient.dtype))
    gradient = jnp.where(jnp.isnan(gradient), 0, gradient)
    if norm == "linf":
        return jnp.sign(gradient)
    infinite = jnp.isinf(gradient)
    over = infinite.any(tuple(range(1, gradient.ndim)), keepdims=True)
    gradient = jnp.where(over, infinite * jnp.sign(gradient), gradient)
    length = l2_norm(gradient)
    return gradient * (1 / jnp.where(length > 0, length + floor, 1))


def projection(
    x: jax.Array, eps: jax.Array, norm: str, bounds: tuple[Any, Any]
) -> Callable[[jax.Array], jax.Array]:
    """The map onto the ball around `x`, then onto the bounds.

    In this order, as in foolbox and torchattacks: for l2 the other order is weaker.

    Args:
      x: Centres, (B, ...), within the bounds.
      eps: Radii, broadcastable against `x`.
      norm: "linf" or "l2".
      bounds: The least and the greatest value of an entry.

    Returns:
      A function of points (B, ...) of any floating dtype, to the dtype of `x`. Where
      eps is 0 it returns `x` exactly.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxmethods.robust.balls import projection
      >>> project = projection(jnp.zeros((1, 2)), 1.0, "l2", (0.0, 1.0))
      >>> project(jnp.array([[3.0, -4.0]])).round(3)
      Array([[0.6, 0. ]], dtype=float32)
    """
    wide = _wide(x.dtype)
    eps = jnp.asarray(eps, wide)
    if norm == "linf":
        lower = jnp.clip(_step_within(x, -eps), *bounds)
        upper = jnp.clip(_step_within(x, eps), *bounds)
        return lambda point: jnp.clip(point, lower, upper).astype(x.dtype)

    def onto_ball(point):
        point = _rounded(point, x.dtype)
        move = point.astype(wide) - x.astype(wide)
        length = l2_norm(move)
        outside = length > eps
        pulled = _step_within(x, move * (eps / jnp.where(outside, length, 1)))
        return jnp.clip(jnp.where(outside, pulled, point), *bounds)

    return onto_ball


def random_start(key: jax.Array, x: jax.Array, eps: jax.Array, norm: str) -> jax.Array:
    """Points drawn uniformly from the balls around `x`.

    For l2 a Gaussian direction, and a radius eps u^(1/D) with u uniform in [0, 1): a
    radius eps u would crowd the centre.

    Args:
      key: Typed key.
      x: Centres, (B, ...), D numbers each.
      eps: Radii, broadcastable against `x`.
      norm: "linf" or "l2".

    Returns:
      (B, ...), float32 at least; not yet within any bounds.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxmethods.robust.balls import random_start
      >>> start = random_start(jax.random.key(0), jnp.zeros((1000, 2)), 1.0, "l2")
      >>> round(float(jnp.mean((start**2).sum(1) < 0.5)), 1)  # half of the disc's area
      0.5
    """
    wide = _wide(x.dtype)
    if norm == "linf":
        return x + eps * jax.random.uniform(key, x.shape, wide, -1, 1)
    towards, radius = jax.random.split(key)
    normal = jax.random.normal(towards, x.shape, wide)
    uniform = jax.random.uniform(radius, (len(x), *(1,) * (x.ndim - 1)), wide)
    shrink = uniform ** (1 / math.prod(x.shape[1:]))
    return x + eps * shrink * direction(normal, norm)


def l2_norm(x: jax.Array) -> jax.Array:
    """The Euclidean length of every input, also where its square underflows.

    Args:
      x: (B, ...) floating.

    Returns:
      (B, 1, ...).

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxmethods.robust.balls import l2_norm
      >>> print(l2_norm(jnp.array([[3e-30, 4e-30], [0.0, 0.0]])))
      [[5.e-30]
       [0.e+00]]
    """
    flat = x.reshape(len(x), math.prod(x.shape[1:]))
    # Scaled by the sum of sizes: the largest size would cost five times the sum.
    total = jnp.sum(jnp.abs(flat), axis=1, keepdims=True)
    scaled = flat * (1 / jnp.where(total > 0, total, 1))
    length = total * jnp.sqrt(jnp.sum(scaled**2, axis=1, keepdims=True))
    return length.reshape(len(x), *(1,) * (x.ndim - 1))


def _step_within(x: jax.Array, move: jax.Array) -> jax.Array:
    """`x + move` in the dtype of `x`, no entry farther from `x` than `move` says."""

    def is_too_far(point: jax.Array) -> jax.Array:
        distance = jnp.abs(point.astype(move.dtype) - x.astype(move.dtype))
        return distance > jnp.abs(move)

    moved = _rounded(x.astype(move.dtype) + move, x.dtype)
    nearer = jnp.nextafter(moved, x)
    if x.dtype != move.dtype:
        # Rounding takes subnormal numbers to zero: many numbers away, not one.
        nearer = jnp.where(is_too_far(nearer), x, nearer)
    return jnp.where(is_too_far(moved), nearer, moved)


def _rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """A cast that XLA may not skip, as it may between a bfloat16 and a float32."""
    info = jnp.finfo(dtype)
    if x.dtype != dtype:
        x = lax.reduce_precision(x, exponent_bits=info.nexp, mantissa_bits=info.nmant)
    return x.astype(dtype)


def _wide(dtype: Any) -> Any:
    """The dtype for lengths: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)

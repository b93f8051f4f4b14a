"""DCT between layers: activations below a threshold do not cross to the next device."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import check_floating, check_fraction, is_concrete
from ..kernels import magnitude_of_rank, pack_bits, unpack_bits


def threshold_cut(x: jax.Array, threshold: Any) -> jax.Array:
    """Zeroes what is below a threshold, and the same entries of the gradient.

    `x` where |x| >= threshold, else 0. The gradient is multiplied by the same mask,
    kept as one bit an entry: the derivative of the cut wherever no |x| is the
    threshold itself. The threshold takes no gradient.

    Args:
        x: floating, any shape.
        threshold: scalar, 0 or more; may be traced.

    Returns:
        The shape and dtype of x.

    Raises:
        TypeError: x is not floating.
        ValueError: threshold, where concrete, is negative or NaN.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.array([0.5, -2.0, 0.1])
        >>> jax.grad(lambda x: threshold_cut(x, 0.5).sum())(x)
        Array([1., 1., 0.], dtype=float32)

    References:
        Gupta et al. 2020, arXiv:2010.08899, section 3.2.
    """
    x = check_floating(x, "x")
    if is_concrete(threshold) and not bool(np.asarray(threshold >= 0).all()):
        raise ValueError(f"threshold is {threshold}; wanted 0 or more, no NaN.")
    return _cut(x, jnp.asarray(threshold).astype(x.dtype))


@jax.custom_vjp
def _cut(x: jax.Array, threshold: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(x) >= threshold, x, 0)


def _forward(x: jax.Array, threshold: jax.Array) -> tuple[jax.Array, Any]:
    mask = jnp.abs(x) >= threshold
    return jnp.where(mask, x, 0), (pack_bits(mask.reshape(-1)), 0 * threshold)


def _backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    words, zero = kept
    mask = unpack_bits(words, gradient.size).reshape(gradient.shape)
    return jnp.where(mask, gradient, 0), zero


_cut.defvjp(_forward, _backward)


def quantile_threshold(x: jax.Array, sparsity: float) -> jax.Array:
    """The magnitude below which a share `sparsity` of the entries lies.

    The `floor(sparsity n)`-th smallest of |x|, counted from 0, over all n entries of a
    block: `threshold_cut` then keeps `n - floor(sparsity n)` of them, and ties.

    Args:
        x: floating, any shape with at least one entry.
        sparsity: in [0, 1).

    Returns:
        Scalar of the dtype of x, without a gradient.

    Raises:
        TypeError: x is not floating.
        ValueError: sparsity is outside [0, 1), or x is empty.

    Complexity:
        Some 31 counting reads of x in float32; renew it every few hundred steps.

    Example:
        >>> import jax.numpy as jnp
        >>> quantile_threshold(jnp.array([4.0, -3.0, 2.0, 1.0]), 0.5)
        Array(3., dtype=float32)

    References:
        Gupta et al. 2020, arXiv:2010.08899, section 3.2.
    """
    x = check_floating(x, "x")
    check_fraction(sparsity, "sparsity")
    if not x.size:
        raise ValueError(f"x has the shape {x.shape}; wanted at least one entry.")
    rank = x.size - 1 - math.floor(sparsity * x.size)
    flat = jax.lax.stop_gradient(x).reshape(-1)
    return magnitude_of_rank(flat, rank)

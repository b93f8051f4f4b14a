"""What every stack of k CountSketches shares, whichever way its buckets came."""

from typing import Any

import jax
import jax.numpy as jnp

from ._debiasing import debias_independent


def stack_rows(num_rows: int, k: int) -> int:
    """The rows m / k of one CountSketch of the stack; ValueError unless k divides m."""
    if num_rows % k:
        raise ValueError(
            f"m is {num_rows} and k is {k}; wanted m a multiple of k, the number of "
            f"stacked blocks (4 by default): take m = {-(-num_rows // k) * k}."
        )
    return num_rows // k


def join_stacks(sums: jax.Array, dtype: Any) -> jax.Array:
    """(k, m / k, d) sums -> (m, d), scaled by 1 / sqrt k."""
    k, size, width = sums.shape
    return (sums.reshape(k * size, width) * k**-0.5).astype(dtype)


def split_stacks(matrix: jax.Array, k: int) -> jax.Array:
    """(m, d) -> (k, m / k, d), scaled by 1 / sqrt k, in float32 or wider."""
    dtype = jnp.promote_types(matrix.dtype, jnp.float32)
    rows, width = matrix.shape
    return matrix.astype(dtype).reshape(k, rows // k, width) * k**-0.5


def debias_stack(num_rows: int, k: int, d: Any) -> Any:
    """(m - d) / m, the scalar that multiplies inv((S A)^T S A).

    Args:
        num_rows: m.
        k: the number of stacked CountSketches.
        d: columns of A, or its effective dimension; a traced one is not checked.

    Returns:
        The scalar, in 0..1.

    Raises:
        ValueError: k = 1, whose bias no scalar mends; or d >= m.
    """
    if k < 2:
        raise ValueError(
            f"a countsketch (k = {k}) of {num_rows} rows has no debiasing scalar: two "
            f"rows of high leverage may share their only bucket; use sparse_stack "
            f"with k >= 2."
        )
    return debias_independent(num_rows, d)

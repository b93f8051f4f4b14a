"""What estimators and solvers ask of a matrix, and do with it, alike."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import JAXSparse

from ..core import check_floating, check_nonnegative, describe, is_concrete


def check_matrix(matrix: Any, name: str) -> jax.Array:
    """Returns a floating matrix with entries, or raises TypeError or ValueError."""
    if isinstance(matrix, JAXSparse):
        raise TypeError(
            f"{name} is a sparse {type(matrix).__name__}{list(matrix.shape)}; wanted a "
            f"dense matrix: only products of operators take BCOO; {name}.todense() "
            f"makes one."
        )
    array = check_floating(matrix, name)
    if array.ndim != 2 or not array.size:
        raise ValueError(
            f"{name} is {describe(array)}; wanted a matrix with at least one row and "
            f"one column (for a batch of matrices use jax.vmap)."
        )
    return array


def check_ridge(ridge: Any) -> None:
    """Raises unless `ridge` is a real scalar, finite and 0 or more where it is seen."""
    if jnp.ndim(ridge):
        raise ValueError(
            f"ridge is {describe(ridge)}; wanted a scalar: for one a column scale the "
            f"columns of the matrix."
        )
    check_nonnegative(ridge, "ridge")
    if is_concrete(ridge) and not np.isfinite(np.asarray(ridge)):
        raise ValueError(f"ridge is {ridge}; wanted a finite number.")


def check_finite(value: jax.Array, source: jax.Array, name: str) -> None:
    """Raises ValueError where a value made of `source` is seen not to be finite."""
    refuse_unless(jnp.isfinite(value).all(), source, name)


def refuse_unless(finite: jax.Array, source: jax.Array, name: str) -> None:
    """Raises ValueError where it is seen that `source` is not finite."""
    if is_concrete(finite) and not finite:
        raise ValueError(
            f"{name} is {describe(source)} with entries that are not finite; wanted "
            f"finite ones: drop or fill the rows that hold NaN or infinity."
        )


def seen_finite(value: jax.Array) -> bool:
    """Whether all entries are finite, or cannot be looked at now."""
    finite = jnp.isfinite(value).all()
    # Under jit the answer is traced even where the value is not.
    return not is_concrete(finite) or bool(finite)


def in_float32(array: jax.Array) -> jax.Array:
    """The array in float32 or wider."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def product(left: jax.Array, right: jax.Array) -> jax.Array:
    """The matrix product in the full precision of its dtype."""
    return jnp.matmul(left, right, precision="highest")


def reciprocals(size: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of singular values, largest first; 0 for those that are rounding errors.

    Returns:
        The reciprocals, and which of the values count. NaN counts.
    """
    kept = ~(size <= size[0] * len(size) * jnp.finfo(size.dtype).eps)
    return jnp.where(kept, 1 / jnp.where(kept, size, 1), 0), kept

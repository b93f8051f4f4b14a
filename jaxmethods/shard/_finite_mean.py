"""A mean of sizes that is finite where they are."""

import jax
import jax.numpy as jnp


def finite_mean(sizes: jax.Array, count: int | jax.Array) -> jax.Array:
    """`sizes.sum() / count`; a sum beyond float32 counts as the largest float32.

    An infinite scale would make the error of a leaf infinite, for good. Too small a
    scale sends less, and the error keeps the rest.

    Args:
        sizes: (n,) float32, 0 or more.
        count: 1 or more.

    Returns:
        () float32.

    Example:
        >>> finite_mean(jnp.array([1.0, 3.0]), 2)
        Array(2., dtype=float32)
    """
    return jnp.minimum(sizes.sum(), jnp.finfo(jnp.float32).max) / count

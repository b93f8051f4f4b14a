"""Powers of two: what divides by one loses no digit."""

import jax
import jax.numpy as jnp


def power_of_two(size: jax.Array) -> jax.Array:
    """The largest power of two that is not above a size; 1 of what has none.

    Divided by it, numbers of that size are from 1 to 2 and lose no digit, so that their
    squares neither overflow nor underflow. No gradient passes.

    Args:
        size: floating, of any shape, 0 or more.

    Returns:
        Like `size`; 1 where that is 0, below the normal numbers, infinite or NaN.

    Example:
        >>> power_of_two(jnp.array([5.0, 0.3, 0.0]))
        Array([4.  , 0.25, 1.  ], dtype=float32)
    """
    size = jax.lax.stop_gradient(size)
    usable = jnp.isfinite(size) & (size >= jnp.finfo(size.dtype).tiny)
    exponent = jnp.frexp(jnp.where(usable, size, 1))[1] - 1
    return jnp.ldexp(jnp.ones_like(size), exponent)

"""Rounds real levels to whole ones: to the nearest, or up and down by chance."""

import jax
import jax.numpy as jnp

from ..kernels import round_by_chance, row_column_bits


def round_levels(key: jax.Array | None, levels: jax.Array, top: int) -> jax.Array:
    """Whole levels 0..top near the real `levels`, as floats.

    Without a key the nearest, ties to even. With one by chance: the expectation is
    `levels`, and a whole level never moves.

    Args:
        key: scalar typed key, or None.
        levels: float matrix, 0..top up to rounding.
        top: the largest level.

    Returns:
        Array like `levels`; NaN where `levels` is.
    """
    if key is None:
        return jnp.clip(jnp.round(levels), 0, top)
    return round_by_chance(levels, row_column_bits(key, levels.shape), top)

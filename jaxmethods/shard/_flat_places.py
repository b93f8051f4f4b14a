"""Entries of an array by their number in it, without a reshape of the array."""

from typing import Any

import jax


def at_places(x: jax.Array, places: jax.Array) -> Any:
    """`x.reshape(-1).at[places]`, whose updates have the shape of `x`.

    On CPUs XLA writes an update where `x` lies only if no reshape comes between.

    Args:
        x: at least 1 axis.
        places: int32, 0 or more; what is `x.size` or above is outside.
    """
    index = []
    for size in reversed(x.shape[1:]):
        length = jax.lax.full_like(places, size)
        index.append(jax.lax.rem(places, length))
        places = jax.lax.div(places, length)
    return x.at[(places, *reversed(index))]

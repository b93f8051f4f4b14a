"""Max pooling by slices, with the derivative of XLA's pooling."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core import materialized
from ._windows import Windows

# Larger windows take longer to slice than to pool.
MOST_PLACES = 32


def max_pool(site: Any, x: jax.Array) -> Any:
    """A rule for `reduce_window_max` whose backward pass is elementwise.

    The derivative of the primitive scatters, one element at a time on CPUs: about 20
    times slower than this, and most of the time of a small convolutional network.
    """
    params = site.equation.params
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    empty = site.equation.outvars[0].aval.size == 0
    if not floating or empty or math.prod(params["window_dimensions"]) > MOST_PLACES:
        return NotImplemented
    windows = Windows(
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        params["base_dilation"],
        params["window_dilation"],
    )
    return [_largest(*windows.slices(x, fill=-jnp.inf))]


@jax.custom_jvp
def _largest(*slices: jax.Array) -> jax.Array:
    """The largest of each place, elementwise."""
    # Where a reshape reads the result it would be computed one element at a time.
    return materialized(functools.reduce(jnp.maximum, slices))


@_largest.defjvp
def _along_the_first(slices: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    best = _largest(*slices)
    which = _first(slices, best)
    picked = [jnp.where(which == i, t, 0) for i, t in enumerate(tangents)]
    return best, sum(picked[1:], picked[0])


def _first(slices: Sequence[jax.Array], best: jax.Array) -> jax.Array:
    """The number of the slice that takes the derivative, as in XLA, as a float.

    The first of equals, or the first NaN.
    """
    which = jnp.full(best.shape, len(slices) - 1, jnp.float32)
    for i, some in reversed(list(enumerate(slices[:-1]))):
        which = jnp.where((some == best) | (some != some), i, which)
    # One choice for all that it is compared with, not one for each.
    return materialized(which)

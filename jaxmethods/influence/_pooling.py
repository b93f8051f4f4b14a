"""Max pooling by slices, with the derivative of XLA's pooling."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

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
    return functools.reduce(jnp.maximum, slices)


@_largest.defjvp
def _along_the_first(slices: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """The first of equals, or the first NaN, takes the derivative, as in XLA."""
    best = _largest(*slices)
    taken, out = jnp.zeros(best.shape, bool), jnp.zeros_like(best)
    for some, tangent in zip(slices, tangents, strict=True):
        here = ((some == best) | (some != some)) & ~taken
        taken, out = taken | here, jnp.where(here, tangent, out)
    return best, out

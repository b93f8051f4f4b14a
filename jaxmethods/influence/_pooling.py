"""Max pooling by slices, with the derivative of XLA's pooling."""

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
    best, *others = windows.slices(x, fill=-jnp.inf)
    for other in others:
        # The first of equals takes the gradient, and NaN stays NaN, as in XLA.
        best = jnp.where((best >= other) | (best != best), best, other)
    return [best]

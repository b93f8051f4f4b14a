"""All the weights that a quantised net may have: a box of half a step round each."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import check_choice, check_integer
from ._rounding import unit
from ._sets import Box


def quantization_box(params: Any, bits: int, *, per: str = "tensor") -> Any:
    """The sets that hold every weight after rounding it to a grid of few bits.

    The grid is symmetric: 2 ** bits - 1 values from -max |w| to max |w|, so its step is
    max |w| / (2 ** (bits - 1) - 1) and rounding moves a weight by half of it at most;
    so does rounding to nearest on any finer grid, and up or down by chance with one bit
    more. What is certified over the box holds for all of these nets.

    Args:
        params: A pytree of arrays. Floating leaves with two axes or more are weights;
            all others, biases and norms among them, stay as they are, and so do those
            without entries.
        bits: 2..64.
        per: "tensor" for one grid a leaf, "channel" for one an index of its last axis,
            where flax has the outputs.

    Returns:
        A pytree like `params` with a `Box` in the place of each weight.

    Raises:
        ValueError: Bits out of their range, or an unknown `per`.
        TypeError: `bits` is no integer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> apply = lambda params, x: jax.nn.relu(x @ params["w"]) + params["b"]
        >>> params = {"w": jnp.array([[1.0, -0.5]]), "b": jnp.zeros(2)}
        >>> boxes = bound.quantization_box(params, 8)
        >>> bounds = bound.crown(apply)(boxes, jnp.ones(1))  # also with a set for x
        >>> [round(float(end[0]), 4) for end in bounds]
        [0.9961, 1.0039]

    References:
        Jacob et al. 2018, arXiv:1712.05877; Xu et al. 2020, arXiv:2002.12920 (weights
        as sets).
    """
    check_integer(bits, "bits", 2, 64)
    check_choice(per, ("tensor", "channel"), "per")

    def box(leaf: Any) -> Any:
        if np.ndim(leaf) < 2 or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        array = jnp.asarray(leaf)
        if not array.size:
            return leaf
        axes = tuple(range(array.ndim - (per == "channel")))
        top = jnp.max(jnp.abs(array), axis=axes, keepdims=True)
        # The quantised values are rounded as numbers as well.
        half = top * (0.5 / (2 ** (bits - 1) - 1) + unit(4, array.dtype))
        return Box(array - half, array + half)

    return jax.tree.map(box, params)

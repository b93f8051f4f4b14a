"""The noise of a quantizer, exactly and without drawing any."""

import jax

from ..core import describe
from ._quantizer import Quantizer


def variance(q: Quantizer, x: jax.Array) -> jax.Array:
    """Summed variance of the entries of `q(key, x)` over keys.

    An entry at level y of a grid of step s has variance `f (1 - f) s^2` with f the
    fraction of y; transformed rows add theirs up through the squares of `T^-1`. One
    bit less is about four times as much.

    Args:
        q: quantizer made by `ptq`, `psq` or `bhq`.
        x: floating array with at least one entry. NaN in it makes the result NaN.

    Returns:
        Scalar, float32 (float64 for a float64 `x`).

    Raises:
        TypeError: `q` is no quantizer, or `x` is not floating.
        ValueError: `x` is empty.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods.quantize import ptq
        >>> float(variance(ptq(2), jnp.array([0.0, 0.5, 3.0])))  # a coin of 0 and 1
        0.25

    References:
        Chen, Gai, Yao, Mahoney, Gonzalez 2020 (arXiv 2010.14298).
    """
    if not isinstance(q, Quantizer):
        raise TypeError(f"q is {describe(q)}; wanted a quantizer such as psq(4).")
    levels, decoder = q.encode(x)
    return decoder.variance(levels)

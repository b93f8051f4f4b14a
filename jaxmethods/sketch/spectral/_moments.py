"""The three numbers of a function of one entry on which spectra depend."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...core import is_concrete

_LIMIT = 12  # a normal variable beyond it has less weight than float64 resolves
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)


class Moments(NamedTuple):
    """What a function f has along the first two Hermite polynomials, and in all.

    With xi a standard normal variable and f centred, E f(xi) = 0.

    Attributes:
        a1: E[xi f(xi)], scalar: how much f keeps of the means of the classes.
        a2: E[(xi^2 - 1) f(xi)] / sqrt(2), scalar: where it is not 0 there may be
            eigenvalues that mean nothing.
        nu: E[f(xi)^2], scalar, at least a1^2 + a2^2.
    """

    a1: Any
    a2: Any
    nu: Any


def moments(
    f: Callable[[jax.Array], jax.Array], *, breakpoints: Sequence[Any] = ()
) -> Moments:
    """The moments of any function of one entry, by quadrature.

    Between the breakpoints f must be smooth. A breakpoint may be traced: with every
    jump of f among them the derivative in a threshold is right, which that of f itself
    is not. A function that is not centred is centred first; `transformed_gram` and
    `clustering` do not do that.

    Args:
        f: floating (n,) -> (n,), elementwise.
        breakpoints: real scalars: every place where f jumps or has a kink.

    Returns:
        `Moments` of scalars of the default floating dtype.

    Raises:
        ValueError: f changes the shape of its argument, or a breakpoint is NaN.

    Complexity:
        32 evaluations of f for each of 24 + len(breakpoints) pieces.

    Example:
        >>> import jax.numpy as jnp
        >>> m = moments(jnp.sign, breakpoints=(0.0,))
        >>> [round(abs(float(v)), 4) for v in m]
        [0.7979, 0.0, 1.0]

    References:
        Liao, Couillet, Mahoney 2020, Sparse quantized spectral clustering (arXiv
        2010.01376).
    """
    t, weight = _quadrature(breakpoints)
    values = jnp.asarray(f(t))
    if values.shape != t.shape:
        raise ValueError(
            f"f takes an array of shape {t.shape} to one of shape {values.shape}; "
            f"wanted a function that works entry by entry."
        )
    values = values - weight @ values
    return Moments(
        a1=weight @ (t * values),
        a2=weight @ ((t * t - 1) * values) / np.sqrt(2),
        nu=weight @ (values * values),
    )


def _quadrature(breakpoints: Sequence[Any]) -> tuple[jax.Array, jax.Array]:
    """Places and weights that sum to means over a standard normal variable."""
    points = jnp.array([*breakpoints], float)
    if is_concrete(points) and jnp.isnan(points).any():
        raise ValueError("a breakpoint is NaN; wanted the places where f jumps.")
    grid = jnp.arange(-_LIMIT, _LIMIT + 1, dtype=float)
    ends = jnp.sort(jnp.clip(jnp.concatenate([grid, points]), -_LIMIT, _LIMIT))
    middle, half = (ends[1:] + ends[:-1]) / 2, (ends[1:] - ends[:-1]) / 2
    nodes, weights = (jnp.asarray(x, float)[None, :] for x in (_NODES, _WEIGHTS))
    t = (middle[:, None] + half[:, None] * nodes).reshape(-1)
    width = (half[:, None] * weights).reshape(-1)
    return t, width * jnp.exp(-t * t / 2) / np.sqrt(2 * np.pi)

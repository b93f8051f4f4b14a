"""The law that the spectra of all entrywise functions obey.

With m the Stieltjes transform of the limiting spectrum and u = -1 / m,

    z(u) = u + signal / (u - shift) + noise / u,
    shift = a1 / c, signal = a1^2 / c, noise = (nu - a1^2) / c,

a Marchenko-Pastur law (signal) and a semicircle (noise) in one. Nothing is divided by
a1: where it is 0 the semicircle is left. What there is to say of an eigenvalue z(u) and
its derivative say: the bulk ends where z'(u) = 0, an eigenvalue outside of the bulk at
u stands at z(u) where z'(u) > 0, and z'(u) is how far its eigenvector aligns.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core import is_concrete
from ._moments import Moments

_ITERATIONS = 30  # each takes w up by half or more, until it doubles the digits


class Law(NamedTuple):
    """The constants of z(u)."""

    shift: jax.Array
    signal: jax.Array
    noise: jax.Array


def law_of(moments: Moments, c: jax.Array) -> Law:
    """The law of a function with these moments at this ratio."""
    a1, nu = moments.a1, moments.nu
    return Law(a1 / c, a1 * a1 / c, (nu - a1 * a1) / c)


def place(law: Law, w: jax.Array) -> jax.Array:
    """z(u) at u = w + shift."""
    u = w + law.shift
    return u + law.signal / w + law.noise / u


def slope(law: Law, w: jax.Array) -> jax.Array:
    """z'(u) at u = w + shift: rises from -inf to 1 over w > 0, for a shift >= 0."""
    u = w + law.shift
    return 1 - law.signal / (w * w) - law.noise / (u * u)


@jax.jit  # one program when called op by op
def critical(law: Law) -> jax.Array:
    """The w > 0 at which z'(u) = 0, for a shift >= 0; differentiable.

    1 / sqrt(1 - z') is concave in w, so that Newton's method on it rises to the root
    from any smaller w, and nearly a line, so that it does so in a few steps.
    """

    def residual(w: jax.Array) -> jax.Array:
        return lax.rsqrt(1 - slope(law, w)) - 1

    def solve(residual: Any, w: jax.Array) -> jax.Array:
        def newton(_: Any, w: jax.Array) -> jax.Array:
            value, derivative = jax.jvp(residual, (w,), (jnp.ones_like(w),))
            return w - value / derivative

        return lax.fori_loop(0, _ITERATIONS, newton, w)

    # Where one of the two terms is 1 alone.
    signal, noise = (jnp.sqrt(jnp.maximum(v, 0)) for v in (law.signal, law.noise))
    start = jnp.maximum(signal, noise - law.shift)
    return lax.custom_root(residual, start, solve, divide)


def divide(linear: Any, y: jax.Array) -> jax.Array:
    """The solution of a linear function that acts entry by entry."""
    return y / linear(jnp.ones_like(y))


def check_arguments(moments: Moments, c: Any, **others: Any) -> tuple[Moments, Any]:
    """Moments and c (then the others) in one floating dtype.

    Raises:
        ValueError: c or another is not positive, or there is no f of these moments.
    """
    for name, value in {"c": c, **others}.items():
        if is_concrete(value) and not np.all(np.asarray(value) > 0):
            raise ValueError(f"{name} is {value}; wanted a positive number.")
    if all(is_concrete(v) for v in moments):
        a1, a2, nu = map(np.asarray, moments)
        # Moments in float32 carry its rounding.
        if not np.all((nu > 0) & (nu >= (a1 * a1 + a2 * a2) * (1 - 1e-5))):
            raise ValueError(
                f"the moments are a1={a1}, a2={a2}, nu={nu}; wanted nu > 0 and "
                f"nu >= a1^2 + a2^2, as every function has that is not constant."
            )
    dtype = jnp.result_type(float, *moments, c, *others.values())
    a1, a2, nu, *rest = (jnp.asarray(v, dtype) for v in (*moments, c, *others.values()))
    return Moments(a1, a2, nu), tuple(rest)

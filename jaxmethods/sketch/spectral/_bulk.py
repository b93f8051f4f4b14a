"""Where the eigenvalues that carry no information lie."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core import is_concrete
from ._law import Law, check_arguments, critical, divide, law_of, place, slope
from ._moments import Moments

_HALVINGS = 60


def density(grid: Any, moments: Moments, *, c: Any) -> jax.Array:
    """The density of the eigenvalues of a transformed Gram matrix.

    It has mass 1, mean 0 and variance nu / c; a semicircle where a1 = 0. For a linear
    function and c < 1 a share 1 - c of the eigenvalues stands in one point, -a1: that
    share is left out.

    Args:
        grid: floating, any shape: where to evaluate it.
        moments: of f, scalars.
        c: p / n, positive scalar.

    Returns:
        Of the shape of `grid`; 0 outside of the bulk.

    Raises:
        ValueError: c is not positive, nu < a1^2 + a2^2, or nu is 0.

    Complexity:
        Closed form but for one real root, which takes 60 bisections a point.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods.sketch import spectral
        >>> f = spectral.binarize(0.43)
        >>> left, right = spectral.edges(f.moments, c=0.25)
        >>> z = jnp.linspace(left, right, 1000)
        >>> mass = spectral.density(z, f.moments, c=0.25).sum() * (z[1] - z[0])
        >>> round(float(mass), 2)
        1.0

    References:
        Cheng, Singer 2013, The spectrum of random inner-product kernel matrices (arXiv
        1202.3155); Liao, Couillet, Mahoney 2020 (arXiv 2010.01376).
    """
    moments, (c,) = check_arguments(moments, c)
    grid = jnp.asarray(grid)
    grid = grid.astype(jnp.result_type(float, grid, c))
    # The spectrum of -f is that of f, mirrored.
    z = jnp.where(moments.a1 < 0, -grid, grid)
    law = law_of(moments._replace(a1=jnp.abs(moments.a1)), c)
    return _imaginary_part(law, z)


def _imaginary_part(law: Law, z: jax.Array) -> jax.Array:
    """Im m / pi from the cubic of u = -1 / m, whose complex roots are a pair."""
    root = _real_root(law, z)
    # What is left of the cubic, u^2 - total u + product, from above or from below,
    # whichever loses nothing.
    constant = law.noise * law.shift
    linear = law.shift * z + law.signal + law.noise
    largest = root**3 > constant
    safe = jnp.where(largest, root, 1)
    product = constant / safe
    total = jnp.where(largest, (linear - product) / safe, law.shift + z - root)
    product = jnp.where(largest, product, linear - root * total)
    square = product - total * total / 4
    inside = (square > 0) & (product > 0)
    square, product = (jnp.where(inside, v, 1) for v in (square, product))
    return jnp.where(inside, jnp.sqrt(square) / (jnp.pi * product), 0)


@jax.jit  # one program when called op by op
def _real_root(law: Law, z: jax.Array) -> jax.Array:
    """The root of the cubic between 0 and the shift, where there always is one."""

    def cubic(u: jax.Array) -> jax.Array:
        w = u - law.shift
        return u * (w * (u - z) + law.signal) + law.noise * w

    def bisect(cubic: Any, _: jax.Array) -> jax.Array:
        def halve(_: Any, ends: Any) -> Any:
            low, high = ends
            middle = (low + high) / 2
            above = cubic(middle) > 0
            return jnp.where(above, low, middle), jnp.where(above, middle, high)

        ends = jnp.zeros_like(z), jnp.full_like(z, law.shift)
        return lax.fori_loop(0, _HALVINGS, halve, ends)[0]

    return lax.custom_root(cubic, jnp.zeros_like(z), bisect, divide)


def edges(moments: Moments, *, c: Any) -> tuple[jax.Array, jax.Array]:
    """The least and the greatest place of the bulk of the eigenvalues.

    There may be a gap between: at small c, where nu is near a1^2, a share 1 - c of the
    eigenvalues lies round -a1 (for a linear function, in that point).

    Args:
        moments: of f, scalars.
        c: p / n, positive scalar.

    Returns:
        (left, right), scalars; differentiable, but for left where nu = a1^2.

    Raises:
        ValueError: c is not positive, nu < a1^2 + a2^2, or nu is 0.

    Example:
        >>> from jaxmethods.sketch import spectral
        >>> [round(float(v), 3) for v in spectral.edges((0.0, 0.5, 1.0), c=0.25)]
        [-4.0, 4.0]
    """
    moments, (c,) = check_arguments(moments, c)
    return outermost(moments, c)


def outermost(moments: Moments, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`edges`, unchecked."""
    law = law_of(moments._replace(a1=jnp.abs(moments.a1)), c)
    right = place(law, critical(law))
    # Left of the bulk u = -y and w = -(y + shift): signal and noise change places.
    # Without noise y would be 0 at c < 1; the floor moves the edge by less than it.
    floor = jnp.square(jnp.finfo(c.dtype).eps) * law.signal
    mirrored = Law(law.shift, jnp.maximum(law.noise, floor), law.signal)
    left = law.shift - place(mirrored, critical(mirrored))
    negative = moments.a1 < 0
    return jnp.where(negative, -right, left), jnp.where(negative, -left, right)


def spurious(moments: Moments, *, c: Any, kurtosis: Any) -> jax.Array:
    """Eigenvalues outside of the bulk that say nothing about the classes.

    They come from a2: a function with a2 = 0, any odd one, has none, nor have data
    with entries +-1.

    Args:
        moments: of f, scalars.
        c: p / n, positive scalar.
        kurtosis: E z^4 of the entries of the data, scalar, at least 1: 3 where they
            are normal.

    Returns:
        (2,): their places, the one on the side of -a2 first; NaN where there is none.

    Raises:
        ValueError: c is not positive, kurtosis is below 1, nu < a1^2 + a2^2, or nu is
            0.

    Example:
        >>> from jaxmethods.sketch import spectral
        >>> found = spectral.spurious(spectral.relu().moments, c=0.25, kurtosis=3.0)
        >>> [round(float(v), 3) for v in found]
        [-1.77, nan]

    References:
        Liao, Couillet, Mahoney 2020, Sparse quantized spectral clustering (arXiv
        2010.01376).
    """
    if is_concrete(kurtosis) and not np.all(np.asarray(kurtosis) >= 1):
        raise ValueError(f"kurtosis is {kurtosis}; wanted 1 or more, as data have.")
    moments, (c, kurtosis) = check_arguments(moments, c, kurtosis=kurtosis)
    law = law_of(moments, c)
    far = moments.a2 * jnp.sqrt((kurtosis - 1) / 2) / c
    u = jnp.stack([-far, far])
    w = u - law.shift
    defined = (u != 0) & (w != 0)
    w = jnp.where(defined, w, 1 + jnp.abs(law.shift))
    isolated = defined & (slope(law, w) > 0)
    return jnp.where(isolated, place(law, w), jnp.nan)

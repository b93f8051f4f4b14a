"""A certificate for any low-rank approximation, from products with random vectors."""

from functools import partial

import jax
import jax.numpy as jnp

from ..core import check_integer, check_key, describe
from ._matrices import check_matrix, in_float32, product


def error_bound(
    key: jax.Array,
    A: jax.Array,
    factors: tuple[jax.Array, ...],
    *,
    num_probes: int = 20,
) -> jax.Array:
    """A bound on |A - U diag(s) Vt|, true but for a chance of 2^-num_probes.

    Twice sqrt(2 / pi) times the largest of |E g| over independent normal vectors g is
    at least the largest singular value of E with that probability, whatever E.
    Usually it is several times too large, never by more than the ratio of the
    Frobenius norm to the largest singular value, up to logarithms.

    Args:
        key: scalar typed key, not the one that made the factors.
        A: floating (n, d).
        factors: (U, s, Vt) as from `svd`, or (U, s) as from `nystrom`.
        num_probes: at least 1; at 20 one bound in a million is false.

    Returns:
        Scalar in the dtype of A, up to whose rounding errors it holds.

    Raises:
        TypeError: `key` is not a typed key, or A is not floating.
        ValueError: A is no matrix or empty, or the factors do not fit it; num_probes is
            below 1.

    Complexity:
        One product of A with num_probes vectors.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods.sketch import nystrom
        >>> K = jnp.diag(jnp.array([3.0, 1.0, 0.1]))
        >>> bound = error_bound(jax.random.key(1), K, nystrom(jax.random.key(0), K, 2))
        >>> bool(0.1 <= bound < 1)
        True

    References:
        Halko, Martinsson, Tropp 2011, Finding structure with randomness
        (arXiv 0909.4061), lemma 4.1.
    """
    check_key(key)
    matrix = check_matrix(A, "A")
    check_integer(num_probes, "num_probes", 1)
    U, s, Vt = _check_factors(factors, matrix)
    bound = _bound(key, in_float32(matrix), U, s, Vt, num_probes)
    return bound.astype(matrix.dtype)


@partial(jax.jit, static_argnames="num_probes")  # one program when called op by op
def _bound(
    key: jax.Array,
    A: jax.Array,
    U: jax.Array,
    s: jax.Array,
    Vt: jax.Array,
    num_probes: int,
) -> jax.Array:
    probes = jax.random.normal(key, (A.shape[1], num_probes), A.dtype)
    missed = product(A, probes) - product(U * s[None], product(Vt, probes))
    return 2 * (2 / jnp.pi) ** 0.5 * jnp.linalg.norm(missed, axis=0).max()


def _check_factors(factors: tuple[jax.Array, ...], matrix: jax.Array):
    shapes = [jnp.shape(factor) for factor in factors]
    n, d = matrix.shape
    rank = shapes[1] if len(shapes) > 1 else ()
    wanted = [(n, *rank), rank, (*rank, d)][: len(shapes)]
    square = len(shapes) == 2 and n == d
    if shapes != wanted or len(rank) != 1 or not (square or len(shapes) == 3):
        raise ValueError(
            f"factors have shapes {shapes} and A is {describe(matrix)}; wanted U, s "
            f"and Vt of shapes ({n}, k), (k,) and (k, {d}), or U and s where A is "
            f"symmetric."
        )
    U, s = factors[:2]
    return U, s, factors[2] if len(factors) == 3 else U.T

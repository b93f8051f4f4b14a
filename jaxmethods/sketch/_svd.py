"""The leading singular triples of a matrix from a few products with it."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core import check_integer, check_key
from ._matrices import check_finite, check_matrix, in_float32, product
from ._operator import check_unsharded


class SVD(NamedTuple):
    """What `svd` returns: `U * s @ Vt` is near A.

    Attributes:
        U: (n, k), orthonormal columns.
        s: (k,), singular values, largest first.
        Vt: (k, d), orthonormal rows.
    """

    U: jax.Array
    s: jax.Array
    Vt: jax.Array


def svd(
    key: jax.Array,
    A: jax.Array,
    k: int,
    *,
    oversample: int = 10,
    num_iterations: int = 4,
) -> SVD:
    """The k leading singular values and vectors, by randomised power iteration.

    The range of A is found from its products with k + oversample random vectors, and
    sharpened by products with A A^T; a QR decomposition after each product keeps the
    small singular values from drowning in the rounding errors of the large ones.
    `error_bound` certifies the result. The error in the Frobenius norm needs no probe:
    its square is `(A**2).sum() - (s**2).sum()`.

    Args:
        key: scalar typed key.
        A: floating (n, d), tall or wide.
        k: 1..min(n, d).
        oversample: random vectors above k, at least 0.
        num_iterations: products with A A^T, at least 0. Each divides what the result
            lacks of a singular value s_i by about (s_i / s_{k + oversample})^4.

    Returns:
        `SVD(U, s, Vt)` in the dtype of A; computed in float32 or wider. Each s is at
        most the singular value of A, up to rounding.

    Raises:
        TypeError: `key` is not a typed key, or A is not floating.
        ValueError: A is no matrix or empty, or, where concrete, has entries that are
            not finite; k, oversample or num_iterations is out of range; A is sharded
            over Explicit mesh axes.

    Complexity:
        2 num_iterations + 2 products of A with k + oversample vectors.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> A = jnp.diag(jnp.array([4.0, 3.0, 2.0, 1.0]))
        >>> U, s, Vt = svd(jax.random.key(0), A, 2)
        >>> U.shape, Vt.shape, (s * 10).round()
        ((4, 2), (2, 4), Array([40., 30.], dtype=float32))

    References:
        Halko, Martinsson, Tropp 2011, Finding structure with randomness
        (arXiv 0909.4061), algorithms 4.4 and 5.1.
    """
    check_key(key)
    matrix = check_matrix(A, "A")
    check_unsharded(matrix, "A")
    check_finite(matrix, matrix, "A")
    k = check_integer(k, "k", 1, min(matrix.shape))
    check_integer(oversample, "oversample", 0)
    check_integer(num_iterations, "num_iterations", 0)
    width = min(k + oversample, *matrix.shape)
    parts = _leading(key, in_float32(matrix), k, width, num_iterations)
    return SVD(*(part.astype(matrix.dtype) for part in parts))


@partial(jax.jit, static_argnames=("k", "width", "num_iterations"))
def _leading(
    key: jax.Array, A: jax.Array, k: int, width: int, num_iterations: int
) -> tuple[jax.Array, ...]:
    probes = jax.random.normal(key, (A.shape[1], width), A.dtype)
    basis = orthonormal(product(A, probes))
    basis = jax.lax.fori_loop(
        0,
        num_iterations,
        lambda _, basis: orthonormal(product(A, orthonormal(product(A.T, basis)))),
        basis,
    )
    left, size, right = jnp.linalg.svd(product(basis.T, A), full_matrices=False)
    return product(basis, left[:, :k]), size[:k], right[:k]


def orthonormal(matrix: jax.Array) -> jax.Array:
    """An orthonormal basis (n, d) that spans the columns of a tall matrix."""
    return jnp.linalg.qr(matrix)[0]

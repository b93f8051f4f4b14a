"""The leading eigenpairs of a positive semidefinite matrix from one sketch of it."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core import check_integer, check_key, describe, is_concrete
from ._matrices import check_finite, check_matrix, in_float32, product
from ._operator import check_unsharded
from ._svd import orthonormal


class Eigenpairs(NamedTuple):
    """What `nystrom` returns: `U * s @ U.T` is near K and never above it.

    Attributes:
        U: (n, k), orthonormal columns.
        s: (k,), eigenvalues, 0 or more, largest first.
    """

    U: jax.Array
    s: jax.Array


def nystrom(
    key: jax.Array,
    K: jax.Array,
    k: int,
    *,
    oversample: int = 10,
    num_iterations: int = 2,
) -> Eigenpairs:
    r"""A rank-k approximation of a positive semidefinite K that never exceeds it.

    $$K W (W^T K W)^+ (K W)^T \preceq K$$

    for an orthonormal W of k + oversample columns, random ones sharpened by products
    with K; of that, the k leading eigenpairs. `error_bound` certifies the result. The
    error in the trace norm needs no probe: it is `jnp.trace(K) - s.sum()`.

    Args:
        key: scalar typed key.
        K: floating (n, n), symmetric positive semidefinite; a kernel or Gram matrix.
        k: 1..n.
        oversample: random vectors above k, at least 0.
        num_iterations: products with K that sharpen W, at least 0.

    Returns:
        `Eigenpairs(U, s)` in the dtype of K; computed in float32 or wider.

    Raises:
        TypeError: `key` is not a typed key, or K is not floating.
        ValueError: K is not square or empty, or, where concrete, has entries that are
            not finite or is seen not to be symmetric positive semidefinite; k,
            oversample or num_iterations is out of range; K is sharded over Explicit
            mesh axes.

    Complexity:
        num_iterations + 1 products of K with k + oversample vectors.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> U, s = nystrom(jax.random.key(0), jnp.diag(jnp.array([3.0, 1.0, 0.0])), 2)
        >>> U.shape, (s * 10).round()
        ((3, 2), Array([30., 10.], dtype=float32))

    References:
        Tropp, Yurtsever, Udell, Cevher 2017, Fixed-rank approximation of a
        positive-semidefinite matrix from streaming data (arXiv 1706.05736);
        Gittens, Mahoney 2016, Revisiting the Nystrom method (arXiv 1303.1849).
    """
    check_key(key)
    matrix = check_matrix(K, "K")
    check_unsharded(matrix, "K")
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"K is {describe(matrix)} of shape {matrix.shape}; wanted a square "
            f"symmetric matrix: for any other one take svd."
        )
    check_finite(matrix, matrix, "K")
    k = check_integer(k, "k", 1, len(matrix))
    check_integer(oversample, "oversample", 0)
    check_integer(num_iterations, "num_iterations", 0)
    width = min(k + oversample, len(matrix))
    (left, size), core = _leading(key, in_float32(matrix), k, width, num_iterations)
    _check_semidefinite(core, matrix)
    return Eigenpairs(*(x.astype(matrix.dtype) for x in (left, size)))


class _Core(NamedTuple):
    """Of W^T K W: the least eigenvalue, how far it is from symmetric, and rounding."""

    least: jax.Array
    skew: jax.Array
    floor: jax.Array


@partial(jax.jit, static_argnames=("k", "width", "num_iterations"))
def _leading(
    key: jax.Array, K: jax.Array, k: int, width: int, num_iterations: int
) -> tuple[tuple[jax.Array, jax.Array], _Core]:
    basis = orthonormal(jax.random.normal(key, (len(K), width), K.dtype))
    basis = jax.lax.fori_loop(
        0, num_iterations, lambda _, basis: orthonormal(product(K, basis)), basis
    )
    root, core = _root(K, basis)
    left, size, _ = jnp.linalg.svd(root, full_matrices=False)
    return (left[:, :k], size[:k] ** 2), core


def _root(K: jax.Array, basis: jax.Array) -> tuple[jax.Array, _Core]:
    """F with F F^T the approximation of K that a basis gives."""
    image = product(K, basis)
    core = product(basis.T, image)
    value, vector = jnp.linalg.eigh((core + core.T) / 2)
    floor = jnp.abs(value).max() * len(K) * jnp.finfo(K.dtype).eps
    skew = jnp.abs(core - core.T).max()
    # Directions lost in rounding are left out, which keeps the result below K.
    kept = value > floor
    scale = jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, value, 1)), 0)
    return product(image, vector) * scale[None], _Core(value[0], skew, floor)


def _check_semidefinite(core: _Core, matrix: jax.Array) -> None:
    if not is_concrete(core.least):
        return
    least, skew, floor = map(float, core)
    if least < -floor or skew > floor:
        raise ValueError(
            f"K is {describe(matrix)} with x^T K x = {least:.3g} for some x of length "
            f"1, and x^T K y and y^T K x {skew:.3g} apart for others; wanted a "
            f"symmetric positive semidefinite matrix: add a multiple of the identity, "
            f"or take svd."
        )

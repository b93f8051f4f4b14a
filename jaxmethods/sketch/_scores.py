"""Leverage scores: how much each row of a matrix weighs in a regression."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..core import check_key
from ._matrices import (
    check_finite,
    check_matrix,
    check_ridge,
    in_float32,
    product,
    reciprocals,
)
from ._operator import check_unsharded
from ._random_entries import gaussian
from ._sharded_rows import apply_rows, num_rows
from ._sparse_stack import sparse_stack

_ROWS = 8  # of the sketch, for each column of A
_STACKS = 4  # of the sketch: two rows of leverage 1 must not meet in all of them
_PROBES = 32  # random directions in which rows are measured


def leverage_scores(
    A: jax.Array, *, ridge: Any = 0.0, axis_name: Any = None
) -> jax.Array:
    """The exact leverage of each row, `a_i^T inv(A^T A + ridge I) a_i`.

    The squared row norms of an orthonormal basis of the range of A, by a QR
    decomposition: accurate whatever the condition number. Columns that depend on each
    other to rounding count once (the inverse is a pseudo-inverse).

    Args:
        A: floating (n, d). The derivative in A is that of full column rank.
        ridge: scalar, 0 or more; may be traced. Its derivative at 0 is NaN.
        axis_name: inside `jax.shard_map`, the mesh axis over which the rows of A are
            split: d^2 numbers are gathered from each device.

    Returns:
        (n,), each in 0..1, in the dtype of A; their sum is the rank of A, or the
        effective dimension at this ridge.

    Raises:
        TypeError: A is not floating.
        ValueError: A is no matrix or empty, or, where concrete, has entries that are
            not finite; ridge, where concrete, is negative or NaN; A is sharded over
            Explicit mesh axes.

    Complexity:
        6 n d^2 flops, three times the memory of A. On a mesh a QR decomposition of
        each device's rows, and one of all their triangles.

    Example:
        >>> import jax.numpy as jnp
        >>> A = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> leverage_scores(A).round(3)
        Array([0.5, 0.5, 1. ], dtype=float32)

    References:
        Drineas, Magdon-Ismail, Mahoney, Woodruff 2012, Fast approximation of matrix
        coherence and statistical leverage (arXiv 1109.3843).
    """
    matrix, wide = _check(A, ridge)
    scores = _exact(wide, ridge, axis_name=axis_name)
    check_finite(scores, matrix, "A")
    return scores.astype(matrix.dtype)


@partial(jax.jit, static_argnames="axis_name")  # one program when called op by op
def _exact(A: jax.Array, ridge: Any, *, axis_name: Any) -> jax.Array:
    Q, R = _orthonormal(A, ridge, axis_name)
    left, size, _ = jnp.linalg.svd(_scaled(R)[0])
    # Less what lies along directions that are none, and not the norms along the others:
    # with full rank this is Q alone, which has a derivative where singular values meet.
    left, size = jax.lax.stop_gradient((left, size))
    none = product(Q, jnp.where(reciprocals(size)[1][None], 0, left))
    return jnp.clip((Q**2).sum(1) - (none**2).sum(1), 0, 1)


def approximate_leverage_scores(
    key: jax.Array, A: jax.Array, *, ridge: Any = 0.0, axis_name: Any = None
) -> jax.Array:
    """Leverage scores to a small factor, from a sketch and one product with A.

    A sketch of 8 d rows gives R with A inv(R) nearly orthonormal; the squared norms of
    the rows of A inv(R), measured in 32 random directions where d is larger, are the
    scores. They serve `less` and `sample_rows`.

    Args:
        key: scalar typed key.
        A: floating (n, d). The derivative in A is that of full column rank.
        ridge: scalar, 0 or more; may be traced. Its derivative at 0 is NaN.
        axis_name: inside `jax.shard_map`, the mesh axis over which the rows of A are
            split: one psum of (8 d, d).

    Returns:
        (n,) in the dtype of A, 0 for a row of zeros. Nearly always more than a quarter
        of each exact score, and less than twice their sum.

    Raises:
        TypeError: `key` is not a typed key, or A is not floating.
        ValueError: A is no matrix or empty, or, where concrete, has entries that are
            not finite; ridge, where concrete, is negative or NaN; A is sharded over
            Explicit mesh axes.

    Complexity:
        Two reads of A, 2 n d min(d, 32) flops, 32 n numbers: on a CPU core some 6 times
        as long as to read A once (1e6 x 100).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> A = jax.random.normal(jax.random.key(0), (500, 3)).at[7].multiply(100)
        >>> int(approximate_leverage_scores(jax.random.key(1), A).argmax())
        7

    References:
        Drineas, Magdon-Ismail, Mahoney, Woodruff 2012, Fast approximation of matrix
        coherence and statistical leverage (arXiv 1109.3843).
    """
    check_key(key)
    matrix, wide = _check(A, ridge)
    scores = _approximate(key, wide, ridge, axis_name=axis_name)
    check_finite(scores, matrix, "A")
    return scores.astype(matrix.dtype)


@partial(jax.jit, static_argnames="axis_name")
def _approximate(
    key: jax.Array, A: jax.Array, ridge: Any, *, axis_name: Any
) -> jax.Array:
    d = A.shape[1]
    own, probing = jax.random.split(key)
    S = sparse_stack(own, _ROWS * d, num_rows(A, axis_name), k=_STACKS)
    sketched = apply_rows(S, A, axis_name)
    R = jnp.linalg.qr(_with_ridge(sketched, ridge), mode="r")
    scaled, norm = _scaled(R)
    # Not by singular vectors, which have no derivative where singular values meet.
    none = d * float(jnp.finfo(R.dtype).eps)
    inverse = jnp.linalg.pinv(scaled, rtol=none) / norm[:, None]
    if d > _PROBES:
        inverse = (gaussian(probing, _PROBES, d) @ inverse.T).T
    return (product(A, inverse) ** 2).sum(1)


def _check(A: Any, ridge: Any) -> tuple[jax.Array, jax.Array]:
    """A, and A in float32 or wider."""
    matrix = check_matrix(A, "A")
    check_unsharded(matrix, "A")
    check_ridge(ridge)
    return matrix, in_float32(matrix)


def _orthonormal(
    matrix: jax.Array, ridge: Any, axis_name: Any
) -> tuple[jax.Array, jax.Array]:
    """Our rows of Q, and R, of the QR decomposition of all rows and the ridge's."""
    if axis_name is None:
        Q, R = jnp.linalg.qr(_with_ridge(matrix, ridge))
        return Q[: len(matrix)], R
    Q, R = jnp.linalg.qr(matrix)
    triangles = jax.lax.all_gather(R, axis_name, tiled=True)
    outer, R_of_all = jnp.linalg.qr(_with_ridge(triangles, ridge))
    first = jax.lax.axis_index(axis_name) * len(R)
    return product(Q, jax.lax.dynamic_slice_in_dim(outer, first, len(R))), R_of_all


def _with_ridge(matrix: jax.Array, ridge: Any) -> jax.Array:
    """The rows of A and those of sqrt(ridge) I below."""
    root = jnp.sqrt(jnp.asarray(ridge, matrix.dtype))
    return jnp.concatenate([matrix, root * jnp.eye(matrix.shape[1], dtype=root.dtype)])


def _scaled(R: jax.Array) -> tuple[jax.Array, jax.Array]:
    """R with columns of norm 1, and their norms.

    Leverage does not depend on the scale of columns; what counts as rank would.
    """
    largest = jnp.abs(jax.lax.stop_gradient(R)).max(0)
    largest = jnp.where(largest == 0, 1, largest)  # outside, or squares overflow
    norm = largest * jnp.linalg.norm(jax.lax.stop_gradient(R) / largest[None], axis=0)
    norm = jnp.where(norm == 0, 1, norm)
    return R / norm[None], norm

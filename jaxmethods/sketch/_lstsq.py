"""Least squares by a sketch that makes the problem easy, and a few steps on all of A.

The sketch tells the shape of A: with N from it, A N is nearly orthonormal whatever
the condition of A, so conjugate gradients gain a fixed factor at each read of A. They
run to a third of the digits, and from there to the others: the second time starts from
a residual that was computed afresh, which makes the result as accurate as that of a QR
decomposition.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

from ..core import check_floating, check_key, describe, power_of_two, vary_as
from ._matrices import check_matrix, in_float32, product, reciprocals, refuse_unless
from ._operator import check_unsharded
from ._sharded_rows import apply_rows, num_rows, total
from ._sparse_stack import sparse_stack

_ROWS = 16  # of the sketch, for each column of A: each step then gains a factor 4
_MOST_STEPS = 100  # of conjugate gradients, where the sketch failed


class Solution(NamedTuple):
    """What `lstsq` returns.

    Attributes:
        x: (d,), the minimiser of |A x - b|.
        residual: scalar, |A x - b|.
        error: scalar, |A (x - x*)| of the exact minimiser x*, measured to a factor of
            about 2: what is left to gain.
        rank: int32 scalar, the rank of A to rounding.
    """

    x: jax.Array
    residual: jax.Array
    error: jax.Array
    rank: jax.Array


def lstsq(
    key: jax.Array, A: jax.Array, b: jax.Array, *, axis_name: Any = None
) -> Solution:
    """The least squares solution of a tall system, by sketch and precondition.

    To the accuracy of a QR decomposition at any condition number, in about 60 reads of
    A. The gradient in A and b is that of the exact solution, by implicit
    differentiation, at the price of one more solution; so are higher derivatives.

    Args:
        key: scalar typed key; another one changes rounding errors only.
        A: floating (n, d), n >= d. Where columns depend on each other the solution has
            the least norm, and no derivative in A.
        b: floating (n,); for several right-hand sides use `jax.vmap` over b.
        axis_name: inside `jax.shard_map`, the mesh axis over which the rows of A and b
            are split; each step sends d numbers.

    Returns:
        `Solution(x, residual, error, rank)` in the dtype A and b promote to; computed
        in float32 or wider. Under `jit` it is NaN where A or b is not finite.

    Raises:
        TypeError: `key` is not a typed key, or A or b is not floating.
        ValueError: A is no matrix, empty or wider than tall; b does not have n
            entries; A or b, where concrete, has entries that are not finite, or is
            sharded over Explicit mesh axes.

    Complexity:
        2 n d flops a read of A, of which there are about 60 in float64 and 35 in
        float32, and 100 d^3 flops for the sketch. Where n <= 16 d the QR decomposition
        of A itself takes its place.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> A = jax.random.normal(jax.random.key(0), (200, 3))
        >>> b = A @ jnp.array([1.0, -2.0, 3.0])
        >>> lstsq(jax.random.key(1), A, b).x.round(4)
        Array([ 1., -2.,  3.], dtype=float32)

    References:
        Avron, Maymounkov, Toledo 2010, Blendenpik;
        Meng, Saunders, Mahoney 2014, LSRN (arXiv 1109.5981);
        Epperly, Meier, Nakatsukasa 2024, Fast randomized least-squares solvers can be
        just as accurate and stable as classical direct solvers (arXiv 2406.03468).
    """
    check_key(key)
    A, b, dtype = _check(A, b, axis_name)
    # Of size 1, so that no square of a residual under- or overflows.
    size = _size(b, axis_name)
    (x, residual, error, rank), finite = _solve(key, A, b / size, axis_name=axis_name)
    for value, source, name in zip(finite, (A, b), "Ab", strict=True):
        refuse_unless(value, source, name)
    x, residual, error = ((size * v).astype(dtype) for v in (x, residual, error))
    return Solution(x, residual, error, rank)


# Jitted, or outside of jit its loops were compiled anew at every call.
@partial(jax.jit, static_argnames="axis_name")
def _solve(
    key: jax.Array, A: jax.Array, b: jax.Array, *, axis_name: Any
) -> tuple[Solution, list[jax.Array]]:
    """The solution, and whether A and b are finite."""
    constants = jax.lax.stop_gradient((A, b))
    sketched = _sketch(key, *constants, axis_name=axis_name)
    N, x, rank = _precondition(*sketched)

    def pull(A: jax.Array, N: jax.Array, rows: jax.Array) -> jax.Array:
        """(A N)^T rows."""
        return product(total(product(rows, A), axis_name), N)

    def refine(A: jax.Array, b: jax.Array, x: jax.Array, digits: float) -> jax.Array:
        own = vary_as(N, jax.typeof(A))  # all that the solver meets must vary alike
        change, _ = cg(
            lambda y: pull(A, own, product(A, product(own, y))),
            pull(A, own, b - product(A, x)),
            tol=float(jnp.finfo(A.dtype).eps) ** digits,
            maxiter=_MOST_STEPS,
        )
        if axis_name is not None:  # the same on all devices, which jax does not see
            change = jax.lax.pmean(change, axis_name)
        return x + product(N, change)

    # x + inv(A^T A) A^T (b - A x) is the solution for every x. So x may be a constant,
    # and all derivatives of this expression are those of the solution. They have no
    # other step, hence the finer tolerance.
    x = jax.lax.stop_gradient(refine(*constants, x, 1 / 3))
    x = refine(A, b, x, 2 / 3)
    left = b - product(A, x)
    residual = jnp.sqrt(total((left**2).sum(), axis_name))
    error = jax.lax.stop_gradient(jnp.linalg.norm(pull(A, N, left)))
    finite = [jnp.isfinite(value).all() for value in sketched]
    return Solution(x, residual, error, rank), finite


def _size(b: jax.Array, axis_name: Any) -> jax.Array:
    """A power of two, so that nothing is rounded, near the largest entry; or 1."""
    largest = jax.lax.stop_gradient(jnp.abs(b).max())
    if axis_name is not None:
        largest = jax.lax.pmax(largest, axis_name)
    return power_of_two(largest)


def _check(A: Any, b: Any, axis_name: Any) -> tuple[jax.Array, jax.Array, Any]:
    """A and b in one dtype, float32 or wider, and the dtype of the results."""
    A, b = check_matrix(A, "A"), check_floating(b, "b")
    check_unsharded(A, "A")
    check_unsharded(b, "b")
    if b.shape != A.shape[:1]:
        raise ValueError(
            f"b is {describe(b)} and A {describe(A)}; wanted b of shape {A.shape[:1]} "
            f"(for several right-hand sides use jax.vmap over b)."
        )
    rows = num_rows(A, axis_name)
    if rows < A.shape[1]:
        raise ValueError(
            f"A is {describe(A)} with {rows} rows and {A.shape[1]} columns; wanted no "
            f"fewer rows than columns, or many x fit b: add rows, such as those of a "
            f"ridge, sqrt(ridge) times the identity."
        )
    dtype = jnp.promote_types(A.dtype, b.dtype)
    A, b = (in_float32(v.astype(dtype)) for v in (A, b))
    return A, b, dtype


def _sketch(
    key: jax.Array, A: jax.Array, b: jax.Array, *, axis_name: Any
) -> tuple[jax.Array, jax.Array]:
    """S A and S b, the same on all devices."""
    n, d = A.shape
    if axis_name is None and n <= _ROWS * d:
        return A, b
    S = sparse_stack(key, _ROWS * d, num_rows(A, axis_name))
    return apply_rows(S, A, axis_name), apply_rows(S, b, axis_name)


def _precondition(A: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
    """N with orthonormal A N, the solution and the rank of a small problem."""
    Q, R = jnp.linalg.qr(A)
    left, size, right = jnp.linalg.svd(R)
    inverse, kept = reciprocals(size)
    N = right.T * inverse[None]
    x = N @ (left.T @ (Q.T @ b))
    return N, x, kept.sum(dtype=jnp.int32)

"""The inverse of a Gram matrix from a sketch, without the bias of inversion."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from ..core import (
    check_choice,
    check_integer,
    check_key,
    describe,
    is_concrete,
)
from ._matrices import (
    check_finite,
    check_matrix,
    check_ridge,
    in_float32,
    product,
    seen_finite,
)
from ._operator import check_sketch_shape
from ._random_entries import gaussian, rademacher
from ._row_sampling import less, less_uniform, sample_rows
from ._scores import approximate_leverage_scores
from ._sharded_rows import apply_rows, num_rows
from ._sparse_stack import countsketch, sparse_stack
from ._srht import srht

_OBLIVIOUS = {
    "gaussian": gaussian,
    "rademacher": rademacher,
    "srht": srht,
    "countsketch": countsketch,
    "sparse_stack": sparse_stack,
}
FAMILIES = (*_OBLIVIOUS, "sample_rows", "less", "less_uniform")
_MOST_DRAWS = 64  # a row of LESS: more do not pay
_FIXED_POINT_STEPS = 50  # towards the effective dimension, d / m of the error each


def inverse_gram(
    key: jax.Array,
    A: jax.Array,
    m: int,
    *,
    family: str = "less",
    workers: int = 1,
    ridge: Any = 0.0,
    axis_name: Any = None,
    worker_axis_name: Any = None,
) -> jax.Array:
    r"""An estimate of `inv(A^T A + ridge I)` from m sketched rows, debiased.

    The mean of several sketches is no better than their bias, and the inverse of
    `(S A)^T S A` is too large by about m / (m - d). Here it is

    $$\frac{1}{q} \sum_{j=1}^q \Big(\tfrac{1}{\gamma} (S_j A)^T S_j A +
      \mathrm{ridge}\, I\Big)^{-1} ,$$

    where gamma is `S.debias` of the effective dimension
    `tr(A^T A inv(A^T A + ridge I))`, measured on the sketch itself; without a ridge
    that is d. The squared error then falls as 1 / q over a wide range.

    Args:
        key: scalar typed key.
        A: floating (n, d), of full column rank unless there is a ridge.
        m: rows of a sketch, above d (d + 1 for "gaussian" and "srht"), a multiple of 4
            for "sparse_stack"; 4 d serves well. An int, static under `jit`.
        family: "less" (by approximate leverage scores and min(d, 64) draws a row, the
            sparse one that is nearly unbiased for every A), "sparse_stack", "srht",
            "gaussian", "rademacher", or "less_uniform", which is nearly unbiased only
            where no row stands out.
        workers: q, independent sketches to average.
        ridge: scalar, 0 or more; may be traced. Its derivative at 0 is NaN.
        axis_name: inside `jax.shard_map`, the mesh axis over which the rows of A are
            split: one psum of (m, d) a worker, and one of a sketch for the scores of
            "less", n of which are gathered.
        worker_axis_name: a mesh axis along which A is the same: each device draws
            `workers` sketches of its own, and one pmean of (d, d) follows.

    Returns:
        (d, d), symmetric, in the dtype of A.

    Raises:
        TypeError: `key` is not a typed key, or A is not floating.
        ValueError: A is no matrix or empty; m is too small; the family is unknown or
            has no scalar that takes out its bias ("countsketch", "sample_rows"); ridge,
            where concrete, is negative or NaN; A, where concrete, has entries that are
            not finite, or, without a ridge, a column of zeros. Other columns that
            depend on each other are not noticed: the result is then huge.

    Complexity:
        "less": two reads of A for all workers, then m d min(d, 64) flops and 2 m d^2
        each. The others: what `S @ A` costs, and 2 m d^2 flops each.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> A = jax.random.normal(jax.random.key(0), (2000, 4))
        >>> Q = inverse_gram(jax.random.key(1), A, 40, workers=50)
        >>> bool(abs(Q @ (A.T @ A) - jnp.eye(4)).max() < 0.3)
        True

    References:
        Derezinski, Liao, Dobriban, Mahoney 2021, Sparse sketches with small inversion
        bias (arXiv 2011.10695); Derezinski, Bartan, Pilanci, Mahoney 2020, Debiasing
        distributed second order optimization with surrogate sketching and scaled
        regularization (arXiv 2007.01327), for the effective dimension.
    """
    check_key(key)
    matrix = check_matrix(A, "A")
    check_finite(matrix, matrix, "A")
    check_choice(family, FAMILIES, "family")
    check_sketch_shape(m, len(matrix))
    check_integer(workers, "workers", 1)
    check_ridge(ridge)
    mean = _mean(
        key,
        in_float32(matrix),
        known_ridge(ridge),
        m=m,
        family=family,
        workers=workers,
        axis_name=axis_name,
        worker_axis_name=worker_axis_name,
    )
    if not seen_finite(mean):
        raise ValueError(
            f"A is {describe(matrix)} with columns that depend on each other, so that "
            f"its Gram matrix has no inverse; wanted independent ones: drop some, or "
            f"give a ridge."
        )
    return mean.astype(matrix.dtype)


# Jitted, or outside of jit its loops were compiled anew at every call.
@partial(
    jax.jit,
    static_argnames=("m", "family", "workers", "axis_name", "worker_axis_name"),
)
def _mean(
    key: jax.Array,
    A: jax.Array,
    ridge: Any,
    *,
    m: int,
    family: str,
    workers: int,
    axis_name: Any,
    worker_axis_name: Any,
) -> jax.Array:
    scoring, drawing = jax.random.split(key)
    draw = sketcher(scoring, A, m, family, ridge, axis_name)
    if worker_axis_name is not None:
        drawing = jax.random.fold_in(drawing, jax.lax.axis_index(worker_axis_name))
    roots = jax.vmap(draw)(jax.random.split(drawing, workers))
    mean = jax.vmap(_inverse_of_root)(roots).mean(0)
    return mean if worker_axis_name is None else jax.lax.pmean(mean, worker_axis_name)


def known_ridge(ridge: Any) -> Any:
    """The ridge, or None where it is known to be 0."""
    return None if is_concrete(ridge) and not ridge else ridge


def sketcher(
    key: jax.Array, A: jax.Array, m: int, family: str, ridge: Any, axis_name: Any
) -> Callable[[jax.Array], jax.Array]:
    """A function that draws triangular roots of debiased sketches of `A^T A`.

    Args:
        key: scalar typed key, for what all draws share: the scores.
        A: float32 or float64 (n, d).
        m: rows of the sketch.
        family: one of `FAMILIES`.
        ridge: scalar, 0 or more, or None.
        axis_name: the mesh axis over which the rows of A are split, or None.

    Returns:
        `draw(key)`: upper triangular R (d, d) such that inv(R^T R) is nearly unbiased.

    Raises:
        ValueError: m is too small for the family and d, or the family has no scalar.
    """
    n, d = num_rows(A, axis_name), A.shape[1]
    if ridge is None and n < d:
        raise ValueError(
            f"the matrix has {n} rows and {d} columns, so that its Gram matrix has no "
            f"inverse; wanted no fewer rows than columns, or a ridge."
        )
    draws = max(2, min(d, _MOST_DRAWS))  # a single one has no scalar
    scores: Any = None
    if family in ("less", "sample_rows"):
        own = 0.0 if ridge is None else ridge
        scores = approximate_leverage_scores(key, A, ridge=own, axis_name=axis_name)
        if axis_name is not None:
            scores = jax.lax.all_gather(scores, axis_name, tiled=True)
        total = scores.sum()
        total = jnp.where(total == 0, 1, total)  # of a matrix of zeros
        scores = 0.9 * scores / total + 0.1 / n  # none is far too small
        # For any scores the mean is the inverse, so its derivative needs none of them;
        # that of the weights, without that of the draws, has a bias.
        scores = jax.lax.stop_gradient(scores)

    def operator(key: jax.Array) -> Any:
        if family == "less":
            return less(key, scores, m, s=draws)
        if family == "less_uniform":
            return less_uniform(key, m, n, s=draws)
        if family == "sample_rows":
            return sample_rows(key, scores, m)
        return _OBLIVIOUS[family](key, m, n)

    def draw(key: jax.Array) -> jax.Array:
        S = operator(key)
        scalar = S.debias(d)  # raises where there is none
        R = jnp.linalg.qr(apply_rows(S, A, axis_name), mode="r")
        if ridge is None:
            return R * scalar**-0.5
        scalar = S.debias(_effective_dimension(R, S.debias, ridge))
        root = jnp.sqrt(jnp.asarray(ridge, R.dtype)) * jnp.eye(d, dtype=R.dtype)
        return jnp.linalg.qr(jnp.concatenate([R * scalar**-0.5, root]), mode="r")

    return draw


def _effective_dimension(
    R: jax.Array, debias: Callable[[Any], Any], ridge: Any
) -> jax.Array:
    """`tr(A^T A inv(A^T A + ridge I))`, of the debiased sketched Gram R^T R / scalar.

    The scalar depends on the dimension in turn: the least fixed point, from below.
    """
    size = jnp.linalg.svd(R, compute_uv=False) ** 2

    def improve(_, dimension):
        scaled = size / debias(dimension)
        total = scaled + ridge
        return (scaled / jnp.where(total == 0, 1, total)).sum()

    return jax.lax.fori_loop(0, _FIXED_POINT_STEPS, improve, 0 * size.sum())


def _inverse_of_root(R: jax.Array) -> jax.Array:
    """`inv(R^T R)` for a triangular R."""
    inverse = solve_triangular(R, jnp.eye(len(R), dtype=R.dtype))
    return product(inverse, inverse.T)

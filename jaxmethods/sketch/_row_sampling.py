"""Rows of A drawn by their scores, alone or several at a time with random signs."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import check_floating, check_integer, check_key, describe, is_concrete
from ..kernels import random_bits
from ._drawing import draw_indices
from ._operator import check_sketch_shape, check_unsharded
from ._sparse_rows import SparseRows

_SIGNS = 1 << 31  # the stream of the signs; those of the draws count from 0


def sample_rows(
    key: jax.Array, scores: jax.Array, m: int, *, leverage: jax.Array | None = None
) -> SparseRows:
    """A row sample (m, n): m rows drawn with replacement, p = scores / sum.

    A drawn row i is weighted by 1 / sqrt(m p_i), so that `E[S^T S] = I`. No scalar
    takes the bias out of an inverse that follows, but weights do: 1 / sqrt(m p_i - l_i)
    with the exact leverage l_i of each row. `less` needs neither.

    Args:
        key: scalar typed key.
        scores: floating (n,), 0 or more, of any scale; a row with score 0 is never
            drawn. Leverage scores, squared norms, or ones.
        m: rows to draw, at least 1.
        leverage: floating (n,), the leverage of every row, for the corrected weights.

    Returns:
        `SparseRows` with one entry a row. Where `leverage` is traced and m p_i - l_i is
        not positive, the weight is NaN or infinite.

    Raises:
        TypeError: `key` is not a typed key, or scores are not floating.
        ValueError: m is below 1; scores, where concrete, are negative, not finite or
            all zero; m p - leverage, where concrete, is not positive for some row.

    Complexity:
        One pass over the scores; about log2(n) steps a draw. `S @ A` reads m rows.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> S = sample_rows(jax.random.key(0), jnp.array([0.0, 2.0, 0.0]), 2)
        >>> (S.dense() * 2**0.5).round(3)
        Array([[0., 1., 0.],
               [0., 1., 0.]], dtype=float32)

    References:
        Drineas, Mahoney, Muthukrishnan 2006, Sampling algorithms for l2 regression;
        Niu, Liao, Ling, Mahoney 2025, Fundamental bias in inverting random sampling
        matrices (ICML), for the corrected weights.
    """
    scores, num_rows = _check(key, scores, m)
    if leverage is not None:
        leverage = _check_leverage(leverage, scores, num_rows)
    index, weight = _draw_alone(key, scores, leverage, num_rows)
    return SparseRows(index, weight, len(scores))


# Jitted, as the others: one program when called op by op.
@partial(jax.jit, static_argnames="num_rows")
def _draw_alone(
    key: jax.Array, scores: jax.Array, leverage: jax.Array | None, num_rows: int
) -> tuple[jax.Array, jax.Array]:
    index = draw_indices(key, scores, (num_rows, 1))
    mean = num_rows * _probability(scores, index)  # how often the row is expected
    if leverage is not None:
        mean = mean - leverage[index]
    return index, 1 / jnp.sqrt(mean)


def less(
    key: jax.Array, scores: jax.Array, m: int, *, s: int | None = None
) -> SparseRows:
    r"""A leverage score sparsified sketch (m, n): s rows of A a row, with signs.

    A row of S is a sum over s draws t_1, ..., t_s with replacement, p = scores / sum:

    $$\frac{1}{\sqrt{m s}} \sum_k \frac{r_k}{\sqrt{p_{t_k}}}\, e_{t_k}^T ,
      \qquad r_k = \pm 1 .$$

    `E[S^T S] = I`, and `(m - d) / m * inv((S A)^T S A)` is nearly unbiased, as that of
    a dense sketch, where the scores are approximate leverage scores and s is about d.
    Scores that are too large cost little, those that are too small much: with
    unreliable ones draw from `0.9 * scores / scores.sum() + 0.1 / n`.

    Args:
        key: scalar typed key.
        scores: floating (n,), 0 or more, of any scale; a row with score 0 is never
            drawn. `leverage_scores(A)` or `approximate_leverage_scores(key, A)`.
            Derivatives in them are those of the weights, the draws held fixed; stop
            them (`jax.lax.stop_gradient`) for those of a sketch that is given.
        m: rows, at least 1; 4 d serves well.
        s: draws a row, at least 1; the bias of an inverse falls until s = d. By
            default m / 4 rounded up, which is d where m is 4 d, and 64 at most.

    Returns:
        `SparseRows` with s entries a row. Where scores are traced and all zero, the
        weights are NaN.

    Raises:
        TypeError: `key` is not a typed key, scores are not floating, or m is no int.
        ValueError: m or s is below 1; scores, where concrete, are negative, not finite
            or all zero (or below 1e-38, which is zero to processors that flush).

    Complexity:
        One pass over the scores; about log2(n) steps a draw. `S @ A` reads m s rows.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> S = less(jax.random.key(0), jnp.ones(1000), 16, s=4)
        >>> int((S.dense() != 0).sum(1).max()), S.debias(4)
        (4, 0.75)

    References:
        Derezinski, Liao, Dobriban, Mahoney 2021, Sparse sketches with small inversion
        bias (arXiv 2011.10695).
    """
    scores, num_rows = _check(key, scores, m)
    s = min(-(-num_rows // 4), 64) if s is None else check_integer(s, "s", 1)
    index, weight = _draw_signed(key, scores, num_rows, s)
    return SparseRows(index, weight, len(scores))


@partial(jax.jit, static_argnames=("num_rows", "s"))
def _draw_signed(
    key: jax.Array, scores: jax.Array, num_rows: int, s: int
) -> tuple[jax.Array, jax.Array]:
    index = draw_indices(key, scores, (num_rows, s))
    scale = jnp.sqrt(num_rows * s * _probability(scores, index))
    return index, _signs(key, index) / scale


def less_uniform(key: jax.Array, m: int, n: int, *, s: int) -> SparseRows:
    """A sparse sign sketch (m, n): s draws a row, all columns alike.

    `less` with equal scores, so without a look at A: `(m - d) / m * inv((S A)^T S A)`
    is nearly unbiased only where no row of A has a leverage far above d / n.

    Args:
        key: scalar typed key.
        m: rows, at least 1.
        n: columns, at least 1.
        s: draws a row, at least 1.

    Returns:
        `SparseRows` with s entries a row.

    Raises:
        TypeError: `key` is not a typed key.
        ValueError: m, n or s is below 1.

    Complexity:
        m s random words. `S @ A` reads m s rows.

    Example:
        >>> import jax
        >>> S = less_uniform(jax.random.key(0), 16, 1000, s=4)
        >>> S.shape, S.index.shape
        ((16, 1000), (16, 4))

    References:
        Derezinski, Lacotte, Pilanci, Mahoney 2021, Newton-LESS (arXiv 2107.07480).
    """
    check_key(key)
    if jnp.ndim(m):
        raise TypeError(
            f"m is {describe(m)}; wanted a Python int, the rows of the sketch: "
            f"less_uniform(key, m, n, s=s) has no scores, less(key, scores, m) has."
        )
    num_rows, num_columns = check_sketch_shape(m, n)
    s = check_integer(s, "s", 1)
    index, weight = _draw_evenly(key, num_rows, num_columns, s)
    return SparseRows(index, weight, num_columns)


@partial(jax.jit, static_argnames=("num_rows", "num_columns", "s"))
def _draw_evenly(
    key: jax.Array, num_rows: int, num_columns: int, s: int
) -> tuple[jax.Array, jax.Array]:
    counter = jnp.arange(num_rows * s, dtype=jnp.uint32).reshape(num_rows, s)
    # 2^32 words fall on n columns: uneven by at most n / 2^32.
    index = (random_bits(key, counter) % jnp.uint32(num_columns)).astype(jnp.int32)
    return index, _signs(key, index) * (num_columns / (num_rows * s)) ** 0.5


def _signs(key: jax.Array, index: jax.Array) -> jax.Array:
    """A sign for each draw, in the default floating dtype."""
    counter = jnp.arange(index.size, dtype=jnp.uint32).reshape(index.shape)
    bit = random_bits(key, counter, _SIGNS) >> 31
    return 1 - 2 * bit.astype(jnp.result_type(float))


def _probability(scores: jax.Array, index: jax.Array) -> jax.Array:
    # Scaled first, so that no sum overflows.
    scores = scores / scores.max()
    return scores[index] / scores.sum()


def _check(key: Any, scores: Any, m: Any) -> tuple[jax.Array, int]:
    """The scores in float32 or wider, and m."""
    check_key(key)
    if not jnp.ndim(scores):
        raise TypeError(
            f"scores are {describe(scores)}; wanted a vector, one score a row of A, "
            f"before the rows m: less(key, leverage_scores(A), m); without scores "
            f"less_uniform(key, m, n, s=s)."
        )
    scores = check_floating(scores, "scores")
    check_unsharded(scores, "scores")
    if scores.ndim != 1 or not scores.size:
        raise ValueError(
            f"scores are {describe(scores)}; wanted a vector with one score a row of A."
        )
    dtype = jnp.promote_types(scores.dtype, jnp.float32)
    if is_concrete(scores):
        values = np.asarray(scores, np.float64)
        wrong = ~np.isfinite(values) | (values < 0)
        # Below this numbers count as zeros to processors that flush.
        least = float(jnp.finfo(dtype).tiny)
        if wrong.any() or not values.max() >= least:
            place = int(np.argmax(wrong)) if wrong.any() else int(np.argmax(values))
            raise ValueError(
                f"scores are {describe(scores)} with scores[{place}] = "
                f"{values[place]:g}; wanted finite scores of 0 or more, one of them "
                f"positive, {least:.2g} or more: clip them, multiply them by a "
                f"constant, or pass ones."
            )
    num_rows = check_sketch_shape(m, len(scores))[0]
    return scores.astype(dtype), num_rows


def _check_leverage(leverage: Any, scores: jax.Array, num_rows: int) -> jax.Array:
    leverage = check_floating(leverage, "leverage")
    if leverage.shape != scores.shape:
        raise ValueError(
            f"leverage is {describe(leverage)} and scores {describe(scores)}; wanted "
            f"one leverage a score."
        )
    if is_concrete(leverage) and is_concrete(scores):
        values = np.asarray(scores, np.float64)
        mean = num_rows * values / values.sum()
        weighed = np.asarray(leverage, np.float64)
        # The leverage of a row of zeros, which is never drawn, may be a rounding error.
        none = (mean == 0) & (np.abs(weighed) <= 10 * jnp.finfo(leverage.dtype).eps)
        wrong = ~(mean - weighed > 0) & ~none
        if wrong.any():
            worst = int(np.argmax(wrong))
            raise ValueError(
                f"leverage[{worst}] is {weighed[worst]:g} and row {worst} is "
                f"expected {mean[worst]:g} times in {num_rows} draws; wanted leverage "
                f"below that for every row: draw more rows m, or by scores nearer to "
                f"the leverage."
            )
    return leverage.astype(scores.dtype)

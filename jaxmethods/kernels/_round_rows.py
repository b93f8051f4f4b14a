"""Rows to codes: range, levels and rounding by chance, in one read of the matrix.

Bound by memory: of n d numbers in float32 the definition reads 4 n d bytes for the
ranges, 4 n d again for the levels, and writes n d: so counted in the program compiled
for a TPU v5e (libtpu 0.0.42). The Pallas kernel holds whole rows in fast memory and
reads them once: 5 n d bytes.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ..core import check_choice, check_floating, check_integer, check_key, describe
from ._batch_axes import mapped_in_front, outputs_like
from ._row_column_bits import mix_columns, row_words

# Numbers in a block of rows: 1 MB in float32, and some eight arrays of that size live.
_NUMBERS = 2**18
_ALIGNED = 32  # rows of bytes that a register holds


class RoundedRows(NamedTuple):
    """Codes and grids of rows: the values are `codes * step + low`.

    Attributes:
        codes: uint8 (n, d), levels 0..2^bits - 1.
        step: float (n, 1), the distance between levels.
        low: float (n, 1), the value of level 0.
    """

    codes: jax.Array
    step: jax.Array
    low: jax.Array


def round_rows(
    key: jax.Array, rows: jax.Array, *, bits: int, implementation: str = "xla"
) -> RoundedRows:
    """Rounds each row by chance to 2^bits levels between its minimum and maximum.

    `floor(y) + [u < y - floor(y)]` for the level y of an entry and its uniform u from
    `row_column_bits`: the expectation of the value is the entry. It has no derivative.

    Args:
        key: scalar typed key.
        rows: floating (n, d), not empty.
        bits: 2..8.
        implementation: "xla", or "pallas": on TPUs, in float32 and bfloat16 and up to
            8192 columns, a kernel that reads the rows once, with the same codes; what
            "xla" does elsewhere. It has been compiled for TPU v4, v5e, v5p and v6e, and
            measured on none. There is none for GPUs: Triton is about to leave jax, and
            Mosaic has neither floor nor minima of rows there.

    Returns:
        RoundedRows; steps in float32, or float64 for float64 rows. A row that holds NaN
        or infinity has NaN for every value.

    Raises:
        TypeError: `key` is not a typed key, `rows` not floating, or `bits` no int.
        ValueError: `rows` is empty or no matrix, `bits` not in 2..8, or an unknown
            `implementation`.

    Example:
        >>> rows = jnp.array([[0.0, 1.0, 3.0], [5.0, 5.0, 5.0]])
        >>> codes, step, low = round_rows(jax.random.key(0), rows, bits=2)
        >>> (codes * step + low).tolist()
        [[0.0, 1.0, 3.0], [5.0, 5.0, 5.0]]

    References:
        Chen, Gai, Yao, Mahoney, Gonzalez 2020 (arXiv 2010.14298), per-sample quantizer.
    """
    check_choice(implementation, ("xla", "pallas"), "implementation")
    check_key(key)
    rows = jax.lax.stop_gradient(check_matrix(rows))
    top = 2 ** check_integer(bits, "bits", 2, 8) - 1
    words = row_words(key, rows.shape[0])
    known = rows.dtype in (jnp.float32, jnp.bfloat16)
    fits = rows.shape[1] * min(_ALIGNED, rows.shape[0]) <= _NUMBERS
    form = _choose if implementation == "pallas" and known and fits else _rounded
    codes, grid = form(top, rows, words)
    return RoundedRows(codes, grid[:, :1], grid[:, 1:])


def check_matrix(rows: jax.Array) -> jax.Array:
    """`rows`, or an error unless it is a floating matrix with entries."""
    rows = check_floating(rows, "rows")
    if rows.ndim != 2 or not rows.size:
        raise ValueError(
            f"rows is {describe(rows)}; wanted a matrix with at least one entry."
        )
    return rows


def round_by_chance(levels: jax.Array, bits: jax.Array, top: int) -> jax.Array:
    """Whole levels 0..top near real ones, up or down by random bits.

    `floor(y) + [u < y - floor(y)]` for `u` uniform in [0, 1): the expectation is `y`,
    and a whole `y` never moves. The comparison keeps all 24 bits of `u`, where
    `floor(y + u)` would round the sum.

    Args:
        levels: float array, 0..top up to rounding.
        bits: uint32 array of that shape, whose upper 24 bits are used.
        top: the largest level.

    Returns:
        Array like `levels`; NaN where `levels` is.

    Example:
        >>> half = jnp.full(2, 0.5)
        >>> round_by_chance(half, jnp.array([0, 2**32 - 1], jnp.uint32), 3).tolist()
        [1.0, 0.0]
    """
    below = jnp.floor(levels)
    # The way to float is a vector instruction for signed integers only.
    uniform = (bits >> 8).astype(jnp.int32).astype(jnp.float32) * jnp.float32(2.0**-24)
    up = uniform < (levels - below).astype(jnp.float32)
    return jnp.clip(below + up.astype(levels.dtype), 0, top)


def even_step(low: jax.Array, high: jax.Array, top: int) -> jax.Array:
    """The distance of levels 0..top that are spread evenly from `low` to `high`.

    A range narrower than the smallest normal number a level is widened to that.

    Args:
        low: float32 or float64.
        high: likewise.
        top: the number of steps.

    Returns:
        Positive; NaN where a bound is NaN or infinite, or the range so wide (4e37 in
        float32) that the reciprocal of its step may be flushed to zero.

    Example:
        >>> float(even_step(jnp.float32(-1), jnp.float32(5), 3))
        2.0
    """
    limits = jnp.finfo(low.dtype)
    width = jnp.maximum(high - low, top * limits.tiny)
    return jnp.where(width <= limits.max / 8, 1 / (top / width), jnp.nan)


def row_grid(low: jax.Array, high: jax.Array, top: int) -> jax.Array:
    """Step and lowest value, (n, 2), of levels 0..top from `low` to `high` (n, 1)."""
    return jnp.concatenate([even_step(low, high, top), low], axis=1)


def to_codes(
    values: jax.Array, grid: jax.Array, words: jax.Array, first: Any, top: int
) -> jax.Array:
    """int32 codes of columns `first`, `first + 1`, ... of rows with these grids."""
    levels = (values - grid[:, 1:]) * (1 / grid[:, :1])
    column = jax.lax.broadcasted_iota(jnp.int32, (1, values.shape[1]), 1) + first
    bits = mix_columns(words, column.astype(jnp.uint32))
    whole = round_by_chance(levels, bits, top)
    return jnp.where(jnp.isnan(whole), 0, whole).astype(jnp.int32)


def _rounded(
    top: int, rows: jax.Array, words: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The definition: codes (n, d), and step and lowest value of each row (n, 2)."""
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    # Not every chip's minimum keeps a NaN.
    low, high = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
    broken = jnp.isnan(rows).astype(rows.dtype).max(1, keepdims=True) > 0
    low, high = (jnp.where(broken, jnp.nan, bound) for bound in (low, high))
    grid = row_grid(low, high, top)
    return to_codes(rows, grid, words, 0, top).astype(jnp.uint8), grid


def _choose(top: int, rows: jax.Array, words: jax.Array) -> Any:
    forms = {"tpu": partial(_fused, top), "default": partial(_rounded, top)}
    return mapped_in_front(lambda *x: jax.lax.platform_dependent(*x, **forms))(
        rows, words
    )


def _fused(
    top: int, rows: jax.Array, words: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The Pallas kernel: the definition on blocks of whole rows."""
    num_rows, num_columns = rows.shape
    height = _NUMBERS // num_columns // _ALIGNED * _ALIGNED
    height = min(max(height, _ALIGNED), 8 * _ALIGNED, num_rows)

    def block(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((height, width), lambda i: (i, 0))

    codes, grid = pl.pallas_call(
        partial(_step, top),
        grid=(pl.cdiv(num_rows, height),),
        in_specs=[block(num_columns), block(2)],
        out_specs=[block(num_columns), block(2)],
        out_shape=outputs_like(partial(_rounded, top), rows, words),
        interpret=interpret,
        name="round_rows",
    )(rows, words)
    return codes, grid


def _step(top: int, rows: Any, words: Any, codes: Any, grid: Any) -> None:
    codes[...], grid[...] = _rounded(top, rows[...], words[...])

"""Rows through a small matrix, then to codes: the product is never in memory.

The block Householder quantizer rounds `T x` for a matrix `T` of at most some hundred
rows. XLA writes the product and reads it again: compiled for a TPU v5e (libtpu 0.0.42;
float32, 256 x 65536), 13 n d bytes in all. The Pallas kernel keeps the product of up to
2^20 numbers in fast memory until the ranges of its rows are known: 5 n d bytes.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..core import check_choice, check_integer, check_key, describe
from ._batch_axes import mapped_in_front, outputs_like
from ._round_rows import RoundedRows, check_matrix, round_rows, row_grid, to_codes
from ._row_column_bits import row_words

_ROWS, _COLUMNS = 256, 512  # at most: of the matrix, and of a tile of columns
_NUMBERS = 2**20  # of the product, kept in fast memory: 4 MB


def round_transformed(
    key: jax.Array,
    transform: jax.Array,
    rows: jax.Array,
    shift: jax.Array,
    *,
    bits: int,
    implementation: str = "xla",
) -> RoundedRows:
    """`round_rows` of `transform @ (rows - shift)`. It has no derivative.

    Args:
        key: scalar typed key.
        transform: (n, n), of the dtype of the rows.
        rows: floating (n, d), not empty.
        shift: (n, 1), of the dtype of the rows.
        bits: 2..8.
        implementation: "xla", or "pallas": on TPUs, in float32, for up to 256 rows and
            2^20 numbers, a kernel that keeps the product in fast memory; what "xla"
            does elsewhere. The two differ where rounding of the products moves an entry
            past its random number. Compiled for TPU v4, v5e, v5p and v6e, and measured
            on none.

    Returns:
        RoundedRows of the transformed rows.

    Raises:
        TypeError: `key` is not a typed key, `rows` not floating, or `bits` no int.
        ValueError: `rows` is empty or no matrix, `transform` or `shift` does not fit,
            `bits` is not in 2..8, or an unknown `implementation`.

    Complexity:
        2 n^2 d flops at full precision.

    Example:
        >>> rows = jnp.array([[0.0, 3.0], [1.0, 2.0]])
        >>> swap = jnp.array([[0.0, 1.0], [1.0, 0.0]])
        >>> key, shift = jax.random.key(0), jnp.zeros((2, 1))
        >>> codes, step, low = round_transformed(key, swap, rows, shift, bits=2)
        >>> (codes * step + low).tolist()
        [[1.0, 2.0], [0.0, 3.0]]

    References:
        Chen, Gai, Yao, Mahoney, Gonzalez 2020 (arXiv 2010.14298), block Householder.
    """
    check_choice(implementation, ("xla", "pallas"), "implementation")
    check_key(key)
    rows, top = check_matrix(rows), 2 ** check_integer(bits, "bits", 2, 8) - 1
    n = rows.shape[0]
    if transform.shape != (n, n) or shift.shape != (n, 1):
        raise ValueError(
            f"transform is {describe(transform)} and shift {describe(shift)} for rows "
            f"{describe(rows)}; wanted ({n}, {n}) and ({n}, 1)."
        )
    operands = jax.lax.stop_gradient((transform, rows, shift))
    known = {x.dtype for x in operands} == {jnp.dtype("float32")}
    fits = n <= _ROWS and rows.size <= _NUMBERS
    if implementation == "xla" or not (known and fits):
        return round_rows(key, _product(*operands), bits=bits)
    forms = {"tpu": partial(_fused, top), "default": partial(_rounded, top)}
    choice = mapped_in_front(lambda *x: jax.lax.platform_dependent(*x, **forms))
    codes, grid = choice(*operands, row_words(key, n))
    return RoundedRows(codes, grid[:, :1], grid[:, 1:])


def _product(transform: jax.Array, rows: jax.Array, shift: jax.Array) -> jax.Array:
    return jnp.matmul(transform, rows - shift, precision="highest")


def _rounded(top: int, *operands: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The definition: codes (n, d), and step and lowest value of each row (n, 2)."""
    values, words = _product(*operands[:3]), operands[3]
    grid = row_grid(values.min(1, keepdims=True), values.max(1, keepdims=True), top)
    return to_codes(values, grid, words, 0, top).astype(jnp.uint8), grid


def _fused(
    top: int, *operands: jax.Array, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The Pallas kernel: the product of each tile of columns, then the codes of each.

    While codes are written no more rows are read, and none are written before.
    """
    num_rows, num_columns = operands[1].shape
    width = min(_COLUMNS, num_columns)
    num_tiles = pl.cdiv(num_columns, width)

    def whole(columns: int) -> pl.BlockSpec:
        return pl.BlockSpec((num_rows, columns), lambda phase, j: (0, 0))

    def read(phase: Any, j: Any) -> Any:
        return 0, jnp.where(phase == 0, j, num_tiles - 1)

    def written(phase: Any, j: Any) -> Any:
        return 0, j * phase

    codes, grid = pl.pallas_call(
        partial(_step, top, num_columns),
        grid=(2, num_tiles),
        in_specs=[
            whole(num_rows),
            pl.BlockSpec((num_rows, width), read),
            whole(1),
            whole(2),
        ],
        out_specs=[pl.BlockSpec((num_rows, width), written), whole(2)],
        out_shape=outputs_like(partial(_rounded, top), *operands),
        scratch_shapes=[
            pltpu.VMEM((num_tiles, num_rows, width), jnp.float32),
            *[pltpu.VMEM((num_rows, 1), jnp.float32)] * 2,
        ],
        interpret=interpret,
        name="round_transformed",
    )(*operands)
    return codes, grid


def _step(top: int, num_columns: int, *refs: Any) -> None:
    """One tile of columns: forms its product and widens the ranges, or rounds it."""
    *operands, words, codes, grid, product, low, high = refs
    phase, tile = pl.program_id(0), pl.program_id(1)
    first = tile * codes.shape[1]

    @pl.when((phase == 0) & (tile == 0))
    def _():
        low[...], high[...] = (jnp.full_like(low, x) for x in (jnp.inf, -jnp.inf))

    @pl.when(phase == 0)
    def _():
        values = _product(*(x[...] for x in operands))
        product[tile] = values
        column = jax.lax.broadcasted_iota(jnp.int32, values.shape, 1) + first
        inside = column < num_columns  # the last tile sticks out
        below, above = (jnp.where(inside, values, x) for x in (jnp.inf, -jnp.inf))
        broken = jnp.where(inside & jnp.isnan(values), 1.0, 0.0).max(1, keepdims=True)
        # Not every chip's minimum keeps a NaN; a sum does.
        spoilt = jnp.where(broken > 0, jnp.nan, 0.0)
        low[...] = jnp.minimum(low[...], below.min(1, keepdims=True)) + spoilt
        high[...] = jnp.maximum(high[...], above.max(1, keepdims=True)) + spoilt

    @pl.when(phase == 1)
    def _():
        grid[...] = row_grid(low[...], high[...], top)
        found = to_codes(product[tile], grid[...], words[...], first, top)
        codes[...] = found.astype(jnp.uint8)

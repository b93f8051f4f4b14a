"""Products of 8-bit codes in integers, and what their grids make of them.

An entry of a quantized matrix is `(code - zero) * step + offset`. Where the grids do
not change along a contraction they factor out of it: the product is that of the codes,
exact in 32 bits, and terms of rank one from the sums of the codes of each row and
column.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..core import check_choice, describe
from ._batch_axes import mapped_in_front, outputs_like

_ROWS, _COLUMNS, _TERMS = 256, 512, 2048  # of a block: 4 MB, all buffers
# So many products of differences of codes, 255^2 at most, are below 2^31.
MOST_TERMS = 2**31 // 255**2


class CodeGrid(NamedTuple):
    """The values of codes, `(code - zero) * step + offset`.

    Attributes:
        step: float32, the distance between neighbours.
        zero: int32, a code in -128..127.
        offset: float32, the value of that code: where zero lies near code `zero`, it is
            small, and nothing is lost to differences of large terms.
    """

    step: jax.Array
    zero: jax.Array
    offset: jax.Array


def integer_matmul(
    lhs: jax.Array,
    rhs: jax.Array,
    lhs_grid: CodeGrid,
    rhs_grid: CodeGrid,
    *,
    implementation: str = "xla",
) -> jax.Array:
    """The product of two matrices given by 8-bit codes, computed in integers.

    Args:
        lhs: int8 (m, k).
        rhs: int8 (k, n).
        lhs_grid: grids of the rows, arrays (m, 1), or (1, 1) for one grid.
        rhs_grid: grids of the columns, arrays (1, n) or (1, 1).
        implementation: "xla", or "pallas": on TPUs, a kernel that adds up the codes of
            rows and columns while it multiplies them, and rescales a block of products
            before it leaves fast memory; what "xla" does elsewhere. Compiled for TPU
            v5e, v5p and v6e (v4 has no 8-bit products), and measured on none.

    Returns:
        float32 (m, n). Integers are exact, and only the rescaling rounds.

    Raises:
        ValueError: shapes or dtypes that do not fit, more than 33 025 terms to a sum,
            which 32 bits may not hold, or an unknown `implementation`.

    Complexity:
        2 m k n integer operations. XLA rescales as it writes, too, and only reads the
        codes once more for their sums: 4 m n + 2 (m k + k n) bytes, by the program
        compiled for a TPU v5e (libtpu 0.0.42; 4096 x 4096 x 4096).

    Example:
        >>> grid = CodeGrid(*(jnp.full((1, 1), x) for x in (0.5, 1, 0.0)))
        >>> codes = jnp.array([[3, 1], [1, 5]], jnp.int8)  # of 1 0, 0 2
        >>> integer_matmul(codes, codes, grid, grid).tolist()
        [[1.0, 0.0], [0.0, 4.0]]

    References:
        Jacob et al. 2017, Quantization and training of neural networks for efficient
        integer-arithmetic-only inference (arXiv 1712.05877), section 2.3.
    """
    check_choice(implementation, ("xla", "pallas"), "implementation")
    _check(lhs, rhs)
    if implementation == "xla" or 0 in (*lhs.shape, *rhs.shape):
        return _products(lhs, rhs, *lhs_grid, *rhs_grid)
    return mapped_in_front(_choose)(lhs, rhs, *lhs_grid, *rhs_grid)


def _check(lhs: jax.Array, rhs: jax.Array) -> None:
    bytes_ = lhs.dtype == rhs.dtype == jnp.int8
    if not bytes_ or lhs.ndim != 2 or rhs.ndim != 2 or lhs.shape[1] != rhs.shape[0]:
        raise ValueError(
            f"lhs is {describe(lhs)} and rhs {describe(rhs)}; "
            "wanted int8 (m, k) and int8 (k, n)."
        )
    if lhs.shape[1] > MOST_TERMS:
        raise ValueError(
            f"lhs is {describe(lhs)}, with {lhs.shape[1]} terms to a sum; wanted at "
            f"most {MOST_TERMS}, or 32 bits may overflow: add up products of parts."
        )


def _rescaled(
    products: jax.Array,
    lhs_sum: jax.Array,
    rhs_sum: jax.Array,
    num_terms: int,
    lhs_grid: CodeGrid,
    rhs_grid: CodeGrid,
) -> jax.Array:
    """Sums of products of values, from integer sums over their codes."""
    left, right = (
        total - num_terms * grid.zero
        for total, grid in ((lhs_sum, lhs_grid), (rhs_sum, rhs_grid))
    )
    both = products - lhs_grid.zero * rhs_sum - rhs_grid.zero * left
    terms = (
        (both, lhs_grid.step * rhs_grid.step),
        (left, lhs_grid.step * rhs_grid.offset),
        (right, lhs_grid.offset * rhs_grid.step),
    )
    constant = num_terms * lhs_grid.offset * rhs_grid.offset
    return sum((x.astype(jnp.float32) * factor for x, factor in terms), constant)


def _products(lhs: jax.Array, rhs: jax.Array, *grids: jax.Array) -> jax.Array:
    """The definition."""
    products = jnp.matmul(lhs, rhs, preferred_element_type=jnp.int32)
    lhs_sum = lhs.sum(1, keepdims=True, dtype=jnp.int32)
    rhs_sum = rhs.sum(0, keepdims=True, dtype=jnp.int32)
    lhs_grid, rhs_grid = CodeGrid(*grids[:3]), CodeGrid(*grids[3:])
    return _rescaled(products, lhs_sum, rhs_sum, lhs.shape[1], lhs_grid, rhs_grid)


def _choose(*operands: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(*operands, tpu=_fused, default=_products)


def _fused(
    lhs: jax.Array, rhs: jax.Array, *grids: jax.Array, interpret: bool = False
) -> jax.Array:
    """The Pallas kernel: blocks of products, their sums of codes beside them."""
    (like,) = outputs_like(_products, lhs, rhs, *grids)
    num_rows, num_terms = lhs.shape
    num_columns = rhs.shape[1]
    height, width = min(_ROWS, num_rows), min(_COLUMNS, num_columns)
    depth = min(_TERMS, num_terms)
    # Codes of zero behind the last terms add nothing to any sum.
    lhs = jnp.pad(lhs, ((0, 0), (0, -num_terms % depth)))
    rhs = jnp.pad(rhs, ((0, -num_terms % depth), (0, 0)))
    left = [jnp.broadcast_to(x, (num_rows, 1)) for x in grids[:3]]
    right = [jnp.broadcast_to(x, (1, num_columns)) for x in grids[3:]]
    return pl.pallas_call(
        partial(_step, num_terms),
        grid=(
            pl.cdiv(num_rows, height),
            pl.cdiv(num_columns, width),
            pl.cdiv(num_terms, depth),
        ),
        in_specs=[
            pl.BlockSpec((height, depth), lambda i, j, k: (i, k)),
            pl.BlockSpec((depth, width), lambda i, j, k: (k, j)),
            *[pl.BlockSpec((height, 1), lambda i, j, k: (i, 0))] * 3,
            *[pl.BlockSpec((1, width), lambda i, j, k: (0, j))] * 3,
        ],
        out_specs=pl.BlockSpec((height, width), lambda i, j, k: (i, j)),
        out_shape=like,
        scratch_shapes=[
            pltpu.VMEM(shape, jnp.int32)
            for shape in ((height, width), (height, 1), (1, width))
        ],
        interpret=interpret,
        name="integer_matmul",
    )(lhs, rhs, *left, *right)


def _step(num_terms: int, lhs: Any, rhs: Any, *refs: Any) -> None:
    """A block of terms: adds to the sums, and rescales them after the last one."""
    *grids, out, products, lhs_sum, rhs_sum = refs
    block = pl.program_id(2)
    totals = products, lhs_sum, rhs_sum

    @pl.when(block == 0)
    def _():
        for total in totals:
            total[...] = jnp.zeros_like(total)

    some, others = lhs[...], rhs[...]
    products[...] += jax.lax.dot(some, others, preferred_element_type=jnp.int32)
    lhs_sum[...] += some.astype(jnp.int32).sum(1, keepdims=True)
    rhs_sum[...] += others.astype(jnp.int32).sum(0, keepdims=True)

    @pl.when(block == pl.num_programs(2) - 1)
    def _():
        values = [x[...] for x in grids]
        lhs_grid, rhs_grid = CodeGrid(*values[:3]), CodeGrid(*values[3:])
        out[...] = _rescaled(
            products[...], lhs_sum[...], rhs_sum[...], num_terms, lhs_grid, rhs_grid
        )

"""One step of a backward pass of linear bounds: rows of coefficients through lines.

Between two lines, a coefficient v times the function is at least the lower line times v
where v > 0 and the upper one where v < 0: `v middle + |v| half`, for the slopes and,
summed over a row, for the biases. The step is bound by how often it reads and writes
the rows: at least twice, or three times where both signs are written.

XLA nearly gets there by itself. Bytes accessed, in units of the rows, of programs
compiled ahead of time for a TPU v5e (libtpu 0.0.42; float32, 1024 x 2048, and
64 x 256 x 2048 under `vmap`); the kernel's are those of its blocks:

| form | one sign | under vmap | both signs | under vmap |
|---|---|---|---|---|
| the definition, by XLA | 2.0 | 4.1 | 7.0 | 9.1 |
| the Pallas kernel | 2.0 | 2.0 | 3.0 | 3.0 |

For one sign XLA turns the matrix-vector products into sums and fuses them with the
elementwise step; under `vmap` over large rows it does not, and it never fuses a
concatenation with what it joins. But rows of that size are rare: CROWN bounds hidden
values some rows at a time, and those stay in the chip's fast memory. Of a network
784-256-256-256-10 under `vmap` over 64 inputs the whole program is estimated at
440 000 cycles without the kernel, and at 441 000 and the kernel's own with it. So XLA
is the default; the kernel has been compiled for TPU v4, v5e, v5p and v6e, and measured
on none.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..core import check_choice
from ._batch_axes import mapped_in_front, outputs_like

_ROWS, _COLUMNS = 256, 512  # of a block: 4 MB of fast memory in float32, all buffers


def signed_slopes(
    rows: jax.Array,
    slope_middle: jax.Array,
    slope_half: jax.Array,
    bias_middle: jax.Array,
    bias_half: jax.Array,
    *,
    part: bool = False,
    implementation: str = "xla",
) -> tuple[jax.Array, jax.Array]:
    """Rows of coefficients through a pair of lines each, and their biases.

    `rows * slope_middle + |rows| * slope_half`, and the same of the biases, summed over
    each row. Derivatives are those of this formula, by either implementation.

    Args:
        rows: floating (R, n).
        slope_middle: (n,), half the sum of the slopes of the lower and the upper line.
        slope_half: (n,), half of the lower slope less the upper.
        bias_middle: (n,), as `slope_middle`.
        bias_half: (n,), as `slope_half`.
        part: Whether the negated rows pass as well.
        implementation: "xla", or "pallas": on TPUs, in float32 and bfloat16, a kernel
            that reads the rows once; what "xla" does elsewhere.

    Returns:
        New rows (R, n) and biases (R,); with `part` those of the negated rows behind
        them, (2R, n) and (2R,).

    Raises:
        ValueError: `implementation` is none of the two.

    Complexity:
        8 R n flops, or 10 with `part`. The kernel moves 2 R n numbers, or 3.

    Example:
        >>> import jax.numpy as jnp
        >>> rows, half = jnp.array([[1.0, -2.0]]), jnp.full(2, 0.5)
        >>> new, bias = signed_slopes(rows, half, -half, 0 * half, -half)
        >>> new.tolist(), bias.tolist()  # between 0 and x + 1, x in [-1, 0]
        ([[0.0, -2.0]], [-1.5])

    References:
        Zhang, Weng, Chen, Hsieh, Daniel 2018, Efficient neural network robustness
        certification with general activation functions (arXiv 1811.00866).
    """
    check_choice(implementation, ("xla", "pallas"), "implementation")
    form = _products if implementation == "xla" else _by_platform
    return form(part, rows, slope_middle, slope_half, bias_middle, bias_half)


def _products(
    part: bool, rows: jax.Array, *lines: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The definition."""
    size = jnp.abs(rows)
    slope_middle, slope_half, bias_middle, bias_half = lines
    odd_bias = jnp.matmul(rows, bias_middle, precision="highest")
    even_bias = jnp.matmul(size, bias_half, precision="highest")
    odd, even = rows * slope_middle[None], size * slope_half[None]
    if not part:
        return odd + even, odd_bias + even_bias
    return (
        jnp.concatenate([even + odd, even - odd]),
        jnp.concatenate([even_bias + odd_bias, even_bias - odd_bias]),
    )


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _by_platform(part: bool, *operands: jax.Array) -> Any:
    kinds = {x.dtype for x in operands}
    known = kinds in ({jnp.dtype("float32")}, {jnp.dtype("bfloat16")})
    if not known or not operands[0].size:
        return _products(part, *operands)
    platforms = {"tpu": partial(_fused, part), "default": partial(_products, part)}
    return mapped_in_front(lambda *x: jax.lax.platform_dependent(*x, **platforms))(
        *operands
    )


@_by_platform.defjvp
def _derivative(part: bool, primals: Any, tangents: Any) -> Any:
    """That of the definition."""
    along = jax.jvp(partial(_products, part), primals, tangents)[1]
    return _by_platform(part, *primals), along


def _fused(
    part: bool, rows: jax.Array, *lines: jax.Array, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The Pallas kernel: blocks of rows, and of their columns, each read once."""
    (num_rows, num_columns), sides = rows.shape, 1 + part
    height, width = min(_ROWS, num_rows), min(_COLUMNS, num_columns)
    like = outputs_like(partial(_products, part), rows, *lines)
    shapes = (sides, num_rows, num_columns), (sides, num_rows)
    kinds = [x.update(shape=s) for x, s in zip(like, shapes, strict=True)]
    new, bias = pl.pallas_call(
        partial(_step, num_columns=num_columns),
        grid=(pl.cdiv(num_rows, height), pl.cdiv(num_columns, width)),
        in_specs=[
            pl.BlockSpec((height, width), lambda i, j: (i, j)),
            *[pl.BlockSpec((1, width), lambda i, j: (0, j))] * 4,
        ],
        out_specs=[
            pl.BlockSpec((sides, height, width), lambda i, j: (0, i, j)),
            pl.BlockSpec((sides, height), lambda i, j: (0, i)),
        ],
        out_shape=kinds,
        scratch_shapes=[pltpu.VMEM((sides, height, 1), jnp.float32)],
        interpret=interpret,
        name="signed_slopes",
    )(rows, *(line.reshape(1, -1) for line in lines))
    return new.reshape(-1, num_columns), bias.reshape(-1)


def _step(rows: Any, *refs: Any, num_columns: int) -> None:
    """One block: writes its new rows, adds up their biases over the blocks of a row."""
    *lines, new, bias, total = refs
    block = pl.program_id(1)

    @pl.when(block == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    value = rows[...].astype(jnp.float32)
    size = jnp.abs(value)
    slope_middle, slope_half, bias_middle, bias_half = (
        line[...].astype(jnp.float32) for line in lines
    )
    odd, even = value * slope_middle, size * slope_half
    odd_bias, even_bias = value * bias_middle, size * bias_half
    width = value.shape[1]
    if num_columns % width:  # the last block sticks out into what was never written
        column = block * width + jax.lax.broadcasted_iota(jnp.int32, value.shape, 1)
        inside = column < num_columns
        odd_bias, even_bias = (jnp.where(inside, x, 0) for x in (odd_bias, even_bias))
    for side, sign in zip(range(new.shape[0]), (1, -1), strict=False):
        new[side] = (even + sign * odd).astype(new.dtype)
        total[side] += (even_bias + sign * odd_bias).sum(1, keepdims=True)

    @pl.when(block == pl.num_programs(1) - 1)
    def _():
        # From a column to a row by sums over a diagonal: not every TPU can move it.
        height = value.shape[0]
        row, column = (
            jax.lax.broadcasted_iota(jnp.int32, (height, height), axis)
            for axis in (0, 1)
        )
        for side in range(new.shape[0]):
            diagonal = jnp.where(row == column, total[side], 0)
            bias[side : side + 1] = diagonal.sum(0, keepdims=True).astype(bias.dtype)

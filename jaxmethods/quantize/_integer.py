"""Products of quantized operands from their codes, where integers are faster."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from ..kernels import MOST_TERMS, CodeGrid, integer_matmul
from ._psq import PerSample
from ._ptq import PerTensor
from ._quantizer import Quantizer
from ._rounding import round_levels

Product = Callable[[jax.Array, jax.Array], jax.Array]

_PLATFORMS = ("tpu", "cuda")
_KNOWN = ("float32", "bfloat16", "float16")


def integer_product(
    equation: JaxprEqn,
    quantizers: tuple[Quantizer | None, Quantizer | None],
    simulated: Product,
) -> Product:
    """A product of rounded operands, from 8-bit integers where they may be faster.

    That is matrix products on TPUs and on NVIDIA GPUs, of operands whose grids do not
    change along the contraction, so that steps factor out of the sum: `ptq` always,
    `psq` where the axes that it tells apart are not contracted. All else is `simulated`
    as it is: on CPUs, which multiply bytes no faster than floats; products in float64;
    and all convolutions, since XLA has none of bytes to 32 bits on GPUs, and on TPUs
    the sums of codes cost more than is saved.

    It pays for large products. Compiled for a TPU v5e (libtpu 0.0.42), 4096 x 4096 by
    4096 x 4096 is estimated at 539 000 cycles in int8 and at 1 115 000 simulated in
    bfloat16, as a TPU takes float32 by default; with the rounding of both operands, of
    which integers need the codes in memory, at 1 770 000 and 1 720 000. And integers
    are exact there, where bfloat16 rounds the values of the grid once more. Neither has
    been measured on a device.

    Args:
        equation: the `dot_general` or `conv_general_dilated` that is replaced.
        quantizers: of the two operands.
        simulated: the same product in floats: of operands rounded to the nearest by
            `quantizers`, with the derivatives to have.

    Returns:
        `fn(lhs, rhs)` of operands as they come, not rounded yet. Values equal those of
        `simulated` up to float32 rounding, derivatives of any order are its own.

    References:
        Chen, Gai, Yao, Mahoney, Gonzalez 2020 (arXiv 2010.14298).
        Jacob et al. 2017 (arXiv 1712.05877), section 2.2.
    """
    in_integers = integer_form(equation, quantizers)
    if in_integers is None:
        return simulated
    platforms = dict.fromkeys(_PLATFORMS, in_integers)

    @jax.custom_jvp
    def fn(lhs, rhs):
        return jax.lax.platform_dependent(lhs, rhs, **platforms, default=simulated)

    # What stands in a derivative is differentiated in turn: hence `fn` again.
    fn.defjvp(lambda p, t: (fn(*p), jax.jvp(simulated, p, t)[1]))
    return fn


def integer_form(
    equation: JaxprEqn, quantizers: tuple[Quantizer | None, Quantizer | None]
) -> Product | None:
    """The product of `equation` in integers, or None where that cannot be.

    Returns:
        `fn(lhs, rhs)` of floats, rounded inside. Its derivative is zero.
    """
    if equation.primitive.name != "dot_general":
        return None
    avals: list[Any] = [v.aval for v in equation.invars]
    out: Any = equation.outvars[0].aval
    if any(x.dtype not in _KNOWN or 0 in x.shape for x in (*avals, out)):
        return None
    contracted, _ = equation.params["dimension_numbers"]
    num_terms = math.prod(avals[0].shape[axis] for axis in contracted[0])
    factors = all(
        q is not None and _axes_told_apart(q, x.ndim).isdisjoint(summed)
        for q, x, summed in zip(quantizers, avals, contracted, strict=True)
    )
    if not factors or num_terms > MOST_TERMS:
        return None

    def fn(lhs, rhs):
        left, right = map(_coded, quantizers, (lhs, rhs))
        return _dot(equation.params["dimension_numbers"], left, right).astype(out.dtype)

    return fn


def _axes_told_apart(q: Quantizer, ndim: int) -> set[int]:
    """The axes of an operand along which its grid changes."""
    if isinstance(q.scaling, PerTensor):
        return set()
    if isinstance(q.scaling, PerSample):
        return {0} if q.scaling.per == "sample" else set(range(1, ndim))
    return set(range(ndim))  # a transform of the rows


def _coded(q: Any, x: jax.Array) -> tuple[jax.Array, CodeGrid]:
    """int8 codes of the shape of `x`, and their grid, which broadcasts with them."""
    levels, decoder = q.encode(x)
    grid, top, middle = decoder.grid, 2**q.bits - 1, 2 ** (q.bits - 1)
    codes = round_levels(None, levels, top).astype(jnp.int32) - middle
    # The level next to zero, where the grid has it: little is left for the offset.
    distance = jnp.round(grid.offset / grid.step)
    zero = jnp.clip(grid.zero.astype(distance.dtype) - distance, 0, top)
    offset = grid.offset + (zero - grid.zero.astype(zero.dtype)) * grid.step

    def spread(a: jax.Array) -> jax.Array:
        columns = x.shape[1:] if a.shape[1] > 1 else (1,) * (x.ndim - 1)
        return a.reshape(a.shape[0], *columns)

    found = CodeGrid(grid.step, zero.astype(jnp.int32) - middle, offset)
    return codes.astype(jnp.int8).reshape(x.shape), CodeGrid(*map(spread, found))


def _dot(
    dims: Any,
    lhs: tuple[jax.Array, CodeGrid],
    rhs: tuple[jax.Array, CodeGrid],
) -> jax.Array:
    """A `dot_general`, as one product of matrices for each index of the batch."""
    contracted, batch = dims
    free = [
        [a for a in range(codes.ndim) if a not in (*summed, *shared)]
        for (codes, _), summed, shared in zip(
            (lhs, rhs), contracted, batch, strict=True
        )
    ]

    def matrices(x: jax.Array, side: int) -> jax.Array:
        parts = [batch[side], free[side], contracted[side]]
        if side:
            parts[1:] = parts[:0:-1]
        sizes = [math.prod(x.shape[axis] for axis in part) for part in parts]
        return x.transpose([axis for part in parts for axis in part]).reshape(sizes)

    def laid_out(side: int, codes: jax.Array, grid: CodeGrid) -> tuple[Any, CodeGrid]:
        shape = [
            1 if axis in contracted[side] else size
            for axis, size in enumerate(codes.shape)
        ]
        spread = (jnp.broadcast_to(a, shape) for a in grid)
        return matrices(codes, side), CodeGrid(*(matrices(a, side) for a in spread))

    (lhs_codes, lhs_grid), (rhs_codes, rhs_grid) = laid_out(0, *lhs), laid_out(1, *rhs)
    out = jax.vmap(integer_matmul)(lhs_codes, rhs_codes, lhs_grid, rhs_grid)
    shape = [lhs[0].shape[a] for a in (*batch[0], *free[0])]
    return out.reshape(shape + [rhs[0].shape[a] for a in free[1]])

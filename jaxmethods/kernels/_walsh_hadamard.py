"""The Walsh-Hadamard transform as products with small Hadamard matrices.

A transform of length `r q` is one of length r over blocks of q rows, then one of length
q in each block. Sums and differences row by row would pass over all memory log2(n)
times; a matrix unit takes four to six bits at once. On a CPU blocks that fit the second
cache are finished there, in place: 2^18 x 64 in float32 takes two passes and 2.6 times
as long as a copy, against 3.7 with 512 blocks of 512.

The Pallas kernel keeps up to 4096 rows in fast memory and takes up to 12 bits there, so
that 2^12 rows are read and written once, 2^20 twice, 2^28 three times. It adds and
subtracts in the vector unit, 8 cycles for 1024 numbers by its schedule, where reading
and writing them takes a TPU v5e 15; products with 128 x 128 blocks would take 11, and
float32 in three parts. Cycles of a TPU v5e (libtpu 0.0.52) in float32; the kernel's are
the larger of its schedule and of its bytes at 546 a cycle:

| rows | the definition, by XLA | the Pallas kernel |
|---|---|---|
| 2^10 x 1024 | 34 000 | 15 000 |
| 2^12 x 1024 | 117 000 | 61 000 |
| 2^18 x 128 | 3 460 000 | 980 000 |
| 2^20 x 128 | 19 200 000 | 3 900 000 |

Fewer than 128 columns are no kernel: XLA lays out a tall argument of those by columns,
and copies to rows and back would take what is gained. XLA is the default: the kernel
has been compiled for TPU v4, v5e, v5p and v6e, and measured on none.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..core import check_choice
from ._batch_axes import mapped_in_front, outputs_like

_BLOCK = 1 << 20  # bytes of a block that is transformed in cache
_LONG = 64  # the transform over blocks, and the longest that is one product
_SHORT = 4  # bits of a product in cache, whose operand is at hand again at once

_LANES, _GROUP = 128, 16  # columns of the kernel's blocks; rows of a register, or two
_BITS = 4  # taken at once in registers, of groups of rows
_FEWEST = 256  # rows worth a kernel


@partial(jax.jit, static_argnames="implementation")  # one program when called op by op
def walsh_hadamard(rows: jax.Array, *, implementation: str = "xla") -> jax.Array:
    """Sylvester's Hadamard matrix H times a matrix, unnormalised: H H = n I.

    Args:
        rows: floating (n, d), n a power of two.
        implementation: "xla", or "pallas": on TPUs, in float32 and bfloat16, for 256
            rows or more of 128 numbers or more, a kernel that reads and writes them
            once for 12 bits of n, and once for each further 8; what "xla" does
            elsewhere.

    Returns:
        (n, d), float32 or wider.

    Raises:
        ValueError: `implementation` is none of the two.

    Complexity:
        CPU: two passes over memory up to 2^18 x 64, one more for each further factor
        of 64 in n; 100 to 300 flops a number on any device, log2(n) in the kernel.

    Example:
        >>> import jax.numpy as jnp
        >>> walsh_hadamard(jnp.array([[1.0], [2.0], [3.0], [4.0]]))[:, 0]
        Array([10., -2., -4.,  0.], dtype=float32)

    References:
        Fino, Algazi 1976, Unified matrix treatment of the fast Walsh-Hadamard
        transform.
    """
    check_choice(implementation, ("xla", "pallas"), "implementation")
    if not rows.size:
        return rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    known = rows.dtype in (jnp.float32, jnp.bfloat16)
    worth = rows.shape[0] >= _FEWEST and rows.shape[1] >= _LANES
    form = _by_platform if implementation == "pallas" and known and worth else _products
    return form(rows)


def _products(rows: jax.Array) -> jax.Array:
    """The definition."""
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    return jax.lax.platform_dependent(rows, cpu=_by_blocks, default=_all_at_once)


@jax.custom_jvp
def _by_platform(rows: jax.Array) -> jax.Array:
    wide = {
        name: lambda rows, form=form: form(rows.astype(jnp.float32))
        for name, form in (("cpu", _by_blocks), ("default", _all_at_once))
    }
    choice = partial(jax.lax.platform_dependent, tpu=_fused, **wide)
    return mapped_in_front(choice)(rows)


@_by_platform.defjvp
def _derivative(primals: Any, tangents: Any) -> Any:
    """That of the definition, which is linear."""
    return _by_platform(*primals), _products(*tangents)


def _by_blocks(rows: jax.Array) -> jax.Array:
    """Over blocks, then in each block, in place."""
    length, width = rows.shape
    if length <= _LONG:
        return _product(_sylvester(length), rows)
    if rows.size * rows.dtype.itemsize <= _BLOCK:
        return _in_cache(rows)
    blocks = _product(_sylvester(_LONG), rows.reshape(_LONG, -1))
    blocks = blocks.reshape(_LONG, -1, width)

    def transform(i, blocks):
        return blocks.at[i].set(_by_blocks(blocks[i]))

    return jax.lax.fori_loop(0, _LONG, transform, blocks).reshape(rows.shape)


def _in_cache(rows: jax.Array) -> jax.Array:
    """Short factors, each as a batch of products over the blocks so far."""
    length, width = rows.shape
    out = rows
    if width < _LONG:  # the last factor first: its products would be narrow
        last = min(length, _LONG)
        blocks = rows.reshape(-1, last, width)
        out = jnp.einsum("sr,arb->asb", _sylvester(last), blocks, precision="highest")
        length //= last
    before = 1
    for factor in _factors(length):
        blocks = out.reshape(before, factor, -1)
        small = jnp.broadcast_to(_sylvester(factor), (before, factor, factor))
        out = _product(small, blocks)
        before *= factor
    return out.reshape(rows.shape)


def _all_at_once(rows: jax.Array) -> jax.Array:
    """Long factors over the whole array: for devices with many cores."""
    out, before = rows, 1
    while before < len(rows):
        factor = min(len(rows) // before, _LONG)
        blocks = out.reshape(before, factor, -1)
        small = _sylvester(factor)
        out = jnp.einsum("sr,arb->asb", small, blocks, precision="highest")
        before *= factor
    return out.reshape(rows.shape)


def _factors(length: int) -> list[int]:
    """A power of two as factors of 16 at most, as even as can be."""
    bits = length.bit_length() - 1
    count = -(-bits // _SHORT)
    return [1 << (bits // count + (i < bits % count)) for i in range(count)]


def _sylvester(length: int) -> np.ndarray:
    """The matrix whose entry (i, j) is -1 to the number of bits that i and j share."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < length:
        matrix = np.kron(np.array([[1, 1], [1, -1]], np.float32), matrix)
    return matrix


def _product(left: np.ndarray | jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, precision="highest")


def _fused(rows: jax.Array, *, interpret: bool = False) -> jax.Array:
    """The Pallas kernel: as many bits of the row number at a time as fit fast memory.

    The first passes take the highest bits, over groups of 16 rows that lie apart; the
    last takes the rows of a group as well.
    """
    length = rows.shape[0]
    bits = (length // _GROUP).bit_length() - 1
    passes = pl.cdiv(bits, 2 * _BITS)
    (like,) = outputs_like(_products, rows)
    out, outer = rows, 1
    for i in range(passes):
        size = 1 << (bits // passes + (i < bits % passes))
        shape = outer, size, length // outer // size
        out = _one_pass(out, shape, like, last=i == passes - 1, interpret=interpret)
        outer *= size
    return out


def _one_pass(
    rows: jax.Array, shape: tuple[int, int, int], like: Any, **options: bool
) -> jax.Array:
    """The transform over the middle axis of row numbers, cut in two for registers."""
    (outer, size, inner), width = shape, rows.shape[1]
    high = 1 << (size.bit_length() - 1) // 2
    whole = outer, high, size // high, inner, width
    lanes = min(_LANES, width)
    block = pl.BlockSpec(
        (None, *whole[1:3], _GROUP, lanes), lambda i, k, j: (i, 0, 0, k, j)
    )
    out = pl.pallas_call(
        partial(_step, options["last"]),
        grid=(outer, inner // _GROUP, pl.cdiv(width, lanes)),
        in_specs=[block],
        out_specs=block,
        out_shape=like.update(shape=whole),
        interpret=options["interpret"],
        name="walsh_hadamard",
    )(rows.reshape(whole))
    return out.reshape(rows.shape)


def _step(last: bool, rows: Any, out: Any) -> None:
    """A block (high, low, 16, lanes): over its low axis, then over its high one."""
    high, low, group, lanes = out.shape

    def over_low(i: Any, _: None) -> None:
        out[i] = _add_and_subtract(rows[i].astype(jnp.float32))

    def over_high(i: Any, _: None) -> None:
        values = out[:, i]
        if last:  # the rows of a group: 8 of them share a register
            values = values.reshape(high * group // 8, 8, lanes)
            values = _within_registers(_add_and_subtract(values))
            out[:, i] = values.reshape(high, group, lanes)
        else:
            out[:, i] = _add_and_subtract(values)

    jax.lax.fori_loop(0, high, over_low, None)
    jax.lax.fori_loop(0, low, over_high, None)


def _add_and_subtract(values: jax.Array) -> jax.Array:
    """The transform along the first axis, bit by bit."""
    size, *rest = values.shape
    half = 1
    while half < size:
        pairs = values.reshape(-1, 2, half, *rest)
        first, second = pairs[:, 0], pairs[:, 1]
        values = jnp.stack([first + second, first - second], 1).reshape(size, *rest)
        half *= 2
    return values


def _within_registers(values: jax.Array) -> jax.Array:
    """The transform along the second of three axes, of size 8."""
    place = jax.lax.broadcasted_iota(jnp.int32, values.shape, 1)
    for half in (1, 2, 4):
        upper = (place & half) != 0
        shifts: Any = np.int32(half), np.int32(8 - half)  # also where 64 is the default
        other, back = (pltpu.roll(values, shift, axis=1) for shift in shifts)
        if half < 4:  # 4 places on is 4 places back
            other = jnp.where(upper, other, back)
        values = other + jnp.where(upper, -values, values)
    return values

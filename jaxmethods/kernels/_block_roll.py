"""Blocks of rows, signed and added up at cyclic offsets: a CountSketch without scatter.

A CountSketch adds every row of A to a bucket of its own. Scattering rows one by one
is slow on a CPU, and on a GPU float additions into few buckets serialise.
Here a bucket is drawn for a *block* of `size` rows, and the rows of a block fall into
consecutive buckets, cyclically. Two rows of different blocks still collide with
probability 1 / size, two rows of one block never, and all memory is read in order.

The Pallas kernels keep the buckets in fast memory while rows stream by. Cycles of a TPU
v5e (libtpu 0.0.52) for 2^18 x 128 in float32, from the estimates of the compiler and,
for the kernels, the length of their schedule, or their bytes at 546 a cycle where those
take longer:

| stacks x buckets | the sums, by XLA | the kernel | the adjoint, by XLA | the kernel |
|---|---|---|---|---|
| 1 x 1024 | 3 300 000 | 300 000 | 740 000 | 290 000 |
| 4 x 256 | 16 400 000 | 710 000 | 4 000 000 | 650 000 |

Of XLA's cycles for the sums, 40 to 70 % are those of small fusions at the estimate's
least value. The kernel first copies a matrix that lies by columns, as XLA lays out a
tall argument with fewer than 128 columns: 3 000 000 cycles for 10^6 x 100, of which
XLA takes 9 500 000 for the sums. XLA is the default: the kernels have been compiled for
TPU v4, v5e, v5p and v6e, and measured on none.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..core import check_choice
from ._batch_axes import mapped_in_front
from ._rolled_tiles import add_tiles, buckets_fit, collect_tiles


def block_roll(
    rows: jax.Array,
    sign: jax.Array,
    offset: jax.Array,
    phase: jax.Array | int,
    *,
    size: int,
    implementation: str = "xla",
) -> jax.Array:
    """Sums of signed blocks of rows, each block at its own cyclic offset.

    Row i stands at position `p = phase + i`, in block `p // size`. Stack j adds it,
    times `sign[j, i]`, to bucket `(p + offset[j, p // size]) % size`.

    Args:
        rows: floating (n, d).
        sign: (k, n), any real dtype.
        offset: integer (k, blocks), 0..size-1, where `blocks * size >= phase + n`.
        phase: integer scalar, 0..size-1, may be traced: where the first row stands.
        size: buckets of a stack, and rows of a block.
        implementation: "xla", or "pallas": on TPUs, in float32 and bfloat16, a kernel
            whose buckets stay in fast memory, if there are at most some 8000 in all
            stacks, 16 stacks, and no fewer than 32 to a stack (64 for 7 stacks or more,
            127 for 11 or more); what "xla" does elsewhere.

    Returns:
        (k, size, d), float32 or wider.

    Raises:
        ValueError: `implementation` is none of the two.

    Complexity:
        One read of `rows`, k additions a number; 2 k size d numbers of memory.

    Example:
        >>> import jax.numpy as jnp
        >>> rows, sign = jnp.arange(1.0, 7.0)[:, None], jnp.ones((1, 6))
        >>> block_roll(rows, sign, jnp.array([[0, 2]]), 0, size=3)[0, :, 0].tolist()
        [6.0, 8.0, 7.0]

    References:
        Charikar, Chen, Farach-Colton 2002, Finding frequent items in data streams
        (the CountSketch).
    """
    check_choice(implementation, ("xla", "pallas"), "implementation")
    operands = rows, sign, offset, jnp.asarray(phase, jnp.int32)
    if implementation == "pallas" and _has_kernel(rows, sign, size):
        return _rolled(size, *operands)
    return _by_device(size, *operands)


def block_roll_transpose(
    sums: jax.Array,
    sign: jax.Array,
    offset: jax.Array,
    phase: jax.Array | int,
    *,
    implementation: str = "xla",
) -> jax.Array:
    """The adjoint of `block_roll`: every row collects its buckets, signed.

    Args:
        sums: floating (k, size, d).
        sign: (k, n), any real dtype.
        offset: integer (k, blocks), 0..size-1.
        phase: integer scalar, 0..size-1, may be traced.
        implementation: as for `block_roll`.

    Returns:
        (n, d), float32 or wider.

    Raises:
        ValueError: `implementation` is none of the two.

    Complexity:
        One write of the result, k reads of `sums` a number.

    Example:
        >>> import jax.numpy as jnp
        >>> sums, sign = jnp.array([[[6.0], [8.0], [7.0]]]), jnp.ones((1, 6))
        >>> back = block_roll_transpose(sums, sign, jnp.array([[0, 2]]), 0)
        >>> back[:, 0].tolist()
        [6.0, 8.0, 7.0, 7.0, 6.0, 8.0]
    """
    check_choice(implementation, ("xla", "pallas"), "implementation")
    operands = sums, sign, offset, jnp.asarray(phase, jnp.int32)
    if implementation == "pallas" and _has_kernel(sums, sign, sums.shape[1]):
        return _unrolled(*operands)
    return _collect(*operands)


def rolled_buckets(
    offset: jax.Array, phase: jax.Array | int, num_rows: int, *, size: int
) -> jax.Array:
    """The bucket of every row in every stack, as `block_roll` places them.

    Args:
        offset: integer (k, blocks), 0..size-1.
        phase: integer scalar, 0..size-1, may be traced.
        num_rows: the number n of rows.
        size: buckets of a stack, and rows of a block.

    Returns:
        int32 (k, n), 0..size-1.

    Example:
        >>> import jax.numpy as jnp
        >>> rolled_buckets(jnp.array([[0, 2]]), 0, 6, size=3).tolist()
        [[0, 1, 2, 2, 0, 1]]
    """
    position = jnp.arange(num_rows, dtype=jnp.int32) + phase
    block, place = position // size, position % size
    return (place[None, :] + offset[:, block]) % size


def _by_device(size: int, *operands: jax.Array) -> jax.Array:
    """The definition.

    A GPU wants all buckets at once; a loop would launch kernels block by block. That
    form is tested on the CPU; its speed on a GPU has not been measured.
    """
    return jax.lax.platform_dependent(*operands, **_forms(size))


def _forms(size: int) -> dict[str, Any]:
    gather = partial(_sum_gathered, size=size)
    return dict(cuda=gather, rocm=gather, default=partial(_add_in_place, size=size))


def _add_in_place(rows, sign, offset, phase, *, size):
    """Walks the blocks in memory order and adds each to k accumulators in cache."""
    dtype = jnp.promote_types(rows.dtype, jnp.float32)
    missing = max(0, size - rows.shape[0])
    rows, sign = (
        jnp.pad(rows, ((0, missing), (0, 0))),
        jnp.pad(sign, ((0, 0), (0, missing))),
    )
    num_rows, width = rows.shape

    def add_block(t, sums):
        # The first and last block may stick out of the rows: their window moves
        # inside, and rows of the neighbouring block in it count as zero.
        begin = jnp.clip(t * size - phase, 0, num_rows - size)
        shift = begin + phase - t * size
        place = jnp.arange(size, dtype=jnp.int32) + shift
        inside = ((place >= 0) & (place < size))[:, None]
        # Tied to the step: or XLA's CPU backend, which has no bfloat16 slice, lifts
        # a float32 copy of all rows out of the loop (220 ms and 400 MB, not 25 and 1).
        source, begin = jax.lax.optimization_barrier((rows, begin))
        block = jax.lax.dynamic_slice_in_dim(source, begin, size).astype(dtype)
        signs = jax.lax.dynamic_slice_in_dim(sign, begin, size, axis=1).astype(dtype)
        at = (shift + offset[:, t]) % size
        return tuple(
            _add_slice(total, jnp.where(inside, block * signs[j][:, None], 0), at[j])
            for j, total in enumerate(sums)
        )

    # Twice as long as the buckets, so that no block wraps around; folded at the end.
    start = jax.lax.full_like(rows, 0, dtype, shape=(2 * size, width))
    sums = jax.lax.fori_loop(0, offset.shape[1], add_block, (start,) * len(sign))
    return jnp.stack([total[:size] + total[size:] for total in sums])


def _add_slice(total, block, start):
    old = jax.lax.dynamic_slice_in_dim(total, start, len(block))
    return jax.lax.dynamic_update_slice_in_dim(total, old + block, start, axis=0)


def _sum_gathered(rows, sign, offset, phase, *, size):
    """Every bucket reads its row of each block: a gather into a sum, no scatter."""
    dtype = jnp.promote_types(rows.dtype, jnp.float32)
    num_rows = rows.shape[0]
    bucket = jnp.arange(size, dtype=jnp.int32)[None, :]
    first = jnp.arange(offset.shape[1], dtype=jnp.int32)[:, None] * size - phase

    def one_stack(sign, offset):
        row = first + (bucket - offset[:, None]) % size
        row = jnp.where(row < 0, num_rows, row)  # out of range, as those past the end
        block = rows.at[row].get(mode="fill", fill_value=0).astype(dtype)
        signs = sign.at[row].get(mode="fill", fill_value=0).astype(dtype)
        return (block * signs[..., None]).sum(0)

    return jnp.stack([one_stack(*pair) for pair in zip(sign, offset, strict=True)])


def _collect(
    sums: jax.Array, sign: jax.Array, offset: jax.Array, phase: jax.Array
) -> jax.Array:
    """The definition of the adjoint."""
    dtype = jnp.promote_types(sums.dtype, jnp.float32)
    bucket = rolled_buckets(offset, phase, sign.shape[1], size=sums.shape[1])
    # Without the barrier the signs' random words are drawn again for every column.
    bucket, sign = jax.lax.optimization_barrier((bucket, sign))
    picked = (
        jnp.take(sums[j], bucket[j], axis=0, mode="clip").astype(dtype)
        * sign[j].astype(dtype)[:, None]
        for j in range(len(sign))
    )
    return sum(picked, start=jnp.zeros((), dtype))


def _has_kernel(values: jax.Array, sign: jax.Array, size: int) -> bool:
    known = values.dtype in (jnp.float32, jnp.bfloat16)
    filled = 0 not in (*values.shape, *sign.shape)
    return known and filled and buckets_fit(len(sign), size, values.shape[-1])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _rolled(size: int, *operands: jax.Array) -> jax.Array:
    forms = dict(tpu=partial(add_tiles, size), **_forms(size))
    return mapped_in_front(lambda *x: jax.lax.platform_dependent(*x, **forms))(
        *operands
    )


@_rolled.defjvp
def _rolled_derivative(size: int, primals: Any, tangents: Any) -> Any:
    """That of the definition."""
    along = jax.jvp(partial(_by_device, size), primals, tangents)[1]
    return _rolled(size, *primals), along


@jax.custom_jvp
def _unrolled(*operands: jax.Array) -> jax.Array:
    forms = dict(tpu=collect_tiles, default=_collect)
    return mapped_in_front(lambda *x: jax.lax.platform_dependent(*x, **forms))(
        *operands
    )


@_unrolled.defjvp
def _unrolled_derivative(primals: Any, tangents: Any) -> Any:
    """That of the definition."""
    return _unrolled(*primals), jax.jvp(_collect, primals, tangents)[1]

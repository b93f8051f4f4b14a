"""Blocks of rows, signed and added up at cyclic offsets: a CountSketch without scatter.

A CountSketch adds every row of A to a bucket of its own. Scattering rows one by one
is slow on a CPU, and on a GPU float additions into few buckets serialise.
Here a bucket is drawn for a *block* of `size` rows, and the rows of a block fall into
consecutive buckets, cyclically. Two rows of different blocks still collide with
probability 1 / size, two rows of one block never, and all memory is read in order.
"""

import jax
import jax.numpy as jnp


def block_roll(
    rows: jax.Array,
    sign: jax.Array,
    offset: jax.Array,
    phase: jax.Array | int,
    *,
    size: int,
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

    Returns:
        (k, size, d), float32 or wider.

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

    def loop(*operands):
        return _add_in_place(*operands, size=size)

    def gather(*operands):
        return _sum_gathered(*operands, size=size)

    # A GPU wants all buckets at once; a loop would launch kernels block by block.
    # That form is tested on the CPU; its speed on a GPU has not been measured.
    return jax.lax.platform_dependent(
        rows, sign, offset, phase, cuda=gather, rocm=gather, default=loop
    )


def block_roll_transpose(
    sums: jax.Array, sign: jax.Array, offset: jax.Array, phase: jax.Array | int
) -> jax.Array:
    """The adjoint of `block_roll`: every row collects its buckets, signed.

    Args:
        sums: floating (k, size, d).
        sign: (k, n), any real dtype.
        offset: integer (k, blocks), 0..size-1.
        phase: integer scalar, 0..size-1, may be traced.

    Returns:
        (n, d), float32 or wider.

    Complexity:
        One write of the result, k reads of `sums` a number.

    Example:
        >>> import jax.numpy as jnp
        >>> sums, sign = jnp.array([[[6.0], [8.0], [7.0]]]), jnp.ones((1, 6))
        >>> back = block_roll_transpose(sums, sign, jnp.array([[0, 2]]), 0)
        >>> back[:, 0].tolist()
        [6.0, 8.0, 7.0, 7.0, 6.0, 8.0]
    """
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

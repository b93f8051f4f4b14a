"""Rows added to given buckets: the scatter of a CountSketch whose buckets are data."""

import jax
import jax.numpy as jnp

_CHUNK = 1024  # rows that meet the matrix unit at once


def bucket_sum(
    rows: jax.Array, bucket: jax.Array, sign: jax.Array, *, size: int
) -> jax.Array:
    """Sums of signed rows by bucket, in k stacks.

    Args:
        rows: floating (n, d).
        bucket: integer (k, n), 0..size-1.
        sign: (k, n), any real dtype.
        size: the number of buckets of a stack.

    Returns:
        (k, size, d), float32 or wider: `out[j, b]` sums `sign[j, i] * rows[i]` over
        the rows with `bucket[j, i] == b`.

    Complexity:
        CPU: one read of `rows`, k additions a number, no temporary. Elsewhere
        one-hot products of 2 k size n d flops, since a float scatter-add into few
        buckets serialises; there a NaN or infinity reaches every bucket.

    Example:
        >>> import jax.numpy as jnp
        >>> rows = jnp.array([[1.0], [2.0], [3.0]])
        >>> bucket, sign = jnp.array([[0, 1, 0]]), jnp.array([[1, 1, -1]])
        >>> bucket_sum(rows, bucket, sign, size=2)[0, :, 0].tolist()
        [-2.0, 2.0]
    """

    def loop(*operands):
        return _add_in_place(*operands, size=size)

    def product(*operands):
        return _one_hot_products(*operands, size=size)

    return jax.lax.platform_dependent(rows, bucket, sign, cpu=loop, default=product)


def _add_in_place(rows, bucket, sign, *, size):
    """One row at a time; XLA's own scatter takes a full copy and twice as long."""
    dtype = jnp.promote_types(rows.dtype, jnp.float32)

    def add_row(i, sums):
        # Tied to the step, or a float32 copy of bfloat16 rows leaves the loop.
        source, i = jax.lax.optimization_barrier((rows, i))
        row = jax.lax.dynamic_slice_in_dim(source, i, 1).astype(dtype)
        return tuple(
            _add_slice(total, row * sign[j, i].astype(dtype), bucket[j, i])
            for j, total in enumerate(sums)
        )

    start = jax.lax.full_like(rows, 0, dtype, shape=(size, rows.shape[1]))
    sums = jax.lax.fori_loop(0, len(rows), add_row, (start,) * len(sign))
    return jnp.stack(sums)


def _add_slice(total, row, at):
    # XLA clamps to the last row in the type of the index, which need not hold it.
    at = at.astype(jnp.int32)
    old = jax.lax.dynamic_slice_in_dim(total, at, 1)
    return jax.lax.dynamic_update_slice_in_dim(total, old + row, at, axis=0)


def _one_hot_products(rows, bucket, sign, *, size):
    """A chunk of rows at a time, as a signed one-hot matrix times the chunk."""
    dtype = jnp.promote_types(rows.dtype, jnp.float32)
    chunk = min(_CHUNK, len(rows))

    def add_chunk(c, sums):
        # The last window moves inside; rows that an earlier one added count as zero.
        begin = jnp.minimum(c * chunk, len(rows) - chunk)
        new = (begin + jnp.arange(chunk) >= c * chunk)[None, None, :]
        some = jax.lax.dynamic_slice_in_dim(rows, begin, chunk).astype(dtype)
        buckets, signs = (
            jax.lax.dynamic_slice_in_dim(x, begin, chunk, axis=1)
            for x in (bucket, sign)
        )
        hot = buckets[:, None, :] == jnp.arange(size)[None, :, None]
        weight = jnp.where(hot & new, signs[:, None, :].astype(dtype), 0)
        return sums + jnp.einsum("jbi,id->jbd", weight, some, precision="highest")

    shape = (len(sign), size, rows.shape[1])
    start = jax.lax.full_like(rows, 0, dtype, shape=shape)
    return jax.lax.fori_loop(0, -(-len(rows) // chunk), add_chunk, start)

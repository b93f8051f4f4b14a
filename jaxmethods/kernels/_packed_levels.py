"""Small whole numbers packed into bytes: 4 of 2 bits, 2 of 3 or 4 bits.

There is no Pallas kernel. By the bytes accessed of programs compiled for a TPU v5e
(libtpu 0.0.42; 4096 x 8192 levels), XLA packs in 1.5 bytes a level at 4 bits and 1.25
at 2, each byte read and written once. It unpacks in 3.5 where 1.5 would do, since it
fuses no concatenation with what it joins; but codes are unpacked to become floats of 4
bytes, and with those it is 6.5 for 4.5. (The runs as an axis of their own, broadcast
and reshaped, take 15.5.)
"""

from functools import reduce

import jax
import jax.numpy as jnp


def pack_levels(levels: jax.Array, bits: int) -> jax.Array:
    """Packs a matrix of whole levels 0..2^bits - 1 along its longer axis into uint8.

    Byte i of the m along that axis holds the levels i, i + m, i + 2 m, ..., lowest
    bits first: contiguous runs, where neighbours would need strided reads.

    Args:
        levels: (n, d), of any real dtype.
        bits: 2..8. At 5 and more a level takes a byte.

    Returns:
        uint8 matrix, its longer axis a quarter or half as long, rounded up.

    Example:
        >>> pack_levels(jnp.array([[1, 2, 3, 0, 1]]), 2).tolist()
        [[29, 2]]
    """
    per_byte, axis = _layout(bits, levels.shape)
    codes = levels.astype(jnp.uint8)
    if per_byte == 1:
        return codes
    missing = -levels.shape[axis] % per_byte
    codes = jnp.pad(codes, [(0, missing * (i == axis)) for i in range(2)])
    runs = jnp.split(codes, per_byte, axis)
    return reduce(
        jnp.bitwise_or, (run << (8 // per_byte * i) for i, run in enumerate(runs))
    )


def unpack_levels(packed: jax.Array, bits: int, shape: tuple[int, ...]) -> jax.Array:
    """Undoes `pack_levels`: the uint8 matrix of levels of that shape.

    Example:
        >>> unpack_levels(jnp.array([[29, 2]], jnp.uint8), 2, (1, 5)).tolist()
        [[1, 2, 3, 0, 1]]
    """
    per_byte, axis = _layout(bits, shape)
    if per_byte == 1:
        return packed
    width = 8 // per_byte
    runs = [(packed >> (width * i)) & (2**width - 1) for i in range(per_byte)]
    levels = jnp.concatenate(runs, axis)
    return jax.lax.slice_in_dim(levels, 0, shape[axis], axis=axis)


def _layout(bits: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """How many levels share a byte, and the axis along which they lie."""
    return 4 if bits == 2 else 2 if bits <= 4 else 1, int(shape[1] >= shape[0])

"""An orthogonal rotation of the columns of a matrix: signs, then Hadamard blocks."""

import jax
import jax.numpy as jnp
import numpy as np

# A spike in one column becomes 1/8 of itself in 64; larger blocks cost more than the
# bulk of a row lets them gain.
_BLOCK = 64


def rotate_columns(x: jax.Array, *, inverse: bool = False) -> jax.Array:
    """Multiplies each row by fixed random signs and a block Hadamard matrix.

    Columns are cut into blocks of 64 and the rest into powers of two, so that nothing
    is padded. The signs are a constant: the same call without a key inverts it.

    Args:
        x: float matrix (n, d).
        inverse: whether to undo the rotation instead.

    Returns:
        Matrix like `x`, its rows of unchanged length.
    """
    signs = jnp.asarray(_signs(x.shape[1])[None], x.dtype)
    x = x if inverse else x * signs
    pieces, start = [], 0
    for size in (_BLOCK >> shift for shift in range(_BLOCK.bit_length())):
        width = (x.shape[1] - start) // size * size
        if width:
            piece = x[:, start : start + width].reshape(x.shape[0], -1, size)
            hadamard = jnp.asarray(_hadamard(size), x.dtype)
            piece = jnp.matmul(piece, hadamard, precision=jax.lax.Precision.HIGHEST)
            pieces.append(piece.reshape(x.shape[0], width))
        start += width
    x = jnp.concatenate(pieces, axis=1)
    return x * signs if inverse else x


def _signs(num_columns: int) -> np.ndarray:
    """Signs from the parity of a mixed column number: fixed, without a pattern."""
    column = np.arange(num_columns, dtype=np.uint64) + np.uint64(1)
    mixed = column * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return 1.0 - 2.0 * (mixed >> np.uint64(63)).astype(np.float64)


def _hadamard(size: int) -> np.ndarray:
    """The orthonormal symmetric Hadamard matrix of a power of two."""
    matrix = np.ones((1, 1))
    while matrix.shape[0] < size:
        matrix = np.kron([[1.0, 1.0], [1.0, -1.0]], matrix)
    return matrix / np.sqrt(size)

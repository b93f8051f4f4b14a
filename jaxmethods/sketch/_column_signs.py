"""A random sign for each column of a sketch, 32 to a random word."""

import jax
import jax.numpy as jnp

from ..kernels import bit_signs, random_bits

_WORD = 32


def column_signs(
    key: jax.Array, start: jax.Array, num_columns: int, num_streams: int
) -> jax.Array:
    """Signs of columns start, start + 1, ..., in several independent streams.

    A sign is a function of the key, its stream and the number of its column: bit
    c % 32 of word c // 32.

    Args:
        key: scalar typed key; uses its streams 0..num_streams-1.
        start: int32 scalar, 0 or more; may be traced.
        num_columns: n.
        num_streams: k.

    Returns:
        int8 (k, n) of -1 and 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> key = jax.random.key(0)
        >>> signs = column_signs(key, jnp.int32(0), 100, 2)
        >>> bool((signs[:, 40:50] == column_signs(key, jnp.int32(40), 10, 2)).all())
        True
    """
    num_words = (num_columns + 2 * _WORD - 2) // _WORD  # for any start
    first = (start // _WORD).astype(jnp.uint32)
    word = first + jnp.arange(num_words, dtype=jnp.uint32)
    stream = jnp.arange(num_streams, dtype=jnp.uint32)
    words = random_bits(key, word[None, :], stream[:, None])
    signs = bit_signs(words, 2).reshape(num_streams, num_words * _WORD)
    return jax.lax.dynamic_slice_in_dim(signs, start % _WORD, num_columns, axis=1)

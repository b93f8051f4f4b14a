"""A sample without replacement, without a permutation of all: swap or not."""

import jax
import jax.numpy as jnp

from ..core import vary_as
from ..kernels import random_bits

_KEYS = 1 << 31  # streams above this shuffle


def distinct_rows(key: jax.Array, count: int, length: int) -> jax.Array:
    """`count` distinct numbers below `length`, a power of two, in random order.

    The images of 0, 1, ... under a random permutation that is evaluated where it is
    wanted: in each of its rounds, x and its partner `x ^ k`, k random, are exchanged or
    not, by a random bit of the pair. Six rounds a bit leave no order that a sample
    of this size could show.

    Args:
        key: scalar typed key; uses its streams from 2^31 on.
        count: 1..length.
        length: a power of two.

    Returns:
        int32 (count,).

    Complexity:
        6 count log2(length) random words.

    Example:
        >>> import jax
        >>> rows = distinct_rows(jax.random.key(0), 16, 16)
        >>> sorted(rows.tolist()) == list(range(16))
        True

    References:
        Hoang, Morris, Rogaway 2012, An enciphering scheme based on a card shuffle
        (arXiv 1208.1176).
    """

    def swap_or_not(step, x):
        stream = jnp.uint32(_KEYS) + 2 * step.astype(jnp.uint32)
        partner = x ^ (random_bits(key, jnp.uint32(0), stream) & mask)
        bit = random_bits(key, jnp.maximum(x, partner), stream + 1) >> 31
        return jnp.where(bit == 1, partner, x)

    bits = length.bit_length() - 1
    mask = jnp.uint32(length - 1)
    x = jnp.arange(count, dtype=jnp.uint32)
    x = vary_as(x, jax.typeof(jax.random.key_data(key)))
    return jax.lax.fori_loop(0, 6 * bits, swap_or_not, x).astype(jnp.int32)

"""Counter-based random bits: the i-th word of a stream without the words before it.

`jax.random.bits` answers for a whole shape. A shard that wants the words of its own
columns, or a Pallas kernel that wants those of its own tile, needs them one by one:
here a word is a pure function of a key and a counter, in elementwise uint32 arithmetic
that fuses into its consumer. The function is Threefry-2x32 with its standard 20 rounds,
the cipher behind jax's default keys.
"""

import jax
import jax.numpy as jnp

from ..core import check_key, describe

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA  # the constant of Skein's key schedule: no key is all zeros


def random_bits(
    key: jax.Array, counter: jax.Array, stream: jax.Array | int = 0
) -> jax.Array:
    """Random words, each a function of the key and its own counter.

    `random_bits(key, counter)[i]` depends on `key`, `counter[i]` and `stream[i]` only,
    not on the shape or the place of the counter in it: a slice of the counters gives
    that slice of the words, on any device. Under `vmap` over keys each key is a stream
    of its own. All 32 bits of a word are good; equal counters give equal words, so a
    caller gives every number it draws a counter (or a stream) of its own.

    To get a uniform float32 in [0, 1) from a word, `(word >> 8) * 2.0**-24`; an
    integer in 0..m-1, the high half of `word * m`, or `word % m` for m well below 2^32.

    Args:
        key: scalar typed key of any implementation. Its use is not seen by jax's
            key-reuse checks: give this function a key that nothing else draws from.
        counter: uint32 array of any shape.
        stream: uint32, broadcastable with the counter, or a Python int in 0..2^32-1:
            the upper word of a 64-bit counter. Streams are independent.

    Returns:
        uint32 array of the broadcast shape of `counter` and `stream`.

    Raises:
        TypeError: `key` is not a typed key, or `counter` or `stream` is not uint32.
        ValueError: `key` is not a scalar.

    Complexity:
        About 110 integer operations a word; no memory beyond the result.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> key = jax.random.key(0)
        >>> whole = random_bits(key, jnp.arange(100, dtype=jnp.uint32))
        >>> part = random_bits(key, jnp.arange(40, 50, dtype=jnp.uint32))
        >>> bool((whole[40:50] == part).all())
        True

    References:
        Salmon, Moraes, Dror, Shaw 2011, Parallel random numbers: as easy as 1, 2, 3
        (SC11, doi 10.1145/2063384.2063405).
    """
    check_key(key)
    if key.shape:
        raise ValueError(
            f"key is {describe(key)}, a batch of keys; wanted one: use jax.vmap."
        )
    stream = jnp.uint32(stream) if isinstance(stream, int) else stream
    for name, words in (("counter", counter), ("stream", stream)):
        if getattr(words, "dtype", None) != jnp.uint32:
            raise TypeError(
                f"{name} is {describe(words)}; wanted a uint32 array: "
                f"cast it with .astype(jnp.uint32)."
            )
    return threefry_2x32(key_words(key), counter, stream)[0]


def bit_signs(words: jax.Array, axis: int) -> jax.Array:
    """The 32 bits of each word as signs, lowest first, along a new axis.

    Args:
        words: uint32.
        axis: the place of the new axis in the result.

    Returns:
        int8 of -1 for a bit that is set and 1, one axis more than `words`.

    Example:
        >>> import jax.numpy as jnp
        >>> bit_signs(jnp.array([5], jnp.uint32), 1)[0, :4].tolist()
        [-1, 1, -1, 1]
    """
    bit = jax.lax.broadcasted_iota(jnp.uint32, (*[1] * words.ndim, 32), words.ndim)
    bits = (jnp.expand_dims(words, axis) >> jnp.moveaxis(bit, -1, axis)) & jnp.uint32(1)
    return jnp.int8(1) - jnp.int8(2) * bits.astype(jnp.int8)


def key_words(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The key's data as one pair of words; longer keys (rbg has 4) are enciphered."""
    words = jax.random.key_data(key)
    first, *rest = ((words[i], words[i + 1]) for i in range(0, words.shape[0], 2))
    for pair in rest:
        first = threefry_2x32(first, *pair)
    return first


@jax.jit  # one program when called op by op; inside another it fuses as if absent
def threefry_2x32(
    key: tuple[jax.Array, jax.Array], low: jax.Array, high: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32-20: enciphers pairs of words, elementwise.

    The raw block cipher, for kernels that hold the two words of a key already.

    Args:
        key: two uint32 words, broadcastable with `low` and `high`.
        low: uint32, the first word of each counter.
        high: uint32, the second word.

    Returns:
        The two enciphered words, each of the broadcast shape.

    Example:
        >>> import jax.numpy as jnp
        >>> zero = jnp.uint32(0)
        >>> [hex(word) for word in threefry_2x32((zero, zero), zero, zero)]
        ['0x6b200159', '0x99ba4efe']

    References:
        Salmon, Moraes, Dror, Shaw 2011 (SC11, doi 10.1145/2063384.2063405).
    """
    schedule = (*key, key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    low, high = low + schedule[0], high + schedule[1]
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            low = low + high
            high = (high << distance) | (high >> (32 - distance))
            high = high ^ low
        low = low + schedule[(group + 1) % 3]
        high = high + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return low, high

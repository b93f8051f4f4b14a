"""Five ternary digits a byte: 1.6 bits an entry, whatever the entries are."""

import jax
import jax.numpy as jnp

DIGITS = 5  # 3**5 = 243 values fit a byte; log2(3) = 1.585 bits are the least


def pack_ternary(signs: jax.Array) -> jax.Array:
    """Packs a vector of -1, 0, 1 into bytes.

    Byte j holds the entries j, j + m, ..., j + 4 m, where m = ceil(n / 5): five long
    slices, so that packing is elementwise.

    Args:
        signs: (n,) int8, each -1, 0 or 1.

    Returns:
        (m,) uint8, each below 243.

    Example:
        >>> pack_ternary(jnp.array([0, 0, 1, -1, 0, 0], jnp.int8))
        Array([124, 118], dtype=uint8)
    """
    padded = jnp.pad(signs, (0, -signs.size % DIGITS))
    digits = (padded + 1).astype(jnp.uint8).reshape(DIGITS, -1)
    code = digits[0]
    for place in range(1, DIGITS):
        code = code + digits[place] * jnp.uint8(3**place)
    return code


def unpack_ternary(code: jax.Array, size: int) -> jax.Array:
    """The first `size` entries of a packed vector, as int8 of -1, 0, 1.

    Example:
        >>> unpack_ternary(jnp.array([124, 118], jnp.uint8), 6)
        Array([ 0,  0,  1, -1,  0,  0], dtype=int8)
    """
    planes = [code // jnp.uint8(3**p) % jnp.uint8(3) for p in range(DIGITS)]
    # Each plane is cut, not their concatenation: one pass less.
    cut = [plane[: max(size - p * code.size, 0)] for p, plane in enumerate(planes)]
    return jnp.concatenate(cut).astype(jnp.int8) - 1

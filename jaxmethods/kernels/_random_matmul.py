"""Products with a random matrix that is drawn tile by tile and never stored."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ._random_bits import bit_signs, random_bits

Law = Literal["normal", "sign"]

_TILE = 1 << 19  # entries drawn at once: 2 MB in float32


def random_matmul(
    key: jax.Array, start: Any, rows: jax.Array, *, num_rows: int, law: Law
) -> jax.Array:
    """`R A` for columns start, start + 1, ... of a random matrix R.

    An entry of R is a function of the key, its row and the number of its column, with
    mean 0 and variance 1: a standard normal number in float32, or -1 or 1.

    Args:
        key: scalar typed key.
        start: uint32 scalar, the number of the first column; may be traced.
        rows: floating (n, d), the matrix A.
        num_rows: the rows m of R.
        law: "normal" or "sign".

    Returns:
        (m, d), float32 or wider.

    Complexity:
        2 m n d flops; m n normal numbers, or m n / 32 random words. 2 MB of tiles.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> key, rows = jax.random.key(0), jnp.ones((50, 2))
        >>> random_matmul(key, jnp.uint32(0), rows, num_rows=4, law="sign").shape
        (4, 2)
    """
    dtype = jnp.promote_types(rows.dtype, jnp.float32)
    size, num_columns = _tile_width(num_rows, len(rows)), len(rows)

    def add_tile(t, total):
        # The last window moves inside; columns that an earlier one had count as zero.
        begin = jnp.minimum(t * size, num_columns - size)
        new = begin + jnp.arange(size) >= t * size
        some = jax.lax.dynamic_slice_in_dim(rows, begin, size).astype(dtype)
        some = jnp.where(new[:, None], some, 0)
        tile = random_tile(key, start + begin.astype(jnp.uint32), num_rows, size, law)
        return total + jnp.matmul(tile.astype(dtype), some, precision="highest")

    total = jax.lax.full_like(rows, 0, dtype, shape=(num_rows, rows.shape[1]))
    return jax.lax.fori_loop(0, -(-num_columns // size), add_tile, total)


def random_matmul_transpose(
    key: jax.Array, start: Any, rows: jax.Array, *, num_columns: int, law: Law
) -> jax.Array:
    """`R^T Y` for n columns start, start + 1, ... of a random matrix R.

    Args:
        key: scalar typed key.
        start: uint32 scalar, the number of the first column; may be traced.
        rows: floating (m, d), the matrix Y.
        num_columns: n.
        law: "normal" or "sign".

    Returns:
        (n, d), float32 or wider.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> key, rows, law = jax.random.key(0), jnp.ones((4, 2)), "sign"
        >>> random_matmul_transpose(
        ...     key, jnp.uint32(0), rows, num_columns=50, law=law
        ... ).shape
        (50, 2)
    """
    dtype = jnp.promote_types(rows.dtype, jnp.float32)
    num_rows, width = rows.shape
    size, rows = _tile_width(num_rows, num_columns), rows.astype(dtype)

    def put_tile(t, out):
        begin = jnp.minimum(t * size, num_columns - size)
        tile = random_tile(key, start + begin.astype(jnp.uint32), num_rows, size, law)
        some = jnp.matmul(tile.astype(dtype).T, rows, precision="highest")
        return jax.lax.dynamic_update_slice_in_dim(out, some, begin, axis=0)

    out = jax.lax.full_like(rows, 0, dtype, shape=(num_columns, width))
    return jax.lax.fori_loop(0, -(-num_columns // size), put_tile, out)


def random_tile(
    key: jax.Array, start: jax.Array, num_rows: int, num_columns: int, law: Law
) -> jax.Array:
    """Columns start, ..., start + num_columns - 1 of R, (num_rows, num_columns).

    Args:
        key: scalar typed key.
        start: uint32 scalar.
        num_rows: rows of R.
        num_columns: columns of the tile.
        law: "normal" (float32) or "sign" (int8).

    Example:
        >>> import jax
        >>> key = jax.random.key(0)
        >>> tile = random_tile(key, jnp.uint32(0), 4, 9, "normal")
        >>> part = random_tile(key, jnp.uint32(5), 4, 3, "normal")
        >>> bool((tile[:, 5:8] == part).all())
        True
    """
    draw, each = _LAWS[law]
    column = start + jnp.arange(num_columns, dtype=jnp.uint32)
    stream = jnp.arange(-(-num_rows // each), dtype=jnp.uint32)
    entries = draw(random_bits(key, column[None, :], stream[:, None]))
    return entries.reshape(-1, num_columns)[:num_rows]


def _normal(words: jax.Array) -> jax.Array:
    """Standard normal numbers by the inverse of their distribution function."""
    odd = (words >> 9 << 1 | 1).astype(jnp.float32)  # 24 bits: exact
    return jax.lax.erf_inv(odd * 2.0**-23 - 1) * 2**0.5  # of -1 .. 1, both left out


_LAWS: dict[str, tuple[Callable[[jax.Array], jax.Array], int]] = {
    "normal": (_normal, 1),
    "sign": (partial(bit_signs, axis=1), 32),
}


def _tile_width(num_rows: int, num_columns: int) -> int:
    return min(num_columns, max(1, _TILE // num_rows))

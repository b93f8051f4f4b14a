"""Products of an operator with a BCOO matrix, from its stored numbers alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..kernels import gather_rows

_TILE = 1 << 19  # entries of S that are held at once
_ROOM = 1 << 24  # numbers of the rows of A that are held at once, or one a draw


def add_columns(
    columns: Callable[[jax.Array], jax.Array], num_rows: int, matrix: Any
) -> jax.Array:
    """`S A` by whole columns of S: one for each stored number of A.

    Args:
        columns: integer (c,) -> floating (m, c), the columns of S with these numbers;
            what it returns for a number past the last is finite and does not count.
        num_rows: m.
        matrix: floating BCOO (n, d).

    Returns:
        (m, d), float32 or wider.

    Complexity:
        m entries of S and 2 m flops a stored number; 2^19 entries of memory.
    """
    dtype = jnp.promote_types(matrix.dtype, jnp.float32)
    n, d = matrix.shape
    stored = len(matrix.data)
    size = min(max(stored, 1), max(1, _TILE // num_rows))
    rest = -stored % size
    place = _wide(matrix.indices)
    place = jnp.pad(place, ((0, rest), (0, 0)), constant_values=n)
    row, column = place.T
    # What pads a BCOO matrix stands past its last row too.
    value = jnp.where(row < n, jnp.pad(matrix.data, (0, rest)), 0).astype(dtype)

    @jax.checkpoint  # columns are drawn again on the way back rather than kept
    def add_some(total: jax.Array, some: Any) -> tuple[jax.Array, None]:
        row, column, value = some
        terms = columns(row).astype(dtype) * value[None]
        return total.at[column].add(terms.T, mode="drop"), None

    total = jax.lax.full_like(value, 0, shape=(d, num_rows))
    pieces = (x.reshape(-1, size) for x in (row, column, value))
    return jax.lax.scan(add_some, total, tuple(pieces))[0].T


def add_rows(index: jax.Array, weight: jax.Array, matrix: Any) -> jax.Array:
    """`S A` for S of few entries a row: the rows of A that are named, made dense.

    Args:
        index: integer (m, s); n or above stands for no entry.
        weight: (m, s), any real dtype.
        matrix: floating BCOO (n, d).

    Returns:
        (m, d), float32 or wider.

    Complexity:
        The stored numbers are read once where m s d is below 2^24, else once for each
        part of the draws that is; then m s d additions.
    """
    dtype = jnp.promote_types(matrix.dtype, jnp.float32)
    (num_rows, draws), (n, d) = index.shape, matrix.shape
    size = min(draws, max(1, _ROOM // (num_rows * max(d, 1))))
    rest = -draws % size
    row, column = _wide(matrix.indices).T
    value = matrix.data.astype(dtype)
    # All that names no row of A gets one number, which no stored row has.
    index = _wide(index)
    index = jnp.where(index < n, index, n)
    index = jnp.pad(index, ((0, 0), (0, rest)), constant_values=n)
    weight = jnp.pad(weight, ((0, 0), (0, rest)))
    pieces = (x.T.reshape(-1, size, num_rows) for x in (index, weight))

    def add_some(total: jax.Array, some: Any) -> tuple[jax.Array, None]:
        index, weight = (x.T for x in some)
        named = jnp.sort(index.ravel())
        slot = jnp.searchsorted(named, row)
        met = named.at[slot].get(mode="fill", fill_value=n) == row
        slot = jnp.where(met & (row < n), slot, len(named))
        room = jnp.zeros((len(named), d), dtype)
        rows = room.at[slot, column].add(value, mode="drop")
        return total + gather_rows(rows, jnp.searchsorted(named, index), weight), None

    total = jax.lax.full_like(value, 0, shape=(num_rows, d))
    return jax.lax.scan(add_some, total, tuple(pieces))[0]


def _wide(index: jax.Array) -> jax.Array:
    """Indices of a type that holds n, which a row of no number has."""
    return index.astype(jnp.promote_types(index.dtype, jnp.int32))

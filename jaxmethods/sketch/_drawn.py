"""What operators share that a key names: its columns are functions of their numbers."""

from dataclasses import dataclass, field, replace
from typing import Any, Self

import jax
import jax.numpy as jnp

from ..core import check_key
from ._operator import (
    check_one,
    check_sketch_shape,
    check_window,
    dense,
    matmul,
    refuse_right,
    transpose,
)


@dataclass(frozen=True)
class Drawn:
    """Columns start..start+n-1 of the matrix of m rows that a key names.

    Attributes:
        key: scalar typed key.
        start: int32 scalar, the number of the first column.
        num_rows: m.
        num_columns: n.
    """

    key: jax.Array
    start: jax.Array
    num_rows: int = field(metadata=dict(static=True))
    num_columns: int = field(metadata=dict(static=True))

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        check_one(self.start, self)
        return self.num_rows, self.num_columns

    def columns(self, start: Any, size: int) -> Self:
        """Columns start..start+size-1 as an operator; start may be traced.

        Args:
            start: integer scalar, 0..n-size.
            size: 1..n.

        Returns:
            The operator of shape (m, size).
        """
        first = self.start + check_window(start, size, self.shape[1])
        return replace(self, start=first, num_columns=size)

    __matmul__ = matmul
    __rmatmul__ = refuse_right
    __array_ufunc__ = None
    T = property(transpose)
    dense = dense


def from_first(key: Any, m: Any, n: Any) -> tuple[jax.Array, jax.Array, int, int]:
    """The fields of `Drawn` for the columns 0..n-1, checked."""
    check_key(key)
    return key, jnp.zeros((), jnp.int32), *check_sketch_shape(m, n)

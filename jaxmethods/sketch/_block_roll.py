"""A CountSketch whose signs and cyclic offsets are given as arrays."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from ..core import check_integer, describe
from ..kernels import block_roll, block_roll_transpose, rolled_buckets
from ._operator import check_window, dense, matmul, refuse_right, transpose
from ._sparse_columns import SparseColumns
from ._stacks import debias_stack


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockRoll:
    r"""The operator that adds up signed blocks of rows, each at its cyclic offset.

    The columns are cut into blocks of m = `num_rows`, the last of which may be short;
    column i of block t holds one entry:

    $$S_{(p + \mathrm{offset}_t) \bmod m,\, i} = \mathrm{sign}_i ,
      \qquad p = \mathrm{phase} + i, \quad t = \lfloor p / m \rfloor .$$

    With random signs and offsets it is a CountSketch that reads memory in order; to
    draw one use `countsketch`, which stores no arrays.

    Attributes:
        sign: (n,), any real dtype; usually int8 of -1 and 1.
        offset: integer (blocks,), 0..m-1, where `blocks * m >= phase + n`.
        num_rows: m.
        phase: integer scalar, 0..m-1: where in its block the first column stands.

    Raises:
        ValueError: at the first use: sign or offset is no vector, or blocks miss.

    Complexity:
        `S @ A`: one read of A, 2 m d numbers of memory.

    Example:
        >>> import jax.numpy as jnp
        >>> S = BlockRoll(jnp.array([1, 1, 1, -1, 1]), jnp.array([0, 2]), 3)
        >>> S @ jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])
        Array([ 6.,  2., -1.], dtype=float32)

    References:
        Charikar, Chen, Farach-Colton 2002, Finding frequent items in data streams
        (the CountSketch).
    """

    sign: jax.Array
    offset: jax.Array
    num_rows: int = field(metadata=dict(static=True))
    phase: Any = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        sign, offset = self.sign, self.offset
        rows = check_integer(self.num_rows, "num_rows", 1)
        if len(sign.shape) != 1 or len(offset.shape) != 1:
            raise ValueError(
                f"sign is {describe(sign)} and offset {describe(offset)}; wanted a "
                f"sign a column and an offset a block of {rows} columns (of a batch of "
                f"operators each has them: use jax.vmap)."
            )
        if offset.shape[0] * rows < sign.shape[0]:
            raise ValueError(
                f"offset is {describe(offset)} for {sign.shape[0]} columns in blocks "
                f"of {rows}; wanted one a block: {-(-sign.shape[0] // rows)} of them."
            )
        return rows, sign.shape[0]

    def apply(self, matrix: jax.Array) -> jax.Array:
        """`S A` of a floating matrix, unchecked."""
        sign, offset = self.sign[None], self.offset[None]
        out = block_roll(matrix, sign, offset, self.phase, size=self.num_rows)
        return out[0].astype(matrix.dtype)

    def apply_transpose(self, matrix: jax.Array) -> jax.Array:
        """`S^T Y` of a floating matrix, unchecked."""
        sign, offset = self.sign[None], self.offset[None]
        out = block_roll_transpose(matrix[None], sign, offset, self.phase)
        return out.astype(matrix.dtype)

    def apply_sparse(self, matrix: Any) -> jax.Array:
        """`S A` of a BCOO matrix (n, d), unchecked: an addition a number and entry."""
        return self.explicit().apply_sparse(matrix)

    def columns(self, start: Any, size: int) -> "BlockRoll":
        """Columns start..start+size-1 as an operator; start may be traced.

        Args:
            start: integer scalar, 0..n-size.
            size: 1..n.

        Returns:
            The operator of shape (m, size).
        """
        first = check_window(start, size, self.shape[1])
        sign = jax.lax.dynamic_slice_in_dim(self.sign, first, size)
        rows, place = self.num_rows, self.phase + first
        blocks = (size + 2 * rows - 2) // rows  # for any start
        offset = jnp.pad(self.offset, (0, blocks))  # or the last slice moves inside
        offset = jax.lax.dynamic_slice_in_dim(offset, place // rows, blocks)
        return BlockRoll(sign, offset, rows, place % rows)

    def absolute(self, power: int = 1) -> SparseColumns:
        """The operator of the entries |S_ij| ** power."""
        return self.explicit().absolute(power)

    def debias(self, d: Any) -> Any:
        """ValueError: a CountSketch has no debiasing scalar."""
        return debias_stack(self.num_rows, 1, d)

    def explicit(self) -> SparseColumns:
        """The same operator with its buckets as an array."""
        columns, rows = self.shape[1], self.num_rows
        bucket = rolled_buckets(self.offset[None], self.phase, columns, size=rows)
        return SparseColumns(bucket, self.sign[None], rows)

    __matmul__ = matmul
    __rmatmul__ = refuse_right
    __array_ufunc__ = None
    T = property(transpose)
    dense = dense

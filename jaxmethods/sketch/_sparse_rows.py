"""Operators with few entries a row, given as indices and weights."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from ..core import check_integer, describe
from ..kernels import gather_rows, scatter_rows
from ._debiasing import debias_independent
from ._operator import check_window, dense, matmul, refuse_right, transpose
from ._sparse_operand import add_rows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SparseRows:
    r"""The operator with s entries a row, at given columns with given weights.

    $$S = \sum_{i, k} \mathrm{weight}_{ik}\, e_i\, e_{\mathrm{index}_{ik}}^T ;$$

    entries at the same place add up. Only the rows of A that are named are read:
    `less`, `less_uniform` and `sample_rows` draw such operators.

    Attributes:
        index: integer (m, s), 0..n-1; any other, negative ones too, stands for no
            entry, whatever its weight.
        weight: (m, s), any real dtype.
        num_columns: n.

    Raises:
        ValueError: at the first use: index and weight are not of one shape (m, s).

    Complexity:
        `S @ A`: m s rows of A read, memory of the result.

    Example:
        >>> import jax.numpy as jnp
        >>> S = SparseRows(jnp.array([[0, 2]]), jnp.array([[1.0, -1.0]]), 4)
        >>> S @ jnp.array([5.0, 6.0, 7.0, 8.0])
        Array([-2.], dtype=float32)

    References:
        Derezinski, Liao, Dobriban, Mahoney 2021, Sparse sketches with small inversion
        bias (arXiv 2011.10695).
    """

    index: jax.Array
    weight: jax.Array
    num_columns: int = field(metadata=dict(static=True))

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        index, weight = self.index, self.weight
        if len(index.shape) != 2 or index.shape != weight.shape:
            raise ValueError(
                f"index is {describe(index)} and weight {describe(weight)}; wanted "
                f"both of one shape (m, s): for one entry a row take index[:, None], "
                f"for a batch of operators use jax.vmap."
            )
        check_integer(self.num_columns, "num_columns", 1)
        return index.shape[0], self.num_columns

    def apply(self, matrix: jax.Array) -> jax.Array:
        """`S A` of a floating matrix, unchecked."""
        return gather_rows(matrix, *self._entries()).astype(matrix.dtype)

    def apply_transpose(self, matrix: jax.Array) -> jax.Array:
        """`S^T Y` of a floating matrix, unchecked."""
        out = scatter_rows(matrix, *self._entries(), num_rows=self.num_columns)
        return out.astype(matrix.dtype)

    def apply_sparse(self, matrix: Any) -> jax.Array:
        """`S A` of a BCOO matrix (n, d), unchecked."""
        return add_rows(*self._entries(), matrix).astype(matrix.dtype)

    def columns(self, start: Any, size: int) -> "SparseRows":
        """Columns start..start+size-1 as an operator; start may be traced.

        Args:
            start: integer scalar, 0..n-size.
            size: 1..n.

        Returns:
            The operator of shape (m, size), which holds as many entries.
        """
        place = self.index - check_window(start, size, self.shape[1])
        inside = (place >= 0) & (place < size)
        return SparseRows(jnp.where(inside, place, size), self.weight, size)

    def debias(self, d: Any) -> Any:
        """(m - d) / m, which multiplies inv((S A)^T S A); ValueError for s = 1.

        With a ridge it divides the sketched Gram, as in `inverse_gram`.
        """
        rows = self.shape[0]
        if self.weight.shape[1] < 2:
            raise ValueError(
                f"a sample of {rows} rows, one a row (s = 1), has no debiasing scalar: "
                f"rows that were drawn too often bias the inverse as much; use less "
                f"with s >= 2, or give sample_rows the leverage, whose weights need "
                f"no scalar."
            )
        return debias_independent(rows, d)

    def _entries(self) -> tuple[jax.Array, jax.Array]:
        """Indices of 0..n, where n is no entry, and the weights, there 0."""
        index, n = self.index, self.num_columns
        if n > jnp.iinfo(index.dtype).max:
            index = index.astype(jnp.int32)
        inside = (index >= 0) & (index < n)
        return jnp.where(inside, index, n), jnp.where(inside, self.weight, 0)

    __matmul__ = matmul
    __rmatmul__ = refuse_right
    __array_ufunc__ = None
    T = property(transpose)
    dense = dense

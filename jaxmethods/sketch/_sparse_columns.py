"""Stacked CountSketches whose buckets and signs are given as arrays."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from ..core import describe
from ..kernels import bucket_sum
from ._operator import check_window, dense, matmul, refuse_right, transpose
from ._stacks import debias_stack, join_stacks, split_stacks, stack_rows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SparseColumns:
    r"""The operator with k entries a column, at given buckets with given signs.

    The m = `num_rows` rows are k stacked blocks of b = m / k: column i holds, in block
    j, the entry `sign[j, i] / sqrt(k)` at row `bucket[j, i]`,

    $$S_{j b + \mathrm{bucket}_{j i},\, i} = \mathrm{sign}_{j i} / \sqrt k .$$

    With k = 1 it is a CountSketch. To draw one use `countsketch` or `sparse_stack`,
    which store no arrays.

    Attributes:
        bucket: integer (k, n), 0..m/k-1; values are not checked.
        sign: (k, n), any real dtype; usually int8 of -1 and 1.
        num_rows: m, a multiple of k.

    Raises:
        ValueError: at the first use: shapes differ or are not (k, n), or k does not
            divide m.

    Complexity:
        `S @ A`: one read of A, k additions a number of A, memory of the result.

    Example:
        >>> import jax.numpy as jnp
        >>> S = SparseColumns(jnp.array([[1, 0, 1]]), jnp.array([[1, 1, -1]]), 2)
        >>> S @ jnp.array([1.0, 2.0, 3.0])
        Array([ 2., -2.], dtype=float32)

    References:
        Charikar, Chen, Farach-Colton 2002, Finding frequent items in data streams;
        Kane, Nelson 2014, Sparser Johnson-Lindenstrauss transforms (arXiv 1012.1577).
    """

    bucket: jax.Array
    sign: jax.Array
    num_rows: int = field(metadata=dict(static=True))

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        bucket, sign = self.bucket, self.sign
        if len(bucket.shape) != 2 or bucket.shape != sign.shape:
            raise ValueError(
                f"bucket is {describe(bucket)} and sign {describe(sign)}; wanted both "
                f"of one shape (k, n): for a CountSketch take bucket[None], for a "
                f"batch of operators use jax.vmap."
            )
        stack_rows(self.num_rows, bucket.shape[0])
        return self.num_rows, bucket.shape[1]

    def apply(self, matrix: jax.Array) -> jax.Array:
        """`S A` of a floating matrix, unchecked."""
        size = stack_rows(self.num_rows, len(self.bucket))
        sums = bucket_sum(matrix, self.bucket, self.sign, size=size)
        return join_stacks(sums, matrix.dtype)

    def apply_transpose(self, matrix: jax.Array) -> jax.Array:
        """`S^T Y` of a floating matrix, unchecked."""
        stacks = split_stacks(matrix, len(self.bucket))
        out = (
            stack[bucket.astype(jnp.int32)] * sign[:, None].astype(stack.dtype)
            for stack, bucket, sign in zip(stacks, self.bucket, self.sign, strict=True)
        )
        return sum(out, start=jnp.zeros((), stacks.dtype)).astype(matrix.dtype)

    def apply_sparse(self, matrix: Any) -> jax.Array:
        """`S A` of a BCOO matrix (n, d), unchecked: k additions a stored number."""
        size = stack_rows(self.num_rows, len(self.bucket))
        dtype = jnp.promote_types(matrix.dtype, jnp.float32)
        row, column = matrix.indices.T
        # What pads a BCOO matrix stands past its last row, and falls out here.
        bucket = self.bucket.at[:, row].get(mode="clip").astype(jnp.int32)
        bucket = jnp.where((row < self.bucket.shape[1])[None], bucket, size)
        sign = self.sign.at[:, row].get(mode="fill", fill_value=0).astype(dtype)
        stack = jnp.arange(len(bucket))[:, None]
        room = jnp.zeros((len(bucket), size, matrix.shape[1]), dtype)
        terms = sign * matrix.data.astype(dtype)[None]
        sums = room.at[stack, bucket, column[None]].add(terms, mode="drop")
        return join_stacks(sums, matrix.dtype)

    def columns(self, start: Any, size: int) -> "SparseColumns":
        """Columns start..start+size-1 as an operator; start may be traced.

        Args:
            start: integer scalar, 0..n-size.
            size: 1..n.

        Returns:
            The operator of shape (m, size).
        """
        first = check_window(start, size, self.shape[1])
        bucket, sign = (
            jax.lax.dynamic_slice_in_dim(x, first, size, axis=1)
            for x in (self.bucket, self.sign)
        )
        return SparseColumns(bucket, sign, self.num_rows)

    def absolute(self, power: int = 1) -> "SparseColumns":
        """The operator of the entries |S_ij| ** power."""
        dtype = jnp.promote_types(self.sign.dtype, jnp.result_type(float))
        # One sqrt(k) of the denominator stays with the operator.
        rest = len(self.bucket) ** ((1 - power) / 2)
        sign = jnp.abs(self.sign.astype(dtype)) ** power * rest
        return SparseColumns(self.bucket, sign, self.num_rows)

    def debias(self, d: Any) -> Any:
        """(m - d) / m, which multiplies inv((S A)^T S A); ValueError for k = 1.

        With a ridge it divides the sketched Gram, as in `inverse_gram`.
        """
        return debias_stack(self.num_rows, len(self.bucket), d)

    __matmul__ = matmul
    __rmatmul__ = refuse_right
    __array_ufunc__ = None
    T = property(transpose)
    dense = dense

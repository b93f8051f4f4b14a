"""CountSketch and stacks of them, drawn from a key that is all they store."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from ..core import check_integer
from ..kernels import block_roll, block_roll_transpose, random_bits, rolled_buckets
from ._column_signs import column_signs
from ._drawn import Drawn, from_first
from ._sparse_columns import SparseColumns
from ._stacks import debias_stack, join_stacks, split_stacks, stack_rows

_OFFSETS = 1 << 31  # the streams above this draw offsets, those below signs


def countsketch(key: jax.Array, m: int, n: int) -> "SparseStack":
    """A CountSketch (m, n): every column holds one entry, +1 or -1, at a random row.

    `E[S^T S] = I`. Buckets are drawn for blocks of m consecutive columns, each at a
    cyclic offset of its own: columns of different blocks share a row with probability
    1 / m, those of one block never. No scalar mends the bias of its inverse Gram; use
    `sparse_stack` where an inverse follows.

    Args:
        key: scalar typed key.
        m: rows, at least 1.
        n: columns, at least 1.

    Returns:
        The operator, which stores the key only.

    Raises:
        TypeError: `key` is not a typed key.
        ValueError: m or n is below 1.

    Complexity:
        `S @ A`: one read of A, n bytes of signs, 2 m d numbers of memory.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> S = countsketch(jax.random.key(0), 8, 100)
        >>> (S @ jnp.ones((100, 3))).shape
        (8, 3)
        >>> int(abs(S.dense()).sum())
        100

    References:
        Charikar, Chen, Farach-Colton 2002, Finding frequent items in data streams;
        Clarkson, Woodruff 2013, Low rank approximation and regression in input
        sparsity time (arXiv 1207.6365).
    """
    return sparse_stack(key, m, n, k=1)


def sparse_stack(key: jax.Array, m: int, n: int, *, k: int = 4) -> "SparseStack":
    """A stack (m, n) of k CountSketches of m / k rows each, scaled by 1 / sqrt(k).

    `E[S^T S] = I`, and from k = 2 on `(m - d) / m * inv((S A)^T S A)` is nearly
    unbiased for `inv(A^T A)` whatever the leverage of the rows. Buckets are drawn for
    blocks of m / k consecutive columns, each at a cyclic offset of its own: columns
    of different blocks share a row of a stack with probability k / m, those of one
    block never. So where n is not several times m, the sketch is nearer to an
    isometry than the scalar assumes.

    Every sign is a function of the key and the number of its column, every offset of
    the key and the number of its block: `S.columns(start, size)` costs what `size`
    columns cost, and the sketch of row-sharded data does not depend on the mesh.

    Args:
        key: scalar typed key.
        m: rows, a multiple of k.
        n: columns, at least 1.
        k: entries a column, at least 1; 4 serves nearly always.

    Returns:
        The operator, which stores the key only.

    Raises:
        TypeError: `key` is not a typed key.
        ValueError: m, n or k is below 1, or k does not divide m.

    Complexity:
        `S @ A`: one read of A, k additions a number of A, k n bytes of signs, 2 m d
        numbers of memory.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> S = sparse_stack(jax.random.key(0), 8, 100)
        >>> bool(((S.dense() != 0).sum(0) == 4).all())
        True
        >>> shard = S.columns(40, 10)  # what a shard of the rows 40..49 of A applies
        >>> bool((shard.dense() == S.dense()[:, 40:50]).all())
        True

    References:
        Kane, Nelson 2014, Sparser Johnson-Lindenstrauss transforms (arXiv 1012.1577);
        Derezinski, Liao, Dobriban, Mahoney 2021, Sparse sketches with small inversion
        bias (arXiv 2011.10695).
    """
    fields = from_first(key, m, n)
    k = check_integer(k, "k", 1)
    stack_rows(fields[2], k)
    return SparseStack(*fields, k)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SparseStack(Drawn):
    """Columns start..start+n-1 of the stack of k CountSketches that a key names.

    `sparse_stack` and `countsketch` make it.

    Attributes:
        key: scalar typed key.
        start: int32 scalar, the number of the first column.
        num_rows: m, a multiple of k.
        num_columns: n.
        k: entries a column.
    """

    k: int = field(metadata=dict(static=True))

    def apply(self, matrix: jax.Array) -> jax.Array:
        """`S A` of a floating matrix, unchecked."""
        size = self.num_rows // self.k
        sums = block_roll(matrix, self._signs(), *self._offsets(), size=size)
        return join_stacks(sums, matrix.dtype)

    def apply_transpose(self, matrix: jax.Array) -> jax.Array:
        """`S^T Y` of a floating matrix, unchecked."""
        stacks = split_stacks(matrix, self.k)
        out = block_roll_transpose(stacks, self._signs(), *self._offsets())
        return out.astype(matrix.dtype)

    def apply_sparse(self, matrix: Any) -> jax.Array:
        """`S A` of a BCOO matrix (n, d), unchecked: an addition a number and entry."""
        return self.explicit().apply_sparse(matrix)

    def absolute(self, power: int = 1) -> SparseColumns:
        """The operator of the entries |S_ij| ** power, its arrays stored."""
        return self.explicit().absolute(power)

    def debias(self, d: Any) -> Any:
        """(m - d) / m, which multiplies inv((S A)^T S A); ValueError for k = 1.

        With a ridge it divides the sketched Gram, as in `inverse_gram`.
        """
        return debias_stack(self.num_rows, self.k, d)

    def explicit(self) -> SparseColumns:
        """The same operator with its buckets (int32) and signs (int8) as arrays."""
        size = self.num_rows // self.k
        bucket = rolled_buckets(*self._offsets(), self.num_columns, size=size)
        return SparseColumns(bucket, self._signs(), self.num_rows)

    def _signs(self) -> jax.Array:
        """int8 (k, n) of -1 and 1."""
        return column_signs(self.key, self.start, self.num_columns, self.k)

    def _offsets(self) -> tuple[jax.Array, jax.Array]:
        """The offsets (k, blocks) of the blocks met, and where in one we start."""
        size = self.num_rows // self.k
        num_blocks = (self.num_columns + 2 * size - 2) // size  # for any start
        block = _counters(self.start // size, num_blocks)
        stack = jnp.uint32(_OFFSETS) + jnp.arange(self.k, dtype=jnp.uint32)
        words = random_bits(self.key, block[None, :], stack[:, None])
        offset = (words % jnp.uint32(size)).astype(jnp.int32)
        return offset, self.start % size


def _counters(first: jax.Array, size: int) -> jax.Array:
    """first..first+size-1 as uint32."""
    return first.astype(jnp.uint32) + jnp.arange(size, dtype=jnp.uint32)

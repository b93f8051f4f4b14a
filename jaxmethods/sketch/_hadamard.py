"""The Hadamard transform, and operators of some of its rows and columns."""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from .. import kernels
from ..core import check_floating, describe
from ._debiasing import debias_orthogonal
from ._linear import linear_apply
from ._operator import (
    check_one,
    check_window,
    dense,
    matmul,
    refuse_right,
    transpose,
)
from ._sparse_operand import add_columns


def walsh_hadamard(x: jax.Array) -> jax.Array:
    """Sylvester's Hadamard matrix H times `x`, along axis 0, unnormalised.

    `H[i, j]` is -1 to the number of bits that i and j share, so H H = n I.

    Args:
        x: floating (n, ...), n a power of two.

    Returns:
        The shape and dtype of x, summed in float32 or wider.

    Raises:
        TypeError: x is not floating.
        ValueError: the first axis is missing or its length no power of two.

    Complexity:
        Two passes over memory up to 2^18 x 64 in float32, one more for each further
        factor of 64 in n.

    Example:
        >>> import jax.numpy as jnp
        >>> walsh_hadamard(jnp.array([1.0, 2.0, 3.0, 4.0]))
        Array([10., -2., -4.,  0.], dtype=float32)

    References:
        Fino, Algazi 1976, Unified matrix treatment of the fast Walsh-Hadamard
        transform.
    """
    array = check_floating(x, "x")
    length = array.shape[0] if array.ndim else 0
    if not length or length & (length - 1):
        raise ValueError(
            f"x is {describe(array)}; wanted a power of two along axis 0: pad it with "
            f"zeros to {padded_length(max(length, 1))}."
        )
    matrix = array.reshape(length, math.prod(array.shape[1:]))
    out = linear_apply(_Transform(length), matrix, transposed=False)
    return out.reshape(array.shape)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hadamard:
    r"""Given rows of the Hadamard transform of columns with given signs.

    $$S_{ij} = \mathrm{sign}_j\, (-1)^{\langle \mathrm{rows}_i, j \rangle} / \sqrt m ,$$

    where the brackets count the bits that are set in both numbers: rows of Sylvester's
    matrix of the next power of two N above n = `num_columns`.

    Attributes:
        sign: (n,), any real dtype; usually int8 of -1 and 1.
        rows: integer (m,), 0..N-1; values are not checked.
        num_columns: n.

    Raises:
        ValueError: at the first use: sign has not n entries, or rows is no vector.

    Complexity:
        `S @ A`: N d log2(N) additions and a copy of A.

    Example:
        >>> import jax.numpy as jnp
        >>> S = Hadamard(jnp.array([1, 1, -1]), jnp.array([0, 1, 2, 3]), 3)
        >>> S.dense() * 2
        Array([[ 1.,  1., -1.],
               [ 1., -1., -1.],
               [ 1.,  1.,  1.],
               [ 1., -1.,  1.]], dtype=float32)

    References:
        Ailon, Chazelle 2009, The fast Johnson-Lindenstrauss transform.
    """

    sign: jax.Array
    rows: jax.Array
    num_columns: int = field(metadata=dict(static=True))

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        sign, rows = self.sign, self.rows
        if sign.shape != (self.num_columns,) or len(rows.shape) != 1:
            raise ValueError(
                f"sign is {describe(sign)} and rows {describe(rows)}; wanted a sign "
                f"for each of {self.num_columns} columns, and a vector of row numbers "
                f"(of a batch of operators each has them: use jax.vmap)."
            )
        return rows.shape[0], self.num_columns

    def apply(self, matrix: jax.Array) -> jax.Array:
        """`S A` of a floating matrix, unchecked."""
        return self._whole().apply(matrix)

    def apply_transpose(self, matrix: jax.Array) -> jax.Array:
        """`S^T Y` of a floating matrix, unchecked."""
        return self._whole().apply_transpose(matrix)

    def apply_sparse(self, matrix: Any) -> jax.Array:
        """`S A` of a BCOO matrix (n, d), unchecked."""
        return self._whole().apply_sparse(matrix)

    def columns(self, start: Any, size: int) -> "HadamardWindow":
        """Columns start..start+size-1 as an operator; start may be traced.

        Args:
            start: integer scalar, 0..n-size.
            size: 1..n.

        Returns:
            The operator of shape (m, size).
        """
        return self._whole().columns(start, size)

    def debias(self, d: Any) -> Any:
        """N (m - d - 1) / (m (N - d - 1)), which holds for distinct rows.

        With a ridge it divides the sketched Gram, as in `inverse_gram`.
        """
        return self._whole().debias(d)

    def _whole(self) -> "HadamardWindow":
        length = padded_length(self.shape[1])
        return HadamardWindow(self.sign, self.rows, jnp.zeros((), jnp.int32), length)

    __matmul__ = matmul
    __rmatmul__ = refuse_right
    __array_ufunc__ = None
    T = property(transpose)
    dense = dense


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HadamardWindow:
    """Some columns of a Hadamard sketch, in blocks that are transformed alone.

    In an aligned block of B columns, q-th in the row, `<r, q B + c>` is the sum of
    `<r // B, q>` and `<r % B, c>`: a transform of length B and one sign a row. A window
    of at most B columns lies in at most two blocks.

    Attributes:
        sign: (size,), the signs of these columns.
        rows: integer (m,), 0..length-1.
        start: int32 scalar, the number of the first column.
        length: the power of two N.
    """

    sign: jax.Array
    rows: jax.Array
    start: jax.Array
    length: int = field(metadata=dict(static=True))

    @property
    def shape(self) -> tuple[int, int]:
        """(m, size)."""
        check_one(self.start, self)
        return self.rows.shape[0], self.sign.shape[0]

    def apply(self, matrix: jax.Array) -> jax.Array:
        """`S A` of a floating matrix, unchecked."""
        dtype = jnp.promote_types(matrix.dtype, jnp.float32)
        signed = matrix.astype(dtype) * self.sign.astype(dtype)[:, None]
        block, place = self._block()
        shape = (self._num_blocks() * block, matrix.shape[1])
        if signed.shape != shape:
            room = jax.lax.full_like(signed, 0, shape=shape)
            signed = jax.lax.dynamic_update_slice_in_dim(room, signed, place, axis=0)
        total = self._sampled(signed[:block], 0)
        if self._num_blocks() == 2:
            total = jax.lax.cond(
                place + self.shape[1] > block,
                lambda: total + self._sampled(signed[block:], 1),
                lambda: total,
            )
        return (total * self.rows.shape[0] ** -0.5).astype(matrix.dtype)

    def apply_transpose(self, matrix: jax.Array) -> jax.Array:
        """`S^T Y` of a floating matrix, unchecked."""
        dtype = jnp.promote_types(matrix.dtype, jnp.float32)
        scaled = matrix.astype(dtype) * self.rows.shape[0] ** -0.5
        block, place = self._block()
        out = self._spread(scaled, 0)
        if self._num_blocks() == 2:
            second = jax.lax.cond(
                place + self.shape[1] > block,
                lambda: self._spread(scaled, 1),
                lambda: jnp.zeros_like(out),
            )
            out = jnp.concatenate([out, second])
        out = jax.lax.dynamic_slice_in_dim(out, place, self.shape[1])
        return (out * self.sign.astype(dtype)[:, None]).astype(matrix.dtype)

    def apply_sparse(self, matrix: Any) -> jax.Array:
        """`S A` of a BCOO matrix (n, d), unchecked: no transform, m signs a number."""
        dtype = jnp.promote_types(matrix.dtype, jnp.float32)
        sign = self.sign.astype(dtype)

        def columns(number: jax.Array) -> jax.Array:
            shared = self.rows[:, None] & (self.start + number)[None]
            odd = jax.lax.population_count(shared) & 1
            sizes = sign.at[number].get(mode="fill", fill_value=0)
            return (1 - 2 * odd).astype(dtype) * sizes[None]

        num_rows = self.rows.shape[0]
        out = add_columns(columns, num_rows, matrix)
        return (out * num_rows**-0.5).astype(matrix.dtype)

    def columns(self, start: Any, size: int) -> "HadamardWindow":
        """Columns start..start+size-1 as an operator; start may be traced."""
        first = check_window(start, size, self.shape[1])
        sign = jax.lax.dynamic_slice_in_dim(self.sign, first, size)
        return HadamardWindow(sign, self.rows, self.start + first, self.length)

    def debias(self, d: Any) -> Any:
        """N (m - d - 1) / (m (N - d - 1)), which multiplies inv((S A)^T S A).

        With a ridge it divides the sketched Gram, as in `inverse_gram`.
        """
        return debias_orthogonal(self.shape[0], self.length, d)

    def _block(self) -> tuple[int, jax.Array]:
        """The length B of a block, and where in its block the first column stands."""
        block = min(padded_length(self.shape[1]), self.length)
        return block, self.start % block

    def _num_blocks(self) -> int:
        return 1 if self._block()[0] == self.length else 2

    def _sampled(self, rows: jax.Array, which: int) -> jax.Array:
        """Our rows of the transform of the first or second block."""
        picked = kernels.walsh_hadamard(rows)[self.rows.astype(jnp.int32) % len(rows)]
        return picked * self._parity(which, picked.dtype)

    def _spread(self, sums: jax.Array, which: int) -> jax.Array:
        """The adjoint of `_sampled`."""
        block = self._block()[0]
        room = jax.lax.full_like(sums, 0, shape=(block, sums.shape[1]))
        signed = sums * self._parity(which, sums.dtype)
        return kernels.walsh_hadamard(
            room.at[self.rows.astype(jnp.int32) % block].add(signed)
        )

    def _parity(self, which: int, dtype: Any) -> jax.Array:
        """The sign (m, 1) of each of our rows in the first or second block."""
        block = self._block()[0]
        both = (self.rows // block) & (self.start // block + which)
        odd = jax.lax.population_count(both) & 1
        return (1 - 2 * odd).astype(dtype)[:, None]

    __matmul__ = matmul
    __rmatmul__ = refuse_right
    __array_ufunc__ = None
    T = property(transpose)
    dense = dense


def padded_length(num_columns: int) -> int:
    """The next power of two."""
    return 1 << (num_columns - 1).bit_length()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Transform:
    """The transform of length n as an operator, its own transpose."""

    length: int = field(metadata=dict(static=True))

    @property
    def shape(self) -> tuple[int, int]:
        return self.length, self.length

    def apply(self, matrix: jax.Array) -> jax.Array:
        return kernels.walsh_hadamard(matrix).astype(matrix.dtype)

    apply_transpose = apply

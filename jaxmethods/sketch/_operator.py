"""The protocol of a sketch: a linear operator that is a frozen pytree.

A family is one small file: a frozen dataclass registered as a pytree, its `shape`,
two plain functions of a matrix (`apply`, `apply_transpose`), `columns`, `debias`, and

    __matmul__ = matmul
    __rmatmul__ = refuse_right
    __array_ufunc__ = None
    T = property(transpose)
    dense = dense

which give it `S @ A`, `S1 @ S2`, `S.T @ Y` and `S.dense()` with checks, dtypes,
derivatives and batching, and `A @ S` an error that says how to write it (the third line
lets numpy's arrays come to it).
"""

from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ..core import check_floating, check_integer, describe, is_concrete
from ._linear import linear_apply


@runtime_checkable
class LinearOperator(Protocol):
    """What `matmul` asks of an operator of shape (m, n).

    `apply` takes a floating (n, d) and returns (m, d) in its dtype, summed in float32
    or wider; `apply_transpose` takes (m, d) and returns (n, d). Both are ordinary jax
    functions; they need no efficient derivative, `matmul` gives them one. A family
    whose products `bound` shall bound has `absolute(power)` as well, which returns the
    operator of the entries |S_ij| ** power; one that takes a BCOO matrix has
    `apply_sparse`, an `apply` that jax can differentiate in `matrix.data`.

    Attributes:
        shape: (m, n), static.

    Example:
        >>> import jax
        >>> from jaxmethods import sketch
        >>> S = sketch.countsketch(jax.random.key(0), 8, 100)
        >>> isinstance(S, LinearOperator), isinstance(S.T, LinearOperator)
        (True, True)
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        ...

    def apply(self, matrix: jax.Array) -> jax.Array:
        """`S A` of a floating matrix, unchecked."""
        ...

    def apply_transpose(self, matrix: jax.Array) -> jax.Array:
        """`S^T Y` of a floating matrix, unchecked."""
        ...


class SlicedOperator(LinearOperator, Protocol):
    """An operator that knows the operator of its columns start..start+size-1."""

    def columns(self, start: Any, size: int) -> Any:
        """Those columns; `start` may be traced."""
        ...

    def __matmul__(self, other: Any) -> Any:
        """`S @ A`."""
        ...


def matmul(operator: LinearOperator, other: Any) -> Any:
    """`S @ A` for a vector or matrix A, or the operator `S1 @ S2`.

    Where the rows of A are split over Auto mesh axes, what is sent is left to XLA: for
    `sparse_stack` and `srht` every device gathers all of A. `apply_sharded` inside
    `jax.shard_map` sends (m, d) numbers.

    Args:
        operator: shape (m, n).
        other: floating (n,) or (n, d), which may be BCOO, or an operator of shape
            (n, p).

    Returns:
        (m,) or (m, d) in the dtype of A, or an operator of shape (m, p).

    Raises:
        TypeError: A is not floating.
        ValueError: the shapes do not match, or A is sharded over Explicit mesh axes.
        NotImplementedError: A is sparse but no BCOO array of single numbers, or S an
            operator without a method for those.
    """
    rows, columns = operator.shape
    if isinstance(other, LinearOperator):
        if other.shape[0] != columns:
            raise ValueError(
                f"the right operator has shape {other.shape}; wanted {columns} rows, "
                f"as many as the left one of shape {operator.shape} has columns."
            )
        return Product(operator, other)
    if hasattr(other, "todense"):
        return _matmul_sparse(operator, other)
    array = check_floating(other, "A")
    if array.ndim not in (1, 2) or array.shape[0] != columns:
        raise ValueError(
            f"A is {describe(array)}; wanted a vector or matrix of {columns} rows, as "
            f"many as this {rows} x {columns} operator has columns (for a batch of "
            f"matrices use jax.vmap)."
        )
    check_unsharded(array, "A")
    # `Transpose` is peeled off here, so that the primitive sees a flag; of a product
    # it sees one factor at a time, whose entries are at hand.
    transposed = isinstance(operator, Transpose)
    inner = operator.operator if transposed else operator
    if isinstance(inner, Product):
        first, last = inner.right, inner.left
        if transposed:
            first, last = transpose(last), transpose(first)
        return matmul(last, matmul(first, array))
    matrix = array if array.ndim == 2 else array[:, None]
    out = linear_apply(inner, matrix, transposed=transposed)
    return out if array.ndim == 2 else out[:, 0]


def _matmul_sparse(operator: LinearOperator, matrix: Any) -> jax.Array:
    """`S @ A` for a sparse A; its derivative in `A.data` is left to jax."""
    # Seen by its parts: to import the class takes a quarter of a second.
    places = getattr(matrix, "indices", jnp.zeros(0))
    if len(matrix.shape) == 1 and places.ndim == 2:
        return matmul(operator, _as_column(matrix))[:, 0]
    if places.ndim != 2 or places.shape != (*matrix.data.shape, 2):
        raise NotImplementedError(
            f"A is a sparse {type(matrix).__name__} of shape {matrix.shape}; wanted a "
            f"BCOO vector or matrix with n_batch = n_dense = 0: convert it, or pass "
            f"A.todense()."
        )
    check_floating(matrix.data, "A.data")
    if matrix.shape[0] != operator.shape[1]:
        raise ValueError(
            f"A is a BCOO matrix of shape {matrix.shape}; wanted {operator.shape[1]} "
            f"rows, as many as this operator of shape {operator.shape} has columns."
        )
    if isinstance(operator, Product):
        return matmul(operator.left, matmul(operator.right, matrix))
    if isinstance(operator, Transpose):  # the result is dense, and larger
        return matmul(operator, matrix.todense())
    if not hasattr(operator, "apply_sparse"):
        raise NotImplementedError(
            f"A is a sparse {type(matrix).__name__} and S a {type(operator).__name__}, "
            f"which has no method apply_sparse(A); write one, or pass A.todense()."
        )
    return _apply_sparse(operator, matrix)


@jax.jit
def _as_column(vector: Any) -> Any:
    return vector.reshape(-1, 1)


@jax.jit  # or outside of jit its loops were compiled anew at every call
def _apply_sparse(operator: Any, matrix: Any) -> jax.Array:
    return operator.apply_sparse(matrix)


def refuse_right(operator: LinearOperator, other: Any) -> NoReturn:
    """`A @ S`: TypeError."""
    raise TypeError(
        f"the left operand is {describe(other)} and the right one an operator of shape "
        f"{operator.shape}; wanted the operator on the left: for A @ S write "
        f"(S.T @ A.T).T."
    )


def transpose(operator: LinearOperator) -> LinearOperator:
    """The adjoint operator of shape (n, m); of an adjoint, the operator itself."""
    return operator.operator if isinstance(operator, Transpose) else Transpose(operator)


def dense(operator: LinearOperator) -> jax.Array:
    """The operator as a matrix (m, n) of the default floating dtype."""
    return linear_apply(operator, jnp.eye(operator.shape[0]), transposed=True).T


def check_unsharded(array: jax.Array, name: str) -> None:
    """Raises ValueError where an array is split over Explicit mesh axes."""
    if any(axis is not None for axis in jax.typeof(array).sharding.spec):
        raise ValueError(
            f"{name} is {jax.typeof(array)}, sharded over Explicit mesh axes; wanted "
            f"one device's rows: inside jax.shard_map use apply_sharded(S, rows, "
            f"axis_name), or axis_name= of lstsq, inverse_gram and others; or Auto "
            f"axes, by jax.sharding.auto_axes(fn, out_sharding=jax.P())({name})."
        )


def check_window(start: Any, size: int, num_columns: int) -> jax.Array:
    """Returns `start` as int32, or raises unless the columns lie inside.

    Args:
        start: integer scalar; a traced one is not checked.
        size: 1..num_columns.
        num_columns: the columns n of the operator.

    Returns:
        int32 scalar.

    Raises:
        TypeError: `start` or `size` is no integer.
        ValueError: the window is empty or leaves 0..n-1.
    """
    size = check_integer(size, "size", 1, num_columns)
    first = jnp.asarray(start)
    if first.shape or not jnp.issubdtype(first.dtype, jnp.integer):
        raise TypeError(f"start is {describe(first)}; wanted one int.")
    if is_concrete(first):
        check_integer(int(first), "start", 0, num_columns - size)
    return first.astype(jnp.int32)


def check_one(part: Any, operator: Any) -> None:
    """Raises ValueError where a part that is a scalar shows a batch of operators."""
    if part.shape:
        raise ValueError(
            f"this is a batch of {part.shape[0]} operators {type(operator).__name__}, "
            f"as jax.vmap returns them; wanted one: use it under jax.vmap too, as in "
            f"jax.vmap(lambda S: S @ A)(S)."
        )


def check_sketch_shape(num_rows: Any, num_columns: Any) -> tuple[int, int]:
    """Returns (m, n) as ints, or raises unless both are at least 1."""
    for name, value in (("m", num_rows), ("n", num_columns)):
        if not is_concrete(value):
            raise TypeError(
                f"{name} is {describe(value)}, traced; wanted a Python int, for the "
                f"shape of a sketch depends on it: under jit make it static by "
                f"static_argnames={name!r} or static_argnums."
            )
    limit = jnp.iinfo(jnp.int32).max  # a column is counted in int32
    return (
        check_integer(num_rows, "m", 1, limit),
        check_integer(num_columns, "n", 1, limit),
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Transpose:
    """The adjoint of an operator: `S.T`.

    Attributes:
        operator: the operator S of shape (m, n).
    """

    operator: Any

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        rows, columns = self.operator.shape
        return columns, rows

    def apply(self, matrix: jax.Array) -> jax.Array:
        """`S^T Y` of a floating matrix, unchecked."""
        return self.operator.apply_transpose(matrix)

    def apply_transpose(self, matrix: jax.Array) -> jax.Array:
        """`S A` of a floating matrix, unchecked."""
        return self.operator.apply(matrix)

    def dense(self) -> jax.Array:
        """The matrix (n, m)."""
        return self.operator.dense().T

    __matmul__ = matmul
    __rmatmul__ = refuse_right
    __array_ufunc__ = None
    T = property(transpose)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Product:
    """The operator `left @ right`: a sketch of a sketch.

    Attributes:
        left: shape (m, p).
        right: shape (p, n).
    """

    left: Any
    right: Any

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.left.shape[0], self.right.shape[1]

    def apply(self, matrix: jax.Array) -> jax.Array:
        """`S A` of a floating matrix, unchecked."""
        return self.left.apply(self.right.apply(matrix))

    def apply_transpose(self, matrix: jax.Array) -> jax.Array:
        """`S^T Y` of a floating matrix, unchecked."""
        return self.right.apply_transpose(self.left.apply_transpose(matrix))

    def columns(self, start: Any, size: int) -> "Product":
        """Columns start..start+size-1: the left operator after those of the right."""
        return Product(self.left, self.right.columns(start, size))

    def debias(self, d: Any) -> Any:
        """The scalar of both: given the inner sketch, the outer one's holds for it."""
        return self.left.debias(d) * self.right.debias(d)

    __matmul__ = matmul
    __rmatmul__ = refuse_right
    __array_ufunc__ = None
    T = property(transpose)
    dense = dense

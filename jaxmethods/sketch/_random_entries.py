"""Dense sketches: independent entries, drawn while they are multiplied."""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ..kernels import random_matmul, random_matmul_transpose, random_tile
from ._debiasing import debias_independent, debias_wishart
from ._drawn import Drawn, from_first
from ._sparse_operand import add_columns

Law = Literal["normal", "sign"]


def gaussian(key: jax.Array, m: int, n: int) -> "RandomEntries":
    """A Gaussian sketch (m, n): independent normal entries of variance 1 / m.

    `E[S^T S] = I`, and `(m - d - 1) / m * inv((S A)^T S A)` has the mean inv(A^T A)
    exactly, whatever A of d columns. The yardstick of the other families, and the
    dearest.

    Args:
        key: scalar typed key.
        m: rows, at least 1.
        n: columns, at least 1.

    Returns:
        The operator, which stores the key only. Its entries are float32 numbers times
        1 / sqrt(m), each a function of the key and its own place.

    Raises:
        TypeError: `key` is not a typed key.
        ValueError: m or n is below 1.

    Complexity:
        `S @ A`: 2 m n d flops and m n normal numbers, in tiles of 2 MB.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> S = gaussian(jax.random.key(0), 8, 100)
        >>> (S @ jnp.ones((100, 3))).shape, S.debias(3)
        ((8, 3), 0.5)

    References:
        Derezinski, Liao, Dobriban, Mahoney 2021, Sparse sketches with small inversion
        bias (arXiv 2011.10695).
    """
    return _draw(key, m, n, "normal")


def rademacher(key: jax.Array, m: int, n: int) -> "RandomEntries":
    """A sign sketch (m, n): every entry +1 / sqrt(m) or -1 / sqrt(m).

    `E[S^T S] = I`, and `(m - d) / m * inv((S A)^T S A)` is nearly unbiased. As good as
    `gaussian` with a fraction of the random numbers.

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
        `S @ A`: 2 m n d flops and m n / 32 random words, in tiles of 2 MB.

    Example:
        >>> import jax
        >>> S = rademacher(jax.random.key(0), 4, 100)
        >>> bool((abs(S.dense()) == 0.5).all())
        True

    References:
        Achlioptas 2003, Database-friendly random projections.
    """
    return _draw(key, m, n, "sign")


def _draw(key: jax.Array, m: int, n: int, law: Law) -> "RandomEntries":
    return RandomEntries(*from_first(key, m, n), law)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RandomEntries(Drawn):
    """Columns start..start+n-1 of the matrix of independent entries a key names.

    `gaussian` and `rademacher` make it.

    Attributes:
        key: scalar typed key.
        start: int32 scalar, the number of the first column.
        num_rows: m.
        num_columns: n.
        law: "normal" or "sign".
    """

    law: Law = field(metadata=dict(static=True))

    def apply(self, matrix: jax.Array) -> jax.Array:
        """`S A` of a floating matrix, unchecked."""
        first, rows = self.start.astype(jnp.uint32), self.num_rows
        out = random_matmul(self.key, first, matrix, num_rows=rows, law=self.law)
        return (out * rows**-0.5).astype(matrix.dtype)

    def apply_transpose(self, matrix: jax.Array) -> jax.Array:
        """`S^T Y` of a floating matrix, unchecked."""
        first, columns = self.start.astype(jnp.uint32), self.num_columns
        out = random_matmul_transpose(
            self.key, first, matrix, num_columns=columns, law=self.law
        )
        return (out * self.num_rows**-0.5).astype(matrix.dtype)

    def apply_sparse(self, matrix: Any) -> jax.Array:
        """`S A` of a BCOO matrix (n, d), unchecked."""

        def column(number: jax.Array) -> jax.Array:
            first = (self.start + number).astype(jnp.uint32)
            return random_tile(self.key, first, self.num_rows, 1, self.law)[:, 0]

        columns = jax.vmap(column, out_axes=1)
        out = add_columns(columns, self.num_rows, matrix)
        return (out * self.num_rows**-0.5).astype(matrix.dtype)

    def debias(self, d: Any) -> Any:
        """(m - d - 1) / m for normal entries, (m - d) / m for signs.

        With a ridge it divides the sketched Gram, as in `inverse_gram`.
        """
        scalar = debias_wishart if self.law == "normal" else debias_independent
        return scalar(self.num_rows, d)

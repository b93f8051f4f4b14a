"""The subsampled randomized Hadamard transform, drawn from a key, all it stores."""

from dataclasses import dataclass, field
from typing import Any

import jax

from ..core import materialized
from ._column_signs import column_signs
from ._debiasing import debias_orthogonal
from ._distinct import distinct_rows
from ._drawn import Drawn, from_first
from ._hadamard import HadamardWindow, padded_length


def srht(key: jax.Array, m: int, n: int) -> "RandomHadamard":
    """A subsampled randomized Hadamard transform (m, n), rows without replacement.

    `sqrt(N / m)` times m distinct rows of the orthogonal Hadamard matrix of the next
    power of two N, times random signs. `E[S^T S] = I`, and
    `N (m - d - 1) / (m (N - d - 1)) * inv((S A)^T S A)` is nearly unbiased.

    Args:
        key: scalar typed key.
        m: rows, 1..N.
        n: columns, at least 1.

    Returns:
        The operator, which stores the key only.

    Raises:
        TypeError: `key` is not a typed key.
        ValueError: m or n is below 1, or m is above N.

    Complexity:
        `S @ A`: N d log2(N) additions and a copy of A; of a window of the columns, up
        to two transforms as long as the window.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> S = srht(jax.random.key(0), 4, 100)
        >>> bool((abs(S.dense()) == 0.5).all())
        True

    References:
        Ailon, Chazelle 2009, The fast Johnson-Lindenstrauss transform;
        Tropp 2011, Improved analysis of the subsampled randomized Hadamard transform
        (arXiv 1011.1595).
    """
    key, start, num_rows, num_columns = from_first(key, m, n)
    length = padded_length(num_columns)
    if num_rows > length:
        raise ValueError(
            f"m is {num_rows} and n {num_columns}, {length} when padded; wanted m of "
            f"{length} at most, since rows are drawn without replacement."
        )
    return RandomHadamard(key, start, num_rows, num_columns, length)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RandomHadamard(Drawn):
    """Columns start..start+n-1 of the Hadamard sketch that a key names.

    `srht` makes it.

    Attributes:
        key: scalar typed key.
        start: int32 scalar, the number of the first column.
        num_rows: m.
        num_columns: n.
        length: the power of two N.
    """

    length: int = field(metadata=dict(static=True))

    def apply(self, matrix: jax.Array) -> jax.Array:
        """`S A` of a floating matrix, unchecked."""
        return self.explicit().apply(matrix)

    def apply_transpose(self, matrix: jax.Array) -> jax.Array:
        """`S^T Y` of a floating matrix, unchecked."""
        return self.explicit().apply_transpose(matrix)

    def apply_sparse(self, matrix: Any) -> jax.Array:
        """`S A` of a BCOO matrix (n, d), unchecked."""
        return self.explicit().apply_sparse(matrix)

    def debias(self, d: Any) -> Any:
        """N (m - d - 1) / (m (N - d - 1)), which multiplies inv((S A)^T S A).

        With a ridge it divides the sketched Gram, as in `inverse_gram`.
        """
        return debias_orthogonal(self.num_rows, self.length, d)

    def explicit(self) -> HadamardWindow:
        """The same operator with its signs (int8) and rows (int32) as arrays."""
        sign = column_signs(self.key, self.start, self.num_columns, 1)[0]
        sign = materialized(sign)  # or XLA draws the words again for every entry of A
        rows = distinct_rows(self.key, self.num_rows, self.length)
        return HadamardWindow(sign, rows, self.start, self.length)

"""The scalars that take the bias out of an inverse of a sketched Gram matrix.

S of shape (m, n) with `E[S^T S] = I` gives a Gram matrix `(S A)^T S A` without bias
and an inverse that is too large, by nearly one factor for all directions where S is
dense enough. Its reciprocal, for A with d columns:

- independent entries, or enough of them a row: m - d over m, to O(1 / m);
- normal entries: m - d - 1 over m, exactly (Wishart);
- m of N rows of a random orthogonal matrix: N (m - d - 1) over m (N - d - 1), exactly.

With a ridge, which no sketch makes larger, the scalar divides the Gram alone, and d is
the effective dimension e, the trace of `A^T A inv(A^T A + ridge I)`:
`inv((S A)^T S A / S.debias(e) + ridge I)`. `inverse_gram` measures e on the sketch.
"""

from typing import Any

from ..core import is_concrete


def debias_independent(num_rows: int, d: Any) -> Any:
    """(m - d) / m.

    Args:
        num_rows: m.
        d: columns of A, or its effective dimension; a traced one is not checked.

    Returns:
        The scalar, in 0..1.

    Raises:
        ValueError: d < 0 or d >= m.
    """
    _check_dimension(num_rows, d, 0)
    return (num_rows - d) / num_rows


def debias_wishart(num_rows: int, d: Any) -> Any:
    """(m - d - 1) / m; ValueError for d < 0 or d >= m - 1."""
    _check_dimension(num_rows, d, 1)
    return (num_rows - d - 1) / num_rows


def debias_orthogonal(num_rows: int, length: int, d: Any) -> Any:
    """N (m - d - 1) / (m (N - d - 1)) for N = `length`; ValueError as for Wishart."""
    _check_dimension(num_rows, d, 1)
    return length * (num_rows - d - 1) / (num_rows * (length - d - 1))


def _check_dimension(num_rows: int, d: Any, less: int) -> None:
    if is_concrete(d) and not 0 <= d < num_rows - less:
        most = f"m - {less}" if less else "m"
        raise ValueError(
            f"d is {d} and m is {num_rows}; wanted 0 <= d < {most}, or the sketched "
            f"Gram has no inverse with a mean: take more rows m."
        )

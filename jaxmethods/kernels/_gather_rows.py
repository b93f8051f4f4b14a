"""Weighted sums of a few rows of a matrix: what a row-sparse operator is made of."""

import jax
import jax.numpy as jnp


def gather_rows(rows: jax.Array, index: jax.Array, weight: jax.Array) -> jax.Array:
    """Row i of the result is `sum_k weight[i, k] * rows[index[i, k]]`.

    One draw of all m sums after the other, so that no (m, s, d) array is formed.

    Args:
        rows: floating (n, d).
        index: integer (m, s); one of n or above stands for a row of zeros.
        weight: (m, s), any real dtype.

    Returns:
        (m, d), float32 or wider.

    Complexity:
        m s rows read, s reads and writes of the result.

    Example:
        >>> import jax.numpy as jnp
        >>> rows, index = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[0, 2], [1, 3]])
        >>> gather_rows(rows, index, jnp.array([[1.0, -1.0], [0.5, 9.0]]))[:, 0]
        Array([-2.,  1.], dtype=float32)
    """
    dtype = jnp.promote_types(rows.dtype, jnp.float32)
    total = jax.lax.full_like(rows, 0, dtype, shape=(len(index), rows.shape[1]))

    def add_draw(total, draw):
        at, scale = draw
        picked = rows.at[at].get(mode="fill", fill_value=0).astype(dtype)
        return total + picked * scale.astype(dtype)[:, None], None

    return jax.lax.scan(add_draw, total, (index.T, weight.T))[0]


def scatter_rows(
    sums: jax.Array, index: jax.Array, weight: jax.Array, *, num_rows: int
) -> jax.Array:
    """The adjoint of `gather_rows`: row i adds `weight[i, k] * sums[i]` at its indices.

    Args:
        sums: floating (m, d).
        index: integer (m, s); one of `num_rows` or above is left out.
        weight: (m, s), any real dtype.
        num_rows: the number n of rows of the result.

    Returns:
        (n, d), float32 or wider.

    Complexity:
        m s rows read and written beside the result.

    Example:
        >>> import jax.numpy as jnp
        >>> index, weight = jnp.array([[0, 2], [1, 3]]), jnp.ones((2, 2))
        >>> scatter_rows(jnp.array([[5.0], [7.0]]), index, weight, num_rows=3)[:, 0]
        Array([5., 7., 5.], dtype=float32)
    """
    dtype = jnp.promote_types(sums.dtype, jnp.float32)
    total = jax.lax.full_like(sums, 0, dtype, shape=(num_rows, sums.shape[1]))
    sums = sums.astype(dtype)

    def add_draw(total, draw):
        at, scale = draw
        return total.at[at].add(scale.astype(dtype)[:, None] * sums, mode="drop"), None

    return jax.lax.scan(add_draw, total, (index.T, weight.T))[0]

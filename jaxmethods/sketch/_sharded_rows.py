"""A sketch of rows that lie on many devices: one sum of (m, d) numbers."""

from typing import Any

import jax

from ..core import axis_size, check_floating, describe
from ._operator import SlicedOperator


def apply_sharded(S: SlicedOperator, A: jax.Array, axis_name: Any) -> jax.Array:
    """`S @ A` where each device of a mesh axis holds consecutive rows of A.

    Each device applies its own columns of S to its rows, and one psum of the results
    follows. The operator is the same on all devices and drawn from the key and the
    number of each column, so the sketch does not depend on the mesh, up to the order
    in which sums are rounded. `S @ A` of rows split over Auto mesh axes is the
    same, but for many families each device gathers all of A first.

    Args:
        S: operator (m, n) that has `columns`.
        A: floating (n / devices,) or (n / devices, d), the rows of this device: inside
            `jax.shard_map` with the rows split by `jax.P(axis_name)`.
        axis_name: the axis, or a tuple of axes.

    Returns:
        (m,) or (m, d), the same on all devices of the axis, in the dtype of A.

    Raises:
        TypeError: A is not floating.
        ValueError: the devices together do not hold n rows.
        NameError: the axis is not bound.

    Complexity:
        Of `S @ A` for the rows of one device, and m d numbers sent and received.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods.sketch import sparse_stack
        >>> S = sparse_stack(jax.random.key(0), 8, 100)
        >>> A = jax.random.normal(jax.random.key(1), (100, 3))
        >>> mesh = jax.sharding.Mesh(jax.devices()[:1], "rows")
        >>> rows = jax.P("rows")
        >>> run = lambda A: apply_sharded(S, A, "rows")
        >>> SA = jax.shard_map(run, mesh=mesh, in_specs=rows, out_specs=jax.P())(A)
        >>> bool(abs(SA - S @ A).max() < 1e-5)
        True

    References:
        Derezinski, Liao, Dobriban, Mahoney 2021, Sparse sketches with small inversion
        bias (arXiv 2011.10695), for sketches that workers share.
    """
    array = check_floating(A, "A")
    rows, columns = array.shape[0] if array.ndim else 0, S.shape[1]
    devices = axis_size(axis_name, "apply_sharded")
    if not rows or rows * devices != columns:
        raise ValueError(
            f"A is {describe(array)} on each of {devices} devices of {axis_name!r}; "
            f"wanted {columns} rows in all, as many as S of shape {S.shape} has "
            f"columns: pad A with rows of zeros until the devices divide them."
        )
    start = jax.lax.axis_index(axis_name) * rows
    return jax.lax.psum(S.columns(start, rows) @ array, axis_name)


def apply_rows(S: SlicedOperator, A: jax.Array, axis_name: Any) -> jax.Array:
    """`S @ A`, or `apply_sharded` where there is an axis over which rows are split."""
    return S @ A if axis_name is None else apply_sharded(S, A, axis_name)


def num_rows(A: jax.Array, axis_name: Any) -> int:
    """The rows of A on all devices of the axis together."""
    return A.shape[0] * (1 if axis_name is None else jax.lax.axis_size(axis_name))


def total(value: jax.Array, axis_name: Any) -> jax.Array:
    """The sum over the axis; without one the value."""
    return value if axis_name is None else jax.lax.psum(value, axis_name)

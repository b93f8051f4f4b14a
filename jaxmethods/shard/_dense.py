"""A dense layer whose columns, or rows, are spread over the members of a group."""

from typing import Any

import jax

from ..core import describe


def column_dense(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """Computes this member's columns of a dense layer: x @ kernel + bias.

    Inside `shard_map`: `x` is alike on all members, `kernel` and `bias` are split by
    columns, and so is the result, ready for elementwise functions and `row_dense`.

    Args:
        x: (..., d), floating.
        kernel: (d, e / K), this member's columns of K.
        bias: (e / K,), or None.

    Returns:
        (..., e / K).

    Raises:
        ValueError: Shapes that do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> column_dense(jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.zeros(4)).shape
        (2, 4)

    References:
        Krizhevsky 2014, arXiv:1404.5997; Shoeybi et al. 2019, arXiv:1909.08053.
    """
    _check_dense(x, kernel, bias)
    return _add_bias(x @ kernel, bias)


def row_dense(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, axis_name: Any
) -> jax.Array:
    """Computes a dense layer whose rows are split: psum(x @ kernel) + bias.

    Inside `shard_map`, after `column_dense`: the last axis of `x` and the rows of
    `kernel` are split alike, `bias` is whole on every member and added once, after the
    one sum over the group.

    Args:
        x: (..., d / K), floating.
        kernel: (d / K, e), this member's rows of K.
        bias: (e,), or None.
        axis_name: The mesh axis of the group.

    Returns:
        (..., e), alike on all members.

    Raises:
        ValueError: Shapes that do not match.
        NameError: The axis is not bound.

    Example:
        >>> import jax.numpy as jnp
        >>> dense = jax.vmap(lambda x, w: row_dense(x, w, None, "model"),
        ...                  axis_name="model")
        >>> dense(jnp.ones((2, 5, 3)), jnp.ones((2, 3, 4)))[0, 0]
        Array([6., 6., 6., 6.], dtype=float32)

    References:
        Krizhevsky 2014, arXiv:1404.5997; Shoeybi et al. 2019, arXiv:1909.08053.
    """
    _check_dense(x, kernel, bias)
    return _add_bias(jax.lax.psum(x @ kernel, axis_name), bias)


def _add_bias(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    if bias is None:
        return y
    # Not broadcast_to: its gradient would cross devices before its rows are summed.
    return y + bias[(None,) * (y.ndim - 1)]


def _check_dense(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> None:
    fits = x.ndim >= 1 and kernel.ndim == 2 and x.shape[-1] == kernel.shape[0]
    if not fits or (bias is not None and bias.shape != kernel.shape[1:]):
        given = "" if bias is None else f", bias {describe(bias)}"
        raise ValueError(
            f"x is {describe(x)}, kernel {describe(kernel)}{given}; wanted (..., d), "
            "(d, e) and (e,): inside shard_map these are the shards, so split d of x "
            "and of the kernel alike (in_specs)."
        )

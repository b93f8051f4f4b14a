"""Margins of a classifier: how far the label's logit is above each other one."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import check_floating, describe, is_concrete


def margins(fn: Callable[..., Any], label: Any) -> Callable[..., jax.Array]:
    """How far the label's logit is ahead of each other one.

    All positive over a set: the prediction is certified. Every method merges the
    differences into the last affine operation of `fn`.

    Args:
        fn: A function whose result is the logits of one example, shape (n,).
        label: int in 0..n-1; may be traced, and is then not checked.

    Returns:
        `rows(*args) -> (n - 1,)`: logits[label] - logits[j], j ascending without label.

    Raises:
        ValueError: `fn` returns anything but a vector of two entries or more, or the
            label is none of its classes.
        TypeError: The logits are not floating, or the label is no integer scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> bound.margins(lambda z: z, 1)(jnp.array([0.5, 2.0, 1.0]))
        Array([1.5, 1. ], dtype=float32)
    """

    @functools.wraps(fn)
    def rows(*args: Any, **kwargs: Any) -> jax.Array:
        logits = fn(*args, **kwargs)
        if getattr(logits, "ndim", None) != 1:
            raise ValueError(
                f"margins got {describe(logits)} from the function; wanted logits of "
                "shape (n,): one example a call, batch with vmap."
            )
        if logits.shape[0] < 2:
            raise ValueError(
                f"margins got {describe(logits)} from the function; wanted two classes "
                "or more: for a sigmoid of one logit z return jnp.stack([0 * z, z])."
            )
        check_floating(logits, "the result of the function")
        _check_label(label, logits.shape[0])
        return differences(logits.shape[0], label, logits.dtype) @ logits

    return rows


def _check_label(label: Any, num: int) -> None:
    dtype = getattr(label, "dtype", None) or np.asarray(label).dtype
    if np.shape(label) or not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(
            f"label is {describe(label)}; wanted one integer: batch with vmap."
        )
    if is_concrete(label) and not 0 <= int(label) < num:
        raise ValueError(
            f"label is {int(label)} and the function returns {num} logits; wanted "
            f"0..{num - 1}."
        )


def differences(num: int, label: Any, dtype: Any) -> jax.Array:
    """The rows e_label - e_j, j ascending without label: shape (num - 1, num)."""
    others = jnp.arange(num - 1)
    others = others + (others >= label)
    columns = jnp.arange(num)
    mine, theirs = columns == label, columns[None] == others[:, None]
    return mine[None].astype(dtype) - theirs.astype(dtype)

"""Margins of a classifier: how far the label's logit is above each other one."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core import describe


def margins(fn: Callable[..., Any], label: Any) -> Callable[..., jax.Array]:
    @functools.wraps(fn)
    def rows(*args: Any) -> jax.Array:
        logits = fn(*args)
        if getattr(logits, "ndim", None) != 1:
            raise ValueError(
                f"margins got {describe(logits)} from the function; wanted logits of "
                "shape (n,): one example a call, batch with vmap."
            )
        return differences(logits.shape[0], label, logits.dtype) @ logits

    return rows


def differences(num: int, label: Any, dtype: Any) -> jax.Array:
    """The rows e_label - e_j, j ascending without label: shape (num - 1, num)."""
    others = jnp.arange(num - 1)
    others = others + (others >= label)
    columns = jnp.arange(num)
    mine, theirs = columns == label, columns[None] == others[:, None]
    return mine[None].astype(dtype) - theirs.astype(dtype)

"""The zoo's MLP bounded by immrax: natural intervals, and linear bounds forward.

immrax 0.3, from PyPI; it has no convolutions, and its `crown` goes forward.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import immrax
except ImportError as error:
    missing: str | None = f"immrax is not measured: {error}"
else:
    missing = None

METHODS = ("ibp", "forward")


def lower_margins(method: str) -> Callable[..., Any]:
    """Lower bounds of `(params, images, labels, eps)`, compiled."""

    def one(params: Any, x: Any, y: Any, eps: Any) -> Any:
        x = x.reshape(-1)
        box = immrax.interval(x - eps, x + eps)
        others = jnp.where(jnp.arange(9) < y, jnp.arange(9), jnp.arange(9) + 1)
        rows = jnp.eye(10)[y][None] - jnp.eye(10)[others]
        weights, bias = params["w2"] @ rows.T, rows @ params["b2"]

        def margins(x: Any) -> Any:
            for i in "01":  # it knows no jax.nn.relu
                x = jnp.maximum(params["w" + i].T @ x + params["b" + i], 0.0)
            return weights.T @ x + bias

        if method == "ibp":
            return immrax.natif(margins)(box).lower
        return immrax.crown(margins)(box)(box).lower  # linear bounds forward

    return jax.jit(jax.vmap(one, (None, 0, 0, None)))

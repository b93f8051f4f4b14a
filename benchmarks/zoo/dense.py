"""A net of dense layers with rectifiers between them, of any widths."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def init(key: Any, widths: Sequence[int]) -> Any:
    """Random weights: a (weight, bias) a layer."""
    keys = jax.random.split(key, len(widths) - 1)
    return tuple(
        (jax.random.normal(k, (m, n)) * np.sqrt(2 / m), jnp.zeros(n))
        for k, m, n in zip(keys, widths[:-1], widths[1:], strict=True)
    )


def logits(params: Any, x: Any) -> Any:
    """Logits (widths[-1],) of one image."""
    x = x.reshape(-1)
    for i, (weight, bias) in enumerate(params):
        x = x @ weight + bias
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x

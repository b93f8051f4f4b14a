"""Keeps XLA's CPU backend from fusing across a point of a computation."""

import math
from typing import Any

import jax.numpy as jnp
from jax import lax


def materialized(x: Any) -> Any:
    """The same array (R, ...), written to memory before anything reads it, on CPUs.

    The derivative of a layer in its weights reads its operand transposed. XLA's CPU
    backend fuses whatever elementwise work comes before into that transposed read,
    which then misses the cache once an input and an entry: 110 ms instead of 10 for
    the rows of a small convolution. Likewise it repeats what is computed for each unit
    for each row that reads it. It expands optimization barriers before it fuses, but it
    does not fuse through a matrix product, here one with a small identity, whose
    transpose is one as well. Other backends get `x` itself.
    """
    width = math.gcd(math.prod(x.shape[1:]), 16)

    def by_identity(x: Any) -> Any:
        blocks = x.reshape(-1, width)
        one = jnp.eye(width, dtype=x.dtype)
        return jnp.matmul(blocks, one, precision="highest").reshape(x.shape)

    return lax.platform_dependent(x, cpu=by_identity, default=lambda x: x)

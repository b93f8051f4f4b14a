"""Keeps XLA's CPU backend from fusing across a point of a computation."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def materialized(x: Any) -> Any:
    """The same array (R, ...), written to memory before anything reads it, on CPUs.

    The derivative of a layer in its weights reads its operand transposed. XLA's CPU
    backend fuses whatever elementwise work comes before into that transposed read,
    which then misses the cache once an input and an entry: 110 ms instead of 10 for
    the rows of a small convolution. Likewise it repeats what is computed for each unit
    for each row that reads it. It expands optimization barriers before it fuses, but it
    does not fuse through a matrix product, here one with a small identity. Its
    transpose is the same. Other backends get `x` itself.

    A primitive, so that no transform takes the identity for a layer.
    """
    return _materialize_p.bind(x)


def _by_identity(x: Any) -> Any:
    width = math.gcd(math.prod(x.shape[1:]), 16)
    one = jnp.eye(width, dtype=x.dtype)
    rows = x.reshape(-1, width)
    return jnp.matmul(rows, one, precision="highest").reshape(x.shape)


_materialize_p = Primitive("materialize")
_materialize_p.def_impl(jax.jit(lambda x: _materialize_p.bind(x)))
_materialize_p.def_abstract_eval(lambda x: x)
ad.deflinear2(_materialize_p, lambda ct, x: [_materialize_p.bind(ct)])
batching.defvectorized(_materialize_p)
mlir.register_lowering(_materialize_p, lambda ctx, x: [x])
mlir.register_lowering(
    _materialize_p, mlir.lower_fun(_by_identity, multiple_results=False), platform="cpu"
)

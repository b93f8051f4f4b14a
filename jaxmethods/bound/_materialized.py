"""Keeps XLA's CPU backend from fusing across a point of a computation."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def materialized(x: Any) -> Any:
    """The same floating array, written to memory before anything reads it, on CPUs.

    XLA's CPU backend fuses elementwise work into whatever reads it, and repeats it
    there: once a row that reads it, once a slice, and in a chain of steps twice a step
    where two slices of the end are read. It also fuses it into transposed reads, which
    then miss the cache once an entry. It expands optimization barriers before it fuses,
    but it does not fuse across a branch that may be taken or not: here one between two
    ways to write the identity. Its transpose is the same. Other backends get `x`
    itself.

    A primitive, so that `vmap` leaves the branch a branch and no transform takes the
    identity for a layer.
    """
    return _materialize_p.bind(x)


def _by_branch(x: Any) -> Any:
    if x.size == 0:
        return x
    first = x[(0,) * x.ndim]
    return jax.lax.cond(
        first == first, lambda v: v, lambda v: jnp.where(v == v, v, jnp.nan), x
    )


_materialize_p = Primitive("materialize")
_materialize_p.def_impl(jax.jit(lambda x: _materialize_p.bind(x)))
_materialize_p.def_abstract_eval(lambda x: x)
ad.deflinear2(_materialize_p, lambda ct, x: [_materialize_p.bind(ct)])
batching.defvectorized(_materialize_p)
mlir.register_lowering(_materialize_p, lambda ctx, x: [x])
mlir.register_lowering(
    _materialize_p, mlir.lower_fun(_by_branch, multiple_results=False), platform="cpu"
)

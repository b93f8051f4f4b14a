"""Keeps XLA's CPU backend from fusing across a point of a computation."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def materialized(x: Any) -> Any:
    """The same floating arrays, written to memory before anything reads them, on CPUs.

    XLA's CPU backend fuses elementwise work into whatever reads it, and repeats it
    there: once a row that reads it, once a slice, and in a chain of steps twice a step
    where two slices of the end are read. It also fuses it into transposed reads, which
    then miss the cache once an entry. It expands optimization barriers before it fuses,
    but it does not fuse across a branch that may be taken or not: here one between two
    ways to write the identity. Its transpose is the same. Other backends get `x`
    itself.

    A primitive, so that `vmap` leaves the branch a branch and no transform takes the
    identity for a layer.

    Args:
        x: A pytree of floating arrays.
    """
    leaves, treedef = jax.tree.flatten(x)
    return treedef.unflatten(_materialize_p.bind(*leaves))


def _by_branch(*arrays: Any) -> Any:
    filled = [v for v in arrays if v.size]
    if not filled:
        return arrays
    first = filled[0][(0,) * filled[0].ndim]
    return jax.lax.cond(first == first, lambda *v: v, _also_identity, *arrays)


def _also_identity(*arrays: Any) -> Any:
    return tuple(jnp.where(v == v, v, jnp.nan) for v in arrays)


def _transposed(cotangents: Any, *arrays: Any) -> Any:
    del arrays
    return _materialize_p.bind(*map(ad.instantiate_zeros, cotangents))


_materialize_p = Primitive("materialize")
_materialize_p.multiple_results = True
_materialize_p.def_impl(jax.jit(lambda *v: _materialize_p.bind(*v)))
_materialize_p.def_abstract_eval(lambda *v: v)
ad.deflinear2(_materialize_p, _transposed)
batching.primitive_batchers[_materialize_p] = lambda v, axes: (
    _materialize_p.bind(*v),
    axes,
)
mlir.register_lowering(_materialize_p, lambda ctx, *v: v)
mlir.register_lowering(
    _materialize_p, mlir.lower_fun(_by_branch, multiple_results=True), platform="cpu"
)

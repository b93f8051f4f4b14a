"""Keeps XLA's CPU backend from fusing across a point of a computation."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def materialized(x: Any) -> Any:
    """The same numbers, written to memory before anything reads them, on CPUs.

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
        x: A pytree of floating and integer arrays.
    """
    leaves, treedef = jax.tree.flatten(x)
    return treedef.unflatten(_materialize_p.bind(*leaves))


def _by_branch(*arrays: Any) -> Any:
    filled = [v for v in arrays if v.size]
    if not filled:
        return arrays
    whole = [v for v in filled if jnp.issubdtype(v.dtype, jnp.integer)]
    first = (whole or filled)[0][(0,) * (whole or filled)[0].ndim]
    if whole:  # true, which XLA does not know: the other branch is never taken
        known = jax.lax.population_count(first) <= 64
    else:
        known = first == first
    return jax.lax.cond(known, lambda *v: v, _also_identity, *arrays)


def _also_identity(*arrays: Any) -> Any:
    return tuple(
        jnp.where(v == v, v, jnp.nan)
        if jnp.issubdtype(v.dtype, jnp.inexact)
        else jnp.bitwise_not(v)
        for v in arrays
    )


def _derivative(arrays: Any, tangents: Any) -> Any:
    # Integers have no tangents: only what moves is written.
    moves = [type(t) is not ad.Zero and t.dtype != jax.dtypes.float0 for t in tangents]
    pairs = list(zip(moves, tangents, strict=True))
    moved = iter(_materialize_p.bind(*(t for move, t in pairs if move)))
    return _materialize_p.bind(*arrays), [next(moved) if m else t for m, t in pairs]


def _transposed(cotangents: Any, *arrays: Any) -> Any:
    del arrays
    return _materialize_p.bind(*map(ad.instantiate_zeros, cotangents))


_materialize_p = Primitive("materialize")
_materialize_p.multiple_results = True
_materialize_p.def_impl(lambda *v: list(v))  # outside of jit all is in memory
_materialize_p.def_abstract_eval(lambda *v: v)
ad.primitive_jvps[_materialize_p] = _derivative
ad.primitive_transposes[_materialize_p] = _transposed
batching.primitive_batchers[_materialize_p] = lambda v, axes: (
    _materialize_p.bind(*v),
    axes,
)
mlir.register_lowering(_materialize_p, lambda ctx, *v: v)
mlir.register_lowering(
    _materialize_p, mlir.lower_fun(_by_branch, multiple_results=True), platform="cpu"
)

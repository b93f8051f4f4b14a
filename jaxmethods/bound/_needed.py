"""Bounds values inside a function only where an interval does not decide it yet.

A rectifier whose input keeps its sign is linear, however wide the interval. So the
entries of a value that kinked operations alone read are sorted: those first whose
interval holds a kink. Backward passes take them some rows at a time, and stop at the
first rows that no example needs.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from ..core import Node, Variable, is_affine
from ._backward import proven
from ._flow import Flow
from ._rows import Entries
from ._sets import Bounds
from ._through import ELEMENTWISE, RESHAPED, is_local

# Rows that one step bounds: fewer would waste matrix products, more would skip less.
_ROWS = 32


def refine(flow: Flow, v: Variable) -> Bounds:
    """An interval of a value inside, tight wherever its readers are not linear there.

    Args:
        flow: Its nodes up to `v` are visited and prepared.
        v: A floating variable that nonlinear nodes read.
    """
    undecided = _undecided(flow, v)
    if undecided is None or v.aval.size <= _ROWS or _starts_as_patches(flow, v):
        return proven(flow, v, "both")
    size, old = v.aval.size, flow.bounds[v]
    low, high = old.lower.reshape(-1), old.upper.reshape(-1)
    undecided = jax.lax.stop_gradient(undecided).reshape(-1)
    order = jnp.argsort(~undecided)
    num_steps = math.ceil(size / _ROWS)
    places = np.minimum(np.arange(num_steps * _ROWS), size - 1).reshape(-1, _ROWS)
    index = order[places]
    needed = _any_example(jnp.any(undecided[index], axis=1))

    def bound(index: Any) -> Bounds:
        one = jnp.ones_like(low[:_ROWS])
        return proven(flow, v, "both", Entries(one, index, v.shape))

    def step(_: None, rows: tuple[Any, Any]) -> tuple[None, Bounds]:
        index, wanted = rows
        keep = Bounds(low[index], high[index])
        return None, jax.lax.cond(wanted, lambda: bound(index), lambda: keep)

    _, found = jax.lax.scan(step, None, (index, needed))
    back = jnp.argsort(order)
    return Bounds(*(end.reshape(-1)[back].reshape(v.shape) for end in found))


def _undecided(flow: Flow, v: Variable) -> Any:
    """Where an interval holds a kink; None if a reader is more than kinked."""
    x = flow.bounds[v]
    found = jnp.zeros(v.shape, bool)
    for node in flow.graph.nodes:
        if v in node.variables and not is_affine(node):
            at = kink(node, v)
            if at is None:
                return None
            found = found | (x.lower < at) & (at < x.upper)
    return found


def kink(node: Node, v: Variable) -> Any:
    """Where a node that reads a value changes its slope; None if not at one point."""
    if node.name in ("abs", "leaky_relu"):
        return jnp.zeros(v.shape, v.dtype)
    constants = [a for a in node.inputs if not isinstance(a, Variable)]
    if node.name in ("max", "min") and constants:
        return jnp.broadcast_to(jnp.asarray(constants[0], v.dtype), v.shape)
    return None


def _starts_as_patches(flow: Flow, v: Variable) -> bool:
    """Whether rows of all entries become patches, which are shared by positions."""
    node = flow.producers.get(v)
    while node and len(node.variables) == 1 and node.name in ELEMENTWISE | RESHAPED:
        node = flow.producers.get(node.variables[0])
    return node is not None and is_affine(node) and is_local(node)


def _any_example(test: Any) -> Any:
    """A truth value that `vmap` makes that of any example; so a branch stays one."""
    return _any_example_p.bind(test)


_any_example_p = Primitive("any_example")
_any_example_p.def_impl(jax.jit(lambda test: _any_example_p.bind(test)))
_any_example_p.def_abstract_eval(lambda test: test)
mlir.register_lowering(_any_example_p, lambda ctx, test: [test])


def _batched(args: Any, dims: Any) -> tuple[Any, Any]:
    ((test,), (axis,)) = args, dims
    return _any_example(jnp.any(test, axis=axis)), None


batching.primitive_batchers[_any_example_p] = _batched

"""Which entries of a value need more than an interval, for any example of a batch.

A rectifier whose input keeps its sign is linear, however wide the interval. So where
kinked operations alone read a value, those entries matter whose interval holds a kink.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from ..core import Node, Variable, is_affine
from ._flow import Flow
from ._through import ELEMENTWISE, RESHAPED, is_local
from ._windows import POOLS, map_axes


def undecided(flow: Flow, v: Variable) -> Any:
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


def starts_as_patches(flow: Flow, v: Variable) -> bool:
    """Whether rows of all entries become patches, which are shared by positions."""
    node = flow.producers.get(v)
    while node and len(node.variables) == 1 and node.name in ELEMENTWISE | RESHAPED:
        node = flow.producers.get(node.variables[0])
    if node is None:
        return False
    if node.name in POOLS:
        return map_axes(node.params, node.outputs[0].shape) is not None
    return is_affine(node) and is_local(node)


def any_example(test: Any) -> Any:
    """A truth value that `vmap` makes that of any example; so a branch stays one."""
    return _any_example_p.bind(test)


_any_example_p = Primitive("any_example")
_any_example_p.def_impl(jax.jit(lambda test: _any_example_p.bind(test)))
_any_example_p.def_abstract_eval(lambda test: test)
mlir.register_lowering(_any_example_p, lambda ctx, test: [test])


def _batched(args: Any, dims: Any) -> tuple[Any, Any]:
    ((test,), (axis,)) = args, dims
    return any_example(jnp.any(test, axis=axis)), None


batching.primitive_batchers[_any_example_p] = _batched

"""From a Python function to one flat graph: calls inlined, constants evaluated."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.extend.core import JaxprEqn, Literal

from ._checks import is_concrete
from ._graph import Graph, Node, Variable, live_nodes
from ._versions import Body, as_body, bind, call_body

_OF_SCALARS = frozenset({"broadcast_in_dim", "convert_element_type"})


def flatten(
    fn: Callable[..., Any], *args: Any, marked: Sequence[bool] | None = None
) -> Graph:
    """Traces `fn` and returns what happens between marked inputs and outputs.

    Calls (`jit`, `remat`, `custom_jvp`, `custom_vjp`) are inlined; equations that no
    marked input reaches are evaluated, whatever they are; equations that no output
    needs are dropped; `scan`, `while` and `cond` stay one node each.

    Args:
        fn: Any function of pytrees. Unmarked leaves reach it as they are, so Python
            flags and strings work; they may be tracers.
        *args: Its arguments. A marked leaf needs a shape and a dtype only.
        marked: One bool a leaf of `args`, in tree order; None marks every leaf.

    Returns:
        A `Graph`; `graph.evaluate` computes what `fn` computes.

    Raises:
        ValueError: `marked` has another length than the leaves of `args`.

    Example:
        >>> import jax.numpy as jnp
        >>> graph = flatten(lambda w, x: jnp.tanh(x) @ jnp.exp(w),
        ...                 jnp.ones(3), jnp.ones(3), marked=(False, True))
        >>> [node.name for node in graph.nodes]
        ['tanh', 'dot_general']
    """
    leaves, treedef = jax.tree.flatten(args)
    marked = [True] * len(leaves) if marked is None else list(marked)
    if len(marked) != len(leaves):
        raise ValueError(
            f"marked has {len(marked)} entries for {len(leaves)} leaves; "
            "wanted one bool a leaf, in the order of jax.tree.leaves(args)."
        )

    def of_marked(*values: Any) -> Any:
        given = iter(values)
        filled = [
            next(given) if m else leaf for m, leaf in zip(marked, leaves, strict=True)
        ]
        return fn(*treedef.unflatten(filled))

    variable_leaves = [leaf for m, leaf in zip(marked, leaves, strict=True) if m]
    closed, shapes = jax.make_jaxpr(of_marked, return_shape=True)(*variable_leaves)
    body = as_body(closed)
    inputs = tuple(Variable(v.aval) for v in body.jaxpr.invars)
    nodes: list[Node] = []
    needed = [True] * len(body.jaxpr.outvars)
    outputs = _walk(body, list(inputs), needed, nodes)
    live = live_nodes(nodes, outputs)
    return Graph(inputs, live, tuple(outputs), jax.tree.structure(shapes))


def _walk(
    body: Body, atoms: list[Any], needed: Sequence[bool], nodes: list[Node]
) -> list[Any]:
    """Appends the nodes of a body, called on `atoms`; returns its output atoms."""
    jaxpr, consts = body
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, atoms, strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, Literal) else env[var]

    for equation, wanted in _live_equations(jaxpr, needed):
        inputs = [read(v) for v in equation.invars]
        outs = _apply(equation, inputs, wanted, nodes)
        env.update(zip(equation.outvars, outs, strict=True))
    # A dead output has no value: nobody reads it.
    return [read(v) if n else None for v, n in zip(jaxpr.outvars, needed, strict=True)]


def _apply(
    equation: JaxprEqn, inputs: list[Any], wanted: list[bool], nodes: list[Node]
) -> list[Any]:
    if not any(isinstance(atom, Variable) for atom in inputs):
        return _constant(equation, inputs)
    inner = call_body(equation)
    if inner is not None:
        return _walk(inner, inputs, wanted, nodes)
    outputs = tuple(Variable(v.aval) for v in equation.outvars)
    nodes.append(
        Node(
            equation.primitive.name,
            tuple(inputs),
            outputs,
            equation.params,
            partial(bind, equation),
            equation,
        )
    )
    return list(outputs)


def _constant(equation: JaxprEqn, inputs: list[Any]) -> list[Any]:
    """Evaluates an equation of constants; a broadcast scalar costs no memory.

    Inside `jit` even known numbers would become tracers. Scalars, cast or broadcast,
    are what composite functions hold: they stay numbers that patterns can compare.
    """
    name = equation.primitive.name
    first: Any = inputs[0] if inputs else None
    if name in _OF_SCALARS and np.shape(first) == () and is_concrete(first):
        out: Any = equation.outvars[0].aval
        if not jax.dtypes.issubdtype(out.dtype, jax.dtypes.extended):
            return [np.broadcast_to(np.asarray(first, out.dtype), out.shape)]
    return bind(equation, *inputs)


def _live_equations(jaxpr: Any, needed: Sequence[bool]) -> list[tuple[Any, list[bool]]]:
    """The equations that needed outputs rest on, each with its own needed outputs."""
    alive = {
        v
        for v, n in zip(jaxpr.outvars, needed, strict=True)
        if n and not isinstance(v, Literal)
    }
    kept = []
    for equation in reversed(jaxpr.eqns):
        wanted = [v in alive for v in equation.outvars]
        if any(wanted):
            alive.update(v for v in equation.invars if not isinstance(v, Literal))
            kept.append((equation, wanted))
    return kept[::-1]

"""Gives equal computations one node: what reads a repeat reads the first instead."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._checks import is_concrete
from ._graph import Graph, Node, Variable, live_nodes


def without_repeats(graph: Graph) -> Graph:
    """A graph of the same function in which no operation is done twice.

    A layer that is normalised computes its mean once for the variance and once to
    subtract it; only where both are one node does a matcher see that they are equal.

    Example:
        >>> from jaxmethods.core import flatten
        >>> graph = flatten(lambda x: jnp.exp(x) / jnp.exp(x).sum(), jnp.ones(3))
        >>> [node.name for node in graph.nodes]
        ['exp', 'exp', 'reduce_sum', 'div']
        >>> [node.name for node in without_repeats(graph).nodes]
        ['exp', 'reduce_sum', 'div']
    """
    first: dict[Variable, Variable] = {}
    known: dict[Any, list[Node]] = {}
    nodes: list[Node] = []

    def read(atom: Any) -> Any:
        return first.get(atom, atom) if isinstance(atom, Variable) else atom

    for node in graph.nodes:
        if any(read(a) is not a for a in node.inputs):
            node = dataclasses.replace(node, inputs=tuple(map(read, node.inputs)))
        alike = known.setdefault((node.name, *map(_key, node.inputs)), [])
        old = next((n for n in alike if _same(n, node)), None)
        if old is None:
            alike.append(node)
            nodes.append(node)
        else:
            first.update(zip(node.outputs, old.outputs, strict=True))
    outputs = tuple(map(read, graph.outputs))
    return Graph(graph.inputs, live_nodes(nodes, outputs), outputs, graph.treedef)


def _key(atom: Any) -> Any:
    """What tells operands apart; numbers by their value, arrays by identity."""
    if isinstance(atom, Variable) or np.shape(atom) != () or not is_concrete(atom):
        return id(atom)
    if jax.dtypes.issubdtype(jnp.result_type(atom), jax.dtypes.extended):
        return id(atom)
    return jnp.result_type(atom), np.asarray(atom).item()


def _same(first: Node, second: Node) -> bool:
    if len(first.outputs) != len(second.outputs):
        return False
    pairs = zip(first.outputs, second.outputs, strict=True)
    return same_params(first.params, second.params) and all(
        (a.shape, a.dtype) == (b.shape, b.dtype) for a, b in pairs
    )


def same_params(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two operations have the same parameters, wherever their arrays lie."""
    return mine.keys() == theirs.keys() and all(
        mine[k] is theirs[k] or mine[k] == theirs[k]
        for k in mine
        if k not in ("sharding", "out_sharding")
    )

"""Gives masked scores a finite value that softmax cannot tell from minus infinity.

A mask puts minus infinity, or the least number, in the place of a score. What a linear
bound multiplies by zero must be finite, so constants that reach nothing but softmax and
logsumexp are raised to a fraction of the least number: the exponential stays 0.
"""

import dataclasses
from collections import Counter

import jax.numpy as jnp

from ..core import Graph, Node, Variable

_READERS = frozenset({"softmax", "logsumexp"})
_PASSING = frozenset(
    {
        *("broadcast_in_dim", "copy", "copy_p", "expand_dims", "pvary", "reshape"),
        *("squeeze", "transpose", "add", "select_n"),
    }
)


def finite_masks(graph: Graph) -> Graph:
    """A graph of the same function whose masked scores are finite."""
    readers = Counter(v for node in graph.nodes for v in node.variables)
    readers.update(a for a in graph.outputs if isinstance(a, Variable))
    scores: set[Variable] = set()
    nodes: list[Node] = []
    for node in reversed(graph.nodes):
        if node.name in _READERS:
            scores.update(v for v in node.variables if readers[v] == 1)
        elif node.name in _PASSING and node.outputs[0] in scores:
            first = 1 if node.name == "select_n" else 0
            scores.update(
                a
                for a in node.inputs[first:]
                if isinstance(a, Variable) and readers[a] == 1
            )
            node = _finite(node, first)
        nodes.append(node)
    return Graph(graph.inputs, tuple(reversed(nodes)), graph.outputs, graph.treedef)


def _finite(node: Node, first: int) -> Node:
    floor = jnp.finfo(node.outputs[0].dtype).min / 8
    inputs = tuple(
        a if i < first or isinstance(a, Variable) else jnp.maximum(a, floor)
        for i, a in enumerate(node.inputs)
    )
    return dataclasses.replace(node, inputs=inputs)

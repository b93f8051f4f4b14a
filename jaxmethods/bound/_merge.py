"""Merges a narrow matrix product into the affine operations that it reads.

The margins of a classifier are a small matrix times its logits. Bounded one after the
other, the last layer and that matrix lose what one merged matrix keeps: the interval of
a difference is narrower than the difference of intervals. So a product with a constant
matrix, no larger than what it reads, absorbs affine operations before it, as long as
the merged matrix is no larger than the weights that it takes the place of.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from ..core import Graph, Node, Variable, is_affine, is_bilinear, offset
from ._rounding import SUMS
from ._rows import Diagonal, Rows
from ._through import through_affine


class _Merged(NamedTuple):
    """A linear function, rows (R, *shape) and bias (R,), of one variable."""

    variable: Variable
    rows: Rows
    bias: Any
    num_absorbed: int


def merge_specifications(graph: Graph) -> Graph:
    """A graph of the same function with its narrow matrix products merged."""
    producers = {out: node for node in graph.nodes for out in node.outputs}
    needed = {atom for atom in graph.outputs if isinstance(atom, Variable)}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if needed.isdisjoint(node.outputs):
            continue
        pieces = list(_merged(node, producers))
        for piece in pieces:
            needed.update(piece.variables)
        kept.extend(reversed(pieces))
    nodes = tuple(reversed(kept))
    return Graph(graph.inputs, nodes, graph.outputs, graph.treedef)


def _merged(node: Node, producers: dict[Variable, Node]) -> Iterable[Node]:
    """The node, or the nodes that take its place."""
    if node.name != "dot_general" or not is_affine(node):
        return [node]
    (out,), (variable,) = node.outputs, node.variables
    if out.aval.size > variable.aval.size or out.dtype != variable.dtype:
        return [node]
    start = through_affine(node, [Diagonal(jnp.ones(out.shape, out.dtype))])[0]
    found = _absorb(_Merged(variable, start, None, 0), producers)
    last = producers.get(found.variable)
    if last is not None and _is_layer_of_two(last):
        return _product_of_two(node, last, found)
    if not found.num_absorbed:
        return [node]
    return _product(node, found)


def _absorb(found: _Merged, producers: dict[Variable, Node]) -> _Merged:
    """Moves a linear function down through the affine operations that it may absorb."""
    while True:
        node = producers.get(found.variable)
        if node is None or not _may_be_absorbed(node, found):
            return found
        added, bias = offset(node), found.bias
        if added is not None:
            part = found.rows.inner(added[0])
            bias = part if bias is None else bias + part
        rows = through_affine(node, [found.rows])[0]
        absorbed = found.num_absorbed + (node.name in SUMS)
        found = _Merged(node.variables[0], rows, bias, absorbed)


def _may_be_absorbed(node: Node, found: _Merged) -> bool:
    """Whether a node is affine in one value and merging it makes nothing larger."""
    if not is_affine(node) or len(node.variables) != 1 or len(node.outputs) != 1:
        return False
    if node.variables[0].dtype != node.outputs[0].dtype:
        return False
    size = node.variables[0].aval.size
    if node.name in ("dot_general", "conv_general_dilated"):
        (weights,) = (a for a in node.inputs if not isinstance(a, Variable))
        return found.rows.dense().shape[0] * size <= weights.size
    return node.name in SUMS or size <= node.outputs[0].aval.size


def _product(node: Node, found: _Merged) -> Iterable[Node]:
    """The merged matrix times the variable that it reads now."""
    rows = found.rows.dense()
    axes = tuple(range(rows.ndim - 1))
    numbers = ((tuple(i + 1 for i in axes), axes), ((), ()))
    yield from _with_bias(node, (rows, found.variable), numbers, found.bias)


def _is_layer_of_two(node: Node) -> bool:
    """Whether a node is a layer of a vector and weights that both vary."""
    if node.name != "dot_general" or not is_bilinear(node):
        return False
    contracted, batch = node.params["dimension_numbers"]
    free = [d for i, d in enumerate(node.inputs[0].shape) if i not in contracted[0]]
    return not batch[0] and math.prod(free) == 1


def _product_of_two(node: Node, last: Node, found: _Merged) -> Iterable[Node]:
    """The merged matrix times the weights first, where the weights vary as well."""
    x, weights = last.inputs
    (x_axes, w_axes), _ = last.params["dimension_numbers"]
    # Of a batch of one input, x keeps that axis.
    ones = (1,) * (len(x.shape) - len(x_axes))
    free = tuple(i for i in range(len(weights.shape)) if i not in w_axes)
    num_rows = math.prod(node.outputs[0].shape)
    rows = found.rows.dense().reshape(num_rows, *(weights.shape[i] for i in free))
    numbers = ((tuple(range(1, rows.ndim)), free), ((), ()))
    shape = (num_rows, *(weights.shape[i] for i in sorted(w_axes)))
    merged = Variable(weights.aval.update(shape=shape))
    yield _dot(node, (rows, weights), merged, numbers)
    axes = tuple(1 + sorted(w_axes).index(i) for i in w_axes)
    numbers = ((tuple(x_axes), axes), ((), ()))
    yield from _with_bias(node, (x, merged), numbers, found.bias, ones)


def _with_bias(
    node: Node,
    inputs: tuple[Any, Any],
    numbers: Any,
    bias: Any,
    ones: tuple[int, ...] = (),
) -> Iterable[Node]:
    out = node.outputs[0]
    shape = (*ones, math.prod(out.shape))
    product = Variable(out.aval.update(shape=shape))
    dot = _dot(node, inputs, product, numbers)
    yield dot
    last = product
    if bias is not None:
        bias, last = bias.reshape(shape), Variable(product.aval)
        yield Node(
            "add", (product, bias), (last,), {}, lambda x, b: [x + b], node.equation
        )
    yield Node(
        "reshape",
        (last,),
        (out,),
        {},
        lambda x: [x.reshape(out.shape)],
        node.equation,
    )


def _dot(node: Node, inputs: tuple[Any, Any], output: Variable, numbers: Any) -> Node:
    params = {"dimension_numbers": numbers, "precision": lax.Precision.HIGHEST}

    def evaluate(x: Any, y: Any) -> list[Any]:
        return [lax.dot_general(x, y, **params)]

    return Node("dot_general", inputs, (output,), params, evaluate, node.equation)

"""The layers of a loss: which parameter enters which product, and what that costs."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, jaxprs_in_params

from ..core import Graph, Node, Variable, flatten
from ._axes import is_elementwise, kept_axes, moved_axes, result_axis


@dataclass(frozen=True)
class Layer:
    """A product of activations and a parameter.

    Attributes:
        leaf: The parameter, counted in the order of the leaves.
        kind: `"dense"`, `"convolution"`, or `"other"` where it cannot be split: the
            kernel is computed from parameters, shared, batched, or inside a loop.
        flops: Of the forward pass on the whole batch.
        rows: Rows of the product over the whole batch.
        inputs: Numbers in a row that enter.
        outputs: Numbers in a row that leave.
        itemsize: Bytes a number of the activations.
        trained: Whether the activations depend on parameters, and so take a gradient.
        operand_axes: The axis of the leaf that each axis of the kernel is.
        row_axis: The axis of the leaf that is summed over (the first).
        column_axis: The axis of the leaf that is kept (the first).
        follows: Leaves of the layers whose columns are the rows of this one, with
            nothing but elementwise functions between.
        beside: (leaf, axis) of biases and scales that lie along the columns.
        last: Whether no other layer comes after it.
    """

    leaf: int
    kind: str
    flops: int
    rows: int = 0
    inputs: int = 0
    outputs: int = 0
    itemsize: int = 0
    trained: bool = True
    operand_axes: tuple[int, ...] = ()
    row_axis: int = 0
    column_axis: int = 0
    follows: frozenset[int] = frozenset()
    beside: frozenset[tuple[int, int]] = frozenset()
    last: bool = True


class _Origin(NamedTuple):
    """A value that is a parameter, axes moved: the leaf's axis of each of its own."""

    leaf: int
    axes: tuple[int | None, ...]


class _Columns(NamedTuple):
    """The columns of some layers lie along an axis of a value."""

    axis: int
    leaves: frozenset[int]


@dataclass(frozen=True)
class _Fact:
    """What is known of a value."""

    leaves: frozenset[int] = frozenset()
    data: bool = False
    layers: frozenset[int] = frozenset()
    origin: _Origin | None = None
    columns: _Columns | None = None


_NOTHING = _Fact()


def layers_of(loss: Any, params: Any, batch: Any) -> list[Layer]:
    """The layers of `loss(params, batch)`, in the order of computation.

    Args:
        loss: Any function of parameters and a batch.
        params: A pytree; shapes and dtypes suffice.
        batch: A pytree; shapes and dtypes suffice.

    Returns:
        One `Layer` a parameter that enters a matrix product or convolution.

    Example:
        >>> w = [jnp.ones((3, 8)), jnp.ones((8, 2))]
        >>> net = lambda w, x: (jnp.tanh(x @ w[0]) @ w[1]).sum()
        >>> first, second = layers_of(net, w, jnp.ones((5, 3)))
        >>> first.kind, first.rows, first.outputs, first.flops
        ('dense', 5, 8, 240)
        >>> second.follows
        frozenset({0})
    """
    return _Reader(flatten(loss, params, batch), len(jax.tree.leaves(params))).read()


class _Reader:
    """Walks a graph forward, with a fact a variable."""

    def __init__(self, graph: Graph, num_leaves: int):
        self.graph = graph
        self.layers: dict[int, Layer] = {}
        self.uses: Counter[int] = Counter()
        self.sizes = [math.prod(v.shape) for v in graph.inputs[:num_leaves]]
        self.facts: dict[Variable, _Fact] = {}
        for number, variable in enumerate(graph.inputs):
            if number < num_leaves:
                axes = tuple(range(len(variable.shape)))
                fact = _Fact(frozenset([number]), origin=_Origin(number, axes))
            else:
                # A mask drawn from a key is not an activation.
                key = jnp.issubdtype(variable.dtype, jax.dtypes.prng_key)
                fact = _Fact(data=not key)
            self.facts[variable] = fact

    def read(self) -> list[Layer]:
        for node in self.graph.nodes:
            facts = [
                self.facts[atom] if isinstance(atom, Variable) else _NOTHING
                for atom in node.inputs
            ]
            fact = self._step(node, facts)
            self.facts.update(dict.fromkeys(node.outputs, fact))
        return [self._finished(layer) for layer in self.layers.values()]

    def _finished(self, layer: Layer) -> Layer:
        return replace(layer, kind="other") if self.uses[layer.leaf] > 1 else layer

    def _step(self, node: Node, facts: list[_Fact]) -> _Fact:
        fact = _Fact(
            frozenset().union(*(f.leaves for f in facts)),
            any(f.data for f in facts),
            frozenset().union(*(f.layers for f in facts)),
        )
        if is_elementwise(node):
            return self._elementwise(node, facts, fact)
        moved = moved_axes(node)
        if moved is not None:
            return replace(
                fact,
                origin=_move_origin(facts[0].origin, moved, node.outputs[0].shape),
                columns=_move_columns(facts[0].columns, moved),
            )
        entering = [f for f in facts if f.leaves and not f.data]
        flops = product_flops(node.equation)
        if entering and flops:
            return self._product(node, facts, fact, flops)
        for f in facts:
            if f.origin is not None:  # used in a way that nobody here understands
                self.uses[f.origin.leaf] += 2
        return fact

    def _elementwise(self, node: Node, facts: list[_Fact], fact: _Fact) -> _Fact:
        if not fact.data:
            # A parameter alone stays itself: cast, scaled, rounded.
            alone = len(fact.leaves) == 1
            shape = node.outputs[0].shape
            origins = {
                f.origin
                for f, atom in zip(facts, node.inputs, strict=True)
                if f.origin is not None and atom.shape == shape
            }
            return replace(fact, origin=origins.pop() if alone and origins else None)
        active = [f for f in facts if f.data]
        axes = {f.columns.axis if f.columns else None for f in active}
        if len(axes) > 1 or None in axes:
            return fact
        leaves = frozenset().union(*(f.columns.leaves for f in active if f.columns))
        columns = _Columns(axes.pop(), leaves)
        for f in facts:
            if f.origin is not None and not f.data:
                self._put_beside(f.origin, columns)
        return replace(fact, columns=columns)

    def _put_beside(self, origin: _Origin, columns: _Columns) -> None:
        axis = origin.axes[columns.axis] if origin.axes else None
        if axis is None:
            return
        for leaf in columns.leaves:
            layer = self.layers[leaf]
            beside = layer.beside | {(origin.leaf, axis)}
            self.layers[leaf] = replace(layer, beside=beside)

    def _product(
        self, node: Node, facts: list[_Fact], fact: _Fact, flops: int
    ) -> _Fact:
        leaf, layer = self._layer(node, facts, flops)
        for before in fact.layers:
            self.layers[before] = replace(self.layers[before], last=False)
        self.uses[leaf] += 1
        fact = replace(fact, layers=fact.layers | {leaf})
        known = self.layers.get(leaf)
        if known is not None:  # shared: never split, but all its flops count
            self.layers[leaf] = replace(known, flops=known.flops + flops)
            return fact
        self.layers[leaf] = layer
        if layer.kind != "dense":
            return fact
        position = next(i for i, f in enumerate(facts) if f.origin and not f.data)
        kept = layer.operand_axes.index(layer.column_axis)
        dimensions = node.params["dimension_numbers"]
        axis = result_axis(dimensions, position, kept, node.inputs)
        return replace(fact, columns=_Columns(axis, frozenset([leaf])))

    def _layer(self, node: Node, facts: list[_Fact], flops: int) -> tuple[int, Layer]:
        kernels = [f for f in facts if f.leaves and not f.data]
        leaf = max(kernels[0].leaves, key=self.sizes.__getitem__)
        origin = kernels[0].origin
        plain = len(kernels) == 1 and len(facts) == 2 and origin is not None
        if node.name == "conv_general_dilated":
            return leaf, Layer(leaf, "convolution", flops)
        if node.name != "dot_general" or not plain or not any(f.data for f in facts):
            return leaf, Layer(leaf, "other", flops)
        position = facts.index(kernels[0])
        dimensions = node.params["dimension_numbers"]
        contracted, batched = dimensions
        kernel, other = contracted[position], contracted[1 - position]
        shape = node.inputs[position].shape
        kept = kept_axes(dimensions, position, len(shape))
        if batched[position] or not kernel or not kept or None in origin.axes:
            return leaf, Layer(leaf, "other", flops)
        activations, result = facts[1 - position], node.outputs[0]
        columns = activations.columns
        chained = columns is not None and columns.axis == other[0]
        outputs = math.prod(shape[a] for a in kept)
        return leaf, Layer(
            leaf,
            "dense",
            flops,
            rows=math.prod(result.shape) // outputs,
            inputs=math.prod(shape[a] for a in kernel),
            outputs=outputs,
            itemsize=result.dtype.itemsize,
            trained=bool(activations.leaves),
            operand_axes=origin.axes,
            row_axis=origin.axes[kernel[0]],
            column_axis=origin.axes[kept[0]],
            follows=columns.leaves if chained else frozenset(),
        )


def _move_origin(
    origin: _Origin | None, moved: tuple[int | None, ...], shape: tuple[int, ...]
) -> _Origin | None:
    if origin is None:
        return None
    axes: list[int | None] = [None] * len(shape)
    for axis, to in zip(origin.axes, moved, strict=True):
        if to is not None:
            axes[to] = axis
    return _Origin(origin.leaf, tuple(axes))


def _move_columns(
    columns: _Columns | None, moved: tuple[int | None, ...]
) -> _Columns | None:
    to = None if columns is None else moved[columns.axis]
    return None if to is None else _Columns(to, columns.leaves)


def product_flops(equation: JaxprEqn) -> int:
    """Multiplications and additions of the products in an equation and its bodies."""
    params = equation.params
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        lhs, (out,) = equation.invars[0].aval, equation.outvars
        summed = math.prod(lhs.shape[a] for a in contracted)
        return 2 * math.prod(out.aval.shape) * summed
    if equation.primitive.name == "conv_general_dilated":
        kernel, (out,) = equation.invars[1].aval, equation.outvars
        features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(out.aval.shape) * math.prod(kernel.shape) // features
    rounds = params.get("length", 1) if equation.primitive.name == "scan" else 1
    return rounds * sum(map(product_flops, _inner_equations(params)))


def _inner_equations(params: dict[str, Any]) -> Iterator[JaxprEqn]:
    for body in jaxprs_in_params(params):
        yield from getattr(body, "jaxpr", body).eqns

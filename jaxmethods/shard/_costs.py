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
        operand_axes: The axis of the leaf that each axis of the kernel is; () where
            the kernel is more than the leaf with its axes moved.
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
    return Reader(flatten(loss, params, batch), len(jax.tree.leaves(params))).read()


class Reader:
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
        if node.name not in ("dot_general", "conv_general_dilated"):
            # A use that nobody here understands rules a split out.
            self.uses.update(2 * [f.origin.leaf for f in facts if f.origin])
        flops = product_flops(node.equation)
        enters = any(f.leaves and not f.data for f in facts)
        return self._product(node, facts, fact, flops) if enters and flops else fact

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
        spread = [f.columns for f in active if f.columns is not None]
        if len(spread) < len(active) or len({c.axis for c in spread}) > 1:
            return fact
        leaves = frozenset().union(*(c.leaves for c in spread))
        columns = _Columns(spread[0].axis, leaves)
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
        layer = self._layer(node, facts, flops)
        leaf = layer.leaf
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

    def _layer(self, node: Node, facts: list[_Fact], flops: int) -> Layer:
        kernels = [f for f in facts if f.leaves and not f.data]
        leaf = max(kernels[0].leaves, key=self.sizes.__getitem__)
        position = facts.index(kernels[0])
        activations = facts[1 - position] if len(facts) == 2 else _NOTHING
        axes = _whole_axes(kernels[0].origin)
        other = Layer(
            leaf,
            "other",
            flops,
            trained=bool(activations.leaves),
            operand_axes=axes or (),
        )
        if node.name == "conv_general_dilated":
            return replace(other, kind="convolution")
        with_data = any(f.data for f in facts)
        if node.name != "dot_general" or len(kernels) > 1 or not with_data:
            return replace(other, trained=True)
        dimensions = node.params["dimension_numbers"]
        contracted, batched = dimensions
        summed, shape = contracted[position], node.inputs[position].shape
        kept = kept_axes(dimensions, position, len(shape))
        if axes is None or batched[position] or not summed or not kept:
            return other
        columns, result = activations.columns, node.outputs[0]
        chained = columns is not None and columns.axis == contracted[1 - position][0]
        outputs = math.prod(shape[a] for a in kept)
        return replace(
            other,
            kind="dense",
            rows=math.prod(result.shape) // outputs,
            inputs=math.prod(shape[a] for a in summed),
            outputs=outputs,
            itemsize=result.dtype.itemsize,
            row_axis=axes[summed[0]],
            column_axis=axes[kept[0]],
            follows=columns.leaves if columns and chained else frozenset(),
        )


def _whole_axes(origin: _Origin | None) -> tuple[int, ...] | None:
    """The leaf's axis of each axis of a value that is a parameter, axes moved."""
    axes = () if origin is None else origin.axes
    known = tuple(axis for axis in axes if axis is not None)
    return known if origin is not None and len(known) == len(axes) else None


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
    if columns is None:
        return None
    to = moved[columns.axis]
    return None if to is None else _Columns(to, columns.leaves)


def product_flops(equation: JaxprEqn) -> int:
    """Multiplications and additions of the products in an equation and its bodies."""
    name, params = equation.primitive.name, equation.params
    avals: list[Any] = [v.aval for v in (*equation.invars, *equation.outvars)]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        summed = math.prod(avals[0].shape[a] for a in contracted)
        return 2 * math.prod(avals[-1].shape) * summed
    if name == "conv_general_dilated":
        kernel = avals[1].shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(avals[-1].shape) * math.prod(kernel) // features
    rounds = params.get("length", 1) if name == "scan" else 1
    return rounds * sum(map(product_flops, _inner_equations(params)))


def _inner_equations(params: dict[str, Any]) -> Iterator[JaxprEqn]:
    for body in jaxprs_in_params(params):
        yield from getattr(body, "jaxpr", body).eqns

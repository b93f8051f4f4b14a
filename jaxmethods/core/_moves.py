"""Follows a value back through operations that only move numbers.

Which entry of a sum does each entry of a divisor come from? `Origin.indices` answers it
by moving entry numbers, in numpy, as the graph moves the values; so a matcher need not
know by which chain of reshapes and broadcasts a function came to its shapes.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from ._graph import Node, Variable

_MOVES = frozenset(
    {"broadcast_in_dim", "expand_dims", "reshape", "squeeze", "transpose"}
)
_SAME = frozenset({"copy", "copy_p", "pbroadcast", "pvary", "stop_gradient"})

Producers = dict[Variable, Node]


@dataclass(frozen=True)
class Origin:
    """Where the entries of a value come from.

    Attributes:
        variable: What the moves start from.
        moves: The operations in between, in the order in which they run.
    """

    variable: Variable
    moves: tuple[Node, ...]

    def indices(self, shape: Sequence[int]) -> np.ndarray:
        """For each entry, its place in the flat `variable`; broadcast to `shape`."""
        start = self.variable.shape
        found = np.arange(int(np.prod(start))).reshape(start)
        for node in self.moves:
            found = moved(node, found)
        return np.broadcast_to(found, tuple(shape))

    def replayed(self, variable: Variable, output: Variable) -> list[Node]:
        """The moves on another variable of the same shape, the last into `output`."""
        nodes: list[Node] = []
        for number, node in enumerate(self.moves):
            last = number == len(self.moves) - 1
            aval = node.outputs[0].aval.update(dtype=output.dtype)
            out = output if last else Variable(aval)
            nodes.append(dataclasses.replace(node, inputs=(variable,), outputs=(out,)))
            variable = out
        return nodes


def moved(node: Node, values: np.ndarray) -> np.ndarray:
    """A move of an array; axes of size 1 stand for what broadcasting would repeat."""
    values = np.broadcast_to(values, node.inputs[0].shape)
    if node.name == "transpose":
        return values.transpose(node.params["permutation"])
    shape = node.outputs[0].shape
    if node.name == "broadcast_in_dim":
        sizes = [1] * len(shape)
        for size, axis in zip(
            values.shape, node.params["broadcast_dimensions"], strict=True
        ):
            sizes[axis] = size
        return np.broadcast_to(values.reshape(sizes), shape)
    return values.reshape(shape)


def is_same(node: Node) -> bool:
    """Whether a node passes its only operand on, up to rounding to another dtype."""
    if node.name == "convert_element_type":
        ends = (*node.variables, *node.outputs)
        return all(jnp.issubdtype(v.dtype, jnp.floating) for v in ends)
    return node.name in _SAME and len(node.inputs) == 1


def is_move(node: Node) -> bool:
    """Whether a node only lays out the entries of its only operand anew."""
    plain = node.params.get("dimensions") is None or node.name != "reshape"
    return node.name in _MOVES and len(node.inputs) == 1 and plain


def same_value(producers: Producers, atom: Any) -> Any:
    """The atom that another one is a copy of."""
    while isinstance(atom, Variable):
        node = producers.get(atom)
        if node is None or not is_same(node):
            break
        atom = node.inputs[0]
    return atom


def origin(producers: Producers, variable: Variable) -> Origin:
    """What a value is a rearrangement of."""
    moves: list[Node] = []
    while True:
        variable = same_value(producers, variable)
        node = producers.get(variable)
        if node is None or not is_move(node):
            return Origin(variable, tuple(reversed(moves)))
        moves.append(node)
        variable = node.inputs[0]


def flat_origin(producers: Producers, variable: Variable) -> Variable:
    """What a value is a reshape of: the same entries in the same order."""
    while True:
        variable = same_value(producers, variable)
        node = producers.get(variable)
        if node is None or not is_move(node) or node.name == "transpose":
            return variable
        if variable.aval.size != node.inputs[0].aval.size:
            return variable
        variable = node.inputs[0]


def groups(shape: Sequence[int], axes: Sequence[int]) -> np.ndarray:
    """For each entry, the place in the flat result of a sum over some axes."""
    kept = [1 if i in axes else size for i, size in enumerate(shape)]
    return np.broadcast_to(np.arange(int(np.prod(kept))).reshape(kept), tuple(shape))

"""A function as one flat graph: what the analysing transforms walk."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import JaxprEqn


class Variable:
    """A value that depends on a marked input; known by identity, never by name."""

    __slots__ = ("aval",)

    def __init__(self, aval: Any):
        self.aval = aval

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return self.aval.shape

    @property
    def dtype(self) -> Any:
        """The dtype of the value."""
        return self.aval.dtype

    def __repr__(self) -> str:
        return f"Variable({self.aval.str_short()})"


@dataclass(frozen=True, eq=False)
class Node:
    """One operation of a graph.

    Attributes:
        name: The name of the primitive, or of the pattern that was matched.
        inputs: A `Variable`, or the array of a constant, for each operand.
        outputs: The variables that it defines.
        params: The parameters of the primitive; what a pattern captured.
        evaluate: `evaluate(*operands) -> list of outputs`, an ordinary JAX function.
        equation: The jaxpr equation it came from (of a pattern: its last one).
    """

    name: str
    inputs: tuple[Any, ...]
    outputs: tuple[Variable, ...]
    params: dict[str, Any]
    evaluate: Callable[..., list[Any]] = field(repr=False)
    equation: JaxprEqn = field(repr=False)

    @property
    def variables(self) -> list[Variable]:
        """The operands that are variables, repeated as often as they occur."""
        return [atom for atom in self.inputs if isinstance(atom, Variable)]


@dataclass(frozen=True, eq=False)
class Graph:
    """A flat, live, topologically ordered graph from marked inputs to outputs.

    Attributes:
        inputs: One variable a marked leaf, in the order of the leaves.
        nodes: The operations that an input reaches and an output needs.
        outputs: A `Variable`, or an array where no input reaches, for each leaf.
        treedef: The structure of the function's result.
    """

    inputs: tuple[Variable, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Any, ...]
    treedef: Any

    def evaluate(self, *values: Any) -> Any:
        """Runs the graph on one array a marked leaf; an ordinary JAX computation."""
        env = dict(zip(self.inputs, values, strict=True))

        def read(atom: Any) -> Any:
            return env[atom] if isinstance(atom, Variable) else atom

        for node in self.nodes:
            outs = node.evaluate(*map(read, node.inputs))
            env.update(zip(node.outputs, outs, strict=True))
        return self.treedef.unflatten(map(read, self.outputs))


def live_nodes(nodes: Sequence[Node], outputs: Iterable[Any]) -> tuple[Node, ...]:
    """The nodes that some output needs, in their order."""
    needed = {atom for atom in outputs if isinstance(atom, Variable)}
    kept = []
    for node in reversed(nodes):
        if any(out in needed for out in node.outputs):
            needed.update(node.variables)
            kept.append(node)
    return tuple(reversed(kept))

"""Finds softmax, log_softmax and logsumexp, however they are written.

A softmax is exp(z) over the sum of exp(z), with or without a shift of z, in any layout;
jax.nn, attention layers and people write it in a dozen ways that differ in which
numbers they move where. What is looked for is therefore the quotient itself.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ._checks import is_concrete
from ._graph import Graph, Node, Variable, live_nodes
from ._moves import (
    Origin,
    Producers,
    flat_origin,
    groups,
    origin,
    same_value,
)
from ._patterns import same_atom

Axes = tuple[int, ...]


class _Total(NamedTuple):
    """exp(exponent) summed over axes; `origin` leads from the sum to its reader."""

    exponent: Variable
    axes: Axes
    origin: Origin


class _Shifted(NamedTuple):
    """The value logsumexp(argument) - shift, both of the shape of a sum."""

    total: Variable
    shift: Variable


class _Shift(NamedTuple):
    """An argument less one number for each group of entries that is summed."""

    argument: Variable
    shift: Variable


def match_softmax(graph: Graph) -> Graph:
    """Replaces each softmax, log_softmax and logsumexp by one node of that name.

    Args:
        graph: From `flatten`, without repeats.

    Returns:
        A graph of the same function; a node that was found has the argument as its only
        input and params["axes"].

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods.core import flatten
        >>> from jaxmethods.core._repeats import without_repeats
        >>> graph = flatten(lambda x: jnp.exp(x) / jnp.exp(x).sum(), jnp.ones(3))
        >>> [node.name for node in match_softmax(without_repeats(graph)).nodes]
        ['softmax']
    """
    matcher = _Matcher()
    nodes = [piece for node in graph.nodes for piece in matcher.visit(node)]
    live = live_nodes(nodes, graph.outputs)
    return Graph(graph.inputs, live, graph.outputs, graph.treedef)


class _Matcher:
    """What is known of the values that a walk over a graph has come to."""

    def __init__(self) -> None:
        self.producers: Producers = {}
        self.shifted: dict[Variable, _Shifted] = {}

    def visit(self, node: Node) -> Sequence[Node]:
        rules: dict[str, Callable[[Node], Iterable[Node]]] = {
            "add": self._unshift,
            "div": self._quotient,
            "exp": self._exponential,
            "log": self._logarithm,
            "select_n": self._masked_quotient,
            "sub": self._difference,
        }
        rule = rules.get(node.name)
        nodes = [] if rule is None else list(rule(node))
        nodes = nodes or [node]
        for new in nodes:
            self.producers.update(dict.fromkeys(new.outputs, new))
        return nodes

    def _made_by(self, atom: Any, name: str) -> Node | None:
        """The operation of that name that a value comes from."""
        atom = same_value(self.producers, atom)
        node = self.producers.get(atom) if isinstance(atom, Variable) else None
        return node if node is not None and node.name == name else None

    def _total(self, atom: Any) -> _Total | None:
        """What the value is the sum of exponentials of."""
        if not isinstance(atom, Variable):
            return None
        found = origin(self.producers, atom)
        if (absolute := self._made_by(found.variable, "abs")) is not None:
            inner = origin(self.producers, absolute.inputs[0])
            found = Origin(inner.variable, inner.moves + found.moves)
        total = self._made_by(found.variable, "reduce_sum")
        exp = None if total is None else self._made_by(total.inputs[0], "exp")
        if total is None or exp is None or not isinstance(exp.inputs[0], Variable):
            return None
        axes = tuple(sorted(int(a) for a in total.params["axes"]))
        return _Total(exp.inputs[0], axes, found) if axes else None

    def _shift(self, z: Variable, axes: Axes) -> _Shift | None:
        """How z is x less a number for each group, where it is."""
        node = self._made_by(z, "sub")
        if node is None or not all(isinstance(a, Variable) for a in node.inputs):
            return None
        x, shift = node.inputs
        found = origin(self.producers, shift)
        where = groups(z.shape, axes)
        alike = _alike(x, z) and found.variable.dtype == z.dtype
        if not alike or found.variable.aval.size != where.max(initial=-1) + 1:
            return None
        if not np.array_equal(found.indices(z.shape), where):
            return None
        return _Shift(x, found.variable)

    def _unshifted(self, z: Variable, axes: Axes) -> Variable:
        found = self._shift(z, axes)
        return z if found is None else found.argument

    def _quotient(self, node: Node) -> Iterable[Node]:
        """exp(z) / sum(exp(z))."""
        out, (total, exp) = node.outputs[0], (None, None)
        if isinstance(node.inputs[1], Variable):
            total, exp = (
                self._total(node.inputs[1]),
                self._made_by(node.inputs[0], "exp"),
            )
        if total is None or exp is None:
            return
        z = total.exponent
        if exp.inputs[0] is z and _belongs(total, out) and _alike(z, out):
            yield _softmax(node, self._unshifted(z, total.axes), total.axes)

    def _masked_quotient(self, node: Node) -> Iterable[Node]:
        """where(mask, exp(z) / sum(where(mask, exp(z), 0)), 0)."""
        if len(node.inputs) != 3 or not _is_zero(node.inputs[1]):
            return
        mask, _, ratio = node.inputs
        division = self._made_by(ratio, "div")
        if division is None or not isinstance(division.inputs[1], Variable):
            return
        exp = self._made_by(division.inputs[0], "exp")
        found = origin(self.producers, division.inputs[1])
        total = self._made_by(found.variable, "reduce_sum")
        kept = None if total is None else self._made_by(total.inputs[0], "select_n")
        if exp is None or total is None or kept is None or len(kept.inputs) != 3:
            return
        same = same_atom(kept.inputs[0], mask) and _is_zero(kept.inputs[1])
        if not same or self._made_by(kept.inputs[2], "exp") is not exp:
            return
        z, out = exp.inputs[0], node.outputs[0]
        axes = tuple(sorted(int(a) for a in total.params["axes"]))
        if not (_belongs(_Total(z, axes, found), out) and _alike(z, out)):
            return
        x = self._unshifted(z, axes)
        low = np.broadcast_to(np.asarray(-np.inf, x.dtype), x.shape)
        masked = Variable(x.aval)
        yield Node(
            "select_n",
            (mask, low, x),
            (masked,),
            {},
            lambda m, a, b: [jax.lax.select_n(m, a, b)],
            node.equation,
        )
        # A group without an entry that is kept is 0 / 0 unless the mask comes last.
        ratio = Variable(out.aval)
        yield _composite("softmax", node, masked, axes, jax.nn.softmax, ratio)
        yield dataclasses.replace(node, inputs=(mask, node.inputs[1], ratio))

    def _exponential(self, node: Node) -> Iterable[Node]:
        """exp(log_softmax(x))."""
        inner = self._made_by(node.inputs[0], "log_softmax")
        if inner is not None and _alike(inner.inputs[0], node.outputs[0]):
            yield _softmax(node, inner.inputs[0], inner.params["axes"])

    def _logarithm(self, node: Node) -> Iterable[Node]:
        """log(sum(exp(z))), and log(softmax(x))."""
        inner = self._made_by(node.inputs[0], "softmax")
        if inner is not None and _alike(inner.inputs[0], node.outputs[0]):
            yield _log_softmax(node, inner.inputs[0], inner.params["axes"])
            return
        total = self._total(node.inputs[0])
        if total is None or total.exponent.dtype != node.outputs[0].dtype:
            return
        z, axes, read = total
        shape = read.variable.shape
        aval = read.variable.aval.update(dtype=z.dtype)
        last = Variable(aval) if read.moves else node.outputs[0]
        found = self._shift(z, axes)
        if found is None:
            yield _logsumexp(node, z, axes, last)
        else:
            whole, moved = Variable(aval), Variable(aval)
            yield _logsumexp(node, found.argument, axes, whole)
            yield Node(
                "reshape",
                (found.shift,),
                (moved,),
                {"new_sizes": shape, "dimensions": None},
                lambda v: [v.reshape(shape)],
                node.equation,
            )
            yield Node(
                "sub",
                (whole, moved),
                (last,),
                {},
                lambda a, b: [a - b],
                node.equation,
            )
            self.shifted[last] = _Shifted(
                whole, flat_origin(self.producers, found.shift)
            )
        yield from read.replayed(last, node.outputs[0])

    def _unshift(self, node: Node) -> Iterable[Node]:
        """(logsumexp(x) - m) + m."""
        if not all(isinstance(a, Variable) for a in node.inputs):
            return
        out = node.outputs[0]
        for first, second in (node.inputs, node.inputs[::-1]):
            found = origin(self.producers, first)
            known = self.shifted.get(found.variable)
            other = origin(self.producers, second)
            if known is None or not self._is_entry_by_entry(known, found, other, out):
                continue
            log = self.producers[known.total]
            if not found.moves:
                yield _logsumexp(node, log.inputs[0], log.params["axes"], out)
            yield from found.replayed(known.total, out)
            return

    def _is_entry_by_entry(
        self, known: _Shifted, first: Origin, second: Origin, out: Variable
    ) -> bool:
        """Whether what is added again is the shift, each where it was taken off."""
        same = flat_origin(self.producers, second.variable) is known.shift
        if not same or (first.variable.shape != out.shape and not first.moves):
            return False
        if first.moves and first.moves[-1].outputs[0].shape != out.shape:
            return False
        return np.array_equal(first.indices(out.shape), second.indices(out.shape))

    def _difference(self, node: Node) -> Iterable[Node]:
        """The quotient in logarithms: z - log(sum(exp(z)))."""
        if not all(isinstance(a, Variable) for a in node.inputs):
            return
        z, out = same_value(self.producers, node.inputs[0]), node.outputs[0]
        found = origin(self.producers, node.inputs[1])
        known = self.shifted.get(found.variable)
        total = found.variable if known is None else known.total
        log = self._made_by(total, "logsumexp")
        if log is None or not _alike(z, out):
            return
        x, axes = log.inputs[0], log.params["axes"]
        if not np.array_equal(found.indices(out.shape), groups(out.shape, axes)):
            return
        if known is not None:
            taken = self._shift(z, axes)
            if taken is None or taken.argument is not x:
                return
            if flat_origin(self.producers, taken.shift) is not known.shift:
                return
        elif z is not same_value(self.producers, x):
            return
        yield _log_softmax(node, x, axes)


def _belongs(total: _Total, out: Variable) -> bool:
    """Whether each entry of the output is divided by the sum of its own group."""
    where = groups(out.shape, total.axes)
    return np.array_equal(total.origin.indices(out.shape), where)


def _alike(x: Any, out: Variable) -> bool:
    return isinstance(x, Variable) and (x.shape, x.dtype) == (out.shape, out.dtype)


def _is_zero(atom: Any) -> bool:
    if isinstance(atom, Variable) or not is_concrete(atom):
        return False
    return not np.any(np.asarray(atom))


def _composite(
    name: str, node: Node, x: Variable, axes: Axes, fn: Callable, out: Variable
) -> Node:
    def evaluate(v: Any) -> list[Any]:
        return [fn(v, axis=axes)]

    return Node(name, (x,), (out,), {"axes": axes}, evaluate, node.equation)


def _softmax(node: Node, x: Variable, axes: Axes) -> Node:
    return _composite("softmax", node, x, axes, jax.nn.softmax, node.outputs[0])


def _log_softmax(node: Node, x: Variable, axes: Axes) -> Node:
    out = node.outputs[0]
    return _composite("log_softmax", node, x, axes, jax.nn.log_softmax, out)


def _logsumexp(node: Node, x: Variable, axes: Axes, out: Variable) -> Node:
    return _composite("logsumexp", node, x, axes, jax.nn.logsumexp, out)

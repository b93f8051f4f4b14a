"""Makes one operation of all elementwise steps that come from one value.

`x * sigmoid(x)`, `where(x > 0, x, expm1(x))` and `1 - tanh(x) ** 2` are functions of
one variable each. Bounded step by step, every step forgets that its operands are the
same x. So a value that is made of one other value by elementwise steps becomes a node
"univariate"; steps that several values need are repeated in each.

Derivatives hold products of a value that comes from further on with such a function,
in several steps: g (1 - y) + g (1 - y) y with y = tanh(x). They are multiplied out to
one product of g and a function of x.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..core import Graph, Node, Variable, is_affine
from ._registry import registered_interval

_STEPS = frozenset(
    {
        *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan"),
        *("atanh", "cbrt", "celu", "convert_element_type", "copy", "cos", "cosh"),
        *("digamma", "div", "elu", "eq", "erf", "erf_inv", "erfc", "exp", "exp2"),
        *("expm1", "ge", "gt", "integer_pow", "le", "leaky_relu", "lgamma", "log"),
        *("log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or"),
        *("pow", "real_pow", "reciprocal", "rsqrt", "select_n", "selu", "sign", "sin"),
        *("softplus", "sqrt", "square", "sub", "tan", "tanh", "gelu", "gelu_tanh"),
        *("silu", "sinh", "is_nan"),
    }
)
COMPARISONS = frozenset({"eq", "ge", "gt", "le", "lt", "ne", "sign"})
# More steps than this stay apart: what repeats them would cost more than it gains.
_MOST_STEPS = 64


class _Scaled(NamedTuple):
    """A value that is the product of two others."""

    factor: Variable
    function: Variable


def fuse(graph: Graph) -> Graph:
    """A graph of the same function with its functions of one variable as one node."""
    fusing = _Fusing()
    for node in graph.nodes:
        fusing.note(node)
    fusing.emit(a for a in graph.outputs if isinstance(a, Variable))
    return Graph(graph.inputs, tuple(fusing.nodes), graph.outputs, graph.treedef)


class _Fusing:
    """What is known of the values of a graph, and the nodes that will compute them."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._emitted: set[Variable] = set()
        self._producers: dict[Variable, Node] = {}
        self._roots: dict[Variable, Variable] = {}
        self._scaled: dict[Variable, list[_Scaled]] = {}

    def _root(self, v: Variable) -> Variable:
        return self._roots.get(v, v)

    def note(self, node: Node) -> None:
        """Finds out of which value a node's output is made by elementwise steps."""
        self._producers.update(dict.fromkeys(node.outputs, node))
        if not is_step(node):
            return
        (out,) = node.outputs
        variables = node.variables
        roots = {self._root(v) for v in variables}
        if len(roots) == 1 and self._num_steps(node) <= _MOST_STEPS:
            (self._roots[out],) = roots
        self._scaled[out] = self._multiplied_out(node)

    def _num_steps(self, node: Node) -> int:
        return 1 + len({s for v in node.variables for s in self._steps_of(v)})

    def _multiplied_out(self, node: Node) -> list[_Scaled]:
        """The ways to write the output as one value times a function of another."""
        rule = {
            "add": self._sum,
            "add_any": self._sum,
            "sub": self._sum,
            "mul": self._product,
            "select_n": self._switched,
        }.get(node.name)
        return [] if rule is None else list(rule(node))

    def _product(self, node: Node) -> Iterator[_Scaled]:
        if len(node.variables) == 1:  # of a product with a constant
            (v,) = node.variables
            for factor, function in self._scaled.get(v, ()):
                inputs = [function if a is v else a for a in node.inputs]
                yield _Scaled(factor, self._step(node, inputs, function))
            return
        for value, function in (node.inputs, node.inputs[::-1]):
            for old in self._scaled.get(value, ()):
                if self._root(old.function) is self._root(function):
                    both = self._step(node, (old.function, function), function)
                    yield _Scaled(old.factor, both)
            yield _Scaled(value, function)

    def _sum(self, node: Node) -> Iterator[_Scaled]:
        if len(node.variables) != 2:
            return
        x, y = node.inputs
        for mine in self._scaled.get(x, [None]):
            for theirs in self._scaled.get(y, [None]):
                known = mine or theirs
                if known is None:
                    continue
                parts = [
                    self._share(known.factor, v, found)
                    for v, found in ((x, mine), (y, theirs))
                ]
                roots = {self._root(p) for p in parts if isinstance(p, Variable)}
                if all(p is not None for p in parts) and len(roots) == 1:
                    total = self._step(node, parts, known.function)
                    yield _Scaled(known.factor, total)
                    return

    def _share(self, factor: Variable, v: Variable, found: _Scaled | None) -> Any:
        """What a factor is multiplied with to give `v`; None where it does not."""
        if v is factor:
            return np.ones((), v.dtype)
        return found.function if found and found.factor is factor else None

    def _switched(self, node: Node) -> Iterator[_Scaled]:
        """`where(p(x), g, 0)` is g times 1 or 0."""
        which, *cases = node.inputs
        if not isinstance(which, Variable) or which.dtype != jnp.bool_:
            return
        variable = [isinstance(case, Variable) for case in cases]
        if sum(variable) != 1 or self._root(which) is which:
            return
        place = variable.index(True)
        other = cases[1 - place]
        if not (isinstance(other, np.ndarray | np.generic) and not np.any(other)):
            return
        dtype = cases[place].dtype

        def share(p: Any) -> list[Any]:
            return [(p if place else ~p).astype(dtype)]

        out = Variable(node.outputs[0].aval)
        step = Node("convert_element_type", (which,), (out,), {}, share, node.equation)
        self.note(step)
        yield _Scaled(cases[place], out)

    def _step(self, node: Node, inputs: Iterable[Any], like: Variable) -> Variable:
        """A new value that a node's operation makes of other operands."""
        inputs, name = tuple(inputs), node.name
        out = Variable(like.aval)
        evaluate = node.evaluate
        if name == "mul" and inputs[0] is inputs[1]:
            name, inputs = "square", inputs[:1]
            evaluate = _square
        elif name in ("add", "sub", "add_any", "mul"):
            evaluate = _ARITHMETIC[name]
        self.note(Node(name, inputs, (out,), {}, evaluate, node.equation))
        return out

    def emit(self, values: Iterable[Variable]) -> None:
        """Appends the nodes that compute values, and whatever these need."""
        waiting = list(values)[::-1]
        while waiting:
            v = waiting[-1]
            if v in self._emitted or v not in self._producers:
                waiting.pop()
                continue
            node = self._node_for(v)
            missing = [
                u
                for u in node.variables
                if u not in self._emitted and u in self._producers
            ]
            if missing:
                waiting.extend(reversed(missing))
                continue
            waiting.pop()
            self.nodes.append(node)
            self._emitted.update(node.outputs)

    def _node_for(self, v: Variable) -> Node:
        """The node that computes a value from values that stay."""
        node = self._producers[v]
        if self._root(v) is v:
            for pair in self._scaled.get(v, ()):
                if set(node.variables) != set(pair):
                    times = _ARITHMETIC["mul"]
                    return Node("mul", tuple(pair), (v,), {}, times, node.equation)
        steps = self._steps_of(v)
        if len(steps) < 2:
            return node
        start = self._start(steps, self._root(v))
        steps = self._steps_of(v, start)
        if len(steps) < 2 or _is_peeled(steps[-1]):
            return node
        return _one_node(steps, start, v) or node

    def _steps_of(self, v: Variable, start: Variable | None = None) -> list[Node]:
        """The steps from a value, or its root, to `v`, in order."""
        start = self._root(v) if start is None else start
        order: list[Node] = []
        seen = {start}

        def visit(u: Variable) -> None:
            if u not in seen:
                seen.add(u)
                node = self._producers[u]
                for w in node.variables:
                    visit(w)
                order.append(node)

        visit(v)
        return order

    def _start(self, steps: list[Node], root: Variable) -> Variable:
        """The value after the affine steps that all others build on."""
        start = root
        while True:
            readers = [s for s in steps if start in s.variables]
            if len(readers) != 1 or not _is_peeled(readers[0]):
                return start
            (start,) = readers[0].outputs


def is_step(node: Node) -> bool:
    """Whether a node may be one step of a function of one variable."""
    if node.name not in _STEPS or registered_interval(node.name) is not None:
        return False
    if len(node.outputs) != 1 or not node.variables:
        return False
    (out,) = node.outputs
    if any(v.shape != out.shape for v in node.variables):
        return False
    kinds = {v.dtype for v in (*node.variables, out)} - {jnp.dtype(bool)}
    return len(kinds) <= 1 and all(jnp.issubdtype(k, jnp.floating) for k in kinds)


def _is_peeled(node: Node) -> bool:
    return is_affine(node) and len(set(node.variables)) == 1 == len(node.variables)


def _one_node(steps: list[Node], start: Variable, end: Variable) -> Node | None:
    """The steps as one node; None where a comparison decides on anything but `start`.

    There the function may jump, at a place that is not known.
    """
    for node in steps:
        if node.name in COMPARISONS and node.variables != [start]:
            return None
    if not all(jnp.issubdtype(v.dtype, jnp.floating) for v in (start, end)):
        return None
    graph = Graph((start,), tuple(steps), (end,), None)

    def evaluate(x: Any) -> list[Any]:
        env: dict[Any, Any] = {start: x}
        for node in steps:
            operands = (env[a] if isinstance(a, Variable) else a for a in node.inputs)
            env.update(zip(node.outputs, node.evaluate(*operands), strict=True))
        return [env[end]]

    equation = steps[-1].equation
    return Node("univariate", (start,), (end,), {"graph": graph}, evaluate, equation)


def _square(x: Any) -> list[Any]:
    return [jnp.square(x)]


_ARITHMETIC = {
    "add": lambda x, y: [x + y],
    "add_any": lambda x, y: [x + y],
    "sub": lambda x, y: [x - y],
    "mul": lambda x, y: [x * y],
}

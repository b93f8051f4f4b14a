"""Rewrites a graph into the operations that have bound rules; values stay the same.

Composite functions are matched; products run at full precision; a quotient becomes a
product with a reciprocal, `x * x` a square, a power what it is made of, a clamp a
maximum and a minimum; elementwise operations get operands of one shape.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import (
    PATTERNS,
    Graph,
    Node,
    Variable,
    flatten,
    is_affine,
    is_concrete,
    live_nodes,
    match_normalizations,
    match_patterns,
    match_softmax,
    without_repeats,
)
from ._fuse import COMPARISONS, fuse, is_step
from ._gelu import slope_of_gelu
from ._interval import has_interval, range_of
from ._masks import finite_masks
from ._merge import merge_specifications
from ._relaxations import has_lines
from ._univariate import Univariate

_BROADCASTING = frozenset({"div", "max", "min", "mul", "pow", "select_n"})


def prepare(graph: Graph) -> Graph:
    """A graph of the same function in operations that have rules."""
    graph = fuse(merge_specifications(simplified(graph)))
    nodes = tuple(map(_with_derivative, graph.nodes))
    return Graph(graph.inputs, nodes, graph.outputs, graph.treedef)


def _with_derivative(node: Node) -> Node:
    """A function of one variable gets what its bounds are made from."""
    if node.name != "univariate":
        if has_lines(node) or not is_step(node) or is_affine(node):
            return node
        kinds = [v.dtype for v in (*node.variables, *node.outputs)]
        if len(kinds) != 2 or not all(jnp.issubdtype(k, jnp.floating) for k in kinds):
            return node
        graph = Graph(tuple(node.variables), (node,), node.outputs, None)
        node = dataclasses.replace(node, name="univariate", params={"graph": graph})
    graph = node.params["graph"]
    (x,) = graph.inputs

    def slope(v: Any) -> Any:
        value = lambda v: node.evaluate(v)[0]  # noqa: E731
        return jax.jvp(value, (v,), (jnp.ones_like(v),))[1]

    found = simplified(flatten(slope, jax.ShapeDtypeStruct(x.shape, x.dtype)))
    known = all(map(has_interval, found.nodes))
    thresholds = [
        a
        for step in graph.nodes
        if step.name in COMPARISONS
        for a in step.inputs
        if not isinstance(a, Variable)
    ]
    if any(step.name == "sign" for step in graph.nodes):
        thresholds.append(0.0)
    slopes = partial(range_of, found) if known else None
    if len(graph.nodes) == 1:
        slopes = slope_of_gelu(graph.nodes[0].name) or slopes
    function = Univariate(partial(range_of, graph), slopes, thresholds)
    return dataclasses.replace(node, params={"function": function})


def simplified(graph: Graph) -> Graph:
    """A graph of the same function with composite functions found, others split."""
    graph = finite_masks(match_softmax(without_repeats(graph)))
    graph = match_normalizations(graph)
    graph = match_patterns(graph, PATTERNS.values())
    nodes: list[Node] = []
    for node in graph.nodes:
        for piece in _rewritten(node):
            nodes.extend(_broadcast(piece))
    live = live_nodes(nodes, graph.outputs)
    return Graph(graph.inputs, live, graph.outputs, graph.treedef)


def _rewritten(node: Node) -> Iterator[Node]:
    rewrite = _REWRITES.get(node.name)
    yield from [full_precision(node)] if rewrite is None else rewrite(node)


def full_precision(node: Node) -> Node:
    """A product or convolution at the full precision of its dtype; another as it is."""
    if node.name not in ("conv_general_dilated", "dot_general"):
        return node
    highest = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
    params = {**node.params, "precision": highest}
    bind = node.equation.primitive.bind
    return dataclasses.replace(
        node, params=params, evaluate=lambda *v: [bind(*v, **params)]
    )


def _without_effect(node: Node) -> list[Node]:
    return [_step(node, "copy", node.inputs, lambda x: x)]


def _product(node: Node) -> list[Node]:
    x, y = node.inputs
    if x is y:
        return [_step(node, "square", (x,), jnp.square)]
    return [node]


def _quotient(node: Node) -> list[Node]:
    x, y = node.inputs
    if not isinstance(y, Variable) or not jnp.issubdtype(y.dtype, jnp.floating):
        return [node]
    inverse = _step(node, "reciprocal", (y,), lambda y: 1 / y, Variable(y.aval))
    return [inverse, _step(node, "mul", (x, inverse.outputs[0]), jnp.multiply)]


def _integer_power(node: Node) -> list[Node]:
    if node.params["y"] == 2:
        return [_step(node, "square", node.inputs, jnp.square)]
    if node.params["y"] == -1:
        return [_step(node, "reciprocal", node.inputs, lambda x: 1 / x)]
    return [node]


def _power(node: Node) -> list[Node]:
    """X ** y as an integer power, a root or another constant one, or exp(y log x)."""
    x, y = node.inputs
    out = node.outputs[0]
    exponent = _number(y)
    if exponent in _ROOTS:
        name, fn = _ROOTS[exponent]
        return [_step(node, name, (x,), fn)]
    if exponent is not None and exponent == round(exponent):
        power = int(exponent)
        step = _step(node, "integer_pow", (x,), lambda x: jax.lax.integer_pow(x, power))
        return _integer_power(dataclasses.replace(step, params={"y": power}))
    if exponent is not None:
        step = _step(node, "real_pow", (x,), lambda x: jnp.power(x, exponent))
        return [dataclasses.replace(step, params={"y": exponent})]
    if _whole_numbers(y):
        return _integer_powers(node)
    if isinstance(y, Variable) and not jnp.issubdtype(y.dtype, jnp.floating):
        return [node]
    if not isinstance(x, Variable):
        scaled = _step(node, "mul", (y, jnp.log(x)), jnp.multiply, Variable(out.aval))
        return [scaled, _step(node, "exp", scaled.outputs, jnp.exp)]
    log = _step(node, "log", (x,), jnp.log, Variable(x.aval))
    scaled = _step(node, "mul", (log.outputs[0], y), jnp.multiply, Variable(out.aval))
    return [log, scaled, _step(node, "exp", scaled.outputs, jnp.exp)]


def _whole_numbers(y: Any) -> bool:
    if isinstance(y, Variable) or not is_concrete(y):
        return False
    y = np.asarray(y)
    return np.unique(y).size <= _MOST_POWERS and bool(np.all(y == np.round(y)))


def _integer_powers(node: Node) -> list[Node]:
    """X ** y for an array of whole numbers: each of them, and a choice."""
    x, y = node.inputs
    out = node.outputs[0]
    wide = Variable(x.aval.update(shape=out.shape))
    powers, which = np.unique(np.asarray(y), return_inverse=True)
    made, cases = [_widened(node, x, wide)], []
    for power in map(int, powers):
        if power == 0:
            cases.append(jnp.ones(out.shape, out.dtype))
            continue
        case = Variable(out.aval)
        step = dataclasses.replace(node, inputs=(wide, float(power)), outputs=(case,))
        made += _power(step)
        cases.append(case)
    if len(cases) == 1:
        return [*made, _step(node, "copy", cases, lambda x: x)]
    which = np.broadcast_to(which.reshape(np.shape(y)), out.shape).astype(np.int32)
    which = which.astype(bool) if len(cases) == 2 else which
    return [*made, _step(node, "select_n", (which, *cases), jax.lax.select_n)]


_MOST_POWERS = 16
_ROOTS = {0.5: ("sqrt", jnp.sqrt), -0.5: ("rsqrt", jax.lax.rsqrt)}


def _number(atom: Any) -> float | None:
    """The value of a constant number; None for anything else."""
    if isinstance(atom, Variable) or not is_concrete(atom) or np.ndim(atom):
        return None
    return float(atom)


def _comparison_with_itself(node: Node) -> list[Node]:
    """X != x asks for NaN, x == x for anything else."""
    x, y = node.inputs
    if x is not y or not jnp.issubdtype(x.dtype, jnp.floating):
        return [node]
    if node.name == "ne":
        return [_step(node, "is_nan", (x,), jnp.isnan)]
    found = _step(node, "is_nan", (x,), jnp.isnan, Variable(node.outputs[0].aval))
    return [found, _step(node, "not", found.outputs, jnp.logical_not)]


def _clamp(node: Node) -> list[Node]:
    """lax.clamp(low, x, high) or jax.nn.hard_tanh(x) as a maximum, then a minimum."""
    low, x, high = node.inputs if node.name == "clamp" else (-1.0, *node.inputs, 1.0)
    if not isinstance(x, Variable):
        return [node]
    raised = _step(node, "max", (x, low), jnp.maximum, Variable(x.aval))
    return [raised, _step(node, "min", (raised.outputs[0], high), jnp.minimum)]


_REWRITES: dict[str, Callable[[Node], Sequence[Node]]] = {
    "clamp": _clamp,
    "div": _quotient,
    "eq": _comparison_with_itself,
    "hard_tanh": _clamp,
    "integer_pow": _integer_power,
    "mul": _product,
    "ne": _comparison_with_itself,
    "pow": _power,
    "stop_gradient": _without_effect,
}


def _step(
    node: Node,
    name: str,
    inputs: Sequence[Any],
    fn: Callable[..., Any],
    output: Variable | None = None,
) -> Node:
    """A node that computes `fn`, standing in for `node` or for a part of it."""
    out = node.outputs[0] if output is None else output
    return Node(name, tuple(inputs), (out,), {}, lambda *v: [fn(*v)], node.equation)


def _broadcast(node: Node) -> list[Node]:
    """The node, its variable operands broadcast to its output's shape before it."""
    if node.name not in _BROADCASTING:
        return [node]
    shape = node.outputs[0].shape
    added, inputs = [], []
    for atom in node.inputs:
        if isinstance(atom, Variable) and atom.shape != shape:
            wide = Variable(atom.aval.update(shape=shape))
            added.append(_widened(node, atom, wide))
            atom = wide
        inputs.append(atom)
    return [*added, dataclasses.replace(node, inputs=tuple(inputs))]


def _widened(node: Node, atom: Variable, wide: Variable) -> Node:
    return _step(
        node,
        "broadcast_in_dim",
        (atom,),
        lambda x: jnp.broadcast_to(x, wide.shape),
        wide,
    )

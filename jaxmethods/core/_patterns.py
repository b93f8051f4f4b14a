"""Finds composite functions in a graph by tracing them with the installed jax.

`jax.nn.softplus` is nine primitives in one release and may be ten in the next. A
pattern is the function itself: it is traced at the shape at hand and its small graph
is looked for inside the large one, so a new release cannot silently break a match.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._checks import is_concrete
from ._flatten import flatten
from ._graph import Graph, Node, Variable, live_nodes
from ._repeats import same_params

Build = Callable[[Node], Node]  # from the last node of a match to the node for all


@dataclass(frozen=True)
class Pattern:
    """A function to look for.

    Attributes:
        name: The name that a matched node gets.
        fn: The function, elementwise, of one array and `num_scalars` scalars.
        num_scalars: How many scalars it captures, such as a negative slope.
    """

    name: str
    fn: Callable[..., Any]
    num_scalars: int = 0


def _gelu(x: Any) -> Any:
    return jax.nn.gelu(x, approximate=False)


# celu looks like elu and comes before it.
PATTERNS: Mapping[str, Pattern] = {
    pattern.name: pattern
    for pattern in (
        Pattern("gelu", _gelu),
        Pattern("gelu_tanh", jax.nn.gelu),
        Pattern("silu", jax.nn.silu),
        Pattern("softplus", jax.nn.softplus),
        Pattern("selu", jax.nn.selu),
        Pattern("celu", jax.nn.celu, 1),
        Pattern("elu", jax.nn.elu, 1),
        Pattern("leaky_relu", jax.nn.leaky_relu, 1),
        Pattern("hard_tanh", jax.nn.hard_tanh),
    )
}


def match_patterns(graph: Graph, patterns: Iterable[Pattern]) -> Graph:
    """Replaces each occurrence of each pattern by one node of its name.

    Args:
        graph: From `flatten`.
        patterns: In order of preference; `PATTERNS` holds those of `jax.nn`.

    Returns:
        A graph of the same function. A matched node has the array and the captured
        scalars as inputs, and no params.

    Example:
        >>> graph = flatten(lambda x: jax.nn.softplus(2 * x), jnp.ones(3))
        >>> graph = match_patterns(graph, [PATTERNS["softplus"]])
        >>> [node.name for node in graph.nodes]
        ['mul', 'softplus']
    """
    for pattern in patterns:
        graph = _replace_all(graph, pattern)
    return graph


def _replace_all(graph: Graph, pattern: Pattern) -> Graph:
    consumers: dict[Variable, list[Node]] = {}
    for node in graph.nodes:
        for variable in node.variables:
            consumers.setdefault(variable, []).append(node)
    names = {node.name for node in graph.nodes}
    replaced: dict[Variable, Build] = {}
    for variable in consumers:
        if not jnp.issubdtype(variable.dtype, jnp.floating):
            continue
        small = _trace(pattern.fn, pattern.num_scalars, _signature(variable))
        if not {node.name for node in small.nodes} <= names:
            continue
        env = _match(small, {small.inputs[0]: variable}, consumers, 0)
        if env is not None and env[small.outputs[0]] not in replaced:
            inputs = tuple(env[v] for v in small.inputs)
            out = env[small.outputs[0]]
            replaced[out] = _composite(pattern, inputs, out)
    if not replaced:
        return graph
    nodes = [_swap(node, replaced) for node in graph.nodes]
    live = live_nodes(nodes, graph.outputs)
    return Graph(graph.inputs, live, graph.outputs, graph.treedef)


def _composite(pattern: Pattern, inputs: tuple[Any, ...], out: Variable) -> Build:
    def build(last: Node) -> Node:
        return Node(
            pattern.name,
            inputs,
            (out,),
            {},
            lambda *v: [pattern.fn(*v)],
            equation=last.equation,
        )

    return build


def _swap(node: Node, replaced: Mapping[Variable, Build]) -> Node:
    build = replaced.get(node.outputs[0]) if len(node.outputs) == 1 else None
    return node if build is None else build(node)


def _signature(variable: Variable) -> tuple[Any, ...]:
    aval = variable.aval
    x64 = jax.config.jax_enable_x64  # pyrefly: ignore[missing-attribute]
    return tuple(aval.shape), aval.dtype, bool(aval.weak_type), x64


@functools.lru_cache(maxsize=4096)
def _trace(fn: Callable[..., Any], num_scalars: int, signature: tuple) -> Graph:
    """The graph of a pattern; it holds no tracer, so it may outlive a trace."""
    shape, dtype, weak_type, _ = signature
    array = jax.ShapeDtypeStruct(shape, dtype, weak_type=weak_type)
    scalar = jax.ShapeDtypeStruct((), dtype, weak_type=True)
    with jax.ensure_compile_time_eval():
        return _without_casts(flatten(fn, array, *[scalar] * num_scalars))


def _without_casts(small: Graph) -> Graph:
    """Drops the casts of captured scalars: where they are constants there are none."""
    same: dict[Any, Any] = {v: v for v in small.inputs[1:]}
    nodes = []
    for node in small.nodes:
        if node.name == "convert_element_type" and node.variables[0] in same:
            same[node.outputs[0]] = same[node.inputs[0]]
        else:
            inputs = tuple(
                same.get(a, a) if isinstance(a, Variable) else a for a in node.inputs
            )
            nodes.append(dataclasses.replace(node, inputs=inputs))
    return Graph(small.inputs, tuple(nodes), small.outputs, small.treedef)


def _match(
    small: Graph,
    env: dict[Variable, Any],
    consumers: Mapping[Variable, list[Node]],
    number: int,
) -> dict[Variable, Any] | None:
    """Extends `env` (pattern variable -> atom) over the pattern's nodes, or fails."""
    if number == len(small.nodes):
        return env
    wanted = small.nodes[number]
    for candidate in _candidates(wanted, env, consumers):
        extended = _unify(wanted, candidate, env, small.inputs[1:])
        if extended is not None:
            found = _match(small, extended, consumers, number + 1)
            if found is not None:
                return found
    return None


def _candidates(
    wanted: Node, env: Mapping[Variable, Any], consumers: Mapping[Variable, list[Node]]
) -> Iterator[Node]:
    anchor = next(env[v] for v in wanted.variables if isinstance(env.get(v), Variable))
    for node in consumers.get(anchor, ()):
        if node.name == wanted.name and len(node.inputs) == len(wanted.inputs):
            yield node


def _unify(
    wanted: Node,
    node: Node,
    env: dict[Variable, Any],
    scalars: Sequence[Variable],
) -> dict[Variable, Any] | None:
    if not same_params(wanted.params, node.params):
        return None
    env = dict(env)
    for mine, theirs in zip(wanted.inputs, node.inputs, strict=True):
        if isinstance(mine, Variable) and mine in scalars and mine not in env:
            if isinstance(theirs, Variable) or np.shape(theirs) != ():
                return None
            env[mine] = theirs
        elif not same_atom(
            env.get(mine) if isinstance(mine, Variable) else mine, theirs
        ):
            return None
    for mine, theirs in zip(wanted.outputs, node.outputs, strict=True):
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            return None
        env[mine] = theirs
    return env


def same_atom(mine: Any, theirs: Any) -> bool:
    """Whether two operands are the same variable, or constants known to be equal."""
    if isinstance(mine, Variable) or isinstance(theirs, Variable):
        return mine is theirs
    if mine is theirs:
        return True
    if np.shape(mine) != np.shape(theirs):
        return False
    if not (is_concrete(mine) and is_concrete(theirs)):
        return False
    a, b = _spread(mine), _spread(theirs)
    return bool(np.all((a == b) | (np.isnan(a) & np.isnan(b))))


def _spread(constant: Any) -> np.ndarray:
    """The values of a constant; one entry where it is a broadcast scalar."""
    array = np.asarray(constant)
    if array.size and not any(array.strides):
        array = array.flat[0]
    return np.asarray(array, np.float64)

"""One forward walk over a graph: what every later step knows of each value."""

import functools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from ..core import Graph, Node, Variable, is_affine, linear_rule, materialized, offset
from ._interval import absolute, interval
from ._loops import interval_of_scan
from ._planes import Family, Lines, Planes, Prepared, signed
from ._relaxations import relax
from ._rounding import SUMS, coarser, largest, num_terms, of_bound, underflow, unit
from ._sets import Bounds
from ._settled import Settled
from ._trace import Region


@dataclass
class Flow:
    """A graph and what is known of its values.

    Attributes:
        graph: What is bounded.
        region: The sets that its inputs range over.
        method: Who asks, for messages.
        bounds: The interval of each variable.
        settled: The variables whose interval no backward pass improves.
        relaxations: What stands for each nonlinear node in a backward pass.
        alternatives: What else a second pass puts there, for some nodes.
        families: What else might stand for it.
        free_choices: Whether passes choose from the families row by row.
        errors: For each variable what rounding loses at most in the affine operations
            below it, down to landmarks, for a coefficient of one.
        landmarks: The variables where passes pay for what is below, for all above.
        sums: The variables with a sum in the affine operations below, up to landmarks.
        summed: The variables that an affine sum reads.
        offsets: For each affine node its outputs at zero; None if zero.
        producers: The node that each variable comes from.
        num_readers: How many nodes and outputs read each variable.
        folded: The variables whose offset is part of the lines that read them.
    """

    graph: Graph
    region: Region
    method: str
    bounds: dict[Variable, Bounds] = field(default_factory=dict)
    settled: set[Variable] = field(default_factory=set)
    relaxations: dict[Node, Prepared] = field(default_factory=dict)
    alternatives: dict[Node, Prepared] = field(default_factory=dict)
    families: dict[Node, Family] = field(default_factory=dict)
    free_choices: bool = False
    errors: dict[Variable, Any] = field(default_factory=dict)
    landmarks: set[Variable] = field(default_factory=set)
    sums: set[Variable] = field(default_factory=set)
    summed: set[Variable] = field(default_factory=set)
    offsets: dict[Node, Any] = field(default_factory=dict)
    producers: dict[Variable, Node] = field(default_factory=dict)
    num_readers: Counter[Variable] = field(default_factory=Counter)
    folded: set[Variable] = field(default_factory=set)


def operands(flow: Flow, node: Node) -> list[Any]:
    """The bounds of a node's variables and the arrays of its constants."""
    return [flow.bounds[a] if isinstance(a, Variable) else a for a in node.inputs]


def floating(node: Node) -> list[Variable]:
    """The variable operands that a linear function may depend on."""
    return [v for v in node.variables if jnp.issubdtype(v.dtype, jnp.floating)]


def floating_outputs(node: Node) -> list[Variable]:
    """The outputs that a linear function may bound."""
    return [v for v in node.outputs if jnp.issubdtype(v.dtype, jnp.floating)]


def start(graph: Graph, region: Region, method: str) -> tuple[Flow, Settled]:
    """A flow that knows the inputs alone."""
    known = Settled(region)
    flow = Flow(graph, region, method, region.hull(), known.variables)
    flow.producers = {out: node for node in graph.nodes for out in node.outputs}
    read = [a for node in graph.nodes for a in node.variables]
    read += [a for a in graph.outputs if isinstance(a, Variable)]
    flow.num_readers = Counter(read)
    flow.summed = {v for node in graph.nodes if _is_sum(node) for v in node.variables}
    return flow, known


def _is_sum(node: Node) -> bool:
    return is_affine(node) and (node.name in SUMS or linear_rule(node.name) is not None)


def visit(flow: Flow, known: Settled, node: Node) -> None:
    """Bounds the outputs of a node by intervals."""
    values = operands(flow, node)
    if node.name == "scan":
        copies = [known.copy(atom) for atom in node.inputs]
        walk = functools.partial(_intervals, flow.method)
        outs = interval_of_scan(node, values, copies, walk)
    else:
        outs = interval(node, values, flow.method)
    inputs = [flow.bounds[v] for v in node.variables]
    outs = known.visit(node, outs, inputs)
    flow.bounds.update(zip(node.outputs, outs, strict=True))


def _intervals(
    method: str, graph: Graph, bounds: dict[Variable, Bounds], known: Settled
) -> dict[Variable, Bounds]:
    """The intervals of all values of a graph inside another."""
    flow = Flow(graph, Region((), ()), method, bounds, known.variables)
    for node in graph.nodes:
        visit(flow, known, node)
    return flow.bounds


def prepare_backward(flow: Flow, node: Node) -> None:
    """Relaxes a visited node and notes what rounding may do in a pass through it."""
    if is_affine(node):
        _error_of_affine(flow, node)
        return
    for v in (*floating(node), *floating_outputs(node)):
        flow.bounds[v] = materialized(flow.bounds[v])
    for v in floating_outputs(node):
        flow.errors[v] = jnp.zeros_like(flow.bounds[v].lower)
    if len(node.outputs) > 1 or not floating_outputs(node):
        return  # intervals stand for them
    found = relax(node, operands(flow, node), [flow.bounds[node.outputs[0]]])
    if isinstance(found, Family):
        flow.families[node] = found
        if found.others:
            other = found.member(found.others[0])
            flow.alternatives[node] = prepared(flow, node, other)
        found = found.first()
    flow.relaxations[node] = prepared(flow, node, found)


def prepared(flow: Flow, node: Node, found: Lines | Planes) -> Prepared:
    """What a backward pass applies in the place of a node, moved outward."""
    (out,) = node.outputs
    inputs = [flow.bounds[v] for v in floating(node)]
    lost = _with_room(found.rounding(inputs, out.aval.size))
    if isinstance(found, Planes):
        low, high = found.lower_bias - lost, found.upper_bias + lost
        return found._replace(lower_bias=low, upper_bias=high)
    below, base, above, top = found
    lines = Lines(below, base - lost, above, top + lost)
    return signed(_folded(flow, node, lines), once=not flow.free_choices)


def _folded(flow: Flow, node: Node, lines: Lines) -> Lines:
    """Lines that account for what happens to their input right below them.

    A pass reads rows once for the bias of the lines. Folded into that are the rounding
    of the affine operations that follow and, where nobody else reads the input, the
    offset of the operation that made it.
    """
    (v,) = floating(node)
    below, base, above, top = lines
    base = base - jnp.abs(below) * flow.errors[v]
    top = top + jnp.abs(above) * flow.errors[v]
    producer = flow.producers.get(v)
    added = None if producer is None else flow.offsets.get(producer)
    alone = flow.num_readers[v] == 1 and not flow.free_choices
    if added is not None and len(added) == 1 and alone:
        flow.folded.add(v)
        base, top = base + below * added[0], top + above * added[0]
    return Lines(below, base, above, top)


def error_of_inputs(flow: Flow) -> None:
    """Notes what the sum over the inputs loses, before any node."""
    size = sum(v.aval.size for v in flow.graph.inputs)
    for v in flow.graph.inputs:
        _note(flow, v, of_bound(size, v.dtype) * largest(flow.bounds[v]))


def _note(flow: Flow, v: Variable, error: Any) -> None:
    flow.errors[v] = _with_room(error)


def _with_room(error: Any) -> Any:
    """An error that holds what some underflows may lose."""
    error = jax.lax.stop_gradient(error)
    return jnp.maximum(error, 8 * underflow(error.dtype))


def _error_of_affine(flow: Flow, node: Node) -> None:
    flow.offsets[node] = added = offset(node)
    lost = [_lost_below(flow, node, v) for v in node.variables]
    errors = absolute(node)(*lost)
    for i, (out, error) in enumerate(zip(node.outputs, errors, strict=True)):
        if added is not None:
            summed = of_bound(out.aval.size, out.dtype)
            error = error + summed * jnp.abs(added[i])
        _note(flow, out, error)
        inside = any(v in flow.sums - flow.landmarks for v in node.variables)
        if inside or _is_sum(node):
            flow.sums.add(out)
            # Errors of sums of sums grow by the product of what cancels in each.
            if out in flow.summed:
                flow.landmarks.add(out)


def _lost_below(flow: Flow, node: Node, v: Variable) -> Any:
    """What a node and those below lose for a coefficient of one that arrives at v."""
    forth = num_terms(node)
    back = forth * max(1, sum(out.aval.size for out in node.outputs) // v.aval.size)
    dtype = functools.reduce(coarser, (out.dtype for out in node.outputs), v.dtype)
    error = unit(forth, dtype) / 2 + of_bound(back, dtype)
    lost = error * largest(flow.bounds[v])
    return lost if v in flow.landmarks else lost + flow.errors[v]

"""One forward walk over a graph: what every later step knows of each value."""

import functools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from ..core import Graph, Node, Variable, is_affine, offset
from ._interval import absolute, interval
from ._loops import interval_of_scan
from ._materialized import materialized
from ._planes import Family, Lines, Planes, Prepared, constant, signed
from ._relaxations import relax
from ._rounding import largest, num_terms, underflow, unit
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
        magnitudes: For each variable the largest sum of absolute terms that a pass from
            it may add up in the affine operations below it, and its relative error.
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
    alternatives: dict[Node, Planes] = field(default_factory=dict)
    families: dict[Node, Family] = field(default_factory=dict)
    free_choices: bool = False
    magnitudes: dict[Variable, tuple[Any, float]] = field(default_factory=dict)
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
    return flow, known


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
        _magnitude_of_affine(flow, node)
        return
    if not floating_outputs(node):
        return
    out = node.outputs[0]
    for v in (*floating(node), *floating_outputs(node)):
        flow.bounds[v] = materialized(flow.bounds[v])
    bounds = [flow.bounds[v] for v in node.outputs]
    if len(node.outputs) > 1:  # their intervals stand for them
        for v in floating_outputs(node):
            _note(flow, v, constant(flow.bounds[v]).terms, unit(16, v.dtype))
        return
    found = relax(node, operands(flow, node), bounds)
    members: list[Any] = [found]
    if isinstance(found, Family):
        flow.families[node] = found
        members = [found.first(), *map(found.member, found.others)]
        if found.others:
            flow.alternatives[node] = members[1]
        if flow.free_choices:
            members += found.extremes()
    inputs = [flow.bounds[v] for v in floating(node)]
    terms = functools.reduce(jnp.maximum, (m.magnitude(inputs) for m in members))
    error = unit(out.aval.size, out.dtype) + unit(16, out.dtype)
    _note(flow, out, terms, error)
    flow.relaxations[node] = prepared(flow, node, members[0])


def prepared(flow: Flow, node: Node, found: Lines | Planes) -> Prepared:
    """What a backward pass applies in the place of a node."""
    if isinstance(found, Planes):
        return found
    return signed(_folded(flow, node, found), once=not flow.free_choices)


def _folded(flow: Flow, node: Node, lines: Lines) -> Lines:
    """Lines that account for what happens to their input right below them.

    A pass reads rows once for the bias of the lines. Folded into that are the rounding
    of the affine operations that follow and, where nobody else reads the input, the
    offset of the operation that made it.
    """
    (v,) = floating(node)
    below, base, above, top = lines
    terms, error = flow.magnitudes[v]
    base = base - jnp.abs(below) * (error * terms)
    top = top + jnp.abs(above) * (error * terms)
    producer = flow.producers.get(v)
    added = None if producer is None else flow.offsets.get(producer)
    alone = flow.num_readers[v] == 1 and not flow.free_choices
    if added is not None and len(added) == 1 and alone:
        flow.folded.add(v)
        base, top = base + below * added[0], top + above * added[0]
    return Lines(below, base, above, top)


def magnitude_of_inputs(flow: Flow) -> None:
    """Notes the inputs' own magnitudes, before any node's."""
    size = sum(v.aval.size for v in flow.graph.inputs)
    for v in flow.graph.inputs:
        _note(flow, v, largest(flow.bounds[v]), unit(size, v.dtype))


def _note(flow: Flow, v: Variable, terms: Any, error: float) -> None:
    """Notes a magnitude, with room for what some underflows may lose."""
    terms = jnp.maximum(terms, 8 * underflow(v.dtype) / error)
    flow.magnitudes[v] = jax.lax.stop_gradient(terms), error


def _magnitude_of_affine(flow: Flow, node: Node) -> None:
    found = [flow.magnitudes[v] for v in node.variables]
    terms = absolute(node)(*(terms for terms, _ in found))
    flow.offsets[node] = added = offset(node)
    if added is not None:
        terms = [t + jnp.abs(a) for t, a in zip(terms, added, strict=True)]
    error = max(error for _, error in found)
    for out, t in zip(node.outputs, terms, strict=True):
        error_out = error + unit(num_terms(node), out.dtype)
        _note(flow, out, t, error_out)

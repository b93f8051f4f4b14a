"""The walks that a method takes over a graph before it bounds the outputs."""

from collections.abc import Callable
from typing import Any

from ..core import Variable, is_affine
from ._chunks import refine
from ._flow import (
    Flow,
    error_of_inputs,
    floating,
    prepare_backward,
    start,
    visit,
)
from ._forward import Forward
from ._sets import meet
from ._trace import trace


def walk(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    method: str,
    *,
    linear: bool = False,
    refined: list[Variable] | None = None,
    chunk: int | None = None,
) -> Flow:
    """Visits all nodes.

    Where `refined` is a list backward passes bound what nonlinear nodes read, `chunk`
    rows at a time; it gets the values that they bound.
    """
    graph, region = trace(fn, args, unroll=linear)
    flow, known = start(graph, region, method)
    if linear:
        error_of_inputs(flow)
    done: set[Variable] = set()
    for node in graph.nodes:
        if refined is not None and not is_affine(node):
            for v in floating(node):
                if v not in flow.settled | done:
                    found, everywhere = refine(flow, v, chunk)
                    flow.bounds[v] = meet(flow.bounds[v], found)
                    (flow.settled if everywhere else done).add(v)
                    refined.append(v)
        visit(flow, known, node)
        if linear:
            prepare_backward(flow, node)
    return flow


def walk_forward(
    fn: Callable[..., Any], args: tuple[Any, ...], method: str
) -> tuple[Flow, Forward]:
    """Visits all nodes, carrying linear bounds along."""
    graph, region = trace(fn, args)
    flow, known = start(graph, region, method)
    forward = Forward(flow)
    for node in graph.nodes:
        visit(flow, known, node)
        forward.visit(node)
        for v in node.outputs:
            if v not in flow.settled:
                forward.sharpen(v)
    return flow, forward

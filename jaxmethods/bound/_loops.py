"""Interval bounds of a `scan` by a scan over intervals.

The body is flattened and prepared once, as a function of what a set may reach at some
step; counters and whatever else no set reaches keep their values. A linear bound needs
the steps one by one: there the loop is unrolled before it comes here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core import (
    Body,
    Graph,
    Node,
    Variable,
    as_body,
    flatten_body,
    reached,
    scan_arity,
)
from ._prepare import prepare
from ._sets import Bounds
from ._settled import Copy, Settled
from ._trace import BRANCHES

# From a graph, the intervals of its inputs and what is exact of them, to all intervals.
Walk = Callable[[Graph, dict[Variable, Bounds], Settled], dict[Variable, Bounds]]


def interval_of_scan(
    node: Node, operands: Sequence[Any], copies: Sequence[Copy | None], walk: Walk
) -> list[Bounds]:
    """The bounds of a scan's outputs.

    Args:
        node: A node `scan`.
        operands: `Bounds` for each variable operand, the array of each constant.
        copies: For each operand whether it holds the entries of a set.
        walk: Bounds the values of a graph.
    """
    params = node.params
    body = as_body(params["jaxpr"])
    num_consts, num_carry = scan_arity(node.equation)
    end = num_consts + num_carry
    avals = [v.aval for v in body.jaxpr.invars]
    start = [isinstance(x, Bounds) for x in operands]
    marks = _reached_at_any_step(body, start, slice(num_consts, end))

    def typed(carry: Sequence[Any]) -> list[Any]:
        kinds = zip(carry, avals[num_consts:end], marks[num_consts:end], strict=True)
        return [_typed(x, aval, mark) for x, aval, mark in kinds]

    inputs = tuple(Variable(a) for a, m in zip(avals, marks, strict=True) if m)
    places = iter(inputs)
    atoms = [next(places) if m else None for m in marks]

    def step(carry: list[Any], rows: tuple[Any, Any]) -> tuple[list[Any], list[Any]]:
        xs, held_rows = rows
        values = [*operands[:num_consts], *carry, *xs]
        held = [v if a is None else a for v, a in zip(values, atoms, strict=True)]
        graph = flatten_body(body, held, inputs, BRANCHES, caller=node.equation)
        graph = prepare(graph)
        bounds = {a: v for v, a in zip(values, atoms, strict=True) if a is not None}
        known = {
            a: copy if row is None else copy._replace(center=row[0], scale=row[1])
            for a, copy, row in zip(atoms, inside, [*whole, *held_rows], strict=True)
            if copy is not None and a is not None
        }
        ends = walk(graph, bounds, Settled.within(known))
        outs = [ends[a] if isinstance(a, Variable) else a for a in graph.outputs]
        return typed(outs[:num_carry]), outs[num_carry:]

    # What is carried changes from step to step, so it is no copy of the first value.
    inside = [*copies[:num_consts], *[None] * num_carry, *copies[end:]]
    whole = [None] * end
    of_balls = [
        None if copy is None or copy.ball is None else (copy.center, copy.scale)
        for copy in copies[end:]
    ]
    carry, ys = jax.lax.scan(
        step,
        typed(operands[num_consts:end]),
        (list(operands[end:]), of_balls),
        length=params["length"],
        reverse=params["reverse"],
    )
    return [x if isinstance(x, Bounds) else Bounds(x, x) for x in (*carry, *ys)]


def _reached_at_any_step(
    body: Body, marks: Sequence[bool], carried: slice
) -> list[bool]:
    """Which inputs of a body a set reaches, once what is carried is reached by all."""
    marks = list(marks)
    while True:
        found = reached(body, marks)
        grown = [a or b for a, b in zip(marks[carried], found, strict=False)]
        if grown == marks[carried]:
            return marks
        marks[carried] = grown


def _typed(x: Any, aval: Any, is_reached: bool) -> Any:
    """What a loop carries, in the form in which it carries it at every step."""
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
        return Bounds(x, x) if is_reached and not isinstance(x, Bounds) else x

    def cast(end: Any) -> Any:
        return jax.lax.convert_element_type(jnp.asarray(end), aval.dtype)

    if isinstance(x, Bounds):
        return Bounds(*map(cast, x))
    return Bounds(cast(x), cast(x)) if is_reached else cast(x)

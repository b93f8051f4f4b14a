"""A backward pass: linear functions of one value become functions of the inputs.

All rows are lower bounds: the upper bound of c f is minus the lower bound of -c f. Both
sides share their rows until the first nonlinear operation, where the signs part.

References:
    Zhang, Weng, Chen, Hsieh, Daniel. Efficient neural network robustness certification
    with general activation functions. NeurIPS 2018, arXiv:1811.00866.
    Xu, Shi, Zhang, Wang, Chang, Huang, Kailkhura, Lin, Hsieh. Automatic perturbation
    analysis for scalable certified robustness and beyond. NeurIPS 2020,
    arXiv:2002.12920.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from ..core import Node, Variable, is_affine
from ._flow import Flow, floating
from ._planes import Prepared, SignedLines, constant
from ._rounding import lowered
from ._rows import Diagonal, Rows, absolute, add, both_signs, negated
from ._sets import Bounds, meet
from ._through import (
    as_patches,
    part_at_lines,
    through_affine,
    through_lines,
    through_planes,
)


@dataclass
class Pass:
    """Linear functions whose sum with `bias` is below `rows` of the start.

    Attributes:
        rows: For each value that is still to be visited, its coefficients.
        bias: Shape (R,).
        slack: What rounding may have lost; shape (R,), at least 0.
        parted: Whether the rows of the upper side follow those of the lower.
    """

    rows: dict[Variable, Rows]
    bias: Any
    slack: Any
    parted: bool


def backward(flow: Flow, start: Variable, side: str) -> Pass:
    """Walks from every entry of `start` to the inputs of the graph.

    Args:
        flow: Its nodes up to `start` are visited and prepared.
        start: A floating variable of the graph.
        side: "lower", "upper" or "both"; "upper" starts from the negated entries.

    Returns:
        A pass whose rows belong to the inputs of the graph.
    """
    first = _every_entry(flow, start, side)
    return backward_from(flow, start, first, flow.relaxations, split=side == "both")


def _every_entry(flow: Flow, start: Variable, side: str) -> Diagonal:
    sign = jnp.ones_like(flow.bounds[start].lower)
    return Diagonal(-sign if side == "upper" else sign)


def backward_from(
    flow: Flow,
    start: Variable,
    first: Rows,
    relaxations: Mapping[Node, Prepared],
    *,
    split: bool = False,
    added: Mapping[Variable, Rows] = MappingProxyType({}),
) -> Pass:
    """Walks from given rows of `start`, through given relaxations, to the inputs.

    Args:
        flow: As for `backward`.
        start: As for `backward`.
        first: The coefficients to start from.
        relaxations: What stands for each nonlinear node that the rows may meet.
        split: Whether the negated rows are bounded as well.
        added: Coefficients of other values that the rows have as well.
    """
    zero = jnp.zeros_like(first.collect(first.flat))
    state = Pass({start: first, **added}, zero, zero, False)
    for v, coefficients in state.rows.items():
        _account_for_rounding(flow, state, v, coefficients)
    for node in reversed(flow.graph.nodes):
        rows: list[Any] = [state.rows.pop(v, None) for v in node.outputs]
        if all(r is None for r in rows):
            continue
        if is_affine(node):
            folded = node.outputs[0] in flow.folded and node.outputs[0] is not start
            _through_affine(
                flow, state, node, rows, None if folded else flow.offsets[node]
            )
            continue
        state.rows.update(
            (v, r) for v, r in zip(node.outputs, rows, strict=True) if r is not None
        )
        for v in node.outputs:
            if v in state.rows:
                alone = len(node.outputs) == 1
                found = relaxations[node] if alone else constant(flow.bounds[v])
                _through_nonlinear(flow, state, node, v, found, split=split)
    return state


def _account_for_rounding(flow: Flow, state: Pass, v: Variable, rows: Rows) -> None:
    lost = absolute(rows).inner(flow.errors[v])
    state.slack = state.slack + jax.lax.stop_gradient(lost)


def _add_to_bias(state: Pass, bias: Any) -> None:
    state.bias = state.bias + bias
    state.slack = state.slack + _rounded(state.bias)


def _rounded(x: Any) -> Any:
    """What one sum loses to rounding."""
    return jnp.abs(jax.lax.stop_gradient(x)) * jnp.finfo(x.dtype).eps


def _part(state: Pass) -> None:
    """Gives the upper side rows of its own, behind those of the lower."""
    state.rows = {v: both_signs(rows) for v, rows in state.rows.items()}
    state.bias = jnp.concatenate([state.bias, -state.bias])
    state.slack = jnp.concatenate([state.slack, state.slack])
    state.parted = True


def _through_affine(
    flow: Flow,
    state: Pass,
    node: Node,
    rows: list[Rows | None],
    added: list[Any] | None,
) -> None:
    if added is not None:
        for r, a in zip(rows, added, strict=True):
            if r is not None:
                _add_to_bias(state, r.inner(a))
    below = through_affine(node, rows)
    for v, r in zip(node.variables, below, strict=True):
        if v in flow.landmarks:
            _account_for_rounding(flow, state, v, r)
        state.rows[v] = add(state.rows.get(v), r)


def _through_nonlinear(
    flow: Flow,
    state: Pass,
    node: Node,
    out: Variable,
    relaxation: Prepared,
    *,
    split: bool,
) -> None:
    inputs, rows = floating(node), state.rows.pop(out)
    parts_now = split and not state.parted
    if parts_now:
        _part(state)
    if isinstance(relaxation, SignedLines):  # which account for rounding themselves
        step = part_at_lines if parts_now else through_lines
        found, bias = step(relaxation, rows)
        below: list[Rows | None] = [found]
    else:
        rows = as_patches(relaxation, rows)
        rows = both_signs(rows) if parts_now else rows
        below, bias = through_planes(relaxation, rows, inputs)
        for v, r in zip(inputs, below, strict=True):
            if r is not None:
                _account_for_rounding(flow, state, v, r)
    _add_to_bias(state, bias)
    for v, r in zip(inputs, below, strict=True):
        if r is not None:
            state.rows[v] = add(state.rows.get(v), r)


def least_value(flow: Flow, state: Pass) -> Any:
    """The least value over the sets that a pass proves for each of its rows."""
    least = jnp.asarray(flow.region.minimum(state.rows), state.bias.dtype)
    return state.bias - (state.slack + _rounded(state.bias) + _rounded(least)) + least


def proven(flow: Flow, start: Variable, side: str, first: Rows | None = None) -> Bounds:
    """The interval of `start` that backward passes prove.

    A second pass is made where one of the nodes below it has an alternative.

    Args:
        flow: As for `backward`.
        start: As for `backward`.
        side: As for `backward`.
        first: Rows of `start` to bound; all of its entries if None.

    Returns:
        Bounds of the shape of `start`, or one a row where rows were given.
    """
    shape = start.shape if first is None else (-1,)
    first = _every_entry(flow, start, side) if first is None else first

    def by(relaxations: Mapping[Node, Prepared]) -> Bounds:
        state = backward_from(flow, start, first, relaxations, split=side == "both")
        ends = _concretized(flow, state, start.dtype, side)
        return Bounds(*(end.reshape(shape) for end in ends))

    found = by(flow.relaxations)
    if not any(node in flow.alternatives for node in nodes_below(flow, start)):
        return found
    return meet(found, by({**flow.relaxations, **flow.alternatives}))


def nodes_below(flow: Flow, v: Variable) -> Iterator[Node]:
    """The nodes that a value depends on, from the last to the first."""
    needed = {v}
    for node in reversed(flow.graph.nodes):
        if not needed.isdisjoint(node.outputs):
            needed.update(node.variables)
            yield node


def _concretized(flow: Flow, state: Pass, dtype: Any, side: str) -> Bounds:
    """The interval of each row, (R,); infinite on a side not asked for."""
    least = lowered(least_value(flow, state), dtype)
    missing = jnp.full_like(least, jnp.inf)
    if side == "lower":
        return Bounds(least, missing)
    if side == "upper":
        return Bounds(-missing, -least)
    if state.parted:
        lower, upper = jnp.split(least, 2)
        return Bounds(lower, -upper)
    opposite = {v: negated(r) for v, r in state.rows.items()}
    upper = least_value(flow, replace(state, rows=opposite, bias=-state.bias))
    return Bounds(least, -lowered(upper, dtype))

"""The bound transforms: a function in, a function from sets to bounds out."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import Variable, check_choice
from ..core._affine import is_affine
from ._backward import Pass, backward, concretize
from ._flow import (
    Flow,
    floating,
    magnitude_of_inputs,
    meet,
    prepare_backward,
    start,
    visit,
)
from ._sets import Bounds
from ._trace import trace

SIDES = ("lower", "upper", "both")
LINEAR_METHODS = ("crown", "crown_ibp")


class LinearBounds(NamedTuple):
    """Two planes: lower_slope . x + lower_bias <= fn(x) <= upper_slope . x + upper_bias.

    Slopes have shape out_shape + set_shape, biases out_shape; each field is a pytree
    like fn's output.
    """

    lower_slope: Any
    lower_bias: Any
    upper_slope: Any
    upper_bias: Any


def ibp(fn: Callable[..., Any]) -> Callable[..., Bounds]:
    @functools.wraps(fn)
    def bounded(*args: Any) -> Bounds:
        flow = _walk(fn, args, "bound.ibp")
        return _collect(flow, lambda v: flow.bounds[v])

    return bounded


def crown_ibp(fn: Callable[..., Any], *, side: str = "both") -> Callable[..., Bounds]:
    return _linear(fn, "crown_ibp", side)


def crown(fn: Callable[..., Any], *, side: str = "both") -> Callable[..., Bounds]:
    return _linear(fn, "crown", side)


def _linear(fn: Callable[..., Any], method: str, side: str) -> Callable[..., Bounds]:
    check_choice(side, SIDES, "side")

    @functools.wraps(fn)
    def bounded(*args: Any) -> Bounds:
        flow = _walk(fn, args, f"bound.{method}", linear=True, refine=method == "crown")

        def best(v: Variable) -> Bounds:
            if v in flow.settled:
                return flow.bounds[v]
            found = concretize(flow, backward(flow, v, side), v, side)
            return meet(flow.bounds[v], found)

        return _collect(flow, best)

    return bounded


def linear_bounds(
    fn: Callable[..., Any], *, method: str = "crown"
) -> Callable[..., LinearBounds]:
    check_choice(method, LINEAR_METHODS, "method")

    @functools.wraps(fn)
    def bounded(*args: Any) -> LinearBounds:
        name = f"bound.linear_bounds(method={method!r})"
        flow = _walk(fn, args, name, linear=True, refine=method == "crown")
        if len(flow.graph.inputs) != 1:
            raise ValueError(
                f"linear_bounds got sets of {len(flow.graph.inputs)} arrays in all; "
                "wanted one set that holds one array: give the others as arrays, or "
                "concatenate them."
            )
        planes = [_planes(flow, atom) for atom in flow.graph.outputs]
        unflatten = flow.graph.treedef.unflatten
        return LinearBounds(
            *(unflatten(list(part)) for part in zip(*planes, strict=True))
        )

    return bounded


def _walk(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    method: str,
    *,
    linear: bool = False,
    refine: bool = False,
) -> Flow:
    """Visits all nodes; `refine` bounds what nonlinear nodes read by backward passes."""
    graph, region = trace(fn, args)
    flow, known = start(graph, region, method)
    if linear:
        magnitude_of_inputs(flow)
    for node in graph.nodes:
        if refine and not is_affine(node):
            for v in floating(node):
                if v not in flow.settled:
                    found = concretize(flow, backward(flow, v, "both"), v, "both")
                    flow.bounds[v] = meet(flow.bounds[v], found)
                    flow.settled.add(v)
        visit(flow, known, node)
        if linear:
            prepare_backward(flow, node)
    return flow


def _collect(flow: Flow, bounds: Callable[[Variable], Bounds]) -> Bounds:
    ends = [
        bounds(atom) if isinstance(atom, Variable) else Bounds(atom, atom)
        for atom in flow.graph.outputs
    ]
    unflatten = flow.graph.treedef.unflatten
    return Bounds(*(unflatten([e[side] for e in ends]) for side in (0, 1)))


def _planes(flow: Flow, atom: Any) -> LinearBounds:
    (x,) = flow.graph.inputs
    if not isinstance(atom, Variable):
        atom = jnp.asarray(atom)
        flat = jnp.zeros((*atom.shape, *x.shape), x.dtype)
        return LinearBounds(flat, atom, flat, atom)
    state = backward(flow, atom, "both")
    slope, bias = _slope(state, x, atom), state.bias
    low, high = bias - state.slack, bias + state.slack
    upper_slope = slope
    if state.parted:
        slope, upper_slope = jnp.split(slope, 2)
        low, high = jnp.split(low, 2)[0], -jnp.split(low, 2)[1]
        upper_slope = -upper_slope
    shape = (*atom.shape, *x.shape)
    return LinearBounds(
        slope.reshape(shape),
        low.reshape(atom.shape),
        upper_slope.reshape(shape),
        high.reshape(atom.shape),
    )


def _slope(state: Pass, x: Variable, atom: Variable) -> jax.Array:
    if x in state.rows:
        return state.rows[x].dense()
    return jnp.zeros((state.bias.size, *x.shape), x.dtype)

"""Linear bounds carried forward: each value between two linear functions of the inputs.

For every value the pass keeps the middle and the half distance of its two bounds, as
coefficients of all entries of the sets. An affine operation W acts on the middles as
itself and on the half distances as |W|, since those are functions that are at least 0
on the sets: W x >= W middle - |W| half. One pass bounds every value, at the cost of one
forward evaluation an input entry.

References:
    Xu, Shi, Zhang, Wang, Chang, Huang, Kailkhura, Lin, Hsieh. Automatic perturbation
    analysis for scalable certified robustness and beyond. NeurIPS 2020,
    arXiv:2002.12920, section 3.1.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import Node, Variable, flatten, is_affine, linear_part, offset
from ._flow import Flow, floating, floating_outputs, operands
from ._interval import absolute
from ._planes import Family, Lines, Planes, constant
from ._relaxations import relax
from ._rounding import as_dtype, largest, num_terms, unit
from ._rows import Dense
from ._sets import Bounds, meet


class Span(NamedTuple):
    """Two linear functions round a value: middle - half below, middle + half above.

    Attributes:
        middle: (entries of all inputs + 1, *shape); the last row is added.
        half: As `middle`; as a function at least 0 on the sets.
    """

    middle: Any
    half: Any

    @property
    def sides(self) -> tuple[Any, Any]:
        """The coefficients of the lower and of the upper function."""
        return self.middle - self.half, self.middle + self.half


class Forward:
    """The spans of the values that a walk has visited."""

    def __init__(self, flow: Flow):
        """Starts with the inputs of the graph, which are what they are."""
        self._flow = flow
        self._spans: dict[Variable, Span] = {}
        sizes = [v.aval.size for v in flow.graph.inputs]
        place = 0
        for v, size in zip(flow.graph.inputs, sizes, strict=True):
            rows = jnp.eye(sum(sizes) + 1, size, -place, dtype=v.dtype)
            # XLA would fold its product with weights that are constants, for seconds.
            rows = jax.lax.optimization_barrier(rows.reshape(-1, *v.shape))
            self._spans[v] = Span(rows, jnp.zeros_like(rows))
            place += size
        reach = [largest(flow.bounds[v]).reshape(-1) for v in flow.graph.inputs]
        one = jnp.ones_like(reach[0][:1])
        self._reach = jax.lax.stop_gradient(jnp.concatenate([*reach, one]))

    def sharpen(self, v: Variable) -> None:
        """Meets the interval of a value with what its span proves."""
        if v in self._spans:
            found = self._concrete(self._spans[v], v)
            self._flow.bounds[v] = meet(self._flow.bounds[v], found)

    def planes(self, v: Variable) -> tuple[Any, Any]:
        """The lower and the upper function: (entries + 1, *shape) each."""
        return self._spans[v].sides

    def visit(self, node: Node) -> None:
        """Carries the spans of a node's operands to its outputs."""
        if is_affine(node):
            self._through_affine(node)
        elif len(node.outputs) == 1 and floating_outputs(node):
            self._through_nonlinear(node)
        else:
            for v in floating_outputs(node):
                self._spans[v] = self._through_planes(
                    constant(self._flow.bounds[v]), []
                )

    def _through_nonlinear(self, node: Node) -> None:
        flow, inputs = self._flow, floating(node)
        bounds = [flow.bounds[v] for v in node.outputs]
        found = relax(node, operands(flow, node), bounds)
        if isinstance(found, Family):
            found = found.first()
        out = node.outputs[0]
        terms = found.magnitude([flow.bounds[v] for v in inputs])
        error = unit(out.aval.size, out.dtype) + unit(16, out.dtype)
        if isinstance(found, Lines):
            span = _through_lines(found, self._spans[inputs[0]])
        else:
            span = self._through_planes(found, inputs)
        terms = terms + sum(self._terms(span))
        self._spans[out] = _wider(span, jax.lax.stop_gradient(error * terms))

    def _through_affine(self, node: Node) -> None:
        spans = [self._spans[v] for v in node.variables]
        added = offset(node)
        outs = _linear(node, spans)
        sizes = absolute(node)(*(sum(self._terms(s)) for s in spans))
        for i, (out, span) in enumerate(zip(node.outputs, outs, strict=True)):
            if added is not None:
                span = Span(span.middle.at[-1].add(added[i]), span.half)
            error = unit(num_terms(node), out.dtype) * sizes[i]
            self._spans[out] = _wider(span, jax.lax.stop_gradient(error))

    def _terms(self, span: Span) -> list[Any]:
        """The largest sums of absolute terms of the middle and of the half."""
        return [jnp.tensordot(self._reach, jnp.abs(part), 1) for part in span]

    def _through_planes(self, planes: Planes, inputs: Sequence[Variable]) -> Span:
        spans = [self._spans[v] for v in inputs]
        sides = []
        for linear, bias, sign in (
            (planes.lower_map, planes.lower_bias, -1),
            (planes.upper_map, planes.upper_bias, 1),
        ):
            side = jnp.zeros((self._reach.size, *jnp.shape(bias)), bias.dtype)
            if linear is not None:
                found = _through_map(linear, spans, inputs)
                side = found.middle + sign * found.half
            sides.append(side.at[-1].add(bias))
        lower, upper = sides
        return Span((lower + upper) / 2, (upper - lower) / 2)

    def _concrete(self, span: Span, v: Variable) -> Bounds:
        least = []
        for sign, side in zip((1, -1), span.sides, strict=True):
            rows, place = {}, 0
            flat = sign * side.reshape(len(side), -1)
            for x in self._flow.graph.inputs:
                part = flat[place : place + x.aval.size].T
                rows[x] = Dense(part.reshape(-1, *x.shape))
                place += x.aval.size
            found = flat[-1] + self._flow.region.minimum(rows)
            least.append(sign * found.reshape(v.shape))
        error = unit(self._reach.size, v.dtype) * sum(self._terms(span))
        error = jax.lax.stop_gradient(error)
        return as_dtype(Bounds(least[0] - error, least[1] + error), v.dtype)


def _linear(node: Node, spans: Sequence[Span]) -> list[Span]:
    """The spans of an affine node's outputs, without its offset."""
    middles = jax.vmap(linear_part(node))(*(s.middle for s in spans))
    halves = jax.vmap(absolute(node))(*(s.half for s in spans))
    return [Span(m, h) for m, h in zip(middles, halves, strict=True)]


def _through_map(
    linear: Callable[..., Any], spans: Sequence[Span], inputs: Sequence[Variable]
) -> Span:
    """The span of a linear JAX function of several values, step by step."""
    avals = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in inputs]
    graph = flatten(linear, *avals)
    known = dict(zip(graph.inputs, spans, strict=True))
    for node in graph.nodes:
        outs = _linear(node, [known[v] for v in node.variables])
        known.update(zip(node.outputs, outs, strict=True))
    return known[graph.outputs[0]]


def _through_lines(lines: Lines, span: Span) -> Span:
    below, base, above, top = (part[None] for part in lines)
    middle, half = span
    lower = below * middle - jnp.abs(below) * half
    upper = above * middle + jnp.abs(above) * half
    found = Span((lower + upper) / 2, (upper - lower) / 2)
    return Span(
        found.middle.at[-1].add(((base + top) / 2)[0]),
        found.half.at[-1].add(((top - base) / 2)[0]),
    )


def _wider(span: Span, error: Any) -> Span:
    return Span(span.middle, span.half.at[-1].add(error))

"""alpha-CROWN: the free choices of all relaxations, optimised.

Every line below a rectifier with a slope in [0, 1] is sound, every tangent to a convex
function, and so on. The best one depends on what is bounded, so each row of each pass
has choices of its own. They are found by projected gradient ascent on the bounds of the
outputs, through the bounds of all values inside, which move along. Every step is sound,
so the best bound of each entry is kept.

References:
    Xu, Zhang, Wang, Wang, Jana, Lin, Hsieh. Fast and complete: enabling complete neural
    network verification with rapid and massively parallel incomplete verifiers. ICLR
    2021, arXiv:2011.13824.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..core import Variable, is_affine
from ._backward import backward_from, least_value, nodes_below
from ._flow import (
    Flow,
    error_of_inputs,
    floating,
    prepare_backward,
    prepared,
    start,
    visit,
)
from ._planes import Lines
from ._rounding import lowered
from ._rows import Dense
from ._sets import Bounds, meet

# The schedule of the reference implementation.
_LEARNING_RATE, _DECAY = 0.5, 0.98

Choices = dict[int, Any]  # of each nonlinear node, by its place: (rows, ...)


class _Start(NamedTuple):
    """A value inside whose bounds are optimised.

    Attributes:
        variable: The value.
        index: Which of its entries, (rows,).
        nodes: The places of the nonlinear nodes with choices that it depends on.
    """

    variable: Variable
    index: Any
    nodes: list[int]


def optimized(
    flow: Flow,
    refined: Sequence[Variable],
    outputs: Sequence[Variable],
    sign: Any,
    num_steps: int,
    num_rows: int,
) -> list[Any]:
    """The best lower bounds of `sign` times each output that were found.

    Args:
        flow: A walk with `crown`'s bounds of all values.
        refined: The values inside that backward passes bounded.
        outputs: Floating outputs.
        sign: 1 or -1.
        num_steps: How many steps of gradient ascent.
        num_rows: How many entries of a value inside are optimised at most.
    """
    problem = _Problem(flow, refined, outputs, num_rows)
    choices = problem.initial()
    ascend = optax.adam(optax.exponential_decay(_LEARNING_RATE, 1, _DECAY))

    def loss(choices: Any) -> tuple[Any, Any]:
        found = problem.evaluate(choices, sign, frozen=True)
        return -sum(jnp.sum(jnp.where(jnp.isfinite(b), b, 0)) for b in found), found

    def step(carry: Any, _: Any) -> tuple[Any, None]:
        choices, state, best, best_loss, best_choices = carry
        (value, found), gradient = jax.value_and_grad(loss, has_aux=True)(choices)
        best = jax.tree.map(jnp.maximum, best, found)
        better = value < best_loss
        best_choices = jax.tree.map(
            lambda new, old: jnp.where(better, new, old), choices, best_choices
        )
        best_loss = jnp.minimum(value, best_loss)
        gradient = jax.tree.map(jnp.nan_to_num, gradient)
        updates, state = ascend.update(gradient, state)
        choices = optax.apply_updates(choices, updates)
        choices = jax.tree.map(lambda c: jnp.clip(c, 0, 1), choices)
        return (choices, state, best, best_loss, best_choices), None

    none = [jnp.full_like(flow.bounds[v].lower, -jnp.inf) for v in outputs]
    worst = -jnp.sum(none[0])
    carry = (choices, ascend.init(choices), none, worst, choices)
    carry = jax.lax.stop_gradient(carry)
    (*_, best, _, best_choices), _ = jax.lax.scan(step, carry, length=num_steps)
    # The derivatives are those at the choices that were best in all.
    last = problem.evaluate(jax.lax.stop_gradient(best_choices), sign, frozen=False)
    return [_no_looser(value, kept) for kept, value in zip(best, last, strict=True)]


class _Problem:
    """What is optimised: the bounds of outputs as a function of all choices."""

    def __init__(
        self,
        flow: Flow,
        refined: Sequence[Variable],
        outputs: Sequence[Variable],
        num_rows: int,
    ):
        self._flow, self._outputs = flow, outputs
        self._starts = {}
        for v in refined:
            nodes = places_below(flow, v)
            if nodes:
                self._starts[v] = _Start(v, self._rows_of(v, num_rows), nodes)
        self._needed = {v: places_below(flow, v) for v in outputs}

    def _rows_of(self, v: Variable, num_rows: int) -> Any:
        """The entries of a value where a tighter interval would help most."""
        size = v.aval.size
        if size <= num_rows:
            return jnp.arange(size)
        score = jnp.zeros(v.shape, v.dtype)
        for node in self._flow.graph.nodes:
            if v in node.variables and node in self._flow.families:
                lines, x = self._flow.families[node].first(), self._flow.bounds[v]
                apart = isinstance(lines, Lines)
                score = score + (lines.gap(x) if apart else x.upper - x.lower)
        return jax.lax.top_k(jax.lax.stop_gradient(score).reshape(-1), num_rows)[1]

    def initial(self) -> Any:
        """The choices of `crown`: for the values inside both sides, for the outputs."""
        flow, starts = self._flow, self._starts.values()
        inside = [initial_choices(flow, s.nodes, 2 * s.index.size) for s in starts]
        outputs = [
            initial_choices(flow, nodes, v.aval.size)
            for v, nodes in self._needed.items()
        ]
        return inside, outputs

    def evaluate(self, choices: Any, sign: Any, *, frozen: bool) -> list[Any]:
        """The lower bounds of `sign` times the outputs."""
        inside, last = choices
        given = dict(zip(self._starts, inside, strict=True))
        base = self._flow
        freeze = jax.lax.stop_gradient if frozen else lambda b: b
        known_bounds = {v: freeze(b) for v, b in base.bounds.items()}
        flow, known = start(base.graph, base.region, base.method)
        flow.free_choices = True
        error_of_inputs(flow)
        for node in base.graph.nodes:
            if not is_affine(node):
                for v in floating(node):
                    if v in given:
                        best = meet(flow.bounds[v], known_bounds[v])
                        found = self._inside(flow, v, given.pop(v), best)
                        flow.bounds[v] = found
            visit(flow, known, node)
            for v in node.outputs:
                flow.bounds[v] = meet(flow.bounds[v], known_bounds[v])
            prepare_backward(flow, node)
        return [
            self._outermost(flow, v, c, sign)
            for v, c in zip(self._outputs, last, strict=True)
        ]

    def _inside(self, flow: Flow, v: Variable, choices: Choices, old: Bounds) -> Bounds:
        index = self._starts[v].index
        rows = jax.nn.one_hot(index, v.aval.size, dtype=v.dtype)
        rows = rows * _ones(flow, v)
        rows = jnp.concatenate([rows, -rows])
        lower, upper = jnp.split(least_of_rows(flow, v, rows, choices)[0], 2)
        low, high = old.lower.reshape(-1), old.upper.reshape(-1)
        low = low.at[index].set(_no_looser(lower, low[index]))
        high = high.at[index].set(-_no_looser(upper, -high[index]))
        return Bounds(low.reshape(v.shape), high.reshape(v.shape))

    def _outermost(self, flow: Flow, v: Variable, choices: Choices, sign: Any) -> Any:
        rows = sign * jnp.eye(v.aval.size, dtype=v.dtype) * _ones(flow, v)
        return least_of_rows(flow, v, rows, choices)[0].reshape(v.shape)


def _ones(flow: Flow, v: Variable) -> Any:
    """Ones (1, entries of v), varying over the same axes of a mesh as the value."""
    return jnp.ones_like(flow.bounds[v].lower).reshape(1, -1)


def places_below(flow: Flow, v: Variable) -> list[int]:
    """The places of the nodes with choices that a value depends on."""
    below = set(nodes_below(flow, v)) & set(flow.families)
    return [i for i, node in enumerate(flow.graph.nodes) if node in below]


def initial_choices(flow: Flow, nodes: Sequence[int], num: int) -> Choices:
    """The choices of `crown`, for each of `num` rows."""

    def repeat(x: Any) -> Any:
        return jnp.broadcast_to(x[None], (num, *x.shape))

    families = [flow.families[flow.graph.nodes[i]] for i in nodes]
    return {
        i: jax.tree.map(repeat, f.start) for i, f in zip(nodes, families, strict=True)
    }


def least_of_rows(
    flow: Flow,
    v: Variable,
    rows: Any,
    choices: Choices,
    added: Sequence[tuple[Variable, Any]] = (),
    nudges: Mapping[int, Any] = MappingProxyType({}),
) -> tuple[Any, list[Any]]:
    """A lower bound of each row of a value, each with its own choices.

    Args:
        flow: Its nodes up to `v` are visited, with `free_choices`.
        v: A floating variable.
        rows: Coefficients (rows, entries of v).
        choices: Of the nodes below; arrays (rows, ...).
        added: Pairs of another variable and coefficients (rows, its entries).
        nudges: By how much the lines of a node are moved apart, for derivatives.

    Returns:
        The bounds (rows,), and for each input of the graph the slopes of the linear
        functions that prove them, (rows, *shape).
    """
    nodes, others = flow.graph.nodes, [other for other, _ in added]

    def one(row: Any, mine: Choices, more: list[Any]) -> tuple[Any, list[Any]]:
        relaxations = dict(flow.relaxations)
        for i, choice in mine.items():
            member = flow.families[nodes[i]].member(choice)
            if i in nudges:
                below, base, above, top = member
                member = Lines(below, base - nudges[i], above, top + nudges[i])
            relaxations[nodes[i]] = prepared(flow, nodes[i], member)
        extra = {
            u: Dense(r.reshape(1, *u.shape)) for u, r in zip(others, more, strict=True)
        }
        first = Dense(row.reshape(1, *v.shape))
        state = backward_from(flow, v, first, relaxations, added=extra)
        slopes = [
            state.rows[x].dense()[0] if x in state.rows else jnp.zeros(x.shape, x.dtype)
            for x in flow.graph.inputs
        ]
        return lowered(least_value(flow, state)[0], v.dtype), slopes

    return jax.vmap(one)(rows, choices, [r for _, r in added])


@jax.custom_jvp
def _no_looser(found: Any, known: Any) -> Any:
    """The larger of two lower bounds, with the derivatives of the first.

    Those of a maximum vanish where the known bound is ahead, as it is at the start.
    """
    return jnp.where(found > known, found, known)


@_no_looser.defjvp
def _no_looser_derivative(primals: Any, tangents: Any) -> tuple[Any, Any]:
    return _no_looser(*primals), tangents[0]

"""Cuts the intervals of values inside a function, which decides deep narrow nets.

A rectifier is cut at its kink, after which it is linear on both sides; anything else in
the middle. What a cut demands, v >= t say, enters each bound as a multiple of v - t
that is subtracted; the multipliers are optimised along with the choices of the
relaxations.

References:
    Bunel, Turkaslan, Torr, Kohli, Kumar. A unified view of piecewise linear neural
    network verification. NeurIPS 2018, arXiv:1711.00455.
    Wang, Zhang, Xu, Lin, Jana, Hsieh, Kolter. Beta-CROWN. NeurIPS 2021,
    arXiv:2103.06624.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..core import Graph, Variable, is_affine
from ._alpha import initial_choices, least_of_rows, places_below
from ._counterexample import lowest_point
from ._flow import Flow, error_of_inputs, floating, prepare_backward, start, visit
from ._needed import kink
from ._planes import Lines
from ._rounding import unit
from ._sets import Bounds, Set
from ._trace import trace
from ._walk import walk

Part = tuple[np.ndarray, np.ndarray]

_LEARNING_RATE = 0.3
_FEW_STEPS, _MANY_STEPS = 20, 400
# Where the cut point of a smooth operation may not be: near an end.
_INNER = 0.1


class HiddenSplits:
    """Parts are intervals of what nonlinear operations read, (lower, upper), flat."""

    def __init__(self, rows: Callable[[Any], Any], region: Set):
        """Bounds those values once: they are the root of all parts."""

        def known(region: Set) -> tuple[Any, Any, Any]:
            flow = walk(rows, (region,), "bound.verify", linear=True, refined=[])
            values = _splittable(flow.graph)
            bounds = [flow.bounds[v] for v in values]
            kinks = [_kink(flow, v) for v in values]
            lower, upper = (_flat([b[side] for b in bounds]) for side in (0, 1))
            return lower, upper, _flat(kinks)

        def bound(
            lower: Any, upper: Any, root: Part, region: Set, num_steps: int
        ) -> Any:
            return _solve(rows, region, root, (lower, upper), num_steps)

        lower, upper, kinks = map(np.asarray, jax.jit(known)(region))
        self.root: Part = (lower, upper)
        self._kinks, self._region = kinks, region
        self._bound = {
            num_steps: jax.jit(
                jax.vmap(partial(bound, num_steps=num_steps), (0, 0, None, None))
            )
            for num_steps in (_FEW_STEPS, _MANY_STEPS)
        }

    def bound(self, parts: list[Part]) -> tuple[np.ndarray, np.ndarray, Any]:
        """Bounds some parts; see `InputSplits.bound`."""
        lower, upper = (np.stack([part[side] for part in parts]) for side in (0, 1))
        given = (lower, upper, self.root, self._region)
        margins, scores, found, points = self._bound[_FEW_STEPS](*given)
        margins, scores = np.array(margins), np.asarray(scores)
        # Where no operation is left to cut, the multipliers alone decide.
        if np.any((margins <= 0) & (scores.max(axis=1) <= 0)):
            longer, _, more, others = self._bound[_MANY_STEPS](*given)
            margins = np.maximum(margins, longer)
            found, points = more, others
        worst = int(np.argmin(found))
        if found[worst] > 0:
            return margins, scores, None
        return margins, scores, jax.tree.map(lambda leaf: leaf[worst], points)

    def split(self, part: Part, scores: np.ndarray) -> list[Part]:
        """Cuts a part in two where the score is highest; none where it cannot."""
        lower, upper = part
        at = int(np.argmax(scores))
        if not scores[at] > 0:
            return []
        reach = _INNER * (upper[at] - lower[at])
        point = self._kinks[at]
        if not lower[at] + reach < point < upper[at] - reach:
            kinked = np.isfinite(point) and lower[at] < point < upper[at]
            point = point if kinked else (lower[at] + upper[at]) / 2
        if not lower[at] < point < upper[at]:
            return []
        low, high = lower.copy(), upper.copy()
        low[at] = high[at] = point
        return [(lower, high), (low, upper)]


def _flat(arrays: Sequence[Any]) -> Any:
    return jnp.concatenate([jnp.ravel(a) for a in arrays])


def _splittable(graph: Graph) -> list[Variable]:
    """The values that nonlinear operations of one value read, in order."""
    found: dict[Variable, None] = {}
    for node in graph.nodes:
        if not is_affine(node) and len(floating(node)) == 1:
            found[floating(node)[0]] = None
    return list(found)


def _kink(flow: Flow, v: Variable) -> Any:
    """Where an operation that reads a value has its kink; NaN where none has one."""
    readers = [n for n in flow.graph.nodes if v in n.variables and not is_affine(n)]
    found = [at for at in (kink(node, v) for node in readers) if at is not None]
    return found[0] if found else jnp.full(v.shape, jnp.nan, v.dtype)


def _solve(
    rows: Callable[[Any], Any], region: Set, root: Part, part: Part, num_steps: int
) -> tuple[Any, Any, Any, Any]:
    """Bounds one part.

    Returns:
        Its proven least margin, the score of each entry that may be cut, and the least
        margin at a point of the region that the bound points to, with that point.
    """
    flow, values, empty = _restricted(rows, region, root, part)
    (out,) = flow.graph.outputs
    size = out.aval.size
    cuts = _cuts(values, root, part)
    multipliers = [jnp.zeros((size, 2, v.aval.size), v.dtype) for v in values]
    choices = initial_choices(flow, places_below(flow, out), size)
    nudges = {
        i: jnp.zeros(node.outputs[0].shape, out.dtype)
        for i, node in enumerate(flow.graph.nodes)
        if node in flow.families and isinstance(flow.families[node].first(), Lines)
    }

    def least(solution: Any, nudges: Any) -> tuple[Any, list[Any]]:
        choices, multipliers = solution
        bias, added = jnp.zeros(size, out.dtype), []
        for v, pair, (low, high) in zip(values, multipliers, cuts, strict=True):
            up, down = pair[:, 0] * low.active[None], pair[:, 1] * high.active[None]
            added.append((v, down - up))
            bias = bias + up @ low.point - down @ high.point
            terms = up @ jnp.abs(low.point) + down @ jnp.abs(high.point)
            bias = bias - unit(v.aval.size, v.dtype) * terms
        eye = jnp.eye(size, dtype=out.dtype)
        found, slopes = least_of_rows(flow, out, eye, choices, added, nudges)
        return found + bias, slopes

    solution, best = _ascend(
        lambda s: least(s, nudges)[0], (choices, multipliers), num_steps
    )
    row = jnp.argmin(best)
    pull, slopes = jax.grad(
        lambda n: (least(solution, n)[0][row], least(solution, n)[1]), has_aux=True
    )(nudges)
    margin = jnp.where(empty, jnp.inf, jnp.min(best))
    slope = jax.tree.unflatten(
        jax.tree.structure(region.placeholder), [s[row] for s in slopes]
    )
    point = lowest_point(region, slope)
    return margin, _scores(flow, values, pull), jnp.min(rows(point)), point


def _ascend(
    least: Callable[[Any], Any], solution: Any, num_steps: int
) -> tuple[Any, Any]:
    """What gradient ascent ends with, and the best bound of each row on the way."""
    ascend = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, num_steps, 0.05))

    def loss(solution: Any) -> tuple[Any, Any]:
        found = least(solution)
        return -jnp.sum(jnp.where(jnp.isfinite(found), found, 0)), found

    def step(carry: Any, _: Any) -> tuple[Any, None]:
        solution, state, best = carry
        gradient, found = jax.grad(loss, has_aux=True)(solution)
        gradient = jax.tree.map(jnp.nan_to_num, gradient)
        updates, state = ascend.update(gradient, state)
        moved: Any = optax.apply_updates(solution, updates)
        choices = jax.tree.map(lambda c: jnp.clip(c, 0, 1), moved[0])
        multipliers = jax.tree.map(lambda m: jnp.maximum(m, 0), moved[1])
        return ((choices, multipliers), state, jnp.maximum(best, found)), None

    worst = jnp.full_like(least(solution), -jnp.inf)
    carry = (solution, ascend.init(solution), worst)
    (solution, _, best), _ = jax.lax.scan(step, carry, length=num_steps)
    return solution, best


class _Side:
    """The entries of a value that are cut on one side, and where."""

    def __init__(self, point: Any, active: Any):
        self.active = active.astype(point.dtype)
        self.point = jnp.where(active, point, 0)


def _cuts(values: list[Variable], root: Part, part: Part) -> list[tuple[_Side, _Side]]:
    sizes = np.cumsum([v.aval.size for v in values])[:-1]
    parts = [jnp.split(x, sizes) for x in (*root, *part)]
    return [
        (_Side(low, low > least), _Side(high, high < most))
        for least, most, low, high in zip(*parts, strict=True)
    ]


def _restricted(
    rows: Callable[[Any], Any], region: Set, root: Part, part: Part
) -> tuple[Flow, list[Variable], Any]:
    """A walk with the intervals of a part, and whether one of them is empty."""
    graph, held = trace(rows, (region,))
    flow, known = start(graph, held, "bound.verify")
    flow.free_choices = True
    error_of_inputs(flow)
    values, empty = _splittable(graph), jnp.zeros((), bool)
    sizes = np.cumsum([v.aval.size for v in values])[:-1]
    given = [jnp.split(x, sizes) for x in (*root, *part)]
    waiting = dict(zip(values, zip(*given, strict=True), strict=True))
    for node in graph.nodes:
        for v in [v for v in node.variables if v in waiting and not is_affine(node)]:
            ends = [x.reshape(v.shape) for x in waiting.pop(v)]
            least = jnp.maximum(flow.bounds[v].lower, jnp.maximum(ends[0], ends[2]))
            most = jnp.minimum(flow.bounds[v].upper, jnp.minimum(ends[1], ends[3]))
            empty = empty | jnp.any(least > most)
            flow.bounds[v] = Bounds(jnp.minimum(least, most), most)
        visit(flow, known, node)
        prepare_backward(flow, node)
    return flow, values, empty


def _scores(flow: Flow, values: list[Variable], slopes: dict[int, Any]) -> Any:
    """How much the lines of each entry, where they are apart, take from the margin."""
    scores = {v: jnp.zeros(v.shape, v.dtype) for v in values}
    for i, slope in slopes.items():
        node = flow.graph.nodes[i]
        (v,) = floating(node)
        gap = flow.families[node].first().gap(flow.bounds[v])
        gap = jnp.where(jnp.isfinite(gap), jnp.maximum(gap, 0), 0)
        scores[v] = scores[v] + jnp.abs(slope) * gap
    return _flat([scores[v] for v in values])

"""What is known exactly: intervals that no backward pass can improve.

An input's interval is exact. So is that of the first affine operation after it, for a
ball by the dual norm of its rows, and what is done to single entries from there on. A
ball that a box cuts off meets that operation as both, which is sound but not exact;
what becomes of single words has a module of its own.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import Node, Variable, is_affine
from ._alternatives import UNIVARIATE, Alternatives, alternatives, followed, summed
from ._interval import absolute
from ._products import outer
from ._rounding import largest, num_terms, unit
from ._sets import Ball, Bounds, Intersection, Set, Substitutions, meet, safe_sqrt
from ._through import ELEMENTWISE, RESHAPED
from ._trace import Region

# Every output is one entry of an input, and no entry comes twice.
_INJECTIVE = RESHAPED | frozenset(
    {
        *("transpose", "rev", "slice", "pad", "concatenate", "stack", "select_n"),
        *("dynamic_slice", "dynamic_update_slice", "split", "unstack"),
    }
)
# Every output is one entry of an input, perhaps one that others are as well.
_ENTRYWISE = _INJECTIVE | frozenset({"gather", "tile"})


class Copy(NamedTuple):
    """A value each of whose entries is one entry of a set, scaled and shifted.

    Attributes:
        ball: The ball with p < inf whose entries it holds, cut off by a box or not, or
            None: of boxes.
        center: What becomes of the ball's center.
        scale: For a ball, how much each entry is scaled by, in absolute value.
        leaves: The inputs of the graph whose entries it holds.
    """

    ball: Ball | Intersection | None
    center: Any
    scale: Any
    leaves: frozenset[Variable]


class Settled:
    """The variables whose intervals are exact, as far as a walk has come."""

    def __init__(self, region: Region):
        """Starts with the inputs of a graph."""
        self._copies: dict[Variable, Copy] = {}
        self._alternatives: dict[Variable, Alternatives] = {}
        self.variables: set[Variable] = set()
        for s, held in zip(region.sets, region.variables, strict=True):
            self.variables.update(held)
            if isinstance(s, Substitutions):
                self._alternatives[held[0]] = alternatives(s)
                continue
            ball: Any = None if _is_box(s) else s
            whole = ball.ball if isinstance(ball, Intersection) else ball
            centers: list[Any] = (
                [None] * len(held)
                if whole is None
                else jax.tree.leaves(whole.placeholder)
            )
            for v, center in zip(held, centers, strict=True):
                scale = None if ball is None else jnp.ones_like(center)
                self._copies[v] = Copy(ball, center, scale, frozenset({v}))

    @classmethod
    def within(cls, copies: Mapping[Variable, Copy]) -> "Settled":
        """Starts with the inputs of the body of a loop."""
        known = cls(Region((), ()))
        known._copies.update(copies)
        return known

    def copy(self, atom: Any) -> Copy | None:
        """What is known of a value that holds the entries of a set."""
        return self._copies.get(atom) if isinstance(atom, Variable) else None

    def visit(
        self, node: Node, bounds: list[Bounds], inputs: list[Bounds]
    ) -> list[Bounds]:
        """Notes what is exact about a node's outputs; returns their improved bounds."""
        variables = node.variables
        of_words = self._of_words(node)
        if of_words is not None:
            self.variables.update(node.outputs)
            return [meet(old, of_words) for old in bounds]
        if not is_affine(node):
            single = len(variables) == 1 and node.name in UNIVARIATE
            if single and variables[0] in self.variables:
                self.variables.update(node.outputs)
            return bounds
        if _moves_entries(node, _ENTRYWISE) and self.variables.issuperset(variables):
            self.variables.update(node.outputs)
        copies = [self._copies[v] for v in variables if v in self._copies]
        leaves = [leaf for copy in copies for leaf in copy.leaves]
        apart = len(set(leaves)) == len(leaves) and len(copies) == len(variables)
        balls = {id(copy.ball) for copy in copies}
        if not apart or len(balls) != 1:
            return bounds
        if _moves_entries(node, _INJECTIVE):
            self._note_copies(node, copies)
            return bounds
        if copies[0].ball is None:
            self.variables.update(node.outputs)
            return bounds
        return self._by_dual_norm(node, copies, bounds, inputs)

    def _of_words(self, node: Node) -> Bounds | None:
        """The exact interval of what depends on single words, or is a sum of it."""
        held = [self._alternatives.get(v) for v in node.variables]
        if not any(held):
            return None
        found = followed(node, held)
        if found is None:
            return summed(node, held)
        self._alternatives[node.outputs[0]] = found
        return found.range()

    def _note_copies(self, node: Node, copies: list[Copy]) -> None:
        self.variables.update(node.outputs)
        ball = copies[0].ball
        scales: list[Any] = [None] * len(node.outputs)
        centers = scales
        if ball is not None:
            scales = absolute(node)(*(copy.scale for copy in copies))
            centers = _at(node, [copy.center for copy in copies])
        leaves = frozenset().union(*(copy.leaves for copy in copies))
        for out, center, scale in zip(node.outputs, centers, scales, strict=True):
            self._copies[out] = Copy(ball, center, scale, leaves)

    def _by_dual_norm(
        self,
        node: Node,
        copies: list[Copy],
        bounds: list[Bounds],
        inputs: list[Bounds],
    ) -> list[Bounds]:
        """The exact interval of sums of the entries of one ball."""
        if len(copies) != 1 or len(node.outputs) != 1:
            return bounds
        copy, (x,), (old,) = copies[0], inputs, bounds
        cut = isinstance(copy.ball, Intersection)
        ball: Any = copy.ball.ball if isinstance(copy.ball, Intersection) else copy.ball
        norm, exact = _row_norms(node, copy.scale, ball.p)
        if exact and not cut:
            self.variables.update(node.outputs)
        (middle,) = _at(node, [copy.center])
        terms = jnp.maximum(largest(x), jnp.abs(copy.center))
        error = unit(num_terms(node), norm.dtype)
        slack = error * (absolute(node)(terms)[0] + jnp.abs(middle))
        spread = ball.radius * norm + slack
        lower, upper = middle - spread, middle + spread
        return [Bounds(jnp.maximum(lower, old.lower), jnp.minimum(upper, old.upper))]


def _is_box(s: Set) -> bool:
    ball = s.ball if isinstance(s, Intersection) else s
    return not isinstance(ball, Ball) or ball.p == jnp.inf


def _at(node: Node, values: list[Any]) -> list[Any]:
    """The outputs of a node for given values of its variables."""
    places = iter(values)
    atoms = [next(places) if isinstance(a, Variable) else a for a in node.inputs]
    return node.evaluate(*atoms)


def _moves_entries(node: Node, names: frozenset[str]) -> bool:
    """Whether each output of an affine node depends on one entry of one operand."""
    variables, shape = node.variables, node.outputs[0].shape
    if node.name in ELEMENTWISE:
        return len(variables) == 1 and variables[0].shape == shape
    if node.name in RESHAPED and names is _INJECTIVE:
        return math.prod(variables[0].shape) == math.prod(shape)
    if node.name == "pad" and names is _INJECTIVE:
        return len(variables) == 1 and isinstance(node.inputs[0], Variable)
    return node.name in names


def _row_norms(node: Node, scale: Any, p: float) -> tuple[Any, bool]:
    """The dual norms of an affine node's rows, and whether they are exact.

    Where the largest coefficient is not at hand, the Euclidean norm is above it.
    """
    if p == 1 and node.name == "dot_general":
        factors = [scale if isinstance(a, Variable) else a for a in node.inputs]
        x, y = outer(node, *map(jnp.abs, factors))
        num_summed = len(node.params["dimension_numbers"][0][0])
        axes = tuple(range(x.ndim - num_summed, x.ndim))
        return jnp.max(x * y, axes, initial=0.0), True
    return safe_sqrt(absolute(node, power=2)(scale * scale)[0]), p == 2

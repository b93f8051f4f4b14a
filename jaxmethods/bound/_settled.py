"""What is known exactly: intervals that no backward pass can improve.

An input's interval is exact. So is that of the first affine operation after it, for a
ball by the dual norm of its rows, and what is done to single entries from there on.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from ..core import Node, Variable, is_affine
from ._interval import absolute
from ._products import outer
from ._rounding import largest, num_terms, unit
from ._sets import Ball, Bounds, safe_sqrt
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
_UNIVARIATE = frozenset(
    {
        *("abs", "asinh", "atan", "celu", "elu", "erf", "erfc", "exp", "exp2", "expm1"),
        *("integer_pow", "leaky_relu", "log", "log1p", "logistic", "max", "min"),
        *("reciprocal", "rsqrt", "selu", "sinh", "softplus", "sqrt", "square", "tanh"),
    }
)


class Copy(NamedTuple):
    """A value each of whose entries is one entry of a set, scaled and shifted.

    Attributes:
        ball: The ball with p < inf whose entries it holds, or None: of boxes.
        scale: For a ball, how much each entry is scaled by, in absolute value.
        leaves: The inputs of the graph whose entries it holds.
    """

    ball: Any
    scale: Any
    leaves: frozenset[Variable]


class Settled:
    """The variables whose intervals are exact, as far as a walk has come."""

    def __init__(self, region: Region):
        """Starts with the inputs of a graph."""
        self._copies: dict[Variable, Copy] = {}
        self.variables: set[Variable] = set()
        for s, held in zip(region.sets, region.variables, strict=True):
            ball = s if isinstance(s, Ball) and s.p != jnp.inf else None
            for v, ends in zip(held, s.hull(), strict=True):
                scale = None if ball is None else jnp.ones_like(ends.lower)
                self._copies[v] = Copy(ball, scale, frozenset({v}))
                self.variables.add(v)

    def visit(
        self, node: Node, bounds: list[Bounds], inputs: list[Bounds]
    ) -> list[Bounds]:
        """Notes what is exact about a node's outputs; returns their improved bounds."""
        variables = node.variables
        if not is_affine(node):
            single = len(variables) == 1 and node.name in _UNIVARIATE
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

    def _note_copies(self, node: Node, copies: list[Copy]) -> None:
        self.variables.update(node.outputs)
        ball = copies[0].ball
        scales: list[Any] = [None] * len(node.outputs)
        if ball is not None:
            scales = absolute(node)(*(copy.scale for copy in copies))
        leaves = frozenset().union(*(copy.leaves for copy in copies))
        for out, scale in zip(node.outputs, scales, strict=True):
            self._copies[out] = Copy(ball, scale, leaves)

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
        norm, exact = _row_norms(node, copy)
        if exact:
            self.variables.update(node.outputs)
        middle = node.evaluate(
            *(
                (x.lower + x.upper) / 2 if isinstance(a, Variable) else a
                for a in node.inputs
            )
        )[0]
        error = unit(num_terms(node), norm.dtype)
        slack = error * (absolute(node)(largest(x))[0] + jnp.abs(middle))
        spread = copy.ball.radius * norm + slack
        lower, upper = middle - spread, middle + spread
        return [Bounds(jnp.maximum(lower, old.lower), jnp.minimum(upper, old.upper))]


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


def _row_norms(node: Node, copy: Copy) -> tuple[Any, bool]:
    """The dual norms of an affine node's rows, and whether they are exact.

    Where the largest coefficient is not at hand, the Euclidean norm is above it.
    """
    if copy.ball.p == 1 and node.name == "dot_general":
        factors = [copy.scale if isinstance(a, Variable) else a for a in node.inputs]
        x, y = outer(node, *map(jnp.abs, factors))
        num_summed = len(node.params["dimension_numbers"][0][0])
        axes = tuple(range(x.ndim - num_summed, x.ndim))
        return jnp.max(x * y, axes, initial=0.0), True
    squares = absolute(node, power=2)(copy.scale * copy.scale)[0]
    return safe_sqrt(squares), copy.ball.p == 2

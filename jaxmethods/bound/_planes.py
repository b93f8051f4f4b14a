"""Linear functions below and above an operation: what replaces it going back."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import materialized
from ._rounding import largest, of_bound, unit
from ._sets import Bounds


class Lines(NamedTuple):
    """Two lines round an elementwise function of one variable.

    lower_slope x + lower_bias <= f(x) <= upper_slope x + upper_bias for every x in the
    interval; arrays of the shape of x.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> one = jnp.ones(3)
        >>> lines = bound.Lines(0 * one, 0 * one, 0 * one, one)  # 0 <= f(x) <= 1
        >>> lines.upper_bias.shape
        (3,)
    """

    lower_slope: Any
    lower_bias: Any
    upper_slope: Any
    upper_bias: Any

    def magnitude(self, node_inputs: list[Bounds]) -> Any:
        """The largest sum of absolute terms in either line."""
        (x,) = node_inputs
        slope = jnp.maximum(jnp.abs(self.lower_slope), jnp.abs(self.upper_slope))
        bias = jnp.maximum(jnp.abs(self.lower_bias), jnp.abs(self.upper_bias))
        return slope * largest(x) + bias

    def rounding(self, node_inputs: list[Bounds], num_rows: int) -> Any:
        """What a pass that sums so many biases loses, and what its slopes lose."""
        bias = jnp.maximum(jnp.abs(self.lower_bias), jnp.abs(self.upper_bias))
        dtype = bias.dtype
        size = unit(16, dtype) * self.magnitude(node_inputs)
        return size + of_bound(num_rows, dtype) * bias

    def gap(self, x: Bounds) -> Any:
        """How far the two lines are apart in the middle of an interval."""
        slope = self.upper_slope - self.lower_slope
        return slope * (x.lower + x.upper) / 2 + self.upper_bias - self.lower_bias


class SignedLines(NamedTuple):
    """Lines as a backward pass applies them, v middle + |v| half for a coefficient v.

    That is the lower line where v > 0 and the upper one where v < 0, without a choice
    by sign: XLA's CPU backend fuses sums and products with the sum that follows, but
    writes the outcome of a choice to memory first.
    """

    slope_middle: Any
    slope_half: Any
    bias_middle: Any
    bias_half: Any


def signed(lines: Lines, *, once: bool = True) -> SignedLines:
    """The middles and halves of a pair of lines.

    `once` where many rows share them: they are computed once, not fused into the passes
    and so repeated for each row.
    """
    below, base, above, top = lines
    parts = (below + above, below - above, base + top, base - top)
    halves = [part / 2 for part in parts]
    return SignedLines(*(materialized(halves) if once else halves))


class Planes(NamedTuple):
    """Two affine functions round an operation of any shape, of several variables.

    lower_map(*xs) + lower_bias <= f(*xs) <= upper_map(*xs) + upper_bias.

    Args:
        lower_map: A linear JAX function of the variable operands; None for zero.
        lower_bias: An array of the output's shape.
        upper_map: As `lower_map`.
        upper_bias: As `lower_bias`.
        terms: At least the sum of the absolute values of what is added up on either
            side, of the output's shape; for the account of rounding.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> total = lambda x, y: x + y
        >>> zero = jnp.zeros(3)
        >>> planes = bound.Planes(total, zero, total, zero, terms=2 + zero)
        >>> print(planes.upper_map(1.0, 2.0))
        3.0
    """

    lower_map: Callable[..., Any] | None
    lower_bias: Any
    upper_map: Callable[..., Any] | None
    upper_bias: Any
    terms: Any

    def magnitude(self, node_inputs: list[Bounds]) -> Any:
        """The largest sum of absolute terms in either plane."""
        del node_inputs
        return self.terms

    def rounding(self, node_inputs: list[Bounds], num_rows: int) -> Any:
        """What a pass that sums so many rows loses."""
        dtype = self.lower_bias.dtype
        error = unit(16, dtype) + of_bound(num_rows, dtype)
        return error * self.magnitude(node_inputs)


class Family(NamedTuple):
    """Lines or planes with free choices, each a number in [0, 1].

    Attributes:
        start: The choices that are good without knowing what follows; a pytree.
        member: `member(choices) -> Lines or Planes`, sound for any choices.
        others: Further choices, which may be better or worse than `start`.
        usual: The member of `start` where it is known without the others: programs
            that need no other do not compute them.
    """

    start: Any
    member: Callable[[Any], Any]
    others: Sequence[Any] = ()
    usual: Any = None

    def map(self, change: Callable[[Any], Any]) -> "Family":
        """The family whose members are changed."""
        member = lambda choices: change(self.member(choices))  # noqa: E731
        usual = None if self.usual is None else change(self.usual)
        return Family(self.start, member, self.others, usual)

    def extremes(self) -> list[Any]:
        """The members at the ends of the choices; all others lie between them."""
        ends = (jnp.zeros_like, jnp.ones_like)
        return [self.member(jax.tree.map(end, self.start)) for end in ends]

    def first(self) -> Any:
        """The member that is good without knowing what follows."""
        return self.member(self.start) if self.usual is None else self.usual


def between(members: Sequence[Lines]) -> Family:
    """Lines that lie between three pairs of lines; the first choice is the middle one.

    What lies between two lines above a function is above it as well, and costs no
    further evaluation of the function.
    """
    left, center, right = members
    half = jnp.full_like(center.lower_slope, 0.5)

    def mix(share: Any, low: Any, middle: Any, high: Any) -> Any:
        # Differences would lose the middle beside a line of a huge slope.
        return jnp.where(
            share <= 0.5,
            (1 - 2 * share) * low + 2 * share * middle,
            (2 - 2 * share) * middle + (2 * share - 1) * high,
        )

    def sound(side: Lines) -> Lines:
        """The middle lines where a slope or an intercept is infinite."""
        below = jnp.isfinite(side.lower_slope) & jnp.isfinite(side.lower_bias)
        above = jnp.isfinite(side.upper_slope) & jnp.isfinite(side.upper_bias)
        usable = (below, below, above, above)
        triples = zip(usable, side, center, strict=True)
        return Lines(*(jnp.where(test, a, b) for test, a, b in triples))

    triples = list(zip(sound(left), center, sound(right), strict=True))

    def member(shares: tuple[Any, Any]) -> Lines:
        below, above = shares
        return Lines(
            *(mix(below, *values) for values in triples[:2]),
            *(mix(above, *values) for values in triples[2:]),
        )

    return Family((half, half), member, usual=center)


def either(test: Any, first: Family, second: Family) -> Family:
    """Lines of the first family where `test` holds, of the second elsewhere."""

    def member(choices: tuple[Any, Any]) -> Lines:
        mine, theirs = first.member(choices[0]), second.member(choices[1])
        return Lines(
            *(jnp.where(test, a, b) for a, b in zip(mine, theirs, strict=True))
        )

    return Family((first.start, second.start), member)


Relaxation = Lines | Planes | Family
Prepared = SignedLines | Planes


def constant(bounds: Bounds) -> Planes:
    """The interval itself as planes, sound for any operation."""
    return Planes(None, bounds.lower, None, bounds.upper, largest(bounds))

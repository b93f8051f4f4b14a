"""Blocks of a parameter's gradient that are sums of outer products, and their factors.

The products that multiply by a parameter, or by a view of a part of it, fill the part's
gradient. Those that fill the same entries add up, in whichever order they take rows and
columns: a tied table, a recurrent weight, a layer that is used again.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from ._contract import Rows
from ._products import Product
from ._views import Axis, Piece, extent, merge

Position = tuple[int, ...]


class Region(NamedTuple):
    """The entries of a flat parameter that a sum of outer products fills.

    Attributes:
        offset: Of the first of them.
        groups: Side by side lie this many matrices,
        left: with rows along the columns of the left factor
        right: and columns along those of the right one.
    """

    offset: int
    groups: Axis
    left: Axis
    right: Axis

    @property
    def flipped(self) -> "Region":
        """The same entries with the factors exchanged."""
        return self._replace(left=self.right, right=self.left)


@dataclass(frozen=True)
class Use:
    """One piece of a parameter that an equation multiplies by.

    Attributes:
        position: The place of the equation, as `core.interpret` counts.
        equation: It.
        weight: Which operand the piece is in.
        product: What the equation does to that operand.
        piece: In the shape in which the product takes it.
        lengths: Of the loops around, outermost first.
    """

    position: Position
    equation: JaxprEqn
    weight: int
    product: Product
    piece: Piece
    lengths: tuple[int, ...]

    @property
    def region(self) -> Region:
        """The entries of the parameter that get a gradient here."""
        piece, product = self.piece, self.product

        def along(axes: Sequence[int]) -> Axis:
            return merge([digit for d in axes for digit in piece.axes[d]])

        loops = [digit for axis in piece.loops for digit in axis]
        groups = merge([*loops, *along(product.groups)])
        return Region(piece.offset, groups, along(product.summed), along(product.kept))

    @property
    def rows(self) -> int:
        """The number of rows of both factors, those of all rounds together."""
        through = zip(self.lengths, self.piece.loops, strict=True)
        return self.product.rows * math.prod(n for n, apart in through if not apart)

    @property
    def tap(self) -> jax.Array:
        """Zeros to add to the output, for each round of the loops around."""
        out: Any = self.equation.outvars[0].aval
        return jnp.zeros((*self.lengths, *out.shape), out.dtype)

    def factors(
        self, others: tuple[jax.Array, ...], gradient: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The factors (groups, rows, columns); of a look-up (groups, rows) numbers.

        Without groups their axis is left out.

        Args:
            others: The other operands, stacked over the loops around.
            gradient: That of the output, stacked likewise.
        """
        product, left, right = self.product, self.product.left, self.product.right
        for _ in self.lengths:
            left, right = jax.vmap(left), jax.vmap(right)
        a, g = left(*others), self._arrange(right(gradient), product.kept)
        if not product.looks_up:
            return self._arrange(a, product.summed), g
        (along,) = self.piece.along(product.summed)
        numbers = self._arrange(a[..., None], ())[..., 0]
        here = (numbers >= along.start) & (numbers < along.stop)
        numbers = jnp.where(here, numbers - along.start, 0)
        return numbers, jnp.where(here[..., None], g, 0)

    def _arrange(self, factor: jax.Array, axes: Sequence[int]) -> jax.Array:
        """Cuts the piece out of a factor, puts groups in front and joins rows."""
        piece, groups = self.piece, self.product.groups
        loops, first = len(self.lengths), len(self.lengths) + len(groups)
        rounds = [slice(None)] * loops
        factor = factor[
            (*rounds, *piece.along(groups), slice(None), *piece.along(axes))
        ]
        apart = [i for i in range(loops) if piece.loops[i]]
        through = [i for i in range(loops) if not piece.loops[i]]
        order = [*apart, *range(loops, first), *through, *range(first, factor.ndim)]
        count, width = extent(self.region.groups), math.prod(factor.shape[first + 1 :])
        lead = () if count == 1 else (count,)
        return factor.transpose(order).reshape(*lead, self.rows, width)


class Block(NamedTuple):
    """Entries of a parameter that are filled by products alone.

    Attributes:
        leaf: Which parameter.
        region: Which entries.
        uses: The products, and of each whether its factors are to be exchanged (a
            decoder with the encoder's weight transposed).
    """

    leaf: int
    region: Region
    uses: tuple[tuple[Use, bool], ...]

    @property
    def rows(self) -> Rows:
        """The number of outer products in an example's gradient, by kind."""
        counts = [0, 0]
        for use, _ in self.uses:
            counts[use.product.looks_up] += use.rows
        return Rows(*counts)

    @property
    def widths(self) -> tuple[int, int]:
        """The numbers of columns of the two factors."""
        return extent(self.region.left), extent(self.region.right)


def blocks_of(leaf: int, uses: Iterable[Use], size: int) -> list[Block]:
    """The blocks that a parameter's gradient falls into, disjoint, in order.

    Empty where its products do not agree on two groups of axes.

    Args:
        leaf: Which parameter.
        uses: All of its uses.
        size: The number of its entries.
    """
    found: dict[Region, list[tuple[Use, bool]]] = {}
    # Look-ups first: the axis that they run along is to be on the left.
    for use in sorted(uses, key=lambda use: not use.product.looks_up):
        region = use.region
        flip = region not in found and region.flipped in found
        if flip and use.product.looks_up:
            return []
        region = region.flipped if flip else region
        found.setdefault(region, []).append((use, flip))
    if not _disjoint(list(found), size):
        return []
    return [Block(leaf, region, tuple(found[region])) for region in sorted(found)]


def _disjoint(regions: list[Region], size: int) -> bool:
    """Whether no entry lies in two regions."""
    if len(regions) < 2:
        return True
    seen = np.zeros(size, bool)
    for region in regions:
        digits = [*region.groups, *region.left, *region.right]
        shape, strides = [n for n, _ in digits], [stride for _, stride in digits]
        part = np.lib.stride_tricks.as_strided(seen[region.offset :], shape, strides)
        if part.any():
            return False
        part[...] = True
    return True

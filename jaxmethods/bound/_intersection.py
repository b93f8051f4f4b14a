"""A ball cut off by a box: perturbed pixels that stay pixels.

The box limits each entry, the ball all of them together. Where the center lies outside
of the box, part of the radius is spent on the way to the nearest point in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import describe, is_concrete
from ._balls import Ball, Box, broadcasts, minimum_of_box, safe_sqrt
from ._bounds import Bounds, meet
from ._knapsack import Reach, least_in_l1, least_in_l2
from ._rounding import unit
from ._rows import Dense, Patches, Rows, SingleEntries


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Intersection:
    """All points of a ball that lie in a box, such as the range of pixels.

    Args:
        ball: Any `Ball`.
        box: A `Box`. Its ends are pytrees like the ball's center, of arrays that
            broadcast to those there, or one such array for all.

    Raises:
        ValueError: When bounds are asked for: the shapes do not fit, or the ball and
            the box have no point in common, where the values are concrete; else as
            `Ball` and `Box`.
        TypeError: As `Ball` and `Box`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> pixels = jnp.array([0.1, 0.8])
        >>> ball = bound.Ball(pixels, 0.5, 2)
        >>> clipped = bound.Intersection(ball, bound.Box(0.0, 1.0))
        >>> [round(float(bound.crown(jnp.sum)(s).lower), 3) for s in (ball, clipped)]
        [0.193, 0.31]

    References:
        Boyd, Vandenberghe. Convex optimization, 2004, section 5.1 (weak duality).
    """

    ball: Ball
    box: Box

    def check(self) -> None:
        """Raises unless this is a valid set."""
        self.ball.check()
        self.box.check()
        own, wanted = map(jax.tree.structure, (self.box.lower, self.ball.center))
        if not jax.tree_util.all_leaves((self.box.lower,)) and own != wanted:
            raise ValueError(
                f"box and center of an Intersection are built as {own} and {wanted}; "
                "wanted the same structure, or one array for all."
            )
        centers = jax.tree.leaves(self.ball.placeholder)
        ends = jax.tree.leaves(self.box.lower)
        fits = all(
            broadcasts(np.shape(e), c.shape)
            for e, c in zip(_repeated(ends, len(centers)), centers, strict=True)
        )
        if not fits:
            raise ValueError(
                f"the box of an Intersection has shapes {list(map(np.shape, ends))}; "
                "wanted shapes that broadcast to the center's "
                f"{[c.shape for c in centers]}."
            )
        spare = self._spare()
        if is_concrete(spare) and not bool(spare >= 0):
            raise ValueError(
                "the ball and the box of an Intersection have no point in common: the "
                f"nearest is {-float(spare):.3g} beyond the radius; wanted a center "
                "near the box, or a larger radius."
            )

    def _spare(self) -> jax.Array:
        """What is left of the radius at the nearest point of the box."""
        if self.ball.p == jnp.inf:
            return jnp.stack([jnp.min(e.upper - e.lower) for e in self.hull()]).min()
        spent = jnp.stack([jnp.sum(s) for s in self._spent()]).sum()
        return self.ball.radius - (safe_sqrt(spent) if self.ball.p == 2 else spent)

    @property
    def _centers(self) -> list[jax.Array]:
        return jax.tree.leaves(self.ball.placeholder)

    def _ends(self) -> list[Bounds]:
        """The box, array by array, at the shapes of the ball's center."""
        centers = self._centers
        sides = [
            _repeated(jax.tree.leaves(side), len(centers))
            for side in (self.box.lower, self.box.upper)
        ]
        return [
            Bounds(*(jnp.broadcast_to(jnp.asarray(e, c.dtype), c.shape) for e in pair))
            for *pair, c in zip(*sides, centers, strict=True)
        ]

    def _nearest(self) -> list[jax.Array]:
        """The point of the box that is nearest to the center, in every norm."""
        return [
            jnp.clip(c, e.lower, e.upper)
            for c, e in zip(self._centers, self._ends(), strict=True)
        ]

    def _spent(self) -> list[jax.Array]:
        """What each entry takes of radius ** p to get from the center to the box."""
        moves = [n - c for n, c in zip(self._nearest(), self._centers, strict=True)]
        return [jnp.abs(m) if self.ball.p == 1 else jnp.square(m) for m in moves]

    def _left(self) -> jax.Array:
        """What is left of radius ** p beyond that, at most."""
        spent = self._spent()
        total = jnp.stack([jnp.sum(s) for s in spent]).sum()
        error = unit(sum(s.size for s in spent), spent[0].dtype)
        left = jnp.asarray(self.ball.radius, total.dtype) ** self.ball.p
        return jnp.maximum(left - total * (1 - error), 0)

    @property
    def placeholder(self) -> Any:
        """A member, with the structure that the function expects."""
        return jax.tree.unflatten(jax.tree.structure(self.ball.center), self._nearest())

    def hull(self) -> list[Bounds]:
        """The smallest interval round each array."""
        ends = self._ends()
        if self.ball.p == jnp.inf:
            return [meet(b, e) for b, e in zip(self.ball.hull(), ends, strict=True)]
        found = []
        for center, own, end in zip(self._centers, self._spent(), ends, strict=True):
            reach = self._left() + own  # an entry may spend its own part otherwise
            reach = (reach if self.ball.p == 1 else safe_sqrt(reach)).astype(own.dtype)
            found.append(meet(Bounds(center - reach, center + reach), end))
        return found

    def minimum(self, rows: Sequence[Rows | None]) -> jax.Array:
        """The least value over the set of linear functions; see `Ball.minimum`."""
        places = [i for i, r in enumerate(rows) if r is not None]
        used = [r for r in rows if r is not None]
        one_entry = len(used) == 1 and isinstance(used[0], SingleEntries)
        if self.ball.p == jnp.inf or one_entry:
            return minimum_of_box(rows, self.hull())
        joined = used[0]
        if isinstance(joined, Patches):
            joined = joined.inside()
        if len(used) > 1:
            joined = Dense(jnp.concatenate([Dense(r.dense()).flat for r in used], 1))

        def spread(arrays: Sequence[jax.Array]) -> jax.Array:
            if len(used) == 1:
                return joined.spread(arrays[places[0]])
            return joined.spread(jnp.concatenate([arrays[i].ravel() for i in places]))

        lower, upper = map(spread, zip(*self._ends(), strict=True))
        centers, nearest = spread(self._centers), spread(self._nearest())
        reach = Reach(nearest, lower, upper, centers, self._left())
        least = least_in_l1 if self.ball.p == 1 else least_in_l2
        return joined.collect(least(joined.flat, reach))


def cut_off(ball: Ball, bounds: Any) -> Ball | Intersection:
    """A ball without what is beyond the least and the largest value of an entry.

    Args:
        ball: Any ball.
        bounds: The two, or None for the ball itself; integers count as floating.
    """
    if bounds is None:
        return ball
    try:
        lower, upper = bounds
    except (TypeError, ValueError):
        raise ValueError(
            f"bounds is {describe(bounds)}; wanted the least and the largest value of "
            "an entry, such as (0, 1)."
        ) from None
    ends = (float(e) if isinstance(e, int) else e for e in (lower, upper))
    return Intersection(ball, Box(*ends))


def is_within(x: Any, bounds: Any) -> Any:
    """Whether no entry of a pytree is beyond the least and the largest value.

    Args:
        x: The pytree.
        bounds: As for `cut_off`, which has looked at them.

    Raises:
        ValueError: A concrete `x` has such an entry.
    """
    if bounds is None:
        return True
    within = jnp.array(True)
    for leaf in jax.tree.leaves(x):
        lower, upper = (jnp.broadcast_to(end, jnp.shape(leaf)) for end in bounds)
        fits = (lower <= leaf) & (leaf <= upper)
        if is_concrete(fits) and not bool(np.all(np.asarray(fits))):
            beyond = np.asarray(leaf)[~np.asarray(fits)][0]
            raise ValueError(
                f"x holds {beyond:.4g}, outside of bounds={bounds}; clip it, or give "
                "the least and the largest value of an entry of your data."
            )
        within = within & jnp.all(fits)
    return within


def _repeated(ends: list[Any], num: int) -> list[Any]:
    """One pair of ends for each array."""
    return ends * num if len(ends) == 1 else ends

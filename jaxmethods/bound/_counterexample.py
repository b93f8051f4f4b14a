"""Looks for a point of a set at which a margin is not positive.

Descent that needs nothing but what every set answers already, the least value of a
linear function: its derivative in the coefficients is the point where that is reached
(Danskin). Steps go towards that point, so they stay in a convex set (Frank and Wolfe);
the points themselves are tried as well, which is what counts where a set is discrete.

References:
    Frank, Wolfe. An algorithm for quadratic programming. Naval Research Logistics
    Quarterly 3, 1956.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._rows import Dense
from ._sets import Set, Substitutions

_SHARES = (1.0, 0.3, 0.1)  # of the way to the lowest point, in the first step


def lowest_margin(
    rows: Callable[[Any], Any], region: Set, num_steps: int = 30
) -> tuple[Any, Any]:
    """The least margin that a search finds, and a point where it is reached.

    Args:
        rows: From a point of the set to margins (n,).
        region: The set.
        num_steps: Steps of each search; there are three a margin.

    Returns:
        The margin, a scalar, and the point.
    """
    num = jax.eval_shape(rows, region.placeholder).shape[0]
    index = jnp.repeat(jnp.arange(num), len(_SHARES))
    shares = jnp.tile(jnp.asarray(_SHARES), num)
    points = jax.vmap(lambda i, s: _search(rows, region, i, s, num_steps))(
        index, shares
    )
    found = jax.vmap(lambda point: jnp.min(rows(point)))(points)
    best = jnp.argmin(found)
    return found[best], jax.tree.map(lambda leaf: leaf[best], points)


def _search(
    rows: Callable[[Any], Any], region: Set, index: Any, share: Any, num_steps: int
) -> Any:
    """The best point of one search for a low value of one margin."""

    def value(point: Any) -> Any:
        return rows(point)[index]

    def keep(best: tuple[Any, Any], point: Any) -> tuple[Any, Any]:
        new = value(point)
        lower = new < best[0]
        pair = zip(jax.tree.leaves(point), jax.tree.leaves(best[1]), strict=True)
        leaves = [jnp.where(lower, a, b) for a, b in pair]
        point = jax.tree.unflatten(jax.tree.structure(point), leaves)
        return jnp.where(lower, new, best[0]), point

    def step(i: Any, carry: Any) -> Any:
        point, best = carry
        target = lowest_point(region, jax.grad(value)(point))
        best = keep(best, target)
        part = share / (1 + i / 4)
        point = jax.tree.map(
            lambda p, t: (p + part * (t - p)).astype(p.dtype), point, target
        )
        # Between two sentences there is none.
        discrete = isinstance(region, Substitutions)
        return point, best if discrete else keep(best, point)

    begin = region.placeholder
    carry = (begin, (value(begin), begin))
    return jax.lax.fori_loop(0, num_steps, step, carry)[1][1]


def lowest_point(region: Set, slope: Any) -> Any:
    """The point of a set where a linear function is least; a pytree like `slope`."""
    leaves, treedef = jax.tree.flatten(slope)

    def least(leaves: list[Any]) -> Any:
        return region.minimum([Dense(leaf[None]) for leaf in leaves])[0]

    found = jax.grad(least)(leaves)
    # What rounding moved beyond the set's hull goes back to it.
    inside = [
        jnp.clip(point, ends.lower, ends.upper)
        for point, ends in zip(found, region.hull(), strict=True)
    ]
    return treedef.unflatten(inside)

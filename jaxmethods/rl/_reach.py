"""Which actions can be reached from a set of states, and how far they are away."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..bound import Bounds, Box, crown_ibp, ibp
from ..core import is_concrete
from ._arguments import check_share


def mixed_bounds(
    fn: Callable[..., Any], crown: Any, *, side: str = "both"
) -> Callable[..., Bounds]:
    """Bounds crown * CROWN-IBP + (1 - crown) * IBP of a function over sets.

    Sound for every share, since both are. A share that is 0 or 1 costs one of the two;
    a traced one skips CROWN-IBP while it is 0.

    What the gradient needs is computed again on the way back. Kept, it would leave the
    branch of a `cond` as arrays, of zeros where the branch is not taken: on 1024 states
    and two layers of 64, a gradient takes 78 ms instead of 150 where the branch is
    taken, 1 ms instead of 63 where not.

    Args:
        fn: As for `bound.ibp`, with one array as its result.
        crown: The share of CROWN-IBP, in [0, 1]; may be traced.
        side: "lower", "upper" or "both": the side not asked for is not to be read.

    Returns:
        `bounded(*args) -> Bounds`.

    Raises:
        ValueError: `crown` is no scalar, or a concrete one is outside of [0, 1].
        TypeError: `crown` is no real number.
    """
    check_share(crown, "crown")
    tight = crown_ibp(fn, side=side)

    def bounded(*args: Any) -> Bounds:
        def wide() -> Bounds:
            return ibp(fn)(*args)

        def mix() -> Bounds:
            ends = zip(tight(*args), wide(), strict=True)
            return Bounds(*(crown * a + (1 - crown) * b for a, b in ends))

        if not is_concrete(crown):
            some = jnp.asarray(crown) > 0
            return jax.lax.cond(some, jax.checkpoint(mix), jax.checkpoint(wide))
        if 0 < float(crown) < 1:
            return jax.checkpoint(mix)()
        # A new function each time: jax remembers the traces of those that it has seen.
        alone = tight if crown > 0 else ibp(fn)
        return jax.checkpoint(lambda: alone(*args))()

    return bounded


def squashed_bounds(
    squash: Callable[[jax.Array], jax.Array] | None, reach: Bounds
) -> Bounds:
    """Bounds of actions from bounds of what is squashed, rounded outward.

    Args:
        squash: A function entry by entry, or None for none.
        reach: The bounds before squashing.
    """
    return reach if squash is None else ibp(squash)(Box(*reach))


def largest_change(action: jax.Array, reach: Bounds) -> jax.Array:
    """How far each action may get from its value at the state itself: (A,).

    Args:
        action: The action at the state, (A,).
        reach: The bounds of actions at all states of the set.
    """
    return jnp.maximum(reach.upper - action, action - reach.lower)

"""The least value of a linear function where the entries share one radius.

In the l1 norm that is a knapsack: the entries move in the order of their slopes, each
as far as the box allows, until the radius is spent. In the l2 norm it has one unknown,
the multiplier of the ball. By weak duality each value of it gives a lower bound;
Newton's method comes close to the best, from one side, in a few steps.

References:
    Dantzig. Discrete-variable extremum problems. Operations Research 5(2), 1957.
    Boyd, Vandenberghe. Convex optimization. Cambridge 2004, section 5.2.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ._balls import safe_sqrt
from ._rounding import unit

_NEWTON_STEPS = 12


class Reach(NamedTuple):
    """How far the entries may go; arrays that broadcast against the slopes.

    Attributes:
        nearest: The point of the box that is nearest to the center.
        lower: The lower end of the box.
        upper: The upper end of the box.
        center: The center of the ball.
        left: What is left of radius ** p at `nearest`, a scalar.
    """

    nearest: jax.Array
    lower: jax.Array
    upper: jax.Array
    center: jax.Array
    left: jax.Array


def least_in_l1(slopes: jax.Array, reach: Reach) -> jax.Array:
    """The least value of slopes . x along the last axis, which stays, of size 1."""
    down, up = reach.nearest - reach.lower, reach.upper - reach.nearest
    room = jnp.where(slopes > 0, down, up)
    order = jnp.argsort(-jnp.abs(slopes), axis=-1)
    gain, room = (
        jnp.take_along_axis(x, order, axis=-1) for x in (jnp.abs(slopes), room)
    )
    left = reach.left * (1 + unit(slopes.shape[-1], slopes.dtype))
    before = jnp.cumsum(room, axis=-1) - room
    moves = jnp.clip(left - before, 0, room)
    return _total(slopes * reach.nearest) - _total(gain * moves)


def least_in_l2(slopes: jax.Array, reach: Reach) -> jax.Array:
    """The least value of slopes . x along the last axis, which stays, of size 1."""
    nearest, lower, upper, center, left = reach
    norm = safe_sqrt(_total(jnp.square(slopes)))
    gain = jnp.abs(slopes) / jnp.where(norm > 0, norm, 1)
    least = jnp.abs(nearest - center)
    most = jnp.where(slopes > 0, center - lower, upper - center)
    most = jnp.where(slopes == 0, least, jnp.maximum(most, least))
    step = jax.lax.stop_gradient(_step_length(gain, least, most, left))
    loose = _total(most**2 - least**2) <= left  # the box alone is the limit
    price = jnp.where(loose, 0, 0.5 / step)
    moved = jnp.where(loose, most, jnp.clip(step * gain, least, most))
    spare = _total(moved**2 - least**2) - left
    lost = unit(slopes.shape[-1], slopes.dtype) * jax.lax.stop_gradient(price * left)
    found = price * spare - _total(gain * (moved - least)) - lost
    return _total(slopes * nearest) + norm * found


def _step_length(
    gain: jax.Array, least: jax.Array, most: jax.Array, left: jax.Array
) -> jax.Array:
    """How far to go along slopes of unit norm so that no more than `left` is spent.

    As a function of the step's square, what is spent grows at most at the rate of the
    entries that have room, which only get fewer: no step of Newton's goes too far.
    """

    def newton(_: int, square: jax.Array) -> jax.Array:
        wanted = safe_sqrt(square) * gain
        spent = _total(jnp.clip(wanted, least, most) ** 2 - least**2)
        slope = _total(jnp.where(wanted < most, gain**2, 0))
        some = slope > 0
        more = jnp.maximum(left - spent, 0) / jnp.where(some, slope, 1)
        return square + jnp.where(some, more, 0)

    gain, least, most, left = jax.lax.stop_gradient((gain, least, most, left))
    start = jnp.broadcast_to(left, gain[..., :1].shape) + 0 * gain[..., :1]
    square = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, start)
    return jnp.sqrt(jnp.maximum(square, jnp.finfo(gain.dtype).tiny ** 0.5))


def _total(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=-1, keepdims=True)

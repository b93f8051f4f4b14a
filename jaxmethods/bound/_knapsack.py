"""The least value of a linear function where the entries share one radius.

In the l1 norm that is a knapsack: the entries move in the order of their slopes, each
as far as the box allows, until the radius is spent. In the l2 norm it has one unknown,
the multiplier of the ball. By weak duality each value of it gives a lower bound;
Newton's method comes close to the best in a few steps.

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
    spent = _total(moved**2 - least**2)
    size = jax.lax.stop_gradient(price * jnp.maximum(spent, left))
    lost = unit(slopes.shape[-1], slopes.dtype) * size
    found = price * (spent - left) - _total(gain * (moved - least)) - lost
    return _total(slopes * nearest) + norm * found


def _step_length(
    gain: jax.Array, least: jax.Array, most: jax.Array, left: jax.Array
) -> jax.Array:
    """How far to go along slopes of unit norm until `left` is spent, nearly.

    As a function of the step's square, what is spent is increasing and of straight
    pieces: Newton's steps, and where one leaves the bracket its middle instead. What is
    found may lie on either side; a bound it gives in any case.
    """
    gain, least, most, left = jax.lax.stop_gradient((gain, least, most, left))
    start = jnp.broadcast_to(left, gain[..., :1].shape) + 0 * gain[..., :1]
    ends = jnp.where(gain > 0, most / jnp.where(gain > 0, gain, 1), 0)
    far = jnp.maximum(jnp.max(ends, -1, keepdims=True) ** 2, start)

    def newton(_: int, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        square, low, high = state
        wanted = safe_sqrt(square) * gain
        over = _total(jnp.clip(wanted, least, most) ** 2 - least**2) - left
        low = jnp.where(over <= 0, square, low)
        high = jnp.where(over >= 0, square, high)
        slope = _total(jnp.where((least < wanted) & (wanted < most), gain**2, 0))
        new = square - over / jnp.where(slope > 0, slope, 1)
        inside = (slope > 0) & (new >= low) & (new <= high)
        return jnp.where(inside, new, safe_sqrt(low * high)), low, high

    square, _, _ = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, (start, start, far))
    return jnp.sqrt(jnp.maximum(square, jnp.finfo(gain.dtype).tiny ** 0.5))


def _total(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=-1, keepdims=True)

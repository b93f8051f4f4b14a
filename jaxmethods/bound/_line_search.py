"""The maximum of a concave function of one number."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class _Bracket(NamedTuple):
    """Two points with the maximum between them, and the best point so far."""

    left: Any  # (place, value, slope)
    right: Any
    best: Any  # (place, value)
    above: Any  # no value between the two points is larger
    step: Any


def maximize_concave(
    fn: Callable[[Any], Any], low: Any, high: Any, *, tolerance: float, max_steps: int
) -> tuple[jax.Array, jax.Array]:
    """Where between `low` and `high` a concave function is largest, and how large.

    The next point is where the tangents at the ends of the bracket meet: on a function
    of straight pieces that is exact after as many steps as it meets pieces; every third
    step halves the bracket instead. It ends where the tangents leave less than
    `tolerance` of the value to gain, or after `max_steps`. The best point that was
    evaluated is returned, so that the value is never below those at the ends.
    """

    def at(place: Any) -> tuple[Any, Any, Any]:
        return place, *jax.jvp(fn, (place,), (jnp.ones_like(place),))

    left, right = at(low), at(high)
    above = _meeting(left, right)[1]
    best = _better(left[:2], right[:2])

    def goes_on(state: _Bracket) -> Any:
        gain = state.above - state.best[1]
        small = tolerance * jnp.abs(state.best[1])
        return (state.step < max_steps) & (gain > small)

    def step(state: _Bracket) -> _Bracket:
        meeting, _ = _meeting(state.left, state.right)
        half = (state.left[0] + state.right[0]) / 2
        new = at(jnp.where(state.step % 3 == 2, half, meeting))
        rising = new[2] >= 0
        left = jax.tree.map(lambda a, b: jnp.where(rising, a, b), new, state.left)
        right = jax.tree.map(lambda a, b: jnp.where(rising, b, a), new, state.right)
        best = _better(state.best, new[:2])
        return _Bracket(left, right, best, _meeting(left, right)[1], state.step + 1)

    state = _Bracket(left, right, best, above, jnp.zeros((), int))
    return jax.lax.while_loop(goes_on, step, state).best


def _better(one: tuple[Any, Any], other: tuple[Any, Any]) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(other[1] > one[1], b, a), one, other)


def _meeting(left: Any, right: Any) -> tuple[Any, Any]:
    """Where the tangents meet, and how high; at an end that is itself the maximum."""
    (a, value_a, slope_a), (b, value_b, slope_b) = left, right
    turn = slope_a - slope_b
    turns = turn > 0
    place = (value_b - value_a + slope_a * a - slope_b * b) / jnp.where(turns, turn, 1)
    place = jnp.where(turns, jnp.clip(place, a, b), (a + b) / 2)
    height = value_a + slope_a * (place - a)
    height = jnp.where(slope_a <= 0, value_a, jnp.where(slope_b >= 0, value_b, height))
    return place, height

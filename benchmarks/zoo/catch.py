"""Catch of gymnax, flat, and the worst that can happen to an agent on it, exactly.

A ball falls through 10 rows of 5 pixels, a paddle below moves to the left, not at all
or to the right, 9 times: a return of 1 where they meet, of -1 where not.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from gymnax.environments.bsuite import catch

from jaxmethods import bound, rl

ROWS, COLUMNS, ACTIONS = 10, 5, 3


class Catch(catch.Catch):
    """Its observation as a vector of 50 pixels, 0 or 1; as many steps as there are."""

    def get_obs(self, state: Any, params: Any = None, key: Any = None) -> jax.Array:
        """The pixels, row by row."""
        return super().get_obs(state).reshape(-1)

    @property
    def default_params(self) -> Any:
        """Of an episode that ends as the ball is down."""
        return catch.EnvParams(max_steps_in_episode=ROWS - 1)


def observations(row: jax.Array) -> jax.Array:
    """All states with the ball in a row: (columns of the ball, of the paddle, 50)."""
    place = jnp.eye(COLUMNS)
    rows = jnp.arange(ROWS)[:, None]
    ball = jnp.where(rows == row, place[:, None], 0)
    paddle = jnp.where(rows == ROWS - 1, place[:, None], 0)
    return jnp.maximum(ball[:, None], paddle[None]).reshape(COLUMNS, COLUMNS, -1)


def certified_actions(q: Any, state: jax.Array, eps: Any) -> jax.Array:
    """Which actions may be the greedy one for some pixels within eps: no fewer.

    Args:
        q: From a state to the values of all actions.
        state: One state.
        eps: The radius of the adversary.
    """
    low, high = jnp.clip(state - eps, 0, 1), jnp.clip(state + eps, 0, 1)

    def beaten(by: int) -> jax.Array:
        least = bound.crown(bound.margins(q, by), side="lower")(bound.Box(low, high))
        # Margins leave the action itself out, which cannot beat itself.
        return jnp.insert(least.lower > 0, by, False)

    return ~jnp.stack([beaten(action) for action in range(ACTIONS)]).any(0)


def found_actions(q: Any, state: jax.Array, eps: Any) -> jax.Array:
    """Which actions a search makes the greedy one within eps: no more than can be."""

    def lead(action: int) -> Any:
        others = jnp.arange(ACTIONS) != action
        return lambda x: jnp.max(q(x), where=others, initial=-jnp.inf) - q(x)[action]

    seen = [state] + [
        rl.critic_attack(lead(action), bounds=(0, 1))(None, state, eps)
        for action in range(ACTIONS)
    ]
    shown = jnp.stack([q(x).argmax() for x in seen])
    return (shown[:, None] == jnp.arange(ACTIONS)).any(0)


def worst_return(q: Any, actions: Any, eps: Any) -> jax.Array:
    """The mean return against an adversary that looks ahead to the end of the episode.

    With `certified_actions` no adversary gets it lower; with `found_actions` one that
    chooses among what a search finds gets it there.

    Args:
        q: From a state to the values of all actions.
        actions: Which actions an adversary can bring about.
        eps: Its radius.
    """
    columns = jnp.arange(COLUMNS)
    moved = jnp.clip(columns[:, None] + jnp.arange(ACTIONS)[None] - 1, 0, COLUMNS - 1)
    caught = 2.0 * jnp.eye(COLUMNS) - 1

    def back(later: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
        of_state = partial(actions, q, eps=eps)
        possible = jax.vmap(jax.vmap(of_state))(observations(row))
        return jnp.min(later[:, moved], -1, where=possible, initial=jnp.inf), None

    rows = jnp.arange(ROWS - 1)
    first = jax.lax.scan(back, caught, rows, reverse=True)[0]
    return first[:, COLUMNS // 2].mean()

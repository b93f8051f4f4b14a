"""Episodes of a gymnax environment, with an adversary between it and the policy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Policy = Callable[[jax.Array], jax.Array]
Attack = Callable[[jax.Array, jax.Array], jax.Array]


def unperturbed(key: jax.Array, state: jax.Array) -> jax.Array:
    """The attack that shows the true state."""
    return state


def with_radius(attack: Callable[..., jax.Array], *rest: Any) -> Attack:
    """An attack of a key and a state, with its other arguments in place."""
    return lambda key, state: attack(key, state, *rest)


def episode_return(
    env: Any, policy: Policy, attack: Attack, key: jax.Array
) -> jax.Array:
    """The sum of rewards of one episode whose policy sees attacked states.

    Args:
        env: A gymnax environment, with its default parameters.
        policy: From a state to an action.
        attack: `attack(key, state) -> state`, what the policy sees.
        key: Typed.
    """
    first, later = jax.random.split(key)
    state, inner = env.reset(first)

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        state, inner, going, total = carry
        own, others = jax.random.split(key)
        action = policy(attack(own, state))
        state, inner, reward, ended, cut, _ = env.step(others, inner, action)
        total = total + reward * going
        return (state, inner, going & ~(ended | cut), total), None

    keys = jax.random.split(later, env.default_params.max_steps_in_episode)
    start = state, inner, jnp.array(True), jnp.zeros(())
    return jax.lax.scan(step, start, keys)[0][-1]


def mean_return(
    env: Any, policy: Policy, attack: Attack, key: jax.Array, episodes: int
) -> jax.Array:
    """The mean return of so many episodes."""
    keys = jax.random.split(key, episodes)
    return jax.vmap(lambda key: episode_return(env, policy, attack, key))(keys).mean()


def along_episode(
    env: Any, policy: Policy, measure: Callable[[jax.Array], Any], key: jax.Array
) -> jax.Array:
    """The mean of a measure over the true states of one unperturbed episode."""
    first, later = jax.random.split(key)
    state, inner = env.reset(first)

    def step(carry: Any, key: jax.Array) -> tuple[Any, Any]:
        state, inner, going = carry
        found = jnp.where(going, measure(state), 0.0)
        after, inner, _, ended, cut, _ = env.step(key, inner, policy(state))
        return (after, inner, going & ~(ended | cut)), (found, going)

    keys = jax.random.split(later, env.default_params.max_steps_in_episode)
    start = state, inner, jnp.array(True)
    _, (found, counted) = jax.lax.scan(step, start, keys)
    return found.sum(0) / counted.sum()

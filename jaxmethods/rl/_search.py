"""The search for a bad state: sign-gradient steps inside a box, noisy or not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core import check_key
from ..robust.programs import run_detached
from ._arguments import vary_with
from ._box import Ends, onto_box

# From the radius of a step and its number to the noise added to the gradient.
Noise = Callable[[jax.Array, jax.Array], jax.Array]


def search(
    objective: Callable[[jax.Array], jax.Array],
    key: jax.Array | None,
    state: jax.Array,
    eps: jax.Array,
    *,
    num_steps: int,
    bounds: Ends,
    noise: Noise | None = None,
) -> jax.Array:
    """The state where steps that raise an objective end.

    `num_steps` steps of eps / num_steps along the sign of the gradient, each clipped to
    the box; an entry whose slope is NaN stays. With a key the search starts at a random
    place within one step of the state, and, if `noise` is given, at a corner of what
    one step reaches, with normal noise added to each gradient (stochastic gradient
    Langevin dynamics).

    Args:
        objective: From a state to a scalar.
        key: Typed key, or None: no noise, and a start at the state itself.
        state: The true state.
        eps: A radius an entry, from `check_eps`.
        num_steps: How many gradients are taken, at least 1.
        bounds: As for `check_state`.
        noise: The scale of the noise.

    Returns:
        A state within eps of the true one, up to the rounding of eps; exactly the true
        one where eps is 0. No gradient passes through it.
    """
    if key is not None:
        check_key(key)

    def run(state: jax.Array, eps: jax.Array, key: jax.Array | None) -> jax.Array:
        project = onto_box(state, eps, bounds)
        step_size = eps / num_steps
        point, draw = _start(key, state, step_size, noise)

        def step(count: jax.Array, point: jax.Array) -> jax.Array:
            slope = jax.grad(objective)(point) + draw(count)
            # NaN, as of a norm at 0, names no side.
            side = jnp.sign(jnp.where(jnp.isnan(slope), 0, slope))
            return project(point + step_size * side)

        # Under shard_map the objective may vary over the mesh where the state does not.
        point = vary_with(project(point), objective(state))
        return lax.fori_loop(0, num_steps, step, point)

    return run_detached(run, state, eps, key)


def _start(
    key: jax.Array | None, state: jax.Array, step_size: jax.Array, noise: Noise | None
) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """The first point, and from the number of a step to what is added to its slope."""
    shape, dtype = state.shape, step_size.dtype
    if key is None:
        return state, lambda count: 0
    if noise is None:
        move = jax.random.uniform(key, shape, dtype, -1, 1)
        return state + step_size * move, lambda count: 0
    corner, steps = jax.random.split(key)

    def draw(count: jax.Array) -> jax.Array:
        normal = jax.random.normal(jax.random.fold_in(steps, count), shape, dtype)
        return noise(step_size, count) * normal

    return state + step_size * jax.random.rademacher(corner, shape, dtype), draw

"""The box of states that may be shown in place of one: what penalties look over."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..bound import Box
from ..core import check_floating, check_nonnegative, describe, is_concrete
from ..robust.balls import projection
from ._arguments import vary_with

# The least and the largest value of an entry of a state.
Ends = tuple[Any, Any] | None


def check_state(state: Any, bounds: Ends, name: str = "state") -> jax.Array:
    """Returns a state as an array, or raises where it is none that can be perturbed.

    Args:
        state: One state, floating, not empty, finite and inside `bounds`.
        bounds: None, or the least and the largest value of an entry: numbers, or
            arrays like the state. They may be infinite.
        name: What errors call it.

    Raises:
        TypeError: It is not floating.
        ValueError: It is empty; where values are concrete, not finite or outside of the
            bounds; the bounds are no pair, out of order or of another shape.
    """
    array = check_floating(state, name)
    if not array.size:
        raise ValueError(
            f"{name} is {describe(array)}, without entries; wanted at least one."
        )
    if is_concrete(state) and not np.all(np.isfinite(np.asarray(state))):
        raise ValueError(f"{name} holds NaN or infinity; wanted finite values.")
    if bounds is not None:
        _check_bounds(bounds, state, array.shape, name)
    return array


def _check_bounds(bounds: Any, state: Any, shape: tuple[int, ...], name: str) -> None:
    try:
        low, high = bounds
    except (TypeError, ValueError):
        raise ValueError(
            f"bounds is {describe(bounds)}; wanted the least and the largest value of "
            "an entry, such as (0, 1), or None."
        ) from None
    for end in (low, high):
        if np.shape(end) not in ((), shape):
            raise ValueError(
                f"bounds holds shape {np.shape(end)} for a {name} of shape {shape}; "
                "wanted one number for all entries, or one an entry."
            )
    if not (is_concrete(low) and is_concrete(high)):
        return
    low, high = np.asarray(low), np.asarray(high)
    if not np.all(low <= high):
        raise ValueError(f"bounds is {bounds}; wanted low <= high, no NaN.")
    if is_concrete(state):
        beyond = (np.asarray(state) < low) | (np.asarray(state) > high)
        if np.any(beyond):
            raise ValueError(
                f"{name} holds {np.asarray(state)[beyond][0]:.4g}, outside of bounds "
                f"{bounds}: clip it, or give the bounds of your observations."
            )


def check_eps(
    eps: Any, state: jax.Array, name: str = "eps", of: str = "state"
) -> jax.Array:
    """Returns a radius an entry of the state, or raises where it is none.

    Args:
        eps: How far an entry may move, at least 0: a number, or an array like the
            state, where 0 keeps an entry.
        state: The state.
        name: What errors call the radius.
        of: What they call the state.

    Returns:
        An array of the state's shape, float32 at least.

    Raises:
        TypeError: It is no real number.
        ValueError: Another shape; a concrete value is negative, infinite or NaN.
    """
    check_nonnegative(eps, name)
    if np.shape(eps) not in ((), state.shape):
        raise ValueError(
            f"{name} has shape {np.shape(eps)} for a {of} of shape {state.shape}; "
            "wanted one number, or one an entry: batch with vmap."
        )
    if is_concrete(eps) and not np.all(np.isfinite(np.asarray(eps))):
        raise ValueError(f"{name} holds infinity; wanted finite numbers.")
    dtype = jnp.promote_types(state.dtype, jnp.float32)
    return jnp.broadcast_to(jnp.asarray(eps, dtype), state.shape)


def box_of(state: jax.Array, eps: jax.Array, bounds: Ends) -> Box:
    """All states within `eps` of a state, entry by entry, and inside the bounds.

    The ends are rounded to nearest: a state of the same dtype that lies between the
    exact ends lies between these.

    Args:
        state: The state.
        eps: A radius an entry, from `check_eps`.
        bounds: As for `check_state`.
    """
    low, high = _ends(bounds)
    ends = (
        jnp.clip((state + move).astype(state.dtype), low, high) for move in (-eps, eps)
    )
    return Box(*(end.astype(state.dtype) for end in ends))


def onto_box(
    state: jax.Array, eps: jax.Array, bounds: Ends
) -> Callable[[jax.Array], jax.Array]:
    """The map of states onto the box round a state, and into the bounds.

    Args:
        state: The state.
        eps: A radius an entry, from `check_eps`.
        bounds: As for `check_state`.

    Returns:
        A function from states to states of the box, its ends rounded inward: within
        eps of `state` up to the rounding of eps itself.
    """
    return projection(state, eps, "linf", _ends(bounds))


def _ends(bounds: Ends) -> tuple[Any, Any]:
    return (-jnp.inf, jnp.inf) if bounds is None else bounds


def where_moved(
    radii: tuple[Any, ...], penalty: Callable[[], jax.Array], like: jax.Array, *others
) -> jax.Array:
    """A penalty, or exactly 0, its gradient too, where no entry may move.

    One of the two alone is computed, unless `vmap` maps the radii.

    Args:
        radii: What the user gave: numbers or arrays, concrete or traced.
        penalty: Computes a scalar.
        like: An array of its dtype.
        *others: What else it depends on, or None.
    """
    inputs = tuple(x for x in (like, *radii, *others) if x is not None)

    def still() -> jax.Array:
        return vary_with(jnp.zeros((), like.dtype), *inputs)

    def moved() -> jax.Array:
        return vary_with(penalty().astype(like.dtype), *inputs)

    if all(map(is_concrete, radii)):
        return moved() if any(np.any(np.asarray(r) > 0) for r in radii) else still()
    some = [jnp.any(jnp.asarray(r) > 0) for r in radii]
    return jax.lax.cond(functools.reduce(jnp.logical_or, some), moved, still)

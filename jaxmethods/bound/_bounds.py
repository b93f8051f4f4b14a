"""Intervals: what a function may reach, entry by entry."""

from typing import Any, NamedTuple

import jax.numpy as jnp


class Bounds(NamedTuple):
    """What a function may reach: lower <= fn(x) <= upper for every x in the sets.

    Attributes:
        lower: Arrays, or a pytree of them like the function's result.
        upper: As `lower`.
    """

    lower: Any
    upper: Any


def meet(old: Bounds, new: Bounds) -> Bounds:
    """The intersection of two sound intervals; NaN counts as no knowledge."""
    return Bounds(
        jnp.where(new.lower > old.lower, new.lower, old.lower),
        jnp.where(new.upper < old.upper, new.upper, old.upper),
    )

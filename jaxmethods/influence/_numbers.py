"""Numbers that come beside the examples: weights of any sign, rates and visits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import describe, is_concrete


def as_real(numbers: Any, name: str) -> jax.Array:
    """The numbers as an array, or TypeError where they are complex."""
    numbers = jnp.asarray(numbers)
    if jnp.issubdtype(numbers.dtype, jnp.complexfloating):
        raise TypeError(f"{name} is {describe(numbers)}; wanted real numbers.")
    return numbers


def as_amounts(numbers: Any, name: str) -> jax.Array:
    """The same, or ValueError where concrete ones are negative or not finite."""
    numbers = as_real(numbers, name)
    if is_concrete(numbers):
        values = np.asarray(numbers, np.float64)
        wrong = values[~(np.isfinite(values) & (values >= 0))]
        if wrong.size:
            raise ValueError(
                f"{name} is {describe(numbers)} with {wrong[0]} in it; wanted finite "
                "numbers of 0 or more."
            )
    return numbers

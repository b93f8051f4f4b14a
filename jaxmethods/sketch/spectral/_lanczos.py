"""The largest eigenvalue of a symmetric operator that only multiplies vectors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ...core import vary_as

_ROUNDINGS = 100  # of a vector in a product, to be safe


def top_eigenpair(
    matvec: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    num_steps: int,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The largest eigenvalue (not the largest in absolute value) and its eigenvector.

    Lanczos' method, with each new direction made orthogonal to all before it, twice.

    Args:
        matvec: (n,) -> (n,), a symmetric linear map.
        start: (n,), not 0; it should have a part of the eigenvector in it.
        num_steps: products with the operator, at most n.
        axis_name: the mesh axis over which vectors are split.

    Returns:
        The eigenvalue, and the eigenvector (n,) of norm 1.
    """
    noise = _ROUNDINGS * jnp.finfo(start.dtype).eps

    def total(x: jax.Array) -> jax.Array:
        return x if axis_name is None else lax.psum(x, axis_name)

    def norm(v: jax.Array) -> jax.Array:
        return jnp.sqrt(total(v @ v))

    def step(carry: Any, i: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        basis, v = carry
        basis = basis.at[i].set(v)
        image = matvec(v)
        diagonal, rounding = total(image @ v), noise * norm(image)
        for _ in range(2):
            image = image - total(basis @ image) @ basis
        length = norm(image)
        # In an invariant subspace what is left is rounding, and the basis ends.
        length = jnp.where(length > rounding, length, 0)
        v = image / jnp.where(length > 0, length, jnp.inf)
        return (basis, v), (diagonal, length)

    like = jax.typeof(matvec(start))
    v = vary_as(start / norm(start), like)
    basis = vary_as(jnp.zeros((num_steps, start.size), start.dtype), like)
    (basis, _), (diagonal, beside) = lax.scan(step, (basis, v), jnp.arange(num_steps))
    # What is left of the basis is 0 and must not come out as the largest.
    used = jnp.cumprod(jnp.roll(beside, 1).at[0].set(1) > 0).astype(bool)
    below = jnp.min(diagonal) - jnp.max(jnp.abs(diagonal)) - 1
    small = jnp.diag(jnp.where(used, diagonal, below))
    small = small + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
    values, vectors = jnp.linalg.eigh(small)
    vector = vectors[:, -1] @ basis
    return values[-1], vector / norm(vector)

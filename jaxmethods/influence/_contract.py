"""Inner products of per-example gradients, from their factors where that is cheaper."""

import math
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax


class Factors(NamedTuple):
    """Gradients of one parameter as sums of outer products, one gradient an example.

    The gradient of example i is `left[i].T @ right[i]`, in the parameter's own shape
    after a reordering that is the same for all examples.

    Attributes:
        left: (n, rows, p).
        right: (n, rows, q).
    """

    left: jax.Array
    right: jax.Array

    def whole(self) -> jax.Array:
        """The gradients themselves, (n, p, q)."""
        return _product("ntp,ntq->npq", self.left, self.right)


Gradients = Factors | jax.Array


def pairs_stay_factored(rows: int, other_rows: int, widths: tuple[int, int]) -> bool:
    """Whether the inner product of two gradients is cheaper from their factors."""
    p, q = widths
    return rows * other_rows * (p + q) < p * q


def norm_stays_factored(rows: int, widths: tuple[int, int]) -> bool:
    """Whether the norm of a gradient is cheaper from its factors."""
    p, q = widths
    return rows == 1 or rows * (p + q) < p * q


def inner(a: Gradients, b: Gradients) -> jax.Array:
    """Inner products of all pairs, (n, m), for n gradients and m gradients."""
    # The gradients of one parameter come in one form.
    if not isinstance(a, Factors):
        return _product("nd,md->nm", _flat(a), _flat(cast(jax.Array, b)))
    b = cast(Factors, b)
    if a.left.shape[1] == b.left.shape[1] == 1:
        left = _product("np,mp->nm", a.left[:, 0], b.left[:, 0])
        return left * _product("nq,mq->nm", a.right[:, 0], b.right[:, 0])
    left = _product("ntp,msp->ntms", a.left, b.left)
    return (left * _product("ntq,msq->ntms", a.right, b.right)).sum((1, 3))


def squared_norm(a: Gradients) -> jax.Array:
    """Squared norms, (n,)."""
    if not isinstance(a, Factors):
        return _sum_of_squares(_flat(a))
    if a.left.shape[1] == 1:
        return _sum_of_squares(a.left[:, 0]) * _sum_of_squares(a.right[:, 0])
    left = _product("ntp,nsp->nts", a.left, a.left)
    return (left * _product("ntq,nsq->nts", a.right, a.right)).sum((1, 2))


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype in which products of this dtype are summed: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _sum_of_squares(x: jax.Array) -> jax.Array:
    return jnp.square(x.astype(accumulator(x.dtype))).sum(-1)


def _product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    # A ranking needs every bit: scores are small differences of large sums.
    dtype = accumulator(jnp.result_type(a, b))
    return jnp.einsum(
        spec, a, b, precision=lax.Precision.HIGHEST, preferred_element_type=dtype
    )

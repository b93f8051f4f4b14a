"""Inner products of per-example gradients, from their factors where that is cheaper."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from ..core import vary_together
from ..kernels import gram_products

# Numbers in the Gram matrices of the examples whose norms are taken together.
BUDGET = 2**20


class Rows(NamedTuple):
    """How many outer products make up a gradient.

    Attributes:
        products: Those of two columns of numbers.
        look_ups: Those of a row of the identity matrix and a column of numbers.
    """

    products: int
    look_ups: int = 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lookups:
    """A left factor whose first rows are rows of the identity matrix.

    Attributes:
        numbers: Which rows, (..., look-ups) int32.
        others: The other rows, (..., products, width); None where there are none.
        width: The number of columns.
    """

    numbers: jax.Array
    others: jax.Array | None
    width: int = field(metadata=dict(static=True))

    def __matmul__(self, matrix: jax.Array) -> jax.Array:
        """The product with a matrix (width, k): of a look-up the matrix's row."""
        found = matrix[self.numbers]
        if self.others is None:
            return found
        products = _product("...tp,pk->...tk", self.others, matrix)
        return jnp.concatenate([found, products], -2)


class Factors(NamedTuple):
    """Gradients of one parameter as sums of outer products, one gradient an example.

    The gradient of example i is `left[i].T @ right[i]`, in the parameter's own shape
    after a reordering that is the same for all examples. Where the parameter is many
    matrices side by side (those of a scan over layers, of heads, of a grouped
    convolution), both factors have an axis of these groups before the rows.

    Attributes:
        left: (n, rows, p), or `Lookups`.
        right: (n, rows, q).
    """

    left: jax.Array | Lookups
    right: jax.Array

    def whole(self) -> jax.Array:
        """The gradients themselves, (n, p, q)."""
        if not isinstance(self.left, Lookups):
            return _product("...tp,...tq->...pq", self.left, self.right)
        (numbers, found), (others, right) = self.parts()
        dtype = accumulator(right.dtype)
        lead, q = found.shape[:-2], found.shape[-1]
        start = jnp.zeros((*lead, self.left.width, q), dtype)
        if others is not None:
            start += _product("...tp,...tq->...pq", others, right)
        add = _add_rows
        for _ in lead:
            add = jax.vmap(add)
        return add(start, numbers, found.astype(dtype))

    def in_long_rows(self) -> jax.Array:
        """The same, (n, q, p) if p is the larger of the two and nothing is looked up.

        CPUs fill long rows in two thirds of the time of short ones.
        """
        if (
            isinstance(self.left, Lookups)
            or self.left.shape[-1] <= self.right.shape[-1]
        ):
            return self.whole()
        return _product("...tp,...tq->...qp", self.left, self.right)

    def parts(self) -> list[tuple[Any, jax.Array]]:
        """The factors of the look-ups, and those of the other rows."""
        left = cast(Lookups, self.left)
        count = left.numbers.shape[-1]
        return [
            (left.numbers, self.right[..., :count, :]),
            (left.others, self.right[..., count:, :]),
        ]


Gradients = Factors | jax.Array


def pairs_stay_factored(rows: Rows, other_rows: Rows, widths: tuple[int, int]) -> bool:
    """Whether the inner product of two gradients is cheaper from their factors."""
    p, q = widths
    total, other = sum(rows), sum(other_rows)
    dense = rows.products * other_rows.products
    # Of a pair with a look-up the left product is a comparison or a look-up itself.
    return dense * p + (total * other - dense) + total * other * q < p * q


def norm_stays_factored(rows: Rows, widths: tuple[int, int]) -> bool:
    """Whether the norm of a gradient is cheaper from its factors."""
    p, q = widths
    total, dense = sum(rows), rows.products**2
    formed = rows.products * p * q + rows.look_ups * q + p * q
    return total == 1 or dense * p + (total**2 - dense) + total**2 * q < formed


def inner(a: Gradients, b: Gradients) -> jax.Array:
    """Inner products of all pairs, (n, m), for n gradients and m gradients."""
    # The gradients of one parameter come in one form.
    if not isinstance(a, Factors):
        return _product("nd,md->nm", _flat(a), _flat(cast(jax.Array, b)))
    b = cast(Factors, b)
    if a.right.ndim == 3:
        return _pairs(a, b)
    dtype = accumulator(jnp.result_type(a.right, b.right))
    zero = jnp.zeros((a.right.shape[0], b.right.shape[0]), dtype)
    groups = jax.tree.map(lambda x: x.swapaxes(0, 1), (a, b))
    zero, groups = vary_together((zero, groups))

    def add(total: jax.Array, group: Any) -> tuple[jax.Array, None]:
        return total + _pairs(*group), None

    return lax.scan(add, zero, groups)[0]


def _pairs(a: Factors, b: Factors) -> jax.Array:
    if not isinstance(a.left, Lookups):
        return gram_products(a.left, a.right, cast(jax.Array, b.left), b.right)
    found = [
        gram_products(*part, *other)
        for part in a.parts()
        for other in b.parts()
        if part[0] is not None and other[0] is not None
    ]
    return sum(found[1:], found[0])


def squared_norm(a: Gradients) -> jax.Array:
    """Squared norms, (n,)."""
    if not isinstance(a, Factors):
        return _sum_of_squares(_flat(a))
    n, *groups, rows, _ = a.right.shape
    if groups:
        flat = jax.tree.map(lambda x: x.reshape(n * groups[0], *x.shape[2:]), a)
        return squared_norm(flat).reshape(n, groups[0]).sum(1)
    if rows == 1 and not isinstance(a.left, Lookups):
        return _sum_of_squares(a.left[:, 0]) * _sum_of_squares(a.right[:, 0])

    def one(gradient: Factors) -> jax.Array:
        alone = jax.tree.map(lambda x: x[None], gradient)
        return _pairs(alone, alone)[0, 0]

    return lax.map(one, a, batch_size=max(1, BUDGET // rows**2))


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype in which products of this dtype are summed: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


def _add_rows(total: jax.Array, numbers: jax.Array, rows: jax.Array) -> jax.Array:
    return total.at[numbers].add(rows)


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

"""Coefficients of linear functions of one value.

A row is one linear function. Rows are `Dense`, an array (R, *shape); `Diagonal`, one
row an entry of the value, where a pass starts from every entry; `Entries`, the same
where it starts from some of them; or `Patches`, where the entries are those of a
feature map and each row reads a small window. All of them have

- `flat`, the coefficients with as few axes as possible: XLA's CPU backend takes 15
  times longer to sum over three axes than over one of the same size,
- `spread`, which lays out an array like the value so that it broadcasts against `flat`,
- `collect`, which folds what has the shape of `flat` into one number a row,
- `inner`, the product of each row with a value,
- `inner_shared`, the same, faster where `vmap` maps over the value but not over the
  coefficients, as where a pass comes from weights.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax.numpy as jnp

from ._patches import Patches

Kind = TypeVar("Kind", bound="Dense | Diagonal | Entries | Patches")


@dataclass(frozen=True)
class Dense:
    """Coefficients (R, *shape)."""

    values: Any

    @property
    def flat(self) -> Any:
        """The coefficients (R, n)."""
        return self.values.reshape(self.values.shape[0], -1)

    def spread(self, x: Any) -> Any:
        """An array (1, n)."""
        return x.reshape(1, -1)

    def collect(self, x: Any, fold: Callable[..., Any] = jnp.sum) -> Any:
        """Folds (R, n) into (R,)."""
        return fold(x, axis=1)

    def inner(self, x: Any) -> Any:
        """The product of each row with a value: (R,)."""
        return jnp.matmul(self.flat, x.reshape(-1), precision="highest")

    inner_shared = inner

    def dense(self) -> Any:
        """The coefficients (R, *shape)."""
        return self.values


class SingleEntries(ABC):
    """Rows that read one entry of a value each."""

    @property
    @abstractmethod
    def flat(self) -> Any:
        """The coefficients (R,)."""

    @abstractmethod
    def spread(self, x: Any) -> Any:
        """An array (R,)."""

    def collect(self, x: Any, fold: Callable[..., Any] = jnp.sum) -> Any:
        """Nothing to fold: each row reads one entry."""
        del fold
        return x

    def inner(self, x: Any) -> Any:
        """The product of each row with a value: (R,)."""
        return self.flat * self.spread(x)

    inner_shared = inner


@dataclass(frozen=True)
class Diagonal(SingleEntries):
    """A row for each entry of a value; `values` has the value's shape."""

    values: Any

    @property
    def flat(self) -> Any:
        """The coefficients (R,)."""
        return self.values.reshape(-1)

    def spread(self, x: Any) -> Any:
        """An array (R,)."""
        return x.reshape(-1)

    def dense(self) -> Any:
        """The coefficients (R, *shape)."""
        flat = self.flat
        square = jnp.where(jnp.eye(flat.size, dtype=bool), flat[None], 0)
        return square.reshape(flat.size, *self.values.shape)


@dataclass(frozen=True)
class Entries(SingleEntries):
    """A row for some entries of a value.

    Attributes:
        values: The coefficient of each, (R,).
        index: Their places in the flattened value, (R,) integers.
        shape: The shape of the value.
    """

    values: Any
    index: Any
    shape: tuple[int, ...]

    @property
    def flat(self) -> Any:
        """The coefficients (R,)."""
        return self.values

    def spread(self, x: Any) -> Any:
        """An array (R,)."""
        return x.reshape(-1)[self.index]

    def dense(self) -> Any:
        """The coefficients (R, *shape)."""
        place = jnp.arange(math.prod(self.shape))[None]
        rows = jnp.where(self.index[:, None] == place, self.values[:, None], 0)
        return rows.reshape(-1, *self.shape)


Rows = Dense | Diagonal | Entries | Patches


def with_flat(rows: Kind, flat: Any) -> Kind:
    """Rows of the same kind with other coefficients, perhaps twice as many rows."""
    shape = rows.values.shape
    same = flat.size == rows.values.size
    return replace(rows, values=flat.reshape(shape if same else (-1, *shape[1:])))


def negated(rows: Kind) -> Kind:
    """The rows of minus the functions."""
    return replace(rows, values=-rows.values)


def absolute(rows: Kind) -> Kind:
    """The rows with the coefficients' absolute values."""
    return replace(rows, values=jnp.abs(rows.values))


def extreme(rows: Rows, lower: Any, upper: Any) -> Any:
    """The least value of each row over a box: shape (R,)."""
    dtype = jnp.promote_types(rows.values.dtype, lower.dtype)
    lower, upper = lower.astype(dtype), upper.astype(dtype)
    center, radius = (lower + upper) / 2, (upper - lower) / 2
    return rows.inner(center) - absolute(rows).inner(radius)


def folded(rows: Rows, term: Callable[[Any], Any], fold: Callable[..., Any]) -> Any:
    """Folds a function of all the coefficients of each row: shape (R,)."""
    if isinstance(rows, Patches):
        rows = rows.inside()
    return rows.collect(term(rows.flat), fold)


def add(first: Rows | None, second: Rows) -> Rows:
    """The sum of two sets of rows."""
    if first is None:
        return second
    if isinstance(first, Diagonal) and isinstance(second, Diagonal):
        return Diagonal(first.values + second.values)
    if isinstance(first, Patches) and isinstance(second, Patches):
        found = first.plus(second)
        if found is not None:
            return found
    return Dense(first.dense() + second.dense())


def both_signs(rows: Rows) -> Dense | Patches:
    """The rows, then the rows negated."""
    if isinstance(rows, Patches):
        return rows.both_signs()
    values = rows.dense()
    return Dense(jnp.concatenate([values, -values]))

"""Coefficients of linear functions of one value.

A row is one linear function. Rows are `Dense`, an array (R, *shape); `Diagonal`, one row
an entry of the value, where a pass starts from every entry; or `Patches`, where the
entries are those of a feature map and each row reads a small window. All of them can

- `spread` an array like the value, so that it broadcasts against `values`,
- `collect` what has the shape of `values`, by summing, into one number a row.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax.numpy as jnp

from ._patches import Patches

Kind = TypeVar("Kind", "Dense", "Diagonal", Patches)


@dataclass(frozen=True)
class Dense:
    """Coefficients (R, *shape)."""

    values: Any

    def spread(self, x: Any) -> Any:
        """An array (1, *shape)."""
        return x[None]

    def collect(self, x: Any, fold: Callable[..., Any] = jnp.sum) -> Any:
        """Folds (R, *shape) into (R,)."""
        return fold(x, axis=tuple(range(1, x.ndim)))

    def dense(self) -> Any:
        """The coefficients (R, *shape)."""
        return self.values


@dataclass(frozen=True)
class Diagonal:
    """A row for each entry of a value; `values` has the value's shape."""

    values: Any

    def spread(self, x: Any) -> Any:
        """The array as it is."""
        return x

    def collect(self, x: Any, fold: Callable[..., Any] = jnp.sum) -> Any:
        """Flattens: each row reads one entry."""
        del fold
        return x.reshape(-1)

    def dense(self) -> Any:
        """The coefficients (R, *shape)."""
        flat = self.values.reshape(-1)
        square = jnp.where(jnp.eye(flat.size, dtype=bool), flat[None], 0)
        return square.reshape(flat.size, *self.values.shape)


Rows = Dense | Diagonal | Patches


def with_values(rows: Kind, values: Any) -> Kind:
    """Rows of the same kind with other coefficients."""
    return replace(rows, values=values)


def inner(rows: Rows, x: Any) -> Any:
    """The product of each row with a value: shape (R,)."""
    return rows.collect(rows.values * rows.spread(x))


def negated(rows: Kind) -> Kind:
    """The rows of minus the functions."""
    return with_values(rows, -rows.values)


def by_sign(rows: Rows, positive: Any, negative: Any) -> Any:
    """Coefficients times one array where they are positive, another where negative.

    Written without a choice by sign: XLA's CPU backend fuses sums and products with the
    sum that follows, but writes the outcome of a choice to memory first.
    """
    half_sum = rows.spread((positive + negative) / 2)
    half_gap = rows.spread((positive - negative) / 2)
    return rows.values * half_sum + jnp.abs(rows.values) * half_gap


def extreme(rows: Rows, lower: Any, upper: Any) -> Any:
    """The least value of each row over a box: shape (R,)."""
    return rows.collect(by_sign(rows, lower, upper))


def folded(rows: Rows, term: Callable[[Any], Any], fold: Callable[..., Any]) -> Any:
    """Folds a function of all the coefficients of each row: shape (R,)."""
    if isinstance(rows, Patches):
        rows = rows.inside()
    return rows.collect(term(rows.values), fold)


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

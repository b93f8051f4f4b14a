"""Grids of 2^bits evenly spaced values over given ranges, zero on the grid or not."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ..kernels import even_step

# Added before the floor that puts zero on a level: several times the rounding error of
# 255 levels in float32, so that a grid whose ends are in the data is found again.
_SLACK = 1e-4


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Grid:
    """Values `(level - zero) * step + offset` for levels 0, 1, ..., 2^bits - 1.

    The three arrays broadcast against the matrix: one grid for all of it, (1, 1), one
    a row, (n, 1), or one a column, (1, d).

    Attributes:
        step: positive float, the distance between neighbours.
        zero: uint8, the level of `offset`; 0 unless the grid is aligned to zero.
        offset: float; exactly 0 in a grid aligned to zero.
    """

    step: jax.Array
    zero: jax.Array
    offset: jax.Array

    def levels(self, x: jax.Array) -> jax.Array:
        """The real level of each entry of `x`."""
        return (x - self.offset) * (1 / self.step) + self.zero.astype(x.dtype)


def fit_grid(low: jax.Array, high: jax.Array, top: int, zero_aligned: bool) -> Grid:
    """The grid of levels 0..top that spans `low`..`high`.

    An aligned grid takes zero into the range and puts it on the level below its place,
    as the paper's code does: with t steps below zero the step grows by `t / floor(t)`.
    A range narrower than the smallest normal float per level (a constant row has none)
    is widened to that: its entries lie on level `zero` and come back as they are.

    Args:
        low: float array, smallest value of each range.
        high: float array, largest.
        top: number of steps.
        zero_aligned: whether zero has to be a level.

    Returns:
        Grid of arrays shaped like `low`; NaN where a bound is NaN or infinite, or the
        range so wide (4e37 in float32) that a reciprocal of its step may be flushed.
    """
    if not zero_aligned:
        step = even_step(low, high, top)
        return Grid(step, jnp.zeros(low.shape, jnp.uint8), low)
    low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
    even = even_step(low, high, top)
    # At least one level below zero if anything is there, and one above.
    least, most = (low < 0).astype(low.dtype), top - (high > 0).astype(low.dtype)
    zero = jnp.clip(jnp.floor(-low / even + _SLACK), least, most)
    step = jnp.maximum(-low / jnp.maximum(zero, 1), high / jnp.maximum(top - zero, 1))
    step = jnp.maximum(step, jnp.finfo(low.dtype).tiny)
    step = jnp.where(jnp.isnan(even), jnp.nan, step)
    return Grid(step, zero.astype(jnp.uint8), jnp.zeros_like(low))


def fit_range(
    x: jax.Array, axes: tuple[int, ...], top: int, zero_aligned: bool
) -> Grid:
    """The grid of levels 0..top over the range of the matrix `x` along `axes`."""
    if axes == (0,):
        lows, highs = _fold_rows(jnp.minimum, x), _fold_rows(jnp.maximum, x)
    else:
        lows = highs = x
    low, high = lows.min(axes, keepdims=True), highs.max(axes, keepdims=True)
    return fit_grid(low, high, top, zero_aligned)


def _fold_rows(
    pick: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array
) -> jax.Array:
    """Halves axis 0 until 8 rows are left; the halves of an odd number share a row.

    XLA on the CPU reduces one column after the other. Where rows lie a multiple of the
    cache's size apart, the columns drive each other out: both bounds of 128 x 32768
    take 26 ms in one go, 2 ms so.
    """
    while x.shape[0] > 8:
        half = (x.shape[0] + 1) // 2
        x = pick(x[:half], x[-half:])
    return x

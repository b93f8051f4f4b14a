"""Sliding windows over an array as strided slices, one for each place in the window."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Windows(NamedTuple):
    """Where windows lie; one entry an axis of the array.

    Attributes:
        size: Of the window.
        strides: Between windows.
        padding: Before and after the array; negative cuts.
        dilation: Of the array: its elements lie this far apart.
        window_dilation: Of the window.
    """

    size: Sequence[int]
    strides: Sequence[int]
    padding: Sequence[tuple[int, int]]
    dilation: Sequence[int]
    window_dilation: Sequence[int]

    def slices(self, x: jax.Array, *, fill: float) -> list[jax.Array]:
        """What each place of the window sees, places in row-major order.

        Args:
            x: The array.
            fill: What padding holds.
        """
        if self._tile(x.shape):
            return self._tiles(x)
        edges = [
            (low, high, gap - 1)
            for (low, high), gap in zip(self.padding, self.dilation, strict=True)
        ]
        x = lax.pad(x, jnp.asarray(fill, x.dtype), edges)
        # How far a window's start can lie from the first one's.
        reach = [
            length - 1 - (size - 1) * dilation
            for length, size, dilation in zip(
                x.shape, self.size, self.window_dilation, strict=True
            )
        ]
        found = []
        for place in itertools.product(*map(range, self.size)):
            low = [i * d for i, d in zip(place, self.window_dilation, strict=True)]
            high = [start + far + 1 for start, far in zip(low, reach, strict=True)]
            found.append(lax.slice(x, low, high, self.strides))
        return found

    def _tile(self, shape: Sequence[int]) -> bool:
        """Whether the windows lie side by side and cover an array of this shape."""
        plain = all(gap == 1 for gap in (*self.dilation, *self.window_dilation))
        return (
            plain
            and tuple(self.size) == tuple(self.strides)
            and all(low == high == 0 for low, high in self.padding)
            and all(n % size == 0 for n, size in zip(shape, self.size, strict=True))
        )

    def _tiles(self, x: jax.Array) -> list[jax.Array]:
        """The slices of windows side by side, by splits: their derivatives join."""
        counts = [n // size for n, size in zip(x.shape, self.size, strict=True)]
        digits = zip(counts, self.size, strict=True)
        found = [x.reshape([n for pair in digits for n in pair])]
        for axis, size in enumerate(self.size):
            if size > 1:
                parts = (lax.split(y, (1,) * size, axis=2 * axis + 1) for y in found)
                found = [part for some in parts for part in some]
        return [y.reshape(counts) for y in found]

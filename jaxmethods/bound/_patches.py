"""Rows that read a window each: what a pass from a convolution's output consists of.

Row (o, channel) of a feature map depends, one convolution down, on a window of the
input that starts at o * stride - low, and so on for each convolution below. As an
identity matrix that is carried down the map such rows have as many coefficients as
there are pairs of entries; as patches they have as many as the window has, which grows
by (kernel - 1) * stride a layer.

References:
    Xu, Zhang, Wang, Wang, Jana, Lin, Hsieh. Fast and complete: enabling complete neural
    network verification with rapid and massively parallel incomplete verifiers. ICLR
    2021, arXiv:2011.13824 (the patches of its implementation).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core import Node


@dataclass(frozen=True)
class Patches:
    """Coefficients of one feature map by windows.

    Attributes:
        values: (sides * channels of the start, *positions, *window, channels).
        strides: How far the window moves from one position to the next, a dimension.
        lows: How far the first window starts before the map.
        shape: The shape of the value that the rows belong to.
        axes: Which of its axes are the spatial ones and the channels; None for one of
            size 1 that the value lacks. All other axes have size 1.
        order: The transposition of (start channels, *positions) that makes rows.
        num_sides: 2 if negated rows follow.
        is_inside: Whether coefficients outside of the map are zero.
    """

    values: Any
    strides: tuple[int, ...]
    lows: tuple[int, ...]
    shape: tuple[int, ...]
    axes: tuple[int | None, ...]
    order: tuple[int, ...]
    num_sides: int = 1
    is_inside: bool = False

    @property
    def num_dims(self) -> int:
        """The number of spatial dimensions."""
        return len(self.strides)

    @property
    def window(self) -> tuple[int, ...]:
        """The size of the window."""
        return self.values.shape[1 + self.num_dims : -1]

    @property
    def positions(self) -> tuple[int, ...]:
        """The number of windows along each dimension."""
        return self.values.shape[1 : 1 + self.num_dims]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The size of the map."""
        return tuple(1 if i is None else self.shape[i] for i in self.axes[:-1])

    def has_axes(self, axes: Sequence[int]) -> bool:
        """Whether these are the spatial axes, in the same order, and the channels."""
        if len(axes) != len(self.axes):
            return False
        return all(
            mine == other or (mine is None and self.shape[other] == 1)
            for mine, other in zip(self.axes, axes, strict=True)
        )

    @property
    def _kept(self) -> tuple[int, ...]:
        return tuple(i for i in self.axes if i is not None)

    @property
    def flat(self) -> Any:
        """The coefficients (sides * channels, all positions, all of the window)."""
        return self.values.reshape(len(self.values), math.prod(self.positions), -1)

    def spread(self, x: Any) -> Any:
        """The windows of an array like the map, (1, all positions, all of a window)."""
        x = x.transpose(*self._kept, *(i for i in range(x.ndim) if i not in self._kept))
        x = x.reshape(*self.sizes, -1)
        for i in range(self.num_dims):
            x = self._windows(x, i)
        count = self.num_dims
        order = (*range(0, 2 * count, 2), *range(1, 2 * count, 2), 2 * count)
        return x.transpose(order).reshape(1, math.prod(self.positions), -1)

    def _windows(self, x: Any, dim: int) -> Any:
        """Replaces the axis of a dimension by two: position and place in the window."""
        axis, stride, low = 2 * dim, self.strides[dim], self.lows[dim]
        count, width = self.positions[dim], self.window[dim]
        reach = (count - 1) * stride + width
        edges = [(0, 0, 0)] * x.ndim
        edges[axis] = (low, reach - low - x.shape[axis], 0)
        x = lax.pad(x, jnp.zeros((), x.dtype), edges)
        last = (count - 1) * stride + 1
        pieces = [
            lax.slice_in_dim(x, k, k + last, stride, axis=axis) for k in range(width)
        ]
        return jnp.stack(pieces, axis=axis + 1)

    def collect(self, x: Any, fold: Callable[..., Any] = jnp.sum) -> Any:
        """Folds the windows; one number a row, in the order of the start's entries."""
        return self._in_order(fold(x, axis=-1))

    def _in_order(self, x: Any) -> Any:
        x = x.reshape(self.num_sides, -1, *self.positions)
        return x.transpose(0, *(i + 1 for i in self.order)).reshape(-1)

    def inner(self, x: Any) -> Any:
        """The product of each row with a value: (R,)."""
        return self.collect(self.flat * self.spread(x))

    def inner_shared(self, x: Any) -> Any:
        """The same, as one matrix product for each position."""
        numbers = (((2,), (1,)), ((1,), (0,)))
        found = lax.dot_general(
            self.flat, self.spread(x)[0], numbers, precision=lax.Precision.HIGHEST
        )
        return self._in_order(found.T)

    def inside(self) -> "Patches":
        """The same rows with zeros outside of the map."""
        if self.is_inside:
            return self
        mask = self.spread(jnp.ones(self.shape, self.values.dtype))
        values = (self.flat * mask).reshape(self.values.shape)
        return replace(self, values=values, is_inside=True)

    def dense(self) -> Any:
        """The coefficients (R, *shape)."""
        x, count = self.values, self.num_dims
        for i in range(count):
            place = jnp.arange(self.sizes[i])[None] + self.lows[i]
            place = place - self.strides[i] * jnp.arange(self.positions[i])[:, None]
            outside = self.window[i]
            place = jnp.where((place >= 0) & (place < outside), place, outside)
            x = _place(x, place, 1 + i, 1 + count + i)
        channels = x.shape[-1]
        x = x.reshape(self.num_sides, -1, *self.positions, *self.sizes, channels)
        kept = range(2 + count, x.ndim)
        x = x.transpose(0, *(i + 1 for i in self.order), *kept)
        x = x.reshape(-1, *(self.shape[i] for i in self._kept))
        back = sorted(range(len(self._kept)), key=lambda i: self._kept[i])
        return x.transpose(0, *(i + 1 for i in back)).reshape(-1, *self.shape)

    def both_signs(self) -> "Patches":
        """The rows, then the rows negated."""
        values = jnp.concatenate([self.values, -self.values])
        return replace(self, values=values, num_sides=2)

    def plus(self, other: "Patches") -> "Patches | None":
        """The sum, if the windows move alike and belong to the same entries."""
        ways = [(each.strides, each.axes, each.order) for each in (self, other)]
        if ways[0] != ways[1]:
            return None
        low = tuple(map(max, self.lows, other.lows))
        high = tuple(
            max(p.window[i] - p.lows[i] for p in (self, other))
            for i in range(self.num_dims)
        )
        values = self._widened(low, high) + other._widened(low, high)
        both = self.is_inside and other.is_inside
        return replace(self, values=values, lows=low, is_inside=both)

    def _widened(self, low: Sequence[int], high: Sequence[int]) -> Any:
        edges = [(0, 0, 0)] * (1 + self.num_dims)
        for i in range(self.num_dims):
            more = high[i] - (self.window[i] - self.lows[i])
            edges.append((low[i] - self.lows[i], more, 0))
        zero = jnp.zeros((), self.values.dtype)
        return lax.pad(self.values, zero, [*edges, (0, 0, 0)])


def _place(x: Any, place: Any, position_axis: int, window_axis: int) -> Any:
    """Puts each window where it belongs: its axis becomes one of the map's size."""

    def put(x: Any, place: Any) -> Any:
        return jnp.take(x, place, axis=window_axis - 1, mode="fill", fill_value=0)

    return jax.vmap(put, (position_axis, 0), position_axis)(x, place)


def from_convolution(node: Node, diagonal: Any) -> Patches:
    """The rows of a convolution's input from a diagonal on its output.

    Args:
        node: A convolution without dilation or groups, of one image.
        diagonal: The coefficient of each entry of the output, of the output's shape.
    """
    numbers, params = node.params["dimension_numbers"], node.params
    kernel = node.inputs[1].transpose(*numbers.rhs_spec[2:], *numbers.rhs_spec[:2])
    _, features, *spatial = numbers.out_spec
    diagonal = diagonal.transpose(numbers.out_spec)[0]
    count = len(spatial)
    kernel = jnp.moveaxis(kernel, count, 0)
    ones = (1,) * (count + 1)
    values = diagonal.reshape(*diagonal.shape, *ones) * jnp.expand_dims(
        kernel, tuple(range(1, 1 + count))
    )
    start = [features, *spatial]
    _, in_features, *in_spatial = numbers.lhs_spec
    return Patches(
        values,
        tuple(params["window_strides"]),
        tuple(low for low, _ in params["padding"]),
        node.inputs[0].shape,
        (*in_spatial, in_features),
        tuple(sorted(range(count + 1), key=lambda i: start[i])),
    )


def from_diagonal(
    diagonal: Any, spatial: Sequence[int], channels: int | None
) -> Patches:
    """The rows of a feature map from a diagonal on it, as windows of one position.

    Args:
        diagonal: The coefficient of each entry, of the map's shape.
        spatial: Its spatial axes.
        channels: Its axis of channels; None where it has none. All others have size 1.
    """
    kept = [*spatial, *([] if channels is None else [channels])]
    rest = [i for i in range(diagonal.ndim) if i not in kept]
    sizes = [diagonal.shape[i] for i in spatial]
    count = 1 if channels is None else diagonal.shape[channels]
    entries = diagonal.transpose(*kept, *rest).reshape(*sizes, count)
    own = jnp.eye(count, dtype=bool).reshape(count, *[1] * len(sizes), count)
    values = jnp.where(own, entries[None], 0)
    start = [-1 if channels is None else channels, *spatial]
    return Patches(
        values.reshape(count, *sizes, *[1] * len(sizes), count),
        (1,) * len(sizes),
        (0,) * len(sizes),
        diagonal.shape,
        (*spatial, channels),
        tuple(sorted(range(len(start)), key=lambda i: start[i])),
    )


def through_convolution(node: Node, rows: Patches) -> Patches:
    """The rows of a convolution's input from rows of its output."""
    numbers, params = node.params["dimension_numbers"], node.params
    rows = rows.inside()
    strides, count = params["window_strides"], rows.num_dims
    kernel = node.inputs[1].transpose(
        *numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]
    )
    window = [
        (w - 1) * s + k
        for w, s, k in zip(rows.window, strides, kernel.shape, strict=False)
    ]
    matrix = _window_matrix(kernel, rows.window, window, strides)
    values = rows.values.reshape(-1, matrix.shape[0])
    values = jnp.matmul(values, matrix, precision=lax.Precision.HIGHEST)
    _, in_features, *in_spatial = numbers.lhs_spec
    pairs = zip(rows.lows, strides, params["padding"], strict=True)
    return Patches(
        values.reshape(*rows.values.shape[: 1 + count], *window, -1),
        tuple(a * b for a, b in zip(rows.strides, strides, strict=True)),
        tuple(low * s + pad for low, s, (pad, _) in pairs),
        node.inputs[0].shape,
        (*in_spatial, in_features),
        rows.order,
        rows.num_sides,
    )


def reshaped(rows: Patches, shape: tuple[int, ...]) -> Patches | None:
    """The rows of a value of another shape that differs by axes of size 1 only."""
    mine = [i for i, n in enumerate(rows.shape) if n != 1]
    theirs = [i for i, n in enumerate(shape) if n != 1]
    if [rows.shape[i] for i in mine] != [shape[i] for i in theirs]:
        return None
    axes = tuple(theirs[mine.index(i)] if i in mine else None for i in rows.axes)
    return replace(rows, shape=shape, axes=axes)


def transposed(rows: Patches, permutation: Sequence[int]) -> Patches:
    """The rows of a value whose transpose by `permutation` has these rows."""
    shape = [0] * len(permutation)
    for i, source in enumerate(permutation):
        shape[source] = rows.shape[i]
    axes = tuple(None if i is None else permutation[i] for i in rows.axes)
    return replace(rows, shape=tuple(shape), axes=axes)


def _window_matrix(
    kernel: Any, window: Sequence[int], larger: Sequence[int], strides: Sequence[int]
) -> Any:
    """The transposed convolution of one window, as a matrix: one product for all."""
    *_, num_in, num_out = kernel.shape
    count = len(window)
    last = (0, count + 1, *range(1, count + 1))
    numbers = lax.ConvDimensionNumbers(last, (count + 1, count, *range(count)), last)

    def convolve(x: Any) -> Any:
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            [(0, 0)] * count,
            dimension_numbers=numbers,
            precision=lax.Precision.HIGHEST,
        )

    size = math.prod(window) * num_out
    images = jnp.zeros_like(kernel, shape=(size, *larger, num_in))
    basis = jnp.zeros_like(kernel, shape=(size, size)) + jnp.eye(size)
    basis = basis.astype(kernel.dtype).reshape(size, *window, num_out)
    return jax.linear_transpose(convolve, images)(basis)[0].reshape(size, -1)

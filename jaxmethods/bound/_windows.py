"""Sums over windows: pooling, and how its rows go back as patches."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from ._patches import Patches, from_diagonal

POOLS = frozenset({"reduce_window_max", "reduce_window_min", "reduce_window_sum"})


@dataclass(frozen=True)
class WindowSum:
    """The linear function that sums some entries of each window of a value.

    Attributes:
        params: Those of a `reduce_window` primitive.
        chosen: Which entries count, (entries of a window, *output shape), in the order
            of `entries`; None for all.
    """

    params: Mapping[str, Any]
    chosen: Any = None

    def __call__(self, x: Any) -> Any:
        """The sums, of the output's shape."""
        listed = entries(x, self.params, 0.0)
        if self.chosen is not None:
            listed = jnp.where(self.chosen, listed, 0)
        return jnp.sum(listed, axis=0)


def entries(x: Any, params: Mapping[str, Any], fill: float) -> Any:
    """The entries of each window, (window size, *output); padding reads as `fill`."""
    dilated = [
        (low, high, d - 1)
        for (low, high), d in zip(
            params["padding"], params["base_dilation"], strict=True
        )
    ]
    padded = lax.pad(x, jnp.asarray(fill, x.dtype), dilated)
    window, dilation = params["window_dimensions"], params["window_dilation"]
    strides = params["window_strides"]
    reach = [(w - 1) * d for w, d in zip(window, dilation, strict=True)]
    pieces = []
    for offset in itertools.product(*map(range, window)):
        start = [o * d for o, d in zip(offset, dilation, strict=True)]
        limit = [
            size - r + s for size, r, s in zip(padded.shape, reach, start, strict=True)
        ]
        pieces.append(lax.slice(padded, start, limit, strides))
    return jnp.stack(pieces)


def are_spatial(params: Mapping[str, Any], rows: Patches) -> bool:
    """Whether windows extend and move along the spatial axes of the rows' map alone."""
    spatial = [i for i in rows.axes[:-1] if i is not None]
    others = [i for i in range(len(rows.shape)) if i not in spatial]
    still = all(_along(params, i) == _Move() for i in others)
    return still and max(params["base_dilation"]) == 1


def map_axes(
    params: Mapping[str, Any], shape: tuple[int, ...]
) -> tuple[list[int], int | None] | None:
    """Which axes of sums over windows are spatial, and which is that of the channels.

    None where nothing is spatial, or more than one axis is left for the channels.
    """
    spatial = [i for i in range(len(shape)) if _along(params, i) != _Move()]
    others = [i for i in range(len(shape)) if i not in spatial and shape[i] > 1]
    if not spatial or len(others) > 1 or max(params["base_dilation"]) > 1:
        return None
    return spatial, others[0] if others else None


def pooled(params: Mapping[str, Any], diagonal: Any) -> Patches | None:
    """A diagonal on sums over windows as patches; None where they are no feature map.

    Args:
        params: Those of a `reduce_window` primitive.
        diagonal: The coefficient of each entry, of the output's shape.
    """
    axes = map_axes(params, diagonal.shape)
    return None if axes is None else from_diagonal(diagonal, *axes)


def through_windows(
    lower: WindowSum, upper: WindowSum, rows: Patches, shape: tuple[int, ...]
) -> Patches:
    """The rows of a value from rows of its sums over windows.

    Args:
        lower: What stands for an output where its coefficient is positive.
        upper: What stands for it where the coefficient is negative, of the same params.
        rows: Rows of the output for which `are_spatial` holds.
        shape: The shape of the value.
    """
    rows, params, axes = rows.inside(), lower.params, rows.axes[:-1]
    moves = [_along(params, i) for i in axes]
    found, zero = (
        jnp.zeros_like(rows.values, shape=()),
        jnp.zeros((), rows.values.dtype),
    )
    for k, place in enumerate(
        itertools.product(*map(range, params["window_dimensions"]))
    ):
        part = rows.flat
        if lower.chosen is not None:
            below, above = (rows.spread(each.chosen[k]) for each in (lower, upper))
            part = jnp.where(jnp.where(part > 0, below, above), part, 0)
        edges = [
            move.edges(0 if i is None else place[i])
            for i, move in zip(axes, moves, strict=True)
        ]
        still = [(0, 0, 0)] * (1 + rows.num_dims)
        part = part.reshape(rows.values.shape)
        found = found + lax.pad(part, zero, [*still, *edges, (0, 0, 0)])
    return replace(
        rows,
        values=found,
        strides=tuple(a * m.stride for a, m in zip(rows.strides, moves, strict=True)),
        lows=tuple(a * m.stride + m.low for a, m in zip(rows.lows, moves, strict=True)),
        shape=shape,
        is_inside=False,
    )


class _Move(NamedTuple):
    """What windows do along an axis."""

    size: int = 1
    stride: int = 1
    dilation: int = 1
    low: int = 0
    high: int = 0

    def edges(self, place: int) -> tuple[int, int, int]:
        """How coefficients of sums are padded to be those of an entry of the window."""
        last = self.size - 1
        return place * self.dilation, (last - place) * self.dilation, self.stride - 1


def _along(params: Mapping[str, Any], axis: int | None) -> _Move:
    if axis is None:
        return _Move()
    names = ("window_dimensions", "window_strides", "window_dilation")
    return _Move(*(params[n][axis] for n in names), *params["padding"][axis])

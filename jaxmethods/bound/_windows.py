"""Sums over windows: pooling, and how its rows go back as patches."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import materialized, vary_as
from ._patches import Patches, from_diagonal

POOLS = frozenset({"reduce_window_max", "reduce_window_min", "reduce_window_sum"})
# Of more slices programs take long to compile.
_MOST_SLICES = 16
# Of 4 x 4 strides: each part of a window is a term of a sum in the program.
_MOST_BLOCKS = 16


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

    def counts(
        self, shape: tuple[int, ...], dtype: Any, which: Sequence[bool] | None = None
    ) -> Any:
        """In how many sums each entry counts.

        Args:
            shape: The shape of the value that the windows move over.
            dtype: The type of the numbers.
            which: Which entries of a window to look at; None for all.
        """
        value: Any = jnp.zeros(shape, dtype)
        size = math.prod(self.params["window_dimensions"])
        chosen = jnp.ones(size, bool) if which is None else jnp.asarray(which)
        chosen = chosen.reshape(-1, *[1] * value.ndim)
        if self.chosen is not None:
            chosen = self.chosen & chosen
            # Else a transpose inside `shard_map` would sum over the devices.
            value = vary_as(value, jax.typeof(chosen))
        sums, transpose = jax.vjp(replace(self, chosen=chosen), value)
        return transpose(jnp.ones_like(sums))[0]


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

    def entry(x: Any, offset: tuple[int, ...]) -> Any:
        first = [o * d for o, d in zip(offset, dilation, strict=True)]
        sizes = zip(first, x.shape, reach, strides, strict=True)
        return x[tuple(slice(i, i + n - r, s) for i, n, r, s in sizes)]

    offsets = list(itertools.product(*map(range, window)))
    if len(offsets) <= _MOST_SLICES:
        return jnp.stack([entry(padded, offset) for offset in offsets])
    places = np.arange(padded.size).reshape(padded.shape)
    return padded.reshape(-1)[np.stack([entry(places, offset) for offset in offsets])]


def are_spatial(params: Mapping[str, Any], rows: Patches) -> bool:
    """Whether windows extend and move along the spatial axes of the rows' map alone.

    Nor may they overlap so much that rows would be a sum of too many.
    """
    spatial = [i for i in rows.axes[:-1] if i is not None]
    others = [i for i in range(len(rows.shape)) if i not in spatial]
    if any(_along(params, i, rows.shape) != _Move() for i in others):
        return False
    moves = [_along(params, i, rows.shape) for i in rows.axes[:-1]]
    few = math.prod(m.num_blocks for m in moves) <= _MOST_BLOCKS
    return few and max(params["base_dilation"]) == 1


def map_axes(
    params: Mapping[str, Any], shape: tuple[int, ...]
) -> tuple[list[int], int | None] | None:
    """Which axes of sums over windows are spatial, and which is that of the channels.

    None where nothing is spatial, or more than one axis is left for the channels.
    """
    spatial = [i for i in range(len(shape)) if _along(params, i, shape) != _Move()]
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
    moves = [_along(lower.params, i, rows.shape) for i in rows.axes[:-1]]
    # Windows no larger than the stride do not overlap; larger ones are several of them.
    blocks = itertools.product(*(range(m.num_blocks) for m in moves))
    total, *others = (_through_block(lower, upper, rows, shape, b) for b in blocks)
    for other in others:
        both = total.plus(other)
        assert both is not None  # their windows move alike
        total = both
    # Several sums read them.
    return replace(total, values=materialized(total.values))


def _through_block(
    lower: WindowSum,
    upper: WindowSum,
    rows: Patches,
    shape: tuple[int, ...],
    block: tuple[int, ...],
) -> Patches:
    """The rows of a part of each window, where an entry has the coefficient of one sum.

    Coefficients outside of the map of sums come to lie where no window is.

    Args:
        lower: As for `through_windows`.
        upper: As for `through_windows`.
        rows: As for `through_windows`.
        shape: As for `through_windows`.
        block: How many strides the part is away from the start of the window.
    """
    axes, params = rows.axes[:-1], lower.params
    moves = [_along(params, i, rows.shape) for i in axes]
    lows = zip(rows.lows, moves, block, strict=True)
    still = [1] * (1 + rows.num_dims)
    new = replace(
        rows,
        values=_repeated(rows.values, [*still, *(m.stride for m in moves), 1]),
        strides=tuple(s * m.stride for s, m in zip(rows.strides, moves, strict=True)),
        lows=tuple((low - b) * m.stride + m.low for low, m, b in lows),
        shape=shape,
        is_inside=True,
    )
    which = [
        all(
            i is None or place[i] * m.dilation // m.stride == b
            for i, m, b in zip(axes, moves, block, strict=True)
        )
        for place in itertools.product(*map(range, params["window_dimensions"]))
    ]
    flat = new.flat
    below, above = (
        new.spread(each.counts(shape, flat.dtype, which)) for each in (lower, upper)
    )
    values = _times_by_sign(flat, below, above)
    return replace(new, values=values.reshape(new.values.shape))


def through_windows_apart(
    lower: WindowSum, upper: WindowSum, rows: Any, shape: tuple[int, ...]
) -> Any:
    """Dense rows of a value from those of its sums over windows, if none overlap.

    Args:
        lower: As for `through_windows`; `are_apart` holds.
        upper: As for `through_windows`.
        rows: Coefficients (R, *output shape).
        shape: The shape of the value.

    Returns:
        Coefficients (R, *shape).
    """
    moves = [_along(lower.params, i, rows.shape[1:]) for i in range(len(shape))]
    found = _repeated(rows, [1, *(m.stride for m in moves)])
    edges = [
        (-m.low, size + m.low - have, 0)
        for m, size, have in zip(moves, shape, found.shape[1:], strict=True)
    ]
    found = lax.pad(found, jnp.zeros((), found.dtype), [(0, 0, 0), *edges])
    below, above = (each.counts(shape, rows.dtype)[None] for each in (lower, upper))
    return _times_by_sign(found, below, above)


def are_apart(params: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
    """Whether no entry belongs to two windows, whose sums have this shape."""
    moves = [_along(params, i, shape) for i in range(len(shape))]
    still = max(params["base_dilation"]) == 1
    return still and all(m.num_blocks == 1 for m in moves)


def _times_by_sign(x: Any, below: Any, above: Any) -> Any:
    """Positive numbers times the first, negative ones times the second.

    Without a choice, which would be written to memory before it is multiplied on.
    """
    return x * ((below + above) / 2) + jnp.abs(x) * ((below - above) / 2)


def _repeated(x: Any, times: Sequence[int]) -> Any:
    """Each entry so often along each axis.

    As one broadcast, which fuses with what follows; two would be written to memory.
    """
    ones = [n for size in x.shape for n in (size, 1)]
    both = [n for pair in zip(x.shape, times, strict=True) for n in pair]
    found = jnp.broadcast_to(x.reshape(ones), both)
    return found.reshape([size * n for size, n in zip(x.shape, times, strict=True)])


class _Move(NamedTuple):
    """What windows do along an axis."""

    size: int = 1
    stride: int = 1
    dilation: int = 1
    low: int = 0
    high: int = 0

    @property
    def reach(self) -> int:
        """How far a window reaches."""
        return (self.size - 1) * self.dilation + 1

    @property
    def num_blocks(self) -> int:
        """How many parts no larger than the stride a window consists of."""
        return -(-self.reach // self.stride)


def _along(
    params: Mapping[str, Any], axis: int | None, shape: tuple[int, ...]
) -> _Move:
    """What windows do along an axis of their sums, which have this shape."""
    if axis is None:
        return _Move()
    names = ("window_dimensions", "window_strides", "window_dilation")
    move = _Move(*(params[n][axis] for n in names), *params["padding"][axis])
    # Where there is one window its stride may be any.
    return move._replace(stride=move.reach) if shape[axis] == 1 else move

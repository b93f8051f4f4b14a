"""Follows parameters through moves: transposes, reshapes, slices, joins, casts.

A matrix that a loss multiplies by is often not a parameter but a view of one, or of
several side by side: a decoder's transposed embedding, a slice of a fused kernel, the
kernels of four gates joined. Each entry of a view is an entry of a parameter, at a
place that digits tell.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend.core import JaxprEqn

# A digit counts entries of the flat parameter: how many, and how far apart. An axis is
# written in digits, the first the most significant, as a time is in hours and minutes.
Digit = tuple[int, int]
Axis = tuple[Digit, ...]


class Piece(NamedTuple):
    """Part of one parameter, in an array that may hold others.

    Attributes:
        leaf: Which parameter.
        offset: Where the piece's first entry lies in the flat parameter.
        axes: The axes of the piece.
        start: Where it starts along each axis of the array.
        loops: For each loop around, outermost first, the axis that the loop takes
            apart, one entry a round; without digits where each round sees all.
    """

    leaf: int
    offset: int
    axes: tuple[Axis, ...]
    start: tuple[int, ...]
    loops: tuple[Axis, ...] = ()

    def along(self, axes: Sequence[int]) -> list[slice]:
        """Where the piece lies along some axes of the array."""
        ends = [(self.start[d], extent(self.axes[d])) for d in axes]
        return [slice(start, start + size) for start, size in ends]

    def fills(self, shape: Sequence[int]) -> bool:
        """Whether the piece is all of an array of this shape."""
        return tuple(map(extent, self.axes)) == tuple(shape)


View = tuple[Piece, ...]


def extent(axis: Axis) -> int:
    """The length of an axis."""
    return math.prod(size for size, _ in axis)


def merge(digits: Sequence[Digit]) -> Axis:
    """The same axis in the fewest digits."""
    merged: list[Digit] = []
    for size, stride in digits:
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return tuple(merged)


def view_of(leaf: int, shape: Sequence[int]) -> View:
    """A parameter seen as it is."""
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    axes = tuple(((n, stride),) for n, stride in zip(shape, strides, strict=True))
    return (Piece(leaf, 0, axes, (0,) * len(shape)),)


def reshape(view: View, before: Sequence[int], after: Sequence[int]) -> View | None:
    """A view in another shape; None where it cannot be told in digits."""
    if len(view) == 1 and view[0].fills(before):
        digits = [digit for axis in view[0].axes for digit in axis]
        axes = _regroup(digits, after)
        if axes is None:
            return None
        return (view[0]._replace(axes=axes, start=(0,) * len(after)),)
    # Several pieces side by side: axes of length one may come and go.
    if [n for n in before if n != 1] != [n for n in after if n != 1]:
        return None
    long = [d for d, n in enumerate(before) if n != 1]
    numbers = iter(long)
    source = [next(numbers) if n != 1 else None for n in after]

    def move(piece: Piece) -> Piece:
        return piece._replace(
            axes=tuple(() if d is None else piece.axes[d] for d in source),
            start=tuple(0 if d is None else piece.start[d] for d in source),
        )

    return tuple(map(move, view))


def _regroup(digits: list[Digit], shape: Sequence[int]) -> tuple[Axis, ...] | None:
    digits, axes = list(merge(digits)), []
    for missing in shape:
        axis: list[Digit] = []
        while missing > 1:
            size, stride = digits.pop(0)
            if missing % size == 0:
                axis.append((size, stride))
                missing //= size
            elif size % missing == 0:
                low = size // missing
                axis.append((missing, stride * low))
                digits.insert(0, (low, stride))
                missing = 1
            else:
                return None
        axes.append(tuple(axis))
    return tuple(axes)


def enter_loop(view: View, length: int, *, apart: bool) -> View | None:
    """What each round of a loop sees: the view, or one entry of its first axis.

    None where a round may see one piece and the next another.
    """
    if not apart:
        return tuple(piece._replace(loops=(*piece.loops, ())) for piece in view)
    if any(extent(piece.axes[0]) != length for piece in view):
        return None
    return tuple(
        piece._replace(
            axes=piece.axes[1:],
            start=piece.start[1:],
            loops=(*piece.loops, merge(piece.axes[0])),
        )
        for piece in view
    )


def see_through(
    equation: JaxprEqn, operands: Sequence[View | None]
) -> list[View | None] | None:
    """The views that an equation gives of views; None where it computes something."""
    move = _MOVES.get(equation.primitive.name)
    return move(equation, operands) if move else None


def _shape(var: Any) -> tuple[int, ...]:
    return var.aval.shape


def _same(equation: JaxprEqn, operands: Sequence[View | None]) -> list[View | None]:
    return [operands[0]]


def _cast(
    equation: JaxprEqn, operands: Sequence[View | None]
) -> list[View | None] | None:
    dtype: Any = equation.params["new_dtype"]
    return [operands[0]] if jnp.issubdtype(dtype, jnp.floating) else None


def _transpose(
    equation: JaxprEqn, operands: Sequence[View | None]
) -> list[View | None]:
    order = equation.params["permutation"]
    return [
        tuple(
            piece._replace(
                axes=tuple(piece.axes[d] for d in order),
                start=tuple(piece.start[d] for d in order),
            )
            for piece in operands[0] or ()
        )
    ]


def _reshape(
    equation: JaxprEqn, operands: Sequence[View | None]
) -> list[View | None] | None:
    before, after = _shape(equation.invars[0]), _shape(equation.outvars[0])
    if math.prod(before) != math.prod(after):
        return None  # A broadcast: its entries are seen several times.
    view = reshape(operands[0] or (), before, after)
    return None if view is None else [view]


def _slice(
    equation: JaxprEqn, operands: Sequence[View | None]
) -> list[View | None] | None:
    params = equation.params
    starts, limits = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * len(starts)
    view: View | None = operands[0]
    for axis, bounds in enumerate(zip(starts, limits, strides, strict=True)):
        view = None if view is None else _cut(view, axis, range(*bounds))
    return None if view is None else [view or None]


def _split(
    equation: JaxprEqn, operands: Sequence[View | None]
) -> list[View | None] | None:
    axis, start, parts = equation.params["axis"], 0, []
    for size in map(int, equation.params["sizes"]):
        part = _cut(operands[0] or (), axis, range(start, start + size))
        if part is None:
            return None
        parts.append(part or None)
        start += size
    return parts


def _cut(view: View, axis: int, kept: range) -> View | None:
    """The view of some entries along an axis; None where digits cannot tell them."""
    pieces = []
    for piece in view:
        start, size = piece.start[axis], extent(piece.axes[axis])
        places = [i for i, place in enumerate(kept) if start <= place < start + size]
        if not places:
            continue
        if len(places) == size and kept.step == 1:
            digits, skipped = piece.axes[axis], 0
        else:
            digits = merge(piece.axes[axis])
            if len(digits) > 1:
                return None
            stride = digits[0][1] if digits else 0
            skipped = (kept[places[0]] - start) * stride
            digits = ((len(places), stride * kept.step),)
        pieces.append(
            piece._replace(
                offset=piece.offset + skipped,
                axes=(*piece.axes[:axis], digits, *piece.axes[axis + 1 :]),
                start=(*piece.start[:axis], places[0], *piece.start[axis + 1 :]),
            )
        )
    return tuple(pieces)


def _join(equation: JaxprEqn, operands: Sequence[View | None]) -> list[View | None]:
    axis, reached, pieces = equation.params["dimension"], 0, []
    for var, view in zip(equation.invars, operands, strict=True):
        for piece in view or ():
            start = list(piece.start)
            start[axis] += reached
            pieces.append(piece._replace(start=tuple(start)))
        reached += _shape(var)[axis]
    return [tuple(pieces)]


_MOVES: dict[str, Callable[..., list[View | None] | None]] = {
    "broadcast_in_dim": _reshape,
    "concatenate": _join,
    "convert_element_type": _cast,
    "copy": _same,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "squeeze": _reshape,
    "transpose": _transpose,
}

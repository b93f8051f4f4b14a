"""Where the axes of an operation's operand lie in its result."""

import math
from collections.abc import Sequence
from typing import Any

from ..core import Node

Moved = tuple[int | None, ...]

# Same shape in and out, for square matrices at least, yet entries along an axis meet.
_ALONG_AN_AXIS = frozenset(
    "cumsum cumprod cummax cummin cumlogsumexp sort rev fft scan while cond cholesky "
    "triangular_solve shard_map dot_general ragged_dot conv_general_dilated transpose "
    "gather dynamic_slice dynamic_update_slice custom_linear_solve pallas_call "
    "ppermute all_to_all".split()
)
_WITH_NEIGHBOURS = ("reduce_window", "select_and_", "scatter")


def is_elementwise(node: Node) -> bool:
    """Whether an entry of the result depends on one entry of each operand, its own.

    Operands may be scalars, or have length 1 where the result is longer.
    """
    mixes = node.name in _ALONG_AN_AXIS or node.name.startswith(_WITH_NEIGHBOURS)
    if mixes or len(node.outputs) != 1:
        return False
    shape = node.outputs[0].shape
    shapes = [getattr(atom, "shape", ()) for atom in node.inputs]
    return shape in shapes and all(s == () or _spreads(s, shape) for s in shapes)


def _spreads(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    same_rank = len(shape) == len(to)
    return same_rank and all(a in (1, b) for a, b in zip(shape, to, strict=True))


def moved_axes(node: Node) -> Moved | None:
    """For each axis of the first operand, its axis in the result, or None.

    None instead of a tuple where the operation mixes entries in other ways. An axis
    is followed where it keeps its length and the order of its entries.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods.core import flatten
        >>> graph = flatten(lambda x: x.sum(0).T, jnp.ones((2, 3, 4)))
        >>> [moved_axes(node) for node in graph.nodes]
        [(None, 0, 1), (1, 0)]
    """
    params, shape = node.params, getattr(node.inputs[0], "shape", ())
    if is_elementwise(node):
        return tuple(range(len(shape)))
    if node.name == "transpose":
        return tuple(map(params["permutation"].index, range(len(shape))))
    if node.name == "broadcast_in_dim":
        to = params["broadcast_dimensions"]
        new = node.outputs[0].shape
        return tuple(t if new[t] == n else None for t, n in zip(to, shape, strict=True))
    if node.name == "squeeze":
        return _without(params["dimensions"], len(shape))
    if node.name.startswith("reduce_") and "axes" in params:
        return _without(params["axes"], len(shape))
    if node.name == "reshape" and params.get("dimensions") is None:
        return _reshaped(shape, node.outputs[0].shape)
    return None


def _without(dropped: Sequence[int], ndim: int) -> Moved:
    kept = [axis for axis in range(ndim) if axis not in dropped]
    return tuple(kept.index(a) if a in kept else None for a in range(ndim))


def _reshaped(old: tuple[int, ...], new: tuple[int, ...]) -> Moved:
    """An axis survives where as many entries lie before it and it has its length."""
    starts = {(math.prod(new[:a]), n): a for a, n in enumerate(new) if n != 1}
    return tuple(starts.get((math.prod(old[:a]), n)) for a, n in enumerate(old))


Dimensions = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], ...]]


def kept_axes(dimensions: Dimensions, position: int, ndim: int) -> list[int]:
    """The axes of an operand of `dot_general` that are neither summed nor batched."""
    contracted, batched = dimensions
    gone = {*contracted[position], *batched[position]}
    return [axis for axis in range(ndim) if axis not in gone]


def result_axis(
    dimensions: Dimensions, position: int, axis: int, operands: Sequence[Any]
) -> int:
    """The axis of the result of `dot_general` where a kept axis of an operand lies."""
    left = len(kept_axes(dimensions, 0, len(operands[0].shape)))
    kept = kept_axes(dimensions, position, len(operands[position].shape))
    return len(dimensions[1][0]) + position * left + kept.index(axis)

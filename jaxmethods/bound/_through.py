"""How operations transform rows: the steps of a backward pass."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from ..core import Node, Variable, linear_part, materialized, vary_as, zeros_of
from ..kernels import signed_slopes
from . import _patches as patches
from ._convolution import is_plain_convolution, transposed_convolution
from ._patches import Patches
from ._planes import Planes, SignedLines
from ._rows import (
    Dense,
    Diagonal,
    Entries,
    Rows,
    SingleEntries,
    absolute,
    negated,
    with_flat,
)
from ._windows import (
    WindowSum,
    are_apart,
    are_spatial,
    pooled,
    through_windows,
    through_windows_apart,
)

# Elementwise: the derivative of each output in its own entry alone.
ELEMENTWISE = frozenset(
    {
        *("add", "add_any", "sub", "neg", "mul", "div", "copy", "copy_p", "pvary"),
        *("convert_element_type", "optimization_barrier", "device_put", "reshard"),
        *("sharding_constraint", "pbroadcast"),
    }
)
# The same numbers in the same order.
RESHAPED = frozenset({"reshape", "squeeze", "expand_dims", "broadcast_in_dim"})


def through_affine(node: Node, rows: Sequence[Rows | None]) -> list[Rows]:
    """Rows of the variable operands of an affine node from rows of its outputs."""
    rows = [
        r if r is None else with_flat(r, vary_as(r.flat.astype(out.dtype), out.aval))
        for r, out in zip(rows, node.outputs, strict=True)
    ]
    if len(rows) == 1 and rows[0] is not None:
        short = _short_cut(node, rows[0])
        if short is not None:
            return short
    present = [r.dense() for r in rows if r is not None]
    size = present[0].shape[0]
    cotangents = [
        jnp.zeros_like(present[0], out.dtype, (size, *out.shape))
        if r is None
        else r.dense()
        for r, out in zip(rows, node.outputs, strict=True)
    ]
    if is_plain_convolution(node):
        values = jax.vmap(transposed_convolution(node))(cotangents[0])
        return [Dense(materialized(values))]
    found = jax.vmap(_transpose(node))(cotangents)
    return [Dense(materialized(v) if node.name == "dot_general" else v) for v in found]


def _transpose(node: Node) -> Callable[[list[Any]], Sequence[Any]]:
    linear = linear_part(node)
    if node.name == "scatter":  # jax transposes it where indices are declared unique
        return jax.vjp(linear, *map(zeros_of, node.variables))[1]
    return jax.linear_transpose(linear, *(v.aval for v in node.variables))


def _short_cut(node: Node, rows: Rows) -> list[Rows] | None:
    """What need not go through `jax.linear_transpose`; None where all must."""
    if isinstance(rows, Dense):
        return None
    variables, out = node.variables, node.outputs[0]
    alike = all((v.shape, v.dtype) == (out.shape, out.dtype) for v in variables)
    if node.name in ELEMENTWISE and alike:
        return [_scaled(node, rows, i) for i in range(len(variables))]
    if isinstance(rows, SingleEntries):
        return _single_entries_through(node, rows)
    if node.name in RESHAPED:
        found = patches.reshaped(rows, variables[0].shape)
        return None if found is None else [found]
    if node.name == "transpose":
        return [patches.transposed(rows, node.params["permutation"])]
    if is_local(node):
        _, features, *spatial = node.params["dimension_numbers"].out_spec
        if not rows.has_axes((*spatial, features)):
            return None
        return [_denser(patches.through_convolution(node, rows))]
    if node.name == "reduce_window_sum" and are_spatial(node.params, rows):
        total = WindowSum(node.params)
        return [_denser(through_windows(total, total, rows, variables[0].shape))]
    return None


def _denser(rows: Patches) -> Rows:
    """Patches, but not where windows are as large as the map."""
    covers = math.prod(rows.window) >= math.prod(rows.sizes)
    return Dense(rows.dense()) if covers else rows


def _scaled(node: Node, rows: Rows, position: int) -> Rows:
    """Rows of one operand of an elementwise node."""
    if node.name in ("add", "add_any"):
        return rows
    if node.name == "sub":
        first = node.variables[position] is node.inputs[0] and position == 0
        return rows if first else negated(rows)
    factor = linear_part(node)(zeros_of(node.variables[0]) + 1)[0]
    return with_flat(rows, rows.flat * rows.spread(factor))


def _single_entries_through(node: Node, rows: Diagonal | Entries) -> list[Rows] | None:
    variable = node.variables[0]
    if node.name in RESHAPED and variable.aval.size == node.outputs[0].aval.size:
        if isinstance(rows, Entries):
            return [replace(rows, shape=variable.shape)]
        return [Diagonal(rows.values.reshape(variable.shape))]
    if node.name == "dot_general":
        return _weights(node, rows)
    if isinstance(rows, Diagonal) and is_local(node):
        found = patches.from_convolution(node, rows.values)
        if math.prod(found.window) < math.prod(found.sizes):
            return [found]
    if isinstance(rows, Diagonal) and node.name == "reduce_window_sum":
        first = pooled(node.params, rows.values)
        return None if first is None else _short_cut(node, first)
    return None


def is_local(node: Node) -> bool:
    """Whether a node is a plain convolution of a single image."""
    if not is_plain_convolution(node):
        return False
    return node.inputs[0].shape[node.params["dimension_numbers"].lhs_spec[0]] == 1


def _weights(node: Node, rows: Diagonal | Entries) -> list[Rows] | None:
    """The rows of a matrix product whose variable operand is contracted entirely."""
    contracted, batch = node.params["dimension_numbers"]
    side = 0 if isinstance(node.inputs[0], Variable) else 1
    variable, weights = node.inputs[side], node.inputs[1 - side]
    free = [d for i, d in enumerate(variable.shape) if i not in contracted[side]]
    if batch[0] or math.prod(free) != 1:
        return None
    mine, theirs = contracted[side], contracted[1 - side]
    kept = [i for i in range(weights.ndim) if i not in theirs]
    order = [theirs[mine.index(i)] for i in range(len(variable.shape)) if i in mine]
    matrix = jnp.transpose(weights, (*kept, *order)).reshape(-1, *variable.shape)
    if isinstance(rows, Entries):
        matrix = matrix[rows.index]
    return [Dense(rows.flat.reshape(-1, *[1] * len(variable.shape)) * matrix)]


def through_lines(lines: SignedLines, rows: Rows) -> tuple[Rows, Any]:
    """Rows of the input of a function between two lines, and their bias (R,)."""
    if isinstance(rows, Dense):
        return _dense_through_lines(lines, rows, part=False)
    size = absolute(rows)
    bias = rows.inner(lines.bias_middle) + size.inner(lines.bias_half)
    odd = rows.flat * rows.spread(lines.slope_middle)
    even = size.flat * rows.spread(lines.slope_half)
    return _inside(with_flat(rows, odd + even)), bias


def part_at_lines(lines: SignedLines, rows: Rows) -> tuple[Rows, Any]:
    """`through_lines` of the rows and of the rows negated, one behind the other."""
    if isinstance(rows, SingleEntries):
        rows = Dense(rows.dense())
    if isinstance(rows, Dense):
        return _dense_through_lines(lines, rows, part=True)
    size = absolute(rows)
    odd = rows.inner_shared(lines.bias_middle)
    even = size.inner_shared(lines.bias_half)
    bias = jnp.concatenate([even + odd, even - odd])
    odd = rows.flat * rows.spread(lines.slope_middle)
    even = size.flat * rows.spread(lines.slope_half)
    below = with_flat(rows, jnp.concatenate([even + odd, even - odd]))
    return _inside(replace(below, num_sides=2)), bias


def _dense_through_lines(
    lines: SignedLines, rows: Dense, *, part: bool
) -> tuple[Dense, Any]:
    flat = (x.reshape(-1) for x in lines)
    values, bias = signed_slopes(rows.flat, *flat, part=part)
    return with_flat(rows, values), bias


def _inside(rows: Rows) -> Rows:
    """Notes that slopes, which are zero outside of a map, have been multiplied in."""
    return replace(rows, is_inside=True) if isinstance(rows, Patches) else rows


def through_planes(
    planes: Planes, rows: Rows, inputs: Sequence[Variable]
) -> tuple[list[Rows | None], Any]:
    """Rows of each input of an operation between two planes, and their bias (R,)."""
    found = _local_through_planes(planes, rows, inputs)
    if found is not None:
        return found
    rows = Dense(rows.dense().astype(planes.lower_bias.dtype))
    positive, negative = jnp.maximum(rows.values, 0), jnp.minimum(rows.values, 0)
    below: list[Rows | None] = [None] * len(inputs)
    sides = [(planes.lower_map, positive), (planes.upper_map, negative)]
    if planes.lower_map is planes.upper_map:
        sides = [(planes.lower_map, rows.values)]
    for linear, part in sides:
        if linear is None:
            continue
        transpose = jax.linear_transpose(linear, *(v.aval for v in inputs))
        for i, found in enumerate(jax.vmap(transpose)(part)):
            old = below[i]
            below[i] = Dense(found if old is None else old.values + found)
    return below, _bias_of_planes(planes, rows)


def as_patches(planes: Planes, rows: Rows) -> Rows:
    """Rows of all entries of a pooled feature map as patches; others as they are."""
    if isinstance(planes.lower_map, WindowSum) and isinstance(rows, Diagonal):
        return pooled(planes.lower_map.params, rows.values) or rows
    return rows


def _bias_of_planes(planes: Planes, rows: Rows) -> Any:
    flat = rows.flat
    low, high = rows.spread(planes.lower_bias), rows.spread(planes.upper_bias)
    return rows.collect(flat * jnp.where(flat > 0, low, jnp.where(flat < 0, high, 0)))


def _local_through_planes(
    planes: Planes, rows: Rows, inputs: Sequence[Variable]
) -> tuple[list[Rows | None], Any] | None:
    """`through_planes` of pooling that only moves coefficients; None of all else."""
    lower, upper = planes.lower_map, planes.upper_map
    if not (isinstance(lower, WindowSum) and isinstance(upper, WindowSum)):
        return None
    rows = with_flat(rows, rows.flat.astype(planes.lower_bias.dtype))
    shape = inputs[0].shape
    if isinstance(rows, Patches) and are_spatial(lower.params, rows):
        below = _denser(through_windows(lower, upper, rows, shape))
    elif are_apart(lower.params, planes.lower_bias.shape):
        rows = Dense(rows.dense())
        below = Dense(through_windows_apart(lower, upper, rows.values, shape))
    else:
        return None
    return [below], _bias_of_planes(planes, rows)

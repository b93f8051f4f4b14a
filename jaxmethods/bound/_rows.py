"""Coefficients of linear functions of one value, and how operations transform them.

A row is one linear function. Rows are either `Dense`, an array (R, *shape), or
`Diagonal`, one row an entry of the value: where a pass starts from every entry there is
no identity matrix, and the first matrix product hands over its weights.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import Node, Variable
from ..core._affine import linear_part
from ._convolution import is_plain_convolution, transposed_convolution

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


class Dense(NamedTuple):
    """Coefficients (R, *shape)."""

    values: Any


class Diagonal(NamedTuple):
    """A row for each entry of a value; `values` has the value's shape."""

    values: Any


Rows = Dense | Diagonal


def dense(rows: Rows) -> Any:
    """The array of coefficients (R, *shape)."""
    if isinstance(rows, Dense):
        return rows.values
    flat = rows.values.reshape(-1)
    square = jnp.where(jnp.eye(flat.size, dtype=bool), flat[None], 0)
    return square.reshape(flat.size, *rows.values.shape)


def add(first: Rows | None, second: Rows) -> Rows:
    """The sum of two sets of rows."""
    if first is None:
        return second
    if isinstance(first, Diagonal) and isinstance(second, Diagonal):
        return Diagonal(first.values + second.values)
    return Dense(dense(first) + dense(second))


def inner(rows: Rows, x: Any) -> Any:
    """The product of each row with a value: shape (R,)."""
    if isinstance(rows, Diagonal):
        return (rows.values * x).reshape(-1)
    values = rows.values
    return jnp.sum(values * x[None], axis=tuple(range(1, values.ndim)))


def both_signs(rows: Rows) -> Rows:
    """The rows, then the rows negated."""
    values = dense(rows)
    return Dense(jnp.concatenate([values, -values]))


def through_affine(node: Node, rows: Sequence[Rows | None]) -> list[Rows]:
    """Rows of the variable operands of an affine node from rows of its outputs."""
    if len(rows) == 1 and isinstance(rows[0], Diagonal):
        short = _diagonal_through(node, rows[0])
        if short is not None:
            return short
    present = [dense(r) for r in rows if r is not None]
    size = present[0].shape[0]
    cotangents = [
        jnp.zeros_like(present[0], out.dtype, (size, *out.shape))
        if r is None
        else dense(r)
        for r, out in zip(rows, node.outputs, strict=True)
    ]
    if is_plain_convolution(node):
        return [Dense(jax.vmap(transposed_convolution(node))(cotangents[0]))]
    transpose = jax.linear_transpose(
        linear_part(node), *(v.aval for v in node.variables)
    )
    return [Dense(values) for values in jax.vmap(transpose)(cotangents)]


def _diagonal_through(node: Node, rows: Diagonal) -> list[Rows] | None:
    """The short cuts from a diagonal: elementwise, reshaping, and the weights."""
    (out,) = node.outputs
    same_size = all(math.prod(v.shape) == math.prod(out.shape) for v in node.variables)
    if node.name in RESHAPED and same_size:
        return [Diagonal(rows.values.reshape(node.variables[0].shape))]
    if node.name in ELEMENTWISE and all(v.shape == out.shape for v in node.variables):
        linear = linear_part(node)
        zero = jnp.zeros_like(rows.values)
        count = len(node.variables)
        return [
            Diagonal(
                linear(*(rows.values if i == j else zero for j in range(count)))[0]
            )
            for i in range(count)
        ]
    if node.name == "dot_general":
        return _weights(node, rows)
    return None


def _weights(node: Node, rows: Diagonal) -> list[Rows] | None:
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
    matrix = weights.transpose(*kept, *order)
    count = math.prod(rows.values.shape)
    values = rows.values.reshape(count, *[1] * len(variable.shape))
    return [Dense(values * matrix.reshape(count, *variable.shape))]

"""The equations that are matrix products of one operand with what the others make.

In `y = x @ W` the gradient of W is the sum over rows t of `x[t] g[t]^T`, g the gradient
of y; in a convolution the rows are patches, in a look-up they are rows of the identity
matrix, told by their numbers.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn
from jax.lax import GatherScatterMode

from ._windows import Windows

# More taps than this would take longer to slice than to convolve.
MOST_TAPS = 128
# With so few outputs and weights a CPU multiplies patches, which the factors need in
# any case, in a quarter of the time that it takes to convolve.
FEW_OUTPUTS, FEW_WEIGHTS = 16, 800

Axes = tuple[int, ...]


class Product(NamedTuple):
    """How an equation multiplies by one of its operands, the weight.

    Attributes:
        shape: The shape in which the weight is taken: its axes are those of this.
        groups: The axes along which the equation is many products side by side.
        summed: The axes that are summed over.
        kept: The axes that stay.
        rows: The number of rows of both factors.
        left: Makes of the other operands the factor (groups, rows, summed), every axis
            by itself. Of a look-up the number of each row, -1 for none: (rows,).
        right: Makes of the gradient of the output the factor (groups, rows, kept).
        looks_up: Whether it does.
        on_cpus: The output, of the operands, where CPUs have it faster than by the
            equation.
    """

    shape: tuple[int, ...]
    groups: Axes
    summed: Axes
    kept: Axes
    rows: int
    left: Callable[..., jax.Array]
    right: Callable[[jax.Array], jax.Array]
    looks_up: bool = False
    on_cpus: Callable[..., jax.Array] | None = None


def find_product(equation: JaxprEqn, weight: int) -> Product | None:
    """The product that an equation is, seen from one of its operands."""
    find = _PRODUCTS.get(equation.primitive.name)
    return find(equation, weight) if find and _output_size(equation) else None


def _output(equation: JaxprEqn) -> Any:
    return equation.outvars[0].aval


def _output_size(equation: JaxprEqn) -> int:
    return _output(equation).size


def _shape(equation: JaxprEqn, operand: int) -> tuple[int, ...]:
    aval: Any = equation.invars[operand].aval
    return aval.shape


def _others(rank: int, *axes: Axes) -> Axes:
    return tuple(d for d in range(rank) if not any(d in some for some in axes))


def _dot(equation: JaxprEqn, weight: int) -> Product:
    (contracted, batches) = equation.params["dimension_numbers"]
    shape, other_shape = _shape(equation, weight), _shape(equation, 1 - weight)
    summed, groups = tuple(contracted[weight]), tuple(batches[weight])
    kept = _others(len(shape), summed, groups)
    there, together = tuple(contracted[1 - weight]), tuple(batches[1 - weight])
    free = _others(len(other_shape), there, together)
    rows = math.prod(other_shape[d] for d in free)
    sizes = [shape[d] for d in groups]

    def left(other: jax.Array) -> jax.Array:
        other = other.transpose(*together, *free, *there)
        return other.reshape(*sizes, rows, *(shape[d] for d in summed))

    def right(g: jax.Array) -> jax.Array:
        if weight == 0:  # The output has the weight's axes before the rows.
            start, end = len(groups), len(groups) + len(kept)
            g = g.transpose(*range(start), *range(end, g.ndim), *range(start, end))
        return g.reshape(*sizes, rows, *(shape[d] for d in kept))

    return Product(shape, groups, summed, kept, rows, left, right)


def _convolution(equation: JaxprEqn, weight: int) -> Product | None:
    params, shape = equation.params, list(_shape(equation, 1))
    numbers = params["dimension_numbers"]
    outputs, inputs, *taps = numbers.rhs_spec
    count = params["feature_group_count"]
    sizes = [shape[d] for d in taps]
    if weight == 0 or params["batch_group_count"] > 1 or math.prod(sizes) > MOST_TAPS:
        return None
    # Seen with its outputs split in groups, the first axis of the two.
    shape[outputs : outputs + 1] = [count, shape[outputs] // count]
    inputs, *taps = (d + (d > outputs) for d in (inputs, *taps))
    batch, features, *space = numbers.out_spec
    rows = _output_size(equation) // (count * shape[outputs + 1])

    def left(x: jax.Array) -> jax.Array:
        x = _patches(params, (*sizes,), x)
        return jnp.moveaxis(x.reshape(rows, *sizes, count, shape[inputs]), -2, 0)

    def right(g: jax.Array) -> jax.Array:
        g = g.transpose(batch, *space, features)
        return jnp.moveaxis(g.reshape(rows, count, -1), 1, 0)

    def from_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
        kernel = kernel.transpose(*numbers.rhs_spec[2:], numbers.rhs_spec[1], outputs)
        contract = tuple(range(1, len(taps) + 2)), tuple(range(len(taps) + 1))
        out = jax.lax.dot_general(
            left(x)[0],
            kernel,
            (contract, ((), ())),
            precision=params["precision"],
            preferred_element_type=params["preferred_element_type"],
        )
        sizes = (_output(equation).shape[d] for d in (batch, *space, features))
        order = np.argsort((batch, *space, features))
        return out.reshape(*sizes).transpose(*order)

    groups, summed, kept = (outputs,), (*taps, inputs), (outputs + 1,)
    small = shape[outputs + 1] <= FEW_OUTPUTS and math.prod(shape) <= FEW_WEIGHTS
    faster = from_patches if small and count == 1 else None
    product = Product((*shape,), groups, summed, kept, rows, left, right)
    return product._replace(on_cpus=faster)


def _patches(params: dict[str, Any], taps: tuple[int, ...], x: jax.Array) -> jax.Array:
    """Lays out a convolution's input so that the convolution is a matrix product.

    Slices are several times faster on CPUs than the convolution with an identity
    kernel that `lax.conv_general_dilated_patches` is.

    Returns:
        (batch, places, taps, channels), both in row-major order.
    """
    batch, channels, *space = params["dimension_numbers"].lhs_spec
    windows = Windows(
        (1, *taps, 1),
        (1, *params["window_strides"], 1),
        ((0, 0), *params["padding"], (0, 0)),
        (1, *params["lhs_dilation"], 1),
        (1, *params["rhs_dilation"], 1),
    )
    slices = windows.slices(x.transpose(batch, *space, channels), fill=0)
    return jnp.stack(slices, axis=-2)


def _gather(equation: JaxprEqn, weight: int) -> Product | None:
    params, shape = equation.params, _shape(equation, 0)
    numbers, mode = params["dimension_numbers"], params["mode"]
    axis = _looked_up(shape, params["slice_sizes"])
    starts = numbers.start_index_map
    if weight != 0 or axis is None or axis not in starts:
        return None
    # Where what lies outside is filled in, starts along other axes decide too.
    filled = mode == GatherScatterMode.FILL_OR_DROP
    if params["slice_sizes"][axis] != 1 or (filled and len(starts) > 1):
        return None
    size = shape[axis]
    kept = _others(len(shape), (axis,))
    rows = _output_size(equation) // math.prod(shape[d] for d in kept)

    def left(indices: jax.Array) -> jax.Array:
        numbers = _signed(indices[..., starts.index(axis)].reshape(rows))
        if mode == GatherScatterMode.CLIP:
            return jnp.clip(numbers, 0, size - 1).astype(jnp.int32)
        # Of what lies outside jax drops the gradient, whatever it reads there.
        inside = (numbers >= 0) & (numbers < size)
        return jnp.where(inside, numbers, -1).astype(jnp.int32)

    def right(g: jax.Array) -> jax.Array:
        behind = numbers.offset_dims
        g = g.transpose(*_others(g.ndim, behind), *behind)
        return g.reshape(rows, *(shape[d] for d in kept))

    return Product(shape, (), (axis,), kept, rows, left, right, looks_up=True)


def _dynamic_slice(equation: JaxprEqn, weight: int) -> Product | None:
    shape, sizes = _shape(equation, 0), equation.params["slice_sizes"]
    axis = _looked_up(shape, sizes)
    if weight != 0 or axis is None:
        return None
    rows, kept = sizes[axis], _others(len(shape), (axis,))

    def left(*starts: jax.Array) -> jax.Array:
        start = jnp.clip(_signed(starts[axis]), 0, shape[axis] - rows)
        return start.astype(jnp.int32) + jnp.arange(rows, dtype=jnp.int32)

    def right(g: jax.Array) -> jax.Array:
        return jnp.moveaxis(g, axis, 0)

    return Product(shape, (), (axis,), kept, rows, left, right, looks_up=True)


def _looked_up(shape: tuple[int, ...], sizes: tuple[int, ...]) -> int | None:
    """The one axis of which less than all is taken."""
    part = [d for d, (n, k) in enumerate(zip(shape, sizes, strict=True)) if k < n]
    return part[0] if len(part) == 1 else None


def _signed(numbers: jax.Array) -> jax.Array:
    """Whole numbers in a type that holds the length of any axis."""
    narrow = numbers.dtype.itemsize < 4
    return numbers.astype(jnp.int32) if narrow else numbers


_PRODUCTS: dict[str, Callable[..., Product | None]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
}
PRIMITIVES = tuple(_PRODUCTS)

"""Finds where a loss multiplies by a parameter: there its gradient has two factors.

In `y = x @ W` the gradient of W is the sum over rows t of `x[t] g[t]^T`, g the gradient
of y; in a convolution the rows are patches. A parameter that enters the loss through
such products alone never needs its gradient in full.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal

from ..core import source_line
from ._windows import Windows

# Calls without a derivative of their own: what happens inside happens outside.
INLINE = ("jit", "pjit", "remat2", "remat", "checkpoint")
# More taps than this would take longer to slice than to convolve.
MOST_TAPS = 128

Axes = tuple[int, ...]
Position = tuple[int, ...]


class View(NamedTuple):
    """A parameter seen through transposes, casts and reshapes.

    Attributes:
        leaf: Which parameter.
        axes: The parameter's axis behind each axis, None after a reshape.
    """

    leaf: int
    axes: Axes | None

    def behind(self, some: Axes) -> Axes | None:
        """The parameter's axes behind some of the axes, None after a reshape."""
        return None if self.axes is None else tuple(self.axes[d] for d in some)


@dataclass(frozen=True)
class Product:
    """One equation that multiplies something by a parameter.

    Attributes:
        position: The place of the equation, as `core.interpret` counts.
        equation: It.
        operand: Which operand the parameter is.
        leaf: Which parameter it is.
        sides: The parameter's axes that are summed over and those that stay; None for
            each where a reshape hides them.
        rows: The number of rows of both factors.
        widths: The numbers of columns of the two factors.
    """

    position: Position
    equation: JaxprEqn
    operand: int
    leaf: int
    sides: tuple[Axes | None, Axes | None]
    rows: int
    widths: tuple[int, int]

    def left(self, other: jax.Array) -> jax.Array:
        """The factor (rows, widths[0]) made of the other operand."""
        if self.equation.primitive.name == "conv_general_dilated":
            return _patches(self.equation.params, self._weight_shape, other)
        summed = _contracted(self.equation, 1 - self.operand)
        free = [d for d in range(other.ndim) if d not in summed]
        return other.transpose(*free, *summed).reshape(self.rows, self.widths[0])

    def right(self, output_gradient: jax.Array) -> jax.Array:
        """The factor (rows, widths[1]) made of the gradient of the output."""
        g = output_gradient
        if self.equation.primitive.name == "conv_general_dilated":
            batch, features, *space = self.equation.params["dimension_numbers"].out_spec
            g = g.transpose(batch, *space, features)
        elif self.operand == 0:  # The output has the parameter's axes first.
            split = len(self._weight_shape) - len(_contracted(self.equation, 0))
            g = g.transpose(*range(split, g.ndim), *range(split))
        return g.reshape(self.rows, self.widths[1])

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        return _aval(self.equation.invars[self.operand]).shape


@dataclass
class Uses:
    """How the parameters enter a loss.

    Attributes:
        products: For each parameter, the products it is a factor of.
        others: For each parameter, where it is used in any other way first.
    """

    products: dict[int, list[Product]] = field(default_factory=dict)
    others: dict[int, str] = field(default_factory=dict)

    def factored(self, leaf: int) -> list[tuple[Product, bool]]:
        """The products that make up a parameter's gradient, and which are flipped.

        A product is flipped where it sums over the axes that the first one keeps (a
        decoder with the encoder's weight transposed). Empty where the parameter enters
        in another way, or its products do not agree on two groups of axes.
        """
        products = self.products.get(leaf, [])
        if not products or leaf in self.others:
            return []
        first = products[0].sides
        flips = [p.sides != first for p in products]
        known = len(products) == 1 or None not in first
        agree = all(p.sides in (first, first[::-1]) for p in products)
        return list(zip(products, flips, strict=True)) if known and agree else []


def find_uses(jaxpr: Any, leaves: Sequence[int]) -> Uses:
    """Says how some inputs of a jaxpr enter it.

    Args:
        jaxpr: An open jaxpr.
        leaves: The numbers of the inputs to follow.
    """
    uses = Uses()
    inputs = [
        View(i, tuple(range(var.aval.ndim))) if i in leaves else None
        for i, var in enumerate(jaxpr.invars)
    ]
    for view in _walk(jaxpr, inputs, (), uses):
        if view is not None:
            uses.others.setdefault(view.leaf, "the loss is the parameter itself")
    return uses


def _walk(
    jaxpr: Any, inputs: Sequence[View | None], position: Position, uses: Uses
) -> list[View | None]:
    views = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(var: Any) -> View | None:
        return None if isinstance(var, Literal) else views.get(var)

    for number, equation in enumerate(jaxpr.eqns):
        operands = [read(v) for v in equation.invars]
        if not any(operands):
            continue
        here = (*position, number)
        if equation.primitive.name in INLINE:
            body = equation.params["jaxpr"]
            outs = _walk(getattr(body, "jaxpr", body), operands, here, uses)
            views.update(zip(equation.outvars, outs, strict=True))
        elif seen := _seen_through(equation, operands[0]):
            views[equation.outvars[0]] = seen
        else:
            _record(equation, operands, here, uses)
    return [read(v) for v in jaxpr.outvars]


def _seen_through(equation: JaxprEqn, view: View | None) -> View | None:
    """The view that an equation gives of a view, None where it is more than a view."""
    if view is None or len(equation.invars) != 1 or len(equation.outvars) != 1:
        return None
    name = equation.primitive.name
    before, after = _aval(equation.invars[0]), _aval(equation.outvars[0])
    if name == "transpose":
        return View(view.leaf, view.behind(equation.params["permutation"]))
    if name == "convert_element_type":
        return view if jnp.issubdtype(after.dtype, jnp.floating) else None
    if name in ("reshape", "squeeze", "broadcast_in_dim") and before.size == after.size:
        return View(view.leaf, None)
    return None


def _record(
    equation: JaxprEqn, operands: list[View | None], here: Position, uses: Uses
) -> None:
    """Notes a product, or another use, of each parameter among the operands."""
    seen = [(i, view) for i, view in enumerate(operands) if view is not None]
    product = _product(equation, *seen[0], here) if len(seen) == 1 else None
    if product is not None:
        uses.products.setdefault(product.leaf, []).append(product)
        return
    for _, view in seen:
        place = f"{equation.primitive.name} at {source_line(equation)}"
        uses.others.setdefault(view.leaf, place)


def _product(
    equation: JaxprEqn, operand: int, view: View, here: Position
) -> Product | None:
    find, out = _SIDES.get(equation.primitive.name), _aval(equation.outvars[0])
    sides = find(equation, operand) if find and out.size else None
    if sides is None:
        return None
    summed, kept = sides
    shape = _aval(equation.invars[operand]).shape
    widths = math.prod(shape[d] for d in summed), math.prod(shape[d] for d in kept)
    named = view.behind(summed), view.behind(kept)
    rows = out.size // widths[1]
    return Product(here, equation, operand, view.leaf, named, rows, widths)


def _aval(var: Any) -> Any:
    """The shape and dtype of a jaxpr's variable; jax's types promise neither."""
    return var.aval


def _contracted(equation: JaxprEqn, operand: int) -> Axes:
    return equation.params["dimension_numbers"][0][operand]


def _dot_sides(equation: JaxprEqn, operand: int) -> tuple[Axes, Axes] | None:
    """The axes of a matrix that are summed over and those that stay."""
    if equation.params["dimension_numbers"][1][0]:
        return None
    summed = tuple(_contracted(equation, operand))
    rank = _aval(equation.invars[operand]).ndim
    return summed, tuple(d for d in range(rank) if d not in summed)


def _convolution_sides(equation: JaxprEqn, operand: int) -> tuple[Axes, Axes] | None:
    """The axes of a kernel that are summed over and those that stay."""
    params = equation.params
    shape = _aval(equation.invars[1]).shape
    outputs, inputs, *taps = params["dimension_numbers"].rhs_spec
    grouped = params["feature_group_count"] > 1 or params["batch_group_count"] > 1
    if operand == 0 or grouped or math.prod(shape[d] for d in taps) > MOST_TAPS:
        return None
    return (*taps, inputs), (outputs,)


_SIDES: dict[str, Callable[..., tuple[Axes, Axes] | None]] = {
    "dot_general": _dot_sides,
    "conv_general_dilated": _convolution_sides,
}


def _patches(
    params: dict[str, Any], kernel_shape: tuple[int, ...], x: jax.Array
) -> jax.Array:
    """Lays out a convolution's input so that the convolution is a matrix product.

    Slices are several times faster on CPUs than the convolution with an identity
    kernel that `lax.conv_general_dilated_patches` is.

    Returns:
        (batch and places, taps and channels), both in row-major order.
    """
    numbers = params["dimension_numbers"]
    batch, channels, *space = numbers.lhs_spec
    windows = Windows(
        (1, *(kernel_shape[d] for d in numbers.rhs_spec[2:]), 1),
        (1, *params["window_strides"], 1),
        ((0, 0), *params["padding"], (0, 0)),
        (1, *params["lhs_dilation"], 1),
        (1, *params["rhs_dilation"], 1),
    )
    slices = windows.slices(x.transpose(batch, *space, channels), fill=0)
    return jnp.stack(slices, axis=-2).reshape(-1, len(slices) * x.shape[channels])

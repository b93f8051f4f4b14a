"""Products with spread kernels: what is gathered before, and summed where, after."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from ..core import Site, vary_together
from ._axes import kept_axes, result_axis
from ._layout import DATA_LABEL, Layout, Split


@dataclass(frozen=True)
class _Forward:
    """A product with a kernel that is spread over all devices.

    Attributes:
        primitive: Its name.
        rows: The other operand.
        position: Which operand the kernel is.
        kernel: The kernel.
        out: The shape of the product.
        dimensions: The product's dimension numbers.
    """

    primitive: str
    rows: jax.Array
    position: int
    kernel: Split
    out: tuple[int, ...]
    dimensions: Any


@dataclass(frozen=True)
class _Columns:
    """A product with a kernel whose columns the group shares.

    Attributes:
        rows: The other operand, before it was gathered.
        gathered: The same, as the group has it.
        out: The shape of the product.
        spread: Over which axes of the mesh each axis of the product is spread.
    """

    rows: jax.Array
    gathered: jax.Array
    out: tuple[int, ...]
    spread: dict[int, Any]


class Products:
    """Rules for the products of one function, in the order in which they come.

    A kernel is known by what an operand depends on: parameters alone. So the same rules
    hold in a function and in its gradient. The gradient of a kernel is a product of two
    operands that depend on the batch; it is known by the rows, which are the very
    array that went through the kernel before.
    """

    def __init__(self, layout: Layout):
        self.layout = layout
        self.splits = {split.leaf: split for split in layout.splits}
        self.full = {kernel.leaf: kernel for kernel in layout.full}
        self.forward: list[_Forward] = []
        self.gathered: set[int] = set()
        self.columns: list[_Columns] = []
        # Split kernels whose axes were moved.
        self.moved: list[tuple[jax.Array, Split]] = []

    def rules(self) -> dict[str, Callable[..., Any]]:
        """The rules, by primitive."""
        rules: dict[str, Callable[..., Any]] = {"dot_general": self.dot}
        if self.splits:
            rules["transpose"] = self.transposed
        if self.full:
            rules["conv_general_dilated"] = self.convolution
        return rules

    def dot(self, site: Site, *operands: jax.Array) -> Any:
        """A matrix product: rows stay on their devices, or are gathered in a group."""
        kernel = _kernel_position(site)
        if kernel is None:
            return self._gradient(site, operands)
        rows = 1 - kernel
        dimensions = site.equation.params["dimension_numbers"]
        shape = operands[rows].shape
        kept = kept_axes(dimensions, rows, len(shape))
        axis = self.layout.examples_axis(shape, kept)
        split = self._split(site, kernel, operands)
        if split is None or axis is None:
            whole = self._whole(site, kernel, operands)
            placed = self.layout.spread(operands[rows], {axis: self.layout.own})
            return site.bind(*_at(whole, rows, placed))
        if split.axis in dimensions[0][kernel]:
            return self._summed(site, operands, kernel, split, axis)
        after = result_axis(dimensions, rows, axis, operands)
        column = result_axis(dimensions, kernel, split.axis, operands)
        # Each device first has its own rows: XLA would gather what they are made of.
        own = self.layout.spread(operands[rows], {axis: self.layout.own})
        placed = self.layout.spread(own, {axis: self.layout.shared})
        (out,) = site.bind(*_at(operands, rows, placed))
        spread = {after: self.layout.shared, column: self.layout.group}
        self.columns.append(_Columns(operands[rows], placed, out.shape, spread))
        return [self.layout.spread(out, spread)]

    def transposed(self, site: Site, x: jax.Array) -> list[jax.Array]:
        """A kernel stays what it is, its axes moved."""
        (out,) = site.bind(x)
        split = self._split(site, 0, [x])
        if split is not None:
            order = site.equation.params["permutation"]
            moved = Split(split.leaf, out.shape, order.index(split.axis))
            self.moved.append((out, moved))
        return [out]

    def _split(
        self, site: Site, position: int, operands: Sequence[jax.Array]
    ) -> Split | None:
        """The split kernel that an operand is."""
        x = operands[position]
        known = next((split for array, split in self.moved if array is x), None)
        return known or _only(site, position, operands, self.splits)

    def convolution(self, site: Site, *operands: jax.Array) -> Any:
        """A convolution, whose kernel may be spread over all devices."""
        kernel = _kernel_position(site)
        if kernel is None:
            return self._gradient(site, operands)
        return site.bind(*self._whole(site, kernel, operands))

    def _summed(
        self,
        site: Site,
        operands: Sequence[jax.Array],
        kernel: int,
        split: Split,
        axis: int,
    ) -> list[jax.Array]:
        """A product over an axis that the group shares: each member sums its rows.

        XLA reduces to all members and cuts, unless told to reduce and scatter.
        """
        layout, rows = self.layout, 1 - kernel
        dimensions = site.equation.params["dimension_numbers"]
        features = dimensions[0][rows][dimensions[0][kernel].index(split.axis)]
        after = result_axis(dimensions, rows, axis, operands)
        spread = {axis: layout.shared, features: layout.group}
        specs = {
            rows: layout.spec(operands[rows].ndim, spread),
            kernel: layout.spec(operands[kernel].ndim, {split.axis: layout.group}),
        }
        return self._scattered(
            site, operands, (specs[0], specs[1]), (layout.group,), after, layout.shared
        )

    def _gradient(self, site: Site, operands: Sequence[jax.Array]) -> Any:
        """The gradient of a kernel that is spread over all devices."""
        name, layout = site.equation.primitive.name, self.layout
        shapes, result = [x.shape for x in operands], _result_shape(site)
        for split in self.columns:
            for position, x in enumerate(operands):
                if x is split.rows and shapes[1 - position] == split.out:
                    # XLA may gather all columns, or sum over the group, unless told.
                    both = _at(operands, position, split.gathered)
                    other = layout.spread(operands[1 - position], split.spread)
                    return site.bind(*_at(both, 1 - position, other))
        for before in self.forward:
            for position, x in enumerate(operands):
                same = x is before.rows and shapes[1 - position] == before.out
                if not same or name != before.primitive:
                    continue
                found = _GRADIENTS[name](site, before, position, shapes)
                if found is None:
                    continue
                axes, after = found
                lengths = shapes[0][axes[0]], result[after]
                if not any(length % layout.members for length in lengths):
                    specs = tuple(
                        layout.spec(len(shape), {axis: layout.own})
                        for shape, axis in zip(shapes, axes, strict=True)
                    )
                    return self._scattered(site, operands, specs, layout.own, after, ())
        return NotImplemented

    def _scattered(
        self,
        site: Site,
        operands: Sequence[jax.Array],
        specs: tuple[Any, ...],
        over: tuple[str, ...],
        axis: int,
        shared: tuple[str, ...],
    ) -> list[jax.Array]:
        """Sums a product over axes of the mesh, and scatters it over them."""

        def partial(*own: jax.Array) -> jax.Array:
            # Not `site.bind`: that restores the mesh of the function outside.
            part = site.equation.primitive.bind(*vary_together(own), **params)
            return jax.lax.psum_scatter(part, over, scatter_dimension=axis, tiled=True)

        layout, params = self.layout, site.equation.params
        ndim = len(_result_shape(site))
        product = jax.shard_map(
            partial,
            mesh=layout.mesh,
            in_specs=specs,
            out_specs=layout.spec(ndim, {axis: (*shared, *over)}),
            axis_names=set(layout.own),
        )
        return [product(*operands)]

    def _whole(
        self, site: Site, position: int, operands: Sequence[jax.Array]
    ) -> Sequence[jax.Array]:
        """The operands, a kernel that is spread over all devices gathered."""
        labels, kernel = site.labels[position], operands[position]
        leaf = next(iter(labels))
        if len(labels) > 1 or leaf not in self.full:
            return operands
        if leaf in self.gathered:
            # XLA would keep what the forward pass gathered, and with it all memory.
            kernel = jax.lax.optimization_barrier(kernel)
        self.gathered.add(leaf)
        known = _only(site, position, operands, self.full)
        if known is not None:
            equation, rows = site.equation, operands[1 - position]
            name, out = equation.primitive.name, _result_shape(site)
            self.forward.append(
                _Forward(name, rows, position, known, out, _dimensions(site))
            )
        return _at(operands, position, self.layout.gathered(kernel))


def _result_shape(site: Site) -> tuple[int, ...]:
    aval: Any = site.equation.outvars[0].aval
    return aval.shape


def _dimensions(site: Site) -> Any:
    return site.equation.params["dimension_numbers"]


def _dot_gradient(
    site: Site, before: _Forward, position: int, shapes: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], int] | None:
    """The axis of examples of each operand, and that of the result to spread."""
    operands = [jax.ShapeDtypeStruct(shape, float) for shape in shapes]
    dimensions, forward = _dimensions(site), before.dimensions
    if any(map(len, (*dimensions[1], *forward[1]))) or not dimensions[0][0]:
        return None
    axes = dimensions[0][0][0], dimensions[0][1][0]
    kernel, spread = before.position, before.kernel.axis
    summed = forward[0][kernel]
    if spread in summed:
        axis = forward[0][1 - kernel][summed.index(spread)]
        of = position
    else:
        both = [jax.ShapeDtypeStruct(shapes[position], float)] * 2
        both[kernel] = jax.ShapeDtypeStruct(before.kernel.shape, float)
        axis, of = result_axis(forward, kernel, spread, both), 1 - position
    if axis in dimensions[0][of]:
        return None
    return axes, result_axis(dimensions, of, axis, operands)


def _convolution_gradient(
    site: Site, before: _Forward, position: int, shapes: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], int] | None:
    """The axis of examples of each operand, and that of the result to spread."""
    params, forward = site.equation.params, before.dimensions
    grouped = params["feature_group_count"] * params["batch_group_count"] > 1
    # Examples are summed where they take the place of features.
    axes = forward.lhs_spec[0], forward.out_spec[0]
    axes = axes if position == 0 else axes[::-1]
    dimensions = _dimensions(site)
    features = dimensions.lhs_spec[1], dimensions.rhs_spec[1]
    same = _result_shape(site) == before.kernel.shape
    if grouped or axes != features or not same:
        return None
    return axes, before.kernel.axis


_GRADIENTS = {
    "dot_general": _dot_gradient,
    "conv_general_dilated": _convolution_gradient,
}


def _kernel_position(site: Site) -> int | None:
    """Which operand of a product depends on parameters alone, if the other does not."""
    alone = [bool(labels) and DATA_LABEL not in labels for labels in site.labels]
    return alone.index(True) if sum(alone) == 1 else None


def _only(
    site: Site, position: int, operands: Sequence[jax.Array], kernels: dict[int, Split]
) -> Split | None:
    """The kernel that an operand is, if it is one and looks as planned."""
    labels, shape = site.labels[position], operands[position].shape
    kernel = kernels.get(next(iter(labels))) if len(labels) == 1 else None
    return kernel if kernel is not None and shape == kernel.shape else None


def _at(operands: Sequence[Any], position: int, value: Any) -> list[Any]:
    return [value if i == position else x for i, x in enumerate(operands)]

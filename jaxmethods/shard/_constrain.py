"""Keeps a function's parameters, rows and columns on the devices that a plan says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..core import Site, describe, interpret
from ._axes import kept_axes, result_axis

_DATA = "batch"  # the label of values that depend on the batch


@dataclass(frozen=True)
class Split:
    """A kernel spread over the group.

    Attributes:
        leaf: The parameter.
        shape: The kernel's shape where it enters the product.
        axis: The axis of it that is spread.
    """

    leaf: int
    shape: tuple[int, ...]
    axis: int


@dataclass(frozen=True)
class Layout:
    """Where things lie on the automatic axes of a mesh.

    Attributes:
        mesh: The mesh; None inside `shard_map`, where the context has it.
        shared: The axes over which gathered rows stay spread: ("data",), or () where
            "data" is manual.
        group: The axis of the group.
        members: Devices over which a device's own rows are spread.
        specs: A PartitionSpec a parameter, in the order of the leaves.
        splits: The kernels that are spread over the group.
    """

    mesh: Mesh | None
    shared: tuple[str, ...]
    group: str
    members: int
    specs: tuple[P, ...]
    splits: tuple[Split, ...]

    @property
    def own(self) -> tuple[str, ...]:
        """The axes over which each device keeps its own rows."""
        return (*self.shared, self.group)

    def put(self, x: jax.Array, spec: P) -> jax.Array:
        """Constrains where a value lies."""
        place = spec if self.mesh is None else NamedSharding(self.mesh, spec)
        return jax.lax.with_sharding_constraint(x, place)

    def spread(self, x: jax.Array, axes: dict[int | None, Any]) -> jax.Array:
        """Spreads axes of a value over axes of the mesh; without any, leaves it be."""
        if not any(axis is not None for axis in axes):
            return x
        return self.put(x, P(*[axes.get(axis) or None for axis in range(x.ndim)]))


def constrained(
    fn: Callable[..., Any], layout: Layout, params: Any, batch: Any, *rest: Any
) -> Any:
    """Evaluates `fn(params, batch, *rest)` with each value where the layout wants it.

    Rows stay on their own devices up to a split layer, where the group gathers them;
    its columns stay spread until the next layer. Kernels are known by what a product's
    operand depends on, so the same rules hold in `fn` and in its gradient. Results that
    look like the parameters are laid out like them.
    """
    leaves, treedef = jax.tree.flatten(params)
    shapes = [leaf.shape for leaf in leaves]
    leaves = [layout.put(x, s) for x, s in zip(leaves, layout.specs, strict=True)]
    batch = jax.tree.map(lambda x: layout.put(x, batch_spec(x, layout.own)), batch)
    args = (treedef.unflatten(leaves), batch, *rest)
    closed, result = jax.make_jaxpr(fn, return_shape=True)(*args)
    labels = [{number} for number in range(len(leaves))]
    labels += [{_DATA}] * len(jax.tree.leaves(args[1:]))
    rules = {"dot_general": _product_rule(layout)}
    rules |= dict.fromkeys(_BY_WINDOWS, _window_rule(layout))
    flat = interpret(
        closed, rules, jax.tree.leaves(args), labels=labels, inline=("jit", "pjit")
    )
    out = jax.tree.unflatten(jax.tree.structure(result), flat)

    def like_params(tree: Any) -> bool:
        same = jax.tree.structure(tree) == treedef
        return same and [x.shape for x in jax.tree.leaves(tree)] == shapes

    def lay_out(tree: Any) -> Any:
        if not like_params(tree):
            return tree
        parts = zip(jax.tree.leaves(tree), layout.specs, strict=True)
        return treedef.unflatten([layout.put(x, spec) for x, spec in parts])

    return jax.tree.map(lay_out, out, is_leaf=like_params)


def batch_spec(x: Any, axes: Sequence[str]) -> P:
    """Spreads the examples of a leaf of a batch; scalars and keys are on all."""
    return P(tuple(axes)) if _has_examples(x) else P()


def check_batch(batch: Any, devices: int) -> int:
    """The number of examples in a batch.

    Raises:
        ValueError: The leaves disagree, or the examples do not divide over devices.
    """
    leaves = [x for x in jax.tree.leaves(batch) if _has_examples(x)]
    counts = {x.shape[0] for x in leaves}
    if len(counts) != 1:
        raise ValueError(
            f"batch has leaves {[describe(x) for x in leaves]}; wanted one leading "
            "axis of examples in all: put anything else in params or a closure."
        )
    count = counts.pop()
    if count % devices or not count:
        raise ValueError(
            f"batch has {count} examples for {devices} devices; wanted a multiple: "
            "drop or pad examples."
        )
    return count


def _has_examples(x: Any) -> bool:
    return len(getattr(x, "shape", ())) > 0


def _product_rule(layout: Layout) -> Callable[..., Any]:
    splits = {split.leaf: split for split in layout.splits}

    def rule(site: Site, *operands: jax.Array) -> Any:
        kernel = _kernel_position(site)
        if kernel is None:
            return NotImplemented
        rows = 1 - kernel
        dimensions = site.equation.params["dimension_numbers"]
        shape = operands[rows].shape
        kept = kept_axes(dimensions, rows, len(shape))
        # The examples: the first axis that all devices can share.
        axis = next((a for a in kept if shape[a] % layout.members == 0), None)
        after = None if axis is None else result_axis(dimensions, rows, axis, operands)
        split = _split_of(site.labels[kernel], operands[kernel].shape, splits)
        if split is None:
            placed = layout.spread(operands[rows], {axis: layout.own})
            return site.bind(*_at(operands, rows, placed))
        before: dict[int | None, Any] = {axis: layout.shared}
        behind: dict[int | None, Any] = {after: layout.shared}
        summed = dimensions[0][kernel]
        if split.axis in summed:
            features = dimensions[0][rows][summed.index(split.axis)]
            before[features] = layout.group
            behind = {after: layout.own}
        else:
            column = result_axis(dimensions, kernel, split.axis, operands)
            behind[column] = layout.group
        placed = layout.spread(operands[rows], before)
        (out,) = site.bind(*_at(operands, rows, placed))
        return [layout.spread(out, behind)]

    return rule


def _kernel_position(site: Site) -> int | None:
    """Which operand of a product depends on parameters alone, if the other does not."""
    alone = [bool(labels) and _DATA not in labels for labels in site.labels]
    return alone.index(True) if sum(alone) == 1 else None


def _split_of(
    labels: frozenset[Any], shape: tuple[int, ...], splits: dict[int, Split]
) -> Split | None:
    split = splits.get(next(iter(labels))) if len(labels) == 1 else None
    return split if split is not None and shape == split.shape else None


def _at(operands: tuple[Any, ...], position: int, value: Any) -> list[Any]:
    return [value if i == position else x for i, x in enumerate(operands)]


# XLA gathers all rows for the gradient of a maximum over windows, unless told that the
# windows never leave a device's rows.
_BY_WINDOWS = ("reduce_window_max", "reduce_window_min", "select_and_scatter_add")


def _window_rule(layout: Layout) -> Callable[..., Any]:
    def rule(site: Site, *operands: jax.Array) -> Any:
        params = site.equation.params
        alone = (
            params["window_dimensions"][0] == 1
            and params["window_strides"][0] == 1
            and params["padding"][0] == (0, 0)
            and all(x.shape[0] % layout.members == 0 for x in operands)
        )
        if not alone:
            return NotImplemented
        spec = P(layout.own)
        return jax.shard_map(
            lambda *own: [site.equation.primitive.bind(*own, **params)],
            mesh=layout.mesh,
            in_specs=spec,
            out_specs=spec,
            axis_names=set(layout.own),
        )(*operands)

    return rule

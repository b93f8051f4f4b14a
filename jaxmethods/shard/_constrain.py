"""Keeps a function's parameters, rows and columns on the devices that a plan says."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from ..core import Site, describe, interpret, leaf_paths
from ._layout import DATA_LABEL, Layout
from ._loop_sums import sum_after_loops
from ._products import Products


def constrained(
    fn: Callable[..., Any], layout: Layout, params: Any, batch: Any, *rest: Any
) -> Any:
    """Evaluates `fn(params, batch, *rest)` with each value where the layout wants it.

    Rows stay on their own devices up to a split layer, where the group gathers them;
    its columns stay spread until the next layer. Kernels that are spread over all
    devices are gathered for each product. Results that look like the parameters are
    laid out like them.
    """
    leaves, treedef = jax.tree.flatten(params)
    shapes = [leaf.shape for leaf in leaves]
    leaves = [layout.put(x, s) for x, s in zip(leaves, layout.specs, strict=True)]
    batch = jax.tree.map(lambda x: layout.put(x, batch_spec(x, layout.own)), batch)
    args = (treedef.unflatten(leaves), batch, *rest)
    closed, result = jax.make_jaxpr(fn, return_shape=True)(*args)
    labels = [{number} for number in range(len(leaves))]
    labels += [{DATA_LABEL}] * len(jax.tree.leaves(args[1:]))
    closed = sum_after_loops(closed, layout, jax.tree.leaves(args), labels)
    layout = replace(layout, examples=check_batch(batch, layout.members))
    rules = Products(layout).rules()
    rules |= dict.fromkeys(_BY_WINDOWS, _window_rule(layout))
    flat = interpret(
        closed, rules, jax.tree.leaves(args), labels=labels, inline=("jit", "pjit")
    )
    # A result that is like no parameter lies where XLA finds it.
    flat = [
        x if number is None else layout.put(x, layout.specs[number])
        for x, number in zip(
            flat, like_params(result, leaf_paths(params), shapes), strict=True
        )
    ]
    return jax.tree.unflatten(jax.tree.structure(result), flat)


def like_params(
    tree: Any, paths: Sequence[tuple[Any, ...]], shapes: Sequence[tuple[int, ...]]
) -> list[int | None]:
    """For each leaf of a tree, the number of the parameter that it is like, or None.

    A leaf is like a parameter whose shape it has and with whose path its own ends, as
    gradients, moments and masked moments do.
    """
    known = {path: number for number, path in enumerate(paths)}
    like: list[int | None] = []
    for path, x in zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True):
        ends = (path[start:] for start in range(len(path) + 1))
        found = [known[end] for end in ends if end in known]
        shape = getattr(x, "shape", ())
        like.append(next((n for n in found if shapes[n] == shape), None))
    return like


def batch_spec(x: Any, axes: Sequence[str]) -> P:
    """Spreads the examples of a leaf of a batch; scalars and keys are on all."""
    return P(tuple(axes)) if _has_examples(x) else P()


def check_batch(batch: Any, devices: int, name: str = "batch") -> int:
    """The number of examples in a batch, which errors call by name.

    Raises:
        ValueError: The leaves disagree, or the examples do not divide over devices.
    """
    leaves = [x for x in jax.tree.leaves(batch) if _has_examples(x)]
    counts = {x.shape[0] for x in leaves}
    if len(counts) != 1:
        raw = any(x.shape == (2,) and x.dtype == np.uint32 for x in leaves)
        hint = " A key is one where it is typed: jax.random.key(0), or wrap_key_data."
        raise ValueError(
            f"{name} has leaves {[describe(x) for x in leaves]}; wanted one leading "
            "axis of examples in all: put anything else in params or a closure."
            + (hint if raw else "")
        )
    count = counts.pop()
    if count % devices or not count:
        raise ValueError(
            f"{name} has {count} examples for {devices} devices; wanted a multiple: "
            "drop or pad examples."
        )
    return count


def _has_examples(x: Any) -> bool:
    return len(getattr(x, "shape", ())) > 0


# XLA gathers all rows for the gradient of a maximum over windows, unless told that the
# windows never leave a device's rows.
_BY_WINDOWS = ("reduce_window_max", "reduce_window_min", "select_and_scatter_add")


def _window_rule(layout: Layout) -> Callable[..., Any]:
    def rule(site: Site, *operands: jax.Array) -> Any:
        params = site.equation.params
        shapes = [x.shape for x in operands]
        axis = layout.examples_axis(shapes[0], range(len(shapes[0])))
        if axis is None:
            return NotImplemented
        alone = (
            params["window_dimensions"][axis] == params["window_strides"][axis] == 1
            and params["padding"][axis] == (0, 0)
            and params.get("base_dilation", {axis: 1})[axis] == 1
            and all(shape[axis] % layout.members == 0 for shape in shapes)
        )
        if not alone:
            return NotImplemented
        spec = layout.spec(len(shapes[0]), {axis: layout.own})
        return jax.shard_map(
            lambda *own: [site.equation.primitive.bind(*own, **params)],
            mesh=layout.mesh,
            in_specs=spec,
            out_specs=spec,
            axis_names=set(layout.own),
        )(*operands)

    return rule

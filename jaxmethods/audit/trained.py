"""Which arrays of a model a training step changes, whatever library made it."""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import leaf_paths


def is_trained(params: Any) -> list[bool]:
    """Whether a training step changes each array of a model, in tree order.

    Running statistics, keys and counts of random layers are not trained: they have no
    gradient step, take no optimizer state and are no parameters. Told apart are

    - arrays of integers and keys, wherever they are;
    - variables of flax linen, `{"params": ..., "batch_stats": ...}`: "params" count;
    - variables of flax nnx: those of `nnx.Param` count;
    - plain dicts, as `nnx.to_pure_dict` and npz files give them, where the kind of a
      variable is lost: "mean" and "var" beside a "scale" or "bias" of their shape are
      those of a batch norm.

    Args:
        params: A pytree of arrays.

    Returns:
        One bool a leaf; all floating leaves where the rules would leave none.

    Example:
        >>> norm = {"bias": jnp.zeros(3), "mean": jnp.zeros(3), "var": jnp.ones(3)}
        >>> is_trained({"kernel": jnp.ones((2, 3)), "norm": norm})
        [True, True, False, False]
    """
    floating = [jnp.issubdtype(_dtype(x), jnp.inexact) for x in jax.tree.leaves(params)]
    # A state of nnx is a mapping too, and a module may be called "params".
    kinds = _of_nnx(params)
    if kinds is None and isinstance(params, Mapping) and "params" in params:
        kinds = [path[:1] == ("params",) for path in leaf_paths(params)]
    elif kinds is None:
        kinds = _by_name(params)
    both = [kind and able for kind, able in zip(kinds, floating, strict=True)]
    return both if any(both) else floating


def untrained_names(params: Any) -> list[str]:
    """The paths of the arrays that a training step leaves as they are."""
    pairs = zip(_variable_paths(params), is_trained(params), strict=True)
    return ["/".join(map(str, path)) for path, trained in pairs if not trained]


def num_trained(params: Any) -> int:
    """How many numbers a training step changes."""
    leaves = zip(jax.tree.leaves(params), is_trained(params), strict=True)
    return sum(int(np.size(leaf)) for leaf, kept in leaves if kept)


def split_trained(params: Any) -> tuple[Any, Any]:
    """What a training step changes, and the function that adds the rest again.

    Returns:
        The pytree with None in the place of what is not trained, and
        `whole(trained) -> params`.

    Example:
        >>> params = {"count": jnp.arange(2), "w": jnp.ones(2)}
        >>> trained, whole = split_trained(params)
        >>> trained["count"] is None, whole(trained).keys() == params.keys()
        (True, True)
    """
    leaves, treedef = jax.tree.flatten(params)
    kept = is_trained(params)
    if all(kept):
        return params, lambda trained: trained
    pairs = list(zip(leaves, kept, strict=True))

    def whole(trained: Any) -> Any:
        some = iter(jax.tree.leaves(trained))
        return treedef.unflatten([next(some) if k else leaf for leaf, k in pairs])

    return treedef.unflatten([leaf if k else None for leaf, k in pairs]), whole


def _of_nnx(params: Any) -> list[bool] | None:
    """By the kinds of variables; None where there are none."""
    # Parameters carry its kinds only where it was imported.
    nnx: Any = sys.modules.get("flax.nnx")
    if nnx is None:
        return None

    def is_variable(part: Any) -> bool:
        return isinstance(part, nnx.Variable)

    kinds, found = [], False
    for part in jax.tree.leaves(params, is_leaf=is_variable):
        found = found or is_variable(part)
        kept = not is_variable(part) or isinstance(part, nnx.Param)
        kinds += [kept] * len(jax.tree.leaves(part))
    return kinds if found else None


def _by_name(params: Any) -> list[bool]:
    paths = _variable_paths(params)
    shapes = dict(zip(paths, map(np.shape, jax.tree.leaves(params)), strict=True))

    def is_statistic(path: tuple[Any, ...]) -> bool:
        if path[-1:] not in (("mean",), ("var",)):
            return False
        shape = shapes[path]
        beside = {name: shapes.get((*path[:-1], name)) for name in _NORM}
        both = beside["mean"] == beside["var"] == shape
        return both and shape in (beside["scale"], beside["bias"])

    return [not is_statistic(path) for path in paths]


def _variable_paths(params: Any) -> list[tuple[Any, ...]]:
    # States of nnx have one more step to the value of a variable.
    return [p[:-1] if p[-1:] == ("value",) else p for p in leaf_paths(params)]


_NORM = ("mean", "var", "scale", "bias")


def _dtype(leaf: Any) -> Any:
    return getattr(leaf, "dtype", None) or np.asarray(leaf).dtype

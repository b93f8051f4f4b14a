"""Key paths of a pytree as tuples of plain names, and how `where` chooses."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

Path = tuple[Any, ...]
Where = Callable[[Path], bool] | Sequence[Path] | None


def _plain(key: Any) -> Any:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return str(key)


def leaf_paths(tree: Any) -> list[Path]:
    """The path of each leaf, in tree order: names of dicts and fields, list indices.

    Example:
        >>> leaf_paths({"dense": {"bias": 0, "kernel": 1}, "scale": [2]})
        [('dense', 'bias'), ('dense', 'kernel'), ('scale', 0)]
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [tuple(map(_plain, path)) for path, _ in flat]


def choose_paths(where: Where, paths: Sequence[Path]) -> list[bool]:
    """Which leaves `where` chooses: all (None), by predicate, or by list of paths.

    Args:
        where: None, a predicate on a path, or a list of paths; a path of the list
            chooses every leaf below it.
        paths: The paths of the leaves.

    Returns:
        One bool a leaf.

    Raises:
        TypeError: `where` is neither a predicate nor a list.
        ValueError: `where` chooses nothing, or a path of the list names no leaf; the
            message lists the known paths.

    Example:
        >>> choose_paths([("dense",)], [("dense", "bias"), ("scale",)])
        [True, False]
    """
    if where is None:
        return [True] * len(paths)
    known = f"the known paths are {list(paths)}."
    if isinstance(where, str) or not (callable(where) or isinstance(where, Iterable)):
        raise TypeError(
            f"where is {where!r}; wanted a list of paths, such as [({where!r},)], or a "
            f"predicate on a path; {known}"
        )
    if callable(where):
        chosen = [bool(where(path)) for path in paths]
    else:
        wanted = [p if isinstance(p, tuple) else (p,) for p in where]
        for prefix in wanted:
            if not any(path[: len(prefix)] == prefix for path in paths):
                raise ValueError(
                    f"where names {prefix}, which is no parameter; {known}"
                )
        chosen = [any(path[: len(p)] == p for p in wanted) for path in paths]
    if not any(chosen):
        raise ValueError(f"where chooses no parameter: nothing was chosen; {known}")
    return chosen

"""From a function and its arguments, some of them sets, to a graph and its region."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ..core import (
    ANNOTATED,
    Graph,
    Variable,
    flatten,
    inline_cond,
    keep_whole,
    skip,
    unroll_scan,
)
from ._prepare import prepare
from ._rows import Rows
from ._sets import Bounds, Set, is_set

# What becomes of branches, loops and functions with bounds of their own.
BRANCHES: Mapping[str, Any] = {
    "cond": inline_cond,
    ANNOTATED: keep_whole,
    # What bounds themselves are made of: they may be bounded as well.
    **dict.fromkeys(("any_example", "finite_derivatives", "materialize"), skip),
}
_UNROLLED = {**BRANCHES, "scan": unroll_scan}


class Region(NamedTuple):
    """The sets of a call, and which inputs of its graph each one holds."""

    sets: tuple[Set, ...]
    variables: tuple[tuple[Variable, ...], ...]

    def hull(self) -> dict[Variable, Bounds]:
        """The smallest interval round each input of the graph."""
        return {
            v: ends
            for s, held in zip(self.sets, self.variables, strict=True)
            for v, ends in zip(held, s.hull(), strict=True)
        }

    def minimum(self, rows: dict[Variable, Rows]) -> jax.Array | float:
        """The least value over all sets of linear functions of the inputs.

        Args:
            rows: The coefficients of the inputs that occur.

        Returns:
            One number a row; 0.0 where no input occurs.
        """
        total: jax.Array | float = 0.0
        for s, held in zip(self.sets, self.variables, strict=True):
            if any(v in rows for v in held):
                total += s.minimum([rows.get(v) for v in held])
        return total


def positional(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A call without keywords: they become a dict, one more argument at the end."""
    if not kwargs:
        return fn, args

    @functools.wraps(fn)
    def called(*given: Any) -> Any:
        return fn(*given[:-1], **given[-1])

    return called, (*args, kwargs)


def trace(
    fn: Callable[..., Any], args: Sequence[Any], *, unroll: bool = True
) -> tuple[Graph, Region]:
    """Traces `fn` with each set replaced by one of its members.

    Args:
        fn: Any function.
        args: Its arguments, at least one of them a set.
        unroll: Whether a `scan` becomes its steps, one after the other.

    Raises:
        NotImplementedError: A scan has too many steps to be unrolled.
        ValueError: A set is none (see `Ball`, `Box`), or no argument is a set.
        TypeError: A set's arrays are not floating.
    """
    leaves, treedef = jax.tree.flatten(args, is_leaf=is_set)
    sets = tuple(leaf for leaf in leaves if is_set(leaf))
    if not sets:
        raise ValueError(
            "no argument is a set; wrap at least one in Ball(center, radius) or "
            "Box(lower, upper)."
        )
    for s in sets:
        s.check()
    filled = treedef.unflatten(s.placeholder if is_set(s) else s for s in leaves)
    marked = []
    for leaf in leaves:
        size = len(jax.tree.leaves(leaf.placeholder)) if is_set(leaf) else 1
        marked += [is_set(leaf)] * size
    inline = _UNROLLED if unroll else BRANCHES
    graph = flatten(fn, *filled, marked=marked, inline=inline)
    inputs = iter(graph.inputs)
    held = tuple(tuple(next(inputs) for _ in s.hull()) for s in sets)
    return prepare(graph), Region(sets, held)

"""Workers average with a few neighbours, in place of all with all."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import check_integer, describe, is_concrete
from ..kernels import neighbour_rounds
from ._graphs import Graph, check_workers, mixing_matrix


def stochastic_reduce(
    tree: Any,
    axis_name: Any,
    graph: Graph,
    step: int | jax.Array = 0,
    *,
    num_rounds: int = 1,
    implementation: str = "xla",
) -> Any:
    """The mean of a worker's own values and those of its in-neighbours: x <- W x.

    `x_i <- (x_i + sum_j x_j) / (k + 1)` over the k workers j that send to i, or the
    weights of the graph where its degrees differ: `mixing_matrix(graph, step)` is W.
    The sum begins with the worker's own value and goes on in the order of
    `graph.senders`, in float32 or wider, so `shard_map`, `pmap` and
    `vmap(axis_name=...)` of this function give the same bits.

    All workers of the axis wait for each other: a collective in a compiled program
    has no stragglers to gain from. What it can save is bytes; see `graph`.

    Args:
        tree: Arrays of a floating or complex dtype, the worker's own.
        axis_name: The mapped axis, or a tuple of axes of a mesh, not of nested `vmap`.
        graph: As many workers as the axis has.
        step: The round, an integer, traced or not; only a graph that cycles looks at
            it. All workers must have the same.
        num_rounds: Rounds in a row, at least 1, of the steps `step`, `step + 1`, ...
        implementation: "xla", or "pallas": NOTIFY-ACK in one kernel on TPUs, inside
            `shard_map` over a whole mesh, for graphs of equal degrees.

    Returns:
        A tree like `tree`, same dtypes.

    Raises:
        NameError: The axis is not bound.
        TypeError: A leaf, or `step`, of another dtype.
        ValueError: Graph and axis have other sizes; "pallas" where degrees differ.

    Complexity:
        A collective permutation of the leaf for each neighbour, leaf and round: k times
        the bytes of `tree`, once where the graph cycles.

    Example:
        >>> from jaxmethods.shard import graph
        >>> ring = graph("ring", 3)
        >>> one = lambda x: stochastic_reduce(x, "i", ring)
        >>> jax.vmap(one, axis_name="i")(jnp.array([0.0, 2.0, 8.0])).tolist()
        [4.0, 1.0, 5.0]

    References:
        Kadav and Kruus 2016, arXiv:1612.08608.
    """
    check_workers(graph, axis_name, "stochastic_reduce")
    check_integer(num_rounds, "num_rounds", 1)
    jax.tree_util.tree_map_with_path(_check_leaf, tree)
    step = _as_step(step)
    even = bool(graph.permutations[1].all())
    if not even and implementation != "xla":
        raise ValueError(
            f"implementation is {implementation!r} and degrees differ in {graph}; "
            "wanted 'xla' there."
        )
    if not graph.cycles:
        reduce = _mean if even else _weighted
        return reduce(tree, axis_name, graph, num_rounds, implementation)
    for later in range(num_rounds):
        tree = _one_peer(tree, axis_name, graph, step + later, implementation)
    return tree


def _mean(tree: Any, axis_name: Any, graph: Graph, num_rounds: int, how: str) -> Any:
    def own(x: jax.Array) -> jax.Array:
        return neighbour_rounds(
            x, axis_name, graph.senders, num_rounds=num_rounds, implementation=how
        )

    return jax.tree.map(own, tree)


def _weighted(
    tree: Any, axis_name: Any, graph: Graph, num_rounds: int, how: str
) -> Any:
    """Where degrees differ: the weights of W, and zero for what only fills gaps."""
    del how
    senders, used = graph.permutations
    matrix = mixing_matrix(graph)
    share = np.where(used, np.take_along_axis(matrix, senders, 1), 0)
    me = jax.lax.axis_index(axis_name)
    pairs = [[(int(s), r) for r, s in enumerate(column)] for column in senders.T]

    def one(x: jax.Array) -> jax.Array:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        real = jnp.finfo(wide).dtype
        total = x.astype(wide) * jnp.asarray(np.diag(matrix), real)[me]
        for column, pair in enumerate(pairs):
            other = jax.lax.ppermute(x, axis_name, pair).astype(wide)
            # What fills a gap may be infinite, and zero times that is no zero.
            other = jnp.where(jnp.asarray(used[:, column])[me], other, 0)
            total = total + other * jnp.asarray(share[:, column], real)[me]
        return total.astype(x.dtype)

    for _ in range(num_rounds):
        tree = jax.tree.map(one, tree)
    return tree


def _one_peer(
    tree: Any, axis_name: Any, graph: Graph, step: int | jax.Array, how: str
) -> Any:
    """The round of a cycle: its permutation is chosen when the program runs."""
    period = graph.senders.shape[1]

    def of(column: int) -> Any:
        senders = graph.senders[:, column : column + 1]
        return lambda tree: jax.tree.map(
            lambda x: neighbour_rounds(x, axis_name, senders, implementation=how), tree
        )

    if isinstance(step, int):
        return of(step % period)(tree)
    return jax.lax.switch(step % period, [of(c) for c in range(period)], tree)


def _as_step(step: Any) -> int | jax.Array:
    dtype = getattr(step, "dtype", None) or np.asarray(step).dtype
    if not jnp.issubdtype(dtype, jnp.integer) or np.ndim(step):
        raise TypeError(f"step is {describe(step)}; wanted an integer scalar.")
    return int(step) if is_concrete(step) else step


def _check_leaf(path: Any, x: Any) -> None:
    dtype = getattr(x, "dtype", None) or np.asarray(x).dtype
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"the leaf at tree{jax.tree_util.keystr(path)} is {describe(x)}, which has "
            "no mean of its dtype; wanted floating leaves: leave it out, or cast it."
        )

"""Who sends to whom: directed graphs of workers, and how fast they average."""

import dataclasses
from functools import cached_property
from typing import Any

import jax
import numpy as np

from ..core import axis_size, check_choice, describe, is_concrete
from ._permutations import as_permutations

_WEIGHTS = ("uniform", "metropolis", "in_degree")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A directed graph of workers: static under `jit`, compared by its edges.

    In a round every worker i takes `x_i <- sum_j W_ij x_j` over itself and those that
    send to it. With `weights="uniform"`, `W_ij = 1 / (d_i + 1)` for in-degree d_i, and
    all in- and out-degrees must be equal: W is then doubly stochastic, every
    round keeps the mean of all workers, and they converge to it.

    Attributes:
        send: int32 (N, k): to whom each of N workers sends, -1 where to nobody.
        weights: "uniform"; or "metropolis", `W_ij = 1 / (1 + max(d_i, d_j))` and the
            rest for the worker's own value, which keeps the mean where degrees differ
            and every edge goes both ways; or "in_degree", the uniform rule for any
            graph: workers of other degrees converge to a weighted mean, if to any.
        cycles: Whether round t uses column `t mod k` of `send` alone, a permutation.

    Raises:
        ValueError: A worker that sends out of range, to itself, or twice to another;
            a graph in parts that never mix; degrees that `weights` does not allow.
        TypeError: `send` is traced, or holds no integers.

    Example:
        >>> star = [[1, 2], [0, -1], [0, -1]]
        >>> mixing_matrix(Graph(star, weights="metropolis")).round(2).tolist()
        [[0.33, 0.33, 0.33], [0.33, 0.67, 0.0], [0.33, 0.0, 0.67]]
    """

    send: np.ndarray
    _: dataclasses.KW_ONLY
    weights: str = "uniform"
    cycles: bool = False

    def __post_init__(self) -> None:
        """Checks what was given, and keeps a read-only copy."""
        check_choice(self.weights, _WEIGHTS, "weights")
        object.__setattr__(self, "send", _as_send(self.send))
        _check_edges(self.send, repeats=self.cycles)
        if self.cycles:
            _check_columns(self.send)
        _check_weights(self)
        _check_connected(self._edges)

    def __eq__(self, other: object) -> bool:
        """Whether both have the same edges, in the same order, and the same rule."""
        return isinstance(other, Graph) and self._identity == other._identity

    def __hash__(self) -> int:
        """That of the edges."""
        return hash(self._identity)

    def __repr__(self) -> str:
        """Its size and its first worker."""
        to = [int(j) for j in self.send[0] if j >= 0]
        options = f", weights={self.weights!r}" if self.weights != "uniform" else ""
        options += ", cycles=True" if self.cycles else ""
        return f"Graph({self.num_workers} workers, 0 sends to {to}{options})"

    @property
    def num_workers(self) -> int:
        """The number N of workers."""
        return len(self.send)

    @cached_property
    def senders(self) -> np.ndarray:
        """int32 (N, k): from whom each worker receives, in the order of the sum.

        Column c is a permutation of the workers: the c-th that is sent, or the one of
        the rounds `t mod k = c` where the graph cycles. -1 where degrees differ and
        nothing of worth is received.
        """
        senders, used = self.permutations
        return np.where(used, senders, np.int32(-1))

    @cached_property
    def permutations(self) -> tuple[np.ndarray, np.ndarray]:
        """`senders` with the gaps filled, and bool (N, k): what is no filling."""
        if all(_is_permutation(column) for column in self.send.T):
            senders = np.argsort(self.send, axis=0).astype(np.int32)
            return senders, np.ones(senders.shape, bool)
        return as_permutations(self._edges)

    @property
    def _identity(self) -> tuple[Any, ...]:
        send = (self.send.shape, self.send.tobytes())
        return *send, self.weights, self.cycles

    @property
    def _edges(self) -> np.ndarray:
        """A bool (N, N): entry [i, j] where i sends to j, in some round."""
        edges = np.zeros((self.num_workers,) * 2, bool)
        rows, columns = np.nonzero(self.send >= 0)
        edges[rows, self.send[rows, columns]] = True
        return edges


def mixing_matrix(graph: Graph, step: int = 0) -> np.ndarray:
    """The matrix W of a round: `stochastic_reduce` is x <- W x over all workers.

    Row i is what worker i makes of the values of all: `graph.weights` says how.

    Args:
        graph: Of N workers.
        step: The round, a Python int; only a graph that cycles looks at it.

    Returns:
        float64 (N, N), rows of sum 1; columns too, unless the weights are "in_degree".

    Raises:
        TypeError: `step` is traced.

    Example:
        >>> from jaxmethods.shard import graph
        >>> mixing_matrix(graph("ring", 3)).tolist()
        [[0.5, 0.0, 0.5], [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]

    References:
        Kadav and Kruus 2016, arXiv:1612.08608.
    """
    if not is_concrete(step):
        raise TypeError(
            f"step is {describe(step)}, traced; wanted a Python int: stack the "
            "matrices of all steps and take one of them."
        )
    edges = graph._edges
    if graph.cycles:
        column = graph.send[:, int(step) % graph.send.shape[1]]
        edges = np.arange(graph.num_workers) == column[:, None]
    degree = edges.sum(0)
    if graph.weights == "metropolis":
        matrix = edges.T / (1 + np.maximum(degree, degree[:, None]))
        return matrix + np.diag(1 - matrix.sum(1))
    return (edges.T | np.eye(graph.num_workers, dtype=bool)) / (degree[:, None] + 1)


def spectral_gap(graph: Graph) -> float:
    """How fast a graph averages: 1 - sigma_2 of its mixing matrix, 0 to 1.

    sigma_2 is the second largest singular value of W. Each round shrinks the distance
    of the workers from their mean: `||W x - mean|| <= sigma_2 ||x - mean||`. For a
    graph that cycles W is the product of a whole cycle.

    Args:
        graph: A `Graph`. With weights "in_degree" and unequal degrees sigma_2 bounds
            nothing, and may exceed 1.

    Returns:
        A Python float: 1 where one round, or cycle, gives the exact mean.

    Complexity:
        A singular value decomposition of (N, N).

    Example:
        >>> from jaxmethods.shard import graph
        >>> [round(spectral_gap(graph(name, 16)), 3) for name in ("ring", "exp2")]
        [0.019, 0.4]

    References:
        Duchi, Agarwal and Wainwright 2012, arXiv:1005.2012, theorem 2.
    """
    matrix = np.eye(graph.num_workers)
    for step in range(graph.send.shape[1] if graph.cycles else 1):
        matrix = mixing_matrix(graph, step) @ matrix
    values = np.linalg.svd(matrix, compute_uv=False)
    return float(1 - values[1]) if len(values) > 1 else 1.0


def check_workers(graph: Graph, axis_name: Any, caller: str) -> None:
    """Raises unless an axis is bound and has as many workers as a graph."""
    workers = axis_size(axis_name, caller)
    if graph.num_workers != workers:
        raise ValueError(
            f"the graph is of {graph.num_workers} workers and the axis {axis_name!r} "
            f"of {workers}; wanted the same: make a graph of {workers}."
        )


def _as_send(send: Any) -> np.ndarray:
    if not is_concrete(send):
        raise TypeError(
            f"send is {describe(send)}, traced; wanted values: who sends to whom is "
            "part of the compiled program, so make the graph outside jit."
        )
    array = np.asarray(send)
    if array.dtype.kind not in "iu":
        raise TypeError(f"send is {describe(array)}; wanted an integer dtype.")
    if array.ndim != 2 or not len(array):
        raise ValueError(
            f"send is {describe(array)}; wanted (workers, degree): a row for each "
            "worker, padded with -1."
        )
    array = array.astype(np.int64)
    beyond = np.argwhere((array < -1) | (array >= len(array)))
    if len(beyond):
        row, column = beyond[0]
        raise ValueError(
            f"worker {row} sends to {array[row, column]}; wanted 0..{len(array) - 1}, "
            "or -1 for nobody."
        )
    array = array.astype(np.int32)
    array.setflags(write=False)
    return array


def _check_edges(send: np.ndarray, *, repeats: bool) -> None:
    for worker, row in enumerate(send):
        others = row[row >= 0]
        if worker in others:
            raise ValueError(
                f"worker {worker} sends to itself; its own value counts without that: "
                "take the edge away."
            )
        values, counts = np.unique(others, return_counts=True)
        if not repeats and (counts > 1).any():
            raise ValueError(
                f"worker {worker} sends to {values[counts > 1][0]} more than once; "
                "wanted each edge once: take the others away."
            )


def _check_columns(send: np.ndarray) -> None:
    for step, column in enumerate(send.T):
        if not _is_permutation(column):
            raise ValueError(
                f"column {step} of a graph that cycles is {column.tolist()}; wanted "
                f"a permutation of 0..{len(send) - 1}: all send and all receive."
            )


def _is_permutation(column: np.ndarray) -> bool:
    return np.array_equal(np.sort(column), np.arange(len(column)))


def _check_weights(graph: Graph) -> None:
    edges = graph._edges
    out, into = edges.sum(1), edges.sum(0)
    if graph.weights == "metropolis":
        single = np.argwhere(edges & ~edges.T)
        if graph.cycles or len(single):
            what = "the graph cycles"
            if len(single):
                what = "{0} sends to {1}, {1} not to {0}".format(*single[0])
            raise ValueError(
                f"weights are 'metropolis' and {what}; wanted every edge both ways, "
                "all in one round: add the edges back."
            )
    elif graph.weights == "uniform" and not graph.cycles:
        if out.min() != out.max() or (into != out).any():
            raise ValueError(
                f"in-degrees are {into.min()}..{into.max()}, out-degrees {out.min()}.."
                f"{out.max()}; wanted all equal, or averages converge to a weighted "
                "mean: add edges, pass weights='metropolis' where every edge goes both "
                "ways, or weights='in_degree' to have the weighted mean."
            )


def _check_connected(edges: np.ndarray) -> None:
    """Refuses parts that never mix: 1 - sigma_2 would be 0."""
    part = np.zeros(len(edges), bool)
    part[0] = new = True
    while np.any(new):
        new = (edges | edges.T)[part].any(0) & ~part
        part |= new
    if not part.all():
        raise ValueError(
            f"the graph is disconnected: workers {np.flatnonzero(part).tolist()} never "
            f"mix with the other {int((~part).sum())} of {len(edges)}; wanted one "
            "part: add edges between them."
        )

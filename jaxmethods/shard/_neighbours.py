"""NOTIFY-ACK between workers that run on their own: the protocol, without an engine.

How bytes and flags travel is a `Transport`: memory that processes or threads share
(`_shared_slots`), or sockets (`_socket_slots`).
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, Self

import jax
import numpy as np

from ..core import check_choice, check_integer, check_positive
from ..kernels import mean_of
from ._graphs import Graph, mixing_matrix
from ._slot_layout import SlotLayout
from ._worker_errors import WorkerLost, WorkerTimeout

MODES = ("bsp", "notify", "notify_ack", "async")

_BLOCK = 2**15  # elements: a block of a sum and what it reads stay in the cache


class Transport(Protocol):
    """What the protocol wants of an engine: one-sided messages, and flags that count.

    A flag is raised by `signal` at one worker and taken by `wait` at the other, once
    for each time that it was raised. What was `put` before a `signal` is in its slot
    when the `wait` for it returns. `put` and `signal` may raise TimeoutError, and all
    may raise ConnectionError where the other worker is known to be gone.

    Attributes:
        out: uint8 (nbytes,): the worker's output buffer.
        slots: By in-neighbour, uint8 (nbytes,): what it put last; zeros before.
    """

    out: np.ndarray
    slots: Mapping[int, np.ndarray]

    def put(self, peer: int) -> None:
        """Writes `out` into the slot that `peer` has for this worker."""
        ...

    def signal(self, kind: str, peer: int) -> None:
        """Raises the flag `kind`, "notify", "ack" or "barrier", of `peer`."""
        ...

    def wait(self, kind: str, peer: int, seconds: float) -> bool:
        """Takes the flag `kind` that `peer` raises: whether in `seconds`."""
        ...

    def close(self, seconds: float) -> None:
        """Lets go, once the neighbours have what they were sent, or after `seconds`."""
        ...


class Neighbours:
    """A worker's place in a graph: its side of every round of averaging.

    Round t of worker i, from in-neighbours I and to out-neighbours S: wait until each
    of S has acknowledged round t - 1; copy x to the output buffer and put it into the
    slot at each of S, then NOTIFY each; wait for the NOTIFY of each of I;
    `x <- W_ii x + sum_j W_ij slot_j`; only then ACK to each of I. All send before they
    wait, so no graph deadlocks. Every message is used once, neighbours are never more
    than one round apart, and the results are those of the synchronous rounds
    `x <- W x`, bit for bit, whatever the timing.

    The modes:

    - "notify_ack": as above.
    - "bsp": no ACK; barriers of all workers before and after the sum. Same results.
    - "notify": no ACK and no barrier: a sender may overwrite a slot that has not been
      read. Messages are lost or mixed where workers differ in speed.
    - "async": no waits at all. A worker takes what its slots hold, from whatever
      rounds, and leaves out slots that hold nothing yet. The mean of all workers is
      not kept: fast workers count more often.

    Use it as a context, so that its transport is closed. After an error it is of no
    further use: what the other workers hold is not known.

    Args:
        transport: Made for this worker, graph and mode.
        graph: Who sends to whom, the same on all workers.
        worker: This one, 0..N-1.
        like: A tree with the shapes and dtypes of what is averaged.
        mode: One of the four, the same on all workers.
        timeout: Seconds that one wait may take, a neighbour's own work included.

    Attributes:
        worker: This one.
        round: The number of rounds it has completed.
        seen: By in-neighbour, the rounds of the messages that the last average used.

    Raises:
        ValueError: `mode` is none of the four; `worker` is not in the graph.
        TypeError: A leaf of `like` is not floating.

    Example:
        >>> from jaxmethods.shard import graph, run_workers
        >>> def fn(neighbours):
        ...     x = np.float32([0.0, 2.0, 8.0][neighbours.worker])
        ...     return float(neighbours.average(x))
        >>> run_workers(fn, graph("ring", 3), np.float32(0), engine="threads")
        [4.0, 1.0, 5.0]

    References:
        Kadav and Kruus 2016, arXiv:1612.08608 (NOTIFY-ACK).
    """

    def __init__(
        self,
        transport: Transport,
        graph: Graph,
        worker: int,
        like: Any,
        *,
        mode: str = "notify_ack",
        timeout: float = 60.0,
    ) -> None:
        check_choice(mode, MODES, "mode")
        check_positive(timeout, "timeout")
        self.worker = check_integer(worker, "worker", 0, graph.num_workers - 1)
        self.round = 0
        self.seen: dict[int, int] = {}
        self.transport, self.timeout = transport, float(timeout)
        self._graph, self._mode = graph, mode
        self._layout = SlotLayout(like)
        self._out = self._layout.view(transport.out)
        self._slots = {
            j: self._layout.view(transport.slots[j])
            for j in in_neighbours(graph, worker)
        }
        # Metropolis is the one rule whose shares are not all equal.
        weighted = graph.weights == "metropolis"
        self._weights = mixing_matrix(graph)[worker] if weighted else None
        self._owing: list[int] = []  # those whose ACK is to come
        self._usable = True

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Closes the transport, without delay after an error."""
        self._usable = False
        self.transport.close(self.timeout if error is None else 0.0)

    def average(self, tree: Any) -> Any:
        """One round: the worker's values, averaged with those of its in-neighbours.

        Args:
            tree: Of numpy or jax arrays, like `like`.

        Returns:
            A tree like it; arrays of jax where they came as such, on their devices,
            and committed to them where they were.
            Sums in float32 or wider, own values first, then in the order of
            `graph.senders`: the bits of `stochastic_reduce`.

        Raises:
            WorkerTimeout: A neighbour did not do its part within `timeout` seconds.
            WorkerLost: The transport knows that a neighbour is gone.
            ValueError: The tree is not like `like`.
            RuntimeError: An earlier round failed, or the transport lets messages be
                overwritten before they are read.

        Complexity:
            One copy and one sum of d + 1 values an element for d in-neighbours, and
            what the transport copies. Nothing is pickled.
        """
        if not self._usable:
            raise RuntimeError(
                f"worker {self.worker} was closed or failed in round {self.round}; "
                "start all workers again from their last checkpoint."
            )
        self._usable = False  # until this round is complete
        receivers, senders = self._edges()
        self._wait("ack", self._owing)
        self._layout.write(tree, self._out, self.round)
        for peer in receivers:
            self._at_edge("put", peer, lambda p=peer: self.transport.put(p))
            if self._mode != "async":
                self._signal("notify", [peer])
        if self._mode != "async":
            self._wait("notify", senders)
        self._barrier()
        mean = self._mean(tree, senders)
        self.round += 1
        if self._mode == "notify_ack":
            self._signal("ack", senders)
            self._owing = receivers
        self._barrier()
        self._usable = True
        return mean

    def _edges(self) -> tuple[list[int], list[int]]:
        """To whom and from whom messages go in this round."""
        columns = slice(None)
        if self._graph.cycles:
            columns = self.round % self._graph.send.shape[1]
        both = self._graph.send, self._graph.senders
        rows = [np.atleast_1d(a[self.worker, columns]) for a in both]
        receivers, senders = ([int(j) for j in row if j >= 0] for row in rows)
        return receivers, senders

    def _mean(self, tree: Any, senders: list[int]) -> Any:
        held = {j: self._slots[j].round for j in senders}
        if self._mode in ("bsp", "notify_ack"):
            for sender, round in held.items():
                if round != self.round:
                    raise RuntimeError(
                        f"worker {self.worker} found a message of round {round} of "
                        f"worker {sender} in round {self.round}; wanted the same: the "
                        "transport must not fill a slot before its ACK."
                    )
        # Only without waits may a slot be empty.
        self.seen = {j: round for j, round in held.items() if round >= 0}
        weights = None
        if self._weights is not None:
            weights = self._weights[[self.worker, *self.seen]]
            if len(self.seen) < len(held):
                weights /= weights.sum()
        means = []
        for index, leaf in enumerate(jax.tree.leaves(tree)):
            own = self._out.leaves[index]
            received = [self._slots[j].leaves[index] for j in self.seen]
            mean = _by_blocks(own, received, weights).reshape(np.shape(leaf))
            if isinstance(leaf, jax.Array):
                mean = _placed_like(mean, leaf)
            means.append(mean)
        return jax.tree.unflatten(self._layout.treedef, means)

    def _barrier(self) -> None:
        """Returns when all workers have come here: log2 N flags each, in "bsp" only."""
        size = self._graph.num_workers
        for hop in _hops(size) if self._mode == "bsp" else ():
            self._signal("barrier", [(self.worker + hop) % size])
            self._wait("barrier", [(self.worker - hop) % size])

    def _signal(self, kind: str, peers: Iterable[int]) -> None:
        for peer in peers:
            self._at_edge("put", peer, lambda p=peer: self.transport.signal(kind, p))

    def _wait(self, kind: str, peers: Iterable[int]) -> None:
        end = time.monotonic() + self.timeout
        for peer in peers:
            self._at_edge(
                kind,
                peer,
                lambda p=peer: self.transport.wait(
                    kind, p, max(0.0, end - time.monotonic())
                ),
            )

    def _at_edge(self, kind: str, peer: int, act: Callable[[], Any]) -> None:
        """Does something with a neighbour; an error says where and when."""
        where = self.worker, peer, kind, self.round, self.timeout
        try:
            done = act()
        except TimeoutError as error:
            raise WorkerTimeout(*where) from error
        except ConnectionError as error:
            raise WorkerLost(*where) from error
        if done is False:
            raise WorkerTimeout(*where)


def in_neighbours(graph: Graph, worker: int) -> list[int]:
    """Those who send to a worker in any round."""
    return [j for j in range(graph.num_workers) if worker in graph.send[j]]


def flags(graph: Graph, mode: str) -> list[tuple[str, int, int]]:
    """The flags of a mode: kind, who raises it, and who takes it."""
    size = graph.num_workers
    edges = [(j, i) for i in range(size) for j in in_neighbours(graph, i)]
    notify = [("notify", j, i) for j, i in edges if mode != "async"]
    ack = [("ack", i, j) for j, i in edges if mode == "notify_ack"]
    hops = _hops(size) if mode == "bsp" else []
    barrier = [("barrier", i, (i + hop) % size) for hop in hops for i in range(size)]
    return notify + ack + barrier


def _hops(size: int) -> list[int]:
    return [2**k for k in range((size - 1).bit_length())]


def _placed_like(mean: np.ndarray, leaf: jax.Array) -> jax.Array:
    if leaf.committed:
        return jax.device_put(mean, leaf.sharding)
    # A committed one would make the caller's jitted step compile again.
    with jax.default_device(next(iter(leaf.devices()))):
        return jax.device_put(mean)


def _by_blocks(
    own: np.ndarray, received: list[np.ndarray], weights: np.ndarray | None
) -> np.ndarray:
    mean = np.empty_like(own)
    for start in range(0, own.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        parts = [other[block] for other in received]
        if weights is None:
            mean[block] = mean_of(own[block], parts)
        else:
            wide = np.promote_types(own.dtype, np.float32)
            shares = weights.astype(np.finfo(wide).dtype)
            total = own[block].astype(wide) * shares[0]
            for share, part in zip(shares[1:], parts, strict=True):
                total += part.astype(wide) * share
            mean[block] = total.astype(own.dtype)
    return mean

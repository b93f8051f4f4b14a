"""A transport for one host: memory and semaphores that all workers share.

The default on one host: a round of 4 workers over "exp2" took 0.5, 5 and 59 ms for 1e5,
1e6 and 1e7 float32, all on one core, where sockets took 1.6, 18 and 166 ms.
"""

import threading
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np

from ._graphs import Graph
from ._neighbours import flags, in_neighbours


class SharedSlots:
    """A worker's view of the memory of all: its neighbours read its output buffer.

    One write serves all receivers: the slots of a worker are the output buffers of
    its in-neighbours. A buffer is overwritten only after all who read it are done,
    which is the promise of the protocol for a slot, so nothing is lost by that.

    Memory has no owner that could die with it, and semaphores are raised and taken
    without locks, so a killed worker leaves nothing locked.
    """

    def __init__(
        self,
        worker: int,
        buffers: Mapping[int, Any],
        semaphores: Mapping[tuple[str, int, int], Any],
    ) -> None:
        views = {j: np.frombuffer(b, np.uint8) for j, b in buffers.items()}
        self.out = views.pop(worker)
        self.slots: Mapping[int, np.ndarray] = views
        self._worker, self._semaphores = worker, semaphores

    def put(self, peer: int) -> None:
        """Nothing to do: `peer` reads `out` itself."""

    def signal(self, kind: str, peer: int) -> None:
        """Raises a flag of `peer`."""
        self._semaphores[kind, self._worker, peer].release()

    def wait(self, kind: str, peer: int, seconds: float) -> bool:
        """Takes a flag that `peer` raises: whether in `seconds`."""
        return self._semaphores[kind, peer, self._worker].acquire(True, seconds)

    def close(self, seconds: float) -> None:
        """Nothing to do: memory outlives the worker."""


def shared_slots(
    graph: Graph, nbytes: int, mode: str, context: BaseContext | None = None
) -> list[Callable[[], SharedSlots]]:
    """Makes the memory of all workers.

    Args:
        graph: Of N workers.
        nbytes: The size of a message.
        mode: Of the protocol: which flags there must be.
        context: How the processes start that are to share it; None for threads. The
            memory has no name, so nothing is left of it, however they end.

    Returns:
        For each worker, what makes its transport; it may be handed to its process.
    """
    if context is None:
        memory = [bytearray(nbytes) for _ in range(graph.num_workers)]
        semaphore = threading.Semaphore
    else:
        memory = [context.RawArray("B", nbytes) for _ in range(graph.num_workers)]
        semaphore = context.Semaphore
    flag = {key: semaphore(0) for key in flags(graph, mode)}
    makers = []
    for worker in range(graph.num_workers):
        buffers = {j: memory[j] for j in (worker, *in_neighbours(graph, worker))}
        own = {key: value for key, value in flag.items() if worker in key[1:]}
        makers.append(partial(SharedSlots, worker, buffers, own))
    return makers

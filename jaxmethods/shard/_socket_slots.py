"""A transport between hosts: a socket for each pair of neighbours."""

import contextlib
import hmac
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._graphs import Graph
from ._neighbours import Neighbours, flags, in_neighbours
from ._slot_layout import SlotLayout
from ._socket_hello import answer, call, receive
from ._worker_errors import WorkerTimeout

_KINDS = ("message", "notify", "ack", "barrier")
_RETRY = 0.05  # seconds between attempts to connect


def join_workers(
    worker: int,
    addresses: Sequence[str],
    graph: Graph,
    like: Any,
    *,
    authkey: bytes,
    mode: str = "notify_ack",
    timeout: float = 60.0,
    listener: socket.socket | None = None,
) -> Neighbours:
    """Connects a worker with its neighbours on other hosts; each worker calls it.

    Workers may start in any order within `timeout`. After that a worker that died is
    not let in again: its neighbours raise `WorkerLost`, a process started in its
    place raises `WorkerTimeout`, and all start again from their last checkpoint.

    Neighbours prove to each other that they know `authkey` and have the same graph,
    mode, and names, shapes and dtypes of leaves. What they send then is neither signed
    nor encrypted, and nothing of it is unpickled or run: use it within a network that
    you trust.

    Args:
        worker: This worker, 0..N-1.
        addresses: "host:port" of each of the N workers, where it listens.
        graph: Who sends to whom, the same on all workers.
        like: A tree with the shapes and dtypes of what is averaged.
        authkey: Secret bytes, the same on all workers.
        mode: As in `Neighbours`. "async" waits for nobody, but a socket takes no more
            than the network carries.
        timeout: Seconds that one wait may take, here and in each round.
        listener: A socket that listens already at the worker's address.

    Returns:
        `Neighbours`, to be used as a context.

    Raises:
        WorkerTimeout: A neighbour was not there in time, or refused this worker.
        PermissionError: A neighbour that this worker called has another `authkey`,
            graph, mode or `like`. The one that was called waits on, until `timeout`.
        ValueError: The number of addresses is not that of the graph's workers.

    Complexity:
        Every in- and out-neighbour costs a thread that reads into its slot. A round
        sends k messages for k out-neighbours.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> from jaxmethods.shard import graph
        >>> listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        >>> where = [f"127.0.0.1:{one.getsockname()[1]}" for one in listeners]
        >>> def work(worker):
        ...     x = np.float32(worker)
        ...     with join_workers(worker, where, graph("ring", 2), x, authkey=b"s",
        ...                       listener=listeners[worker]) as neighbours:
        ...         return float(neighbours.average(x))
        >>> with ThreadPoolExecutor() as pool:
        ...     list(pool.map(work, range(2)))
        [0.5, 0.5]
    """
    size = graph.num_workers
    if len(addresses) != size:
        raise ValueError(
            f"there are {len(addresses)} addresses and {size} workers in the graph; "
            "wanted one for each."
        )
    layout = SlotLayout(like)
    transport = SocketSlots(worker, graph, layout.nbytes, mode, timeout)
    neighbours = Neighbours(transport, graph, worker, like, mode=mode, timeout=timeout)
    edges = graph.send.tolist(), graph.cycles, graph.weights
    secret = hmac.digest(authkey, repr((edges, mode, layout.leaves)).encode(), "sha256")
    try:
        transport.connect(addresses, secret, listener)
    except BaseException:
        transport.close(0.0)
        raise
    return neighbours


class SocketSlots:
    """Slots of its own, which a thread for each neighbour fills from a socket."""

    def __init__(
        self, worker: int, graph: Graph, nbytes: int, mode: str, timeout: float
    ) -> None:
        self.out = np.zeros(nbytes, np.uint8)
        self.slots: Mapping[int, np.ndarray] = {
            j: np.zeros(nbytes, np.uint8) for j in in_neighbours(graph, worker)
        }
        ends = {pair[1:] for pair in flags(graph, mode) + flags(graph, "notify")}
        pairs = [set(pair) - {worker} for pair in ends if worker in pair]
        self._peers = sorted(set().union(*pairs))
        self._worker, self._timeout = worker, timeout
        self._links: dict[int, socket.socket] = {}
        self._threads: list[threading.Thread] = []
        self._raised: Counter[tuple[str, int]] = Counter()
        self._gone: set[int] = set()
        self._changed = threading.Condition()

    def connect(
        self, addresses: Sequence[str], secret: bytes, listener: socket.socket | None
    ) -> None:
        """Calls the neighbours of higher numbers, and hears those of lower ones."""
        end = time.monotonic() + self._timeout
        if listener is None:
            listener = socket.create_server(_split(addresses[self._worker]))
        with listener:
            for peer in self._peers:
                if peer > self._worker:
                    self._call(peer, addresses[peer], secret, end)
            awaited = {peer for peer in self._peers if peer < self._worker}
            while awaited:
                awaited -= self._hear(listener, awaited, secret, end)
        for peer, link in self._links.items():
            link.settimeout(self._timeout)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._read, args=(peer, link), daemon=True)
            thread.start()
            self._threads.append(thread)

    def put(self, peer: int) -> None:
        """Sends `out`: the thread of `peer` reads it into its slot."""
        self._send("message", peer)
        self._links[peer].sendall(self.out.data)

    def signal(self, kind: str, peer: int) -> None:
        """Raises a flag of `peer`."""
        self._send(kind, peer)

    def wait(self, kind: str, peer: int, seconds: float) -> bool:
        """Takes a flag that `peer` raises: whether in `seconds`."""
        flag = kind, peer

        def is_known() -> bool:
            return self._raised[flag] > 0 or peer in self._gone

        with self._changed:
            if not self._changed.wait_for(is_known, seconds):
                return False
            if not self._raised[flag]:
                raise ConnectionError(f"worker {peer} closed its connection.")
            self._raised[flag] -= 1
        return True

    def close(self, seconds: float) -> None:
        """Says that no more comes, and reads until the neighbours have said so too.

        A socket that is closed with bytes unread takes back what it sent last.
        """
        end = time.monotonic() + seconds
        for link in self._links.values():
            _shut(link, socket.SHUT_WR)
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        for link in self._links.values():
            _shut(link, socket.SHUT_RDWR)
            link.close()

    def _send(self, kind: str, peer: int) -> None:
        self._links[peer].sendall(bytes([_KINDS.index(kind)]))

    def _read(self, peer: int, link: socket.socket) -> None:
        kind = memoryview(bytearray(1))
        try:
            while True:
                receive(link, kind)
                if _KINDS[kind[0]] == "message":
                    receive(link, self.slots[peer].data)
                    continue
                with self._changed:
                    self._raised[_KINDS[kind[0]], peer] += 1
                    self._changed.notify_all()
        except OSError:
            with self._changed:
                self._gone.add(peer)
                self._changed.notify_all()

    def _call(self, peer: int, address: str, secret: bytes, end: float) -> None:
        while (left := end - time.monotonic()) > 0:
            try:
                with contextlib.ExitStack() as undo:
                    link = socket.create_connection(_split(address), left)
                    undo.enter_context(link)
                    call(link, self._worker, peer, secret, end)
                    undo.pop_all()
            except PermissionError as error:
                raise PermissionError(
                    f"worker {self._worker} and worker {peer} at {address} have not "
                    "the same authkey, graph, mode, and names, shapes and dtypes of "
                    "`like`; wanted all the same."
                ) from error
            except OSError:  # not there yet, or no more
                time.sleep(min(_RETRY, left))
            else:
                self._links[peer] = link
                return
        raise WorkerTimeout(self._worker, peer, "connection", 0, self._timeout)

    def _hear(
        self, listener: socket.socket, awaited: set[int], secret: bytes, end: float
    ) -> set[int]:
        """Who called: one of `awaited`, or nobody of interest."""
        listener.settimeout(max(1e-3, end - time.monotonic()))
        try:
            link, _ = listener.accept()
        except TimeoutError as error:
            peer = min(awaited)
            raise WorkerTimeout(
                self._worker, peer, "connection", 0, self._timeout
            ) from error
        with contextlib.suppress(OSError):
            caller = answer(link, self._worker, secret, end)
            if caller in awaited:
                self._links[caller] = link
                return {caller}
        link.close()
        return set()


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"the address is {address!r}; wanted 'host:port'.")
    return host.strip("[]"), int(port)


def _shut(link: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # the other end may have been first
        link.shutdown(how)

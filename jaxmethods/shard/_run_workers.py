"""Starts workers that run on their own on one host, and ends them all."""

import contextlib
import multiprocessing
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import connection
from typing import Any

import jax

from ..core import check_choice, check_positive
from ._graphs import Graph
from ._neighbours import MODES, Neighbours
from ._shared_slots import shared_slots
from ._slot_layout import SlotLayout
from ._socket_slots import join_workers
from ._worker_errors import WorkerFailed, as_failure, first_cause

_ENGINES = ("processes", "sockets", "threads")
_GRACE = 0.25  # seconds: workers that wait for one another fail at about one time


def run_workers(
    fn: Callable[..., Any],
    graph: Graph,
    like: Any,
    *,
    args: Sequence[Any] = (),
    mode: str = "notify_ack",
    timeout: float = 60.0,
    limit: float | None = None,
    engine: str = "processes",
) -> list[Any]:
    """Runs `fn(neighbours, *args)` in a process for each worker of a graph.

    Workers run at their own speed and meet only in `neighbours.average(tree)`, which
    averages with the neighbours of the graph; `Neighbours` says how each mode waits.
    Between averages `fn` is free: a jitted step of its own, its own data by
    `neighbours.worker`. The paper averages parameters only: the state of an optimizer
    and batch statistics stay with their worker unless they are in the tree.

    If one worker raises, dies or waits too long, all are killed, and the error tells
    which one began it. There is no restart of one worker: its neighbours may have used
    some of its messages. Run all again, from what they had saved. Whatever happens,
    also to the caller, no process is left.

    The engines: "processes" share memory (rounds are shortest there); "sockets" are
    processes too, connected as `join_workers` connects hosts; "threads" of this process
    are for simulation and tests: `fn` may be a closure, and none can be killed: after
    an error those that have not ended go on, until they wait for longer than `timeout`
    or the process ends.

    Args:
        fn: Called in each worker. A function that a new process can import.
        graph: Who sends to whom, of N workers.
        like: A tree with the shapes and dtypes of what is averaged.
        args: More arguments of `fn`, the same for all workers.
        mode: "bsp", "notify", "notify_ack" or "async".
        timeout: Seconds that one wait for a neighbour may take, its own work and its
            compilation included.
        limit: Seconds that all of it may take; None for no limit.
        engine: One of the three.

    Returns:
        What `fn` returned, in the order of the workers.

    Raises:
        WorkerTimeout: A worker waited too long: it names worker, edge and round.
        WorkerLost: A connection ended in the midst of a round; "sockets" only.
        WorkerFailed: A worker raised, or died: with its traceback or exit code.
        TimeoutError: `limit` seconds were over.
        ValueError: An unknown mode or engine; `timeout` or `limit` is not above 0.

    Complexity:
        Starting costs a process and an import of jax for each worker. Processes that
        share memory copy a message once for all receivers; sockets send it to each.

    Example:
        >>> from jaxmethods.shard import graph
        >>> def fn(neighbours, start):
        ...     x = start[neighbours.worker]
        ...     for _ in range(2):
        ...         x = neighbours.average(x)
        ...     return x.tolist()
        >>> start = jax.numpy.array([[0.0], [2.0], [4.0], [10.0]])
        >>> run_workers(fn, graph("one_peer", 4), start[0], args=(start,),
        ...             engine="threads")
        [[4.0], [4.0], [4.0], [4.0]]

    References:
        Kadav and Kruus 2016, arXiv:1612.08608.
    """
    check_choice(engine, _ENGINES, "engine")
    check_choice(mode, MODES, "mode")
    check_positive(timeout, "timeout")
    if limit is not None:
        check_positive(limit, "limit")
    like = jax.tree.map(_shape, like)
    options = {"graph": graph, "like": like, "mode": mode, "timeout": timeout}
    if engine == "threads":
        return _in_threads(fn, args, _sharing(None, options), limit)
    context = multiprocessing.get_context("spawn")  # a forked XLA hangs
    with contextlib.ExitStack() as opened:
        if engine == "sockets":
            makers = _connected(opened, options)
        else:
            makers = _sharing(context, options)
        return _in_processes(fn, args, context, makers, limit)


def _shape(leaf: Any) -> Any:
    if not hasattr(leaf, "dtype"):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _sharing(context: Any, options: dict[str, Any]) -> list[Callable[[], Neighbours]]:
    nbytes = SlotLayout(options["like"]).nbytes
    makers = shared_slots(options["graph"], nbytes, options["mode"], context)
    return [partial(_joined, maker, i, options) for i, maker in enumerate(makers)]


def _joined(maker: Callable[[], Any], worker: int, options: Any) -> Neighbours:
    return Neighbours(maker(), worker=worker, **options)


def _connected(
    opened: contextlib.ExitStack, options: dict[str, Any]
) -> list[Callable[[], Neighbours]]:
    listeners = []
    for _ in range(options["graph"].num_workers):
        # Bound here, so that no other program can take a port in between.
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(opened.enter_context(listener))
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in listeners]
    authkey = secrets.token_bytes(32)
    return [
        partial(
            join_workers, i, addresses, authkey=authkey, listener=listener, **options
        )
        for i, listener in enumerate(listeners)
    ]


def _in_threads(
    fn: Callable[..., Any],
    args: Sequence[Any],
    makers: list[Callable[[], Neighbours]],
    limit: float | None,
) -> list[Any]:
    ended: queue.SimpleQueue[tuple[int, Any, Exception | None]] = queue.SimpleQueue()

    def work(worker: int) -> None:
        try:
            with makers[worker]() as neighbours:
                result = fn(neighbours, *args)
            ended.put((worker, result, None))
        except BaseException as error:  # sys.exit ends a worker, not the caller
            ended.put((worker, None, as_failure(worker, error)))

    for worker in range(len(makers)):
        # A pool would wait for all of them, also where the program ends.
        threading.Thread(target=work, args=(worker,), daemon=True).start()
    ends = _Ends(len(makers), limit)
    while ends.missing:
        try:
            worker, result, failure = ended.get(timeout=ends.seconds_left)
        except queue.Empty:
            break
        ends.add(worker, result, failure)
    return ends.all()


def _in_processes(
    fn: Callable[..., Any],
    args: Sequence[Any],
    context: Any,
    makers: list[Callable[[], Neighbours]],
    limit: float | None,
) -> list[Any]:
    processes, pipes = [], []
    try:
        for worker, maker in enumerate(makers):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_work,
                args=(worker, fn, args, maker, theirs),
                name=f"worker-{worker}",
            )
            process.start()
            theirs.close()  # so that its end is seen when the worker's is gone
            processes.append(process)
            pipes.append(mine)
        return _gather(processes, pipes, limit)
    finally:
        for process in processes:
            process.kill()
        for process, pipe in zip(processes, pipes, strict=True):
            process.join()
            process.close()
            pipe.close()


def _work(worker: int, fn: Any, args: Any, maker: Any, pipe: Any) -> None:
    """The main function of a worker's process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe.send(("ready", None))
    pipe.recv()
    try:
        with maker() as neighbours:
            result = fn(neighbours, *args)
        pipe.send(("result", result))
    except Exception as error:
        pipe.send(("failure", as_failure(worker, error)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _gather(processes: list[Any], pipes: list[Any], limit: float | None) -> list[Any]:
    ready: set[int] = set()
    ends = _Ends(len(pipes), limit)
    while ends.missing:
        open_pipes = [pipes[worker] for worker in ends.missing]
        found = connection.wait(open_pipes, ends.seconds_left)
        if not found:
            break
        for pipe in found:
            worker = pipes.index(pipe)
            kind, value = _message(worker, processes[worker], pipe)
            if kind == "ready":
                ready.add(worker)
                # No worker may use up its timeout while others still import.
                for other in pipes if len(ready) == len(pipes) else ():
                    with contextlib.suppress(OSError):  # who died is found below
                        other.send("go")
            elif kind == "result":
                ends.add(worker, value, None)
            else:
                ends.add(worker, None, value)
    return ends.all()


class _Ends:
    """How workers ended, as far as they have."""

    def __init__(self, num_workers: int, limit: float | None) -> None:
        self.missing = list(range(num_workers))
        self._limit = limit
        self._end = None if limit is None else time.monotonic() + limit
        self._results: dict[int, Any] = {}
        self._failures: dict[int, Exception] = {}

    @property
    def seconds_left(self) -> float | None:
        """Until those that are missing are given up; None for never."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def add(self, worker: int, result: Any, failure: Exception | None) -> None:
        """One has ended; after a failure others have a short time to tell theirs."""
        self.missing.remove(worker)
        if failure is None:
            self._results[worker] = result
            return
        self._failures[worker] = failure
        soon = time.monotonic() + _GRACE
        self._end = soon if self._end is None else min(self._end, soon)

    def all(self) -> list[Any]:
        """The results, or the failure that came first, or led to the others."""
        if self._failures:
            raise first_cause(self._failures)
        if self.missing:
            raise TimeoutError(
                f"workers {self.missing} have not ended within {self._limit:g} s; "
                "wanted all of them: pass a longer limit, or None."
            )
        return [self._results[worker] for worker in sorted(self._results)]


def _message(worker: int, process: Any, pipe: Any) -> tuple[str, Any]:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        process.join()
        return "failure", WorkerFailed(worker, process.exitcode)

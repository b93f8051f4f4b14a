"""What ends the rounds of a worker: a neighbour that is late, lost, or failed."""

import signal
import traceback
from typing import Any

_DONE = {
    "notify": "NOTIFY of worker {peer}",
    "ack": "ACK of worker {peer}",
    "barrier": "barrier with worker {peer}",
    "put": "message to worker {peer} to be taken",
    "connection": "connection with worker {peer}",
}


class _AtEdge(Exception):
    def __init__(
        self, worker: int, peer: int, waiting: str, round: int, seconds: float
    ) -> None:
        self.worker, self.peer, self.waiting = worker, peer, waiting
        self.round, self.seconds = round, seconds
        super().__init__(self._message())

    def __reduce__(self) -> tuple[Any, ...]:
        fields = self.worker, self.peer, self.waiting, self.round, self.seconds
        return type(self), fields, self.__dict__

    @property
    def edge(self) -> tuple[int, int]:
        """Sender and receiver of the message that the worker waited with."""
        if self.waiting in ("ack", "put"):
            return self.worker, self.peer
        return self.peer, self.worker

    @property
    def _what(self) -> str:
        wanted = _DONE[self.waiting].format(peer=self.peer)
        return f"the {wanted} (edge {self.edge[0]} -> {self.edge[1]})"

    def _message(self) -> str:
        raise NotImplementedError


class WorkerTimeout(_AtEdge, TimeoutError):
    """A neighbour did not do its part of a round in time.

    Attributes:
        worker: Who waited.
        peer: For whom.
        waiting: For what: "notify", "ack", "barrier", "put" or "connection".
        round: In which round of the worker, from 0.
        seconds: How long.
        edge: Sender and receiver of the message concerned.

    Example:
        >>> raise WorkerTimeout(0, 1, "ack", 7, 2.5)
        Traceback (most recent call last):
        ...
        jaxmethods.shard._worker_errors.WorkerTimeout: worker 0 waited 2.5 s in round 7
        for the ACK of worker 1 (edge 0 -> 1): worker 1 is slow, stalled or gone; look
        at it, or pass a longer timeout.
    """

    def _message(self) -> str:
        refused = ", or it refused: another authkey, graph, mode or `like`"
        return (
            f"worker {self.worker} waited {self.seconds:g} s in round {self.round} for "
            f"{self._what}: worker {self.peer} is slow, stalled or gone"
            f"{refused if self.waiting == 'connection' else ''}; look at it, or pass a "
            "longer timeout."
        )


class WorkerLost(_AtEdge, ConnectionError):
    """A neighbour closed its connection before its part of a round was done.

    Attributes:
        worker: Who waited.
        peer: Who is gone.
        waiting: For what, as in `WorkerTimeout`.
        round: In which round of the worker, from 0.
        seconds: How long it would have waited.
        edge: Sender and receiver of the message concerned.
    """

    def _message(self) -> str:
        return (
            f"worker {self.worker} lost worker {self.peer} in round {self.round}, "
            f"while it wanted {self._what}: worker {self.peer} died or made fewer "
            "rounds; start all workers again from their last checkpoint."
        )


class WorkerFailed(RuntimeError):
    """A worker raised, or its process ended without a result.

    Attributes:
        worker: Which.
        exit_code: Of its process, negative the signal that killed it; None where it
            raised.
        traceback: Of what it raised, as text.
    """

    def __init__(
        self, worker: int, exit_code: int | None = None, traceback: str = ""
    ) -> None:
        self.worker, self.exit_code, self.traceback = worker, exit_code, traceback
        super().__init__(f"worker {worker} {self._end()}")

    def __reduce__(self) -> tuple[Any, ...]:
        fields = self.worker, self.exit_code, self.traceback
        return type(self), fields, self.__dict__

    def _end(self) -> str:
        if self.exit_code is None:
            return f"raised:\n{self.traceback}"
        if self.exit_code < 0:
            return f"was killed by {signal.Signals(-self.exit_code).name}."
        return (
            f"left with exit code {self.exit_code} and no result; what it wrote to "
            "stderr may say why."
        )


def as_failure(worker: int, error: BaseException) -> Exception:
    """What the caller of all workers sees of an error of one, with its traceback."""
    if isinstance(error, SystemExit) and isinstance(error.code, int | None):
        return WorkerFailed(worker, error.code or 0)
    text = "".join(traceback.format_exception(error))
    if isinstance(error, _AtEdge):
        error.add_note(f"In worker {worker}:\n{text}")
        return error
    return WorkerFailed(worker, traceback=text)


def first_cause(failures: dict[int, Exception]) -> Exception:
    """Of the failures of several workers, by worker, the one that led to the others.

    Who waits for a worker that waits itself names that one: so first what is no wait
    at all, then who waited for a worker that has not failed.
    """

    def rank(error: Exception) -> tuple[bool, bool]:
        waited = isinstance(error, _AtEdge)
        return waited, waited and getattr(error, "peer", None) in failures

    return min(failures.values(), key=rank)

"""All processes meet at an address, or an error says who is missing."""

import os
import socket
import time
from contextlib import ExitStack

READY = "ready"
PAUSE = 0.05  # seconds between tries to connect
GRACE = 2.0  # seconds more than process 0 waits, to hear what it found
PATIENCE = 5.0  # seconds for a first word; what says nothing is no process of ours


def meet(address: str, num_processes: int, process_index: int, timeout: float) -> None:
    """Returns when all processes have come to the address of process 0.

    The runtime of jax ends a process, with no exception, where its port is taken or a
    process does not come; here both are errors, before that runtime starts.

    Args:
        address: host:port; process 0 listens there and closes the port again.
        num_processes: of the whole program, the same in all of them.
        process_index: of this process.
        timeout: seconds to wait for the others.

    Raises:
        TimeoutError: a process did not come in time: address, seconds and who.
        RuntimeError: the port is in use; two processes have one index; processes
            disagree on how many they are.
    """
    deadline = time.monotonic() + timeout
    if process_index:
        _join(address, num_processes, process_index, timeout, deadline)
    else:
        _host(address, num_processes, timeout, deadline)


def port_of(address: str) -> int:
    """The port of host:port; ValueError where there is none."""
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(
            f"coordinator_address is {address!r}; wanted host:port with a port in "
            "1..65535, such as '10.0.0.1:1234'."
        )
    return int(port)


def _host(address: str, num_processes: int, timeout: float, deadline: float) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(_listen(address))
        missing = set(range(1, num_processes))
        guests: list[socket.socket] = []
        error: Exception | None = None
        while missing and error is None:
            try:
                listener.settimeout(max(deadline - time.monotonic(), 1e-3))
                guest = stack.enter_context(listener.accept()[0])
            except TimeoutError:
                error = TimeoutError(
                    f"{sorted(missing)} of {num_processes} processes did not come to "
                    f"{address} within {timeout:g} s (indices of processes); wanted "
                    "all: start them with this address, or raise timeout."
                )
                break
            guests.append(guest)
            error = _refusal(_first_word(guest), num_processes, missing)
        # The port must be free before the others go on: the runtime listens there.
        listener.close()
        for guest in guests:
            _say(guest, READY if error is None else str(error))
        if error is not None:
            raise error


def _refusal(said: str, num_processes: int, missing: set[int]) -> Exception | None:
    """Crosses the process off, or says what is wrong with it."""
    index, _, count = said.partition(" of ")
    if not (index.isdecimal() and count.isdecimal()):
        return None  # no process of ours
    if int(count) != num_processes:
        return RuntimeError(
            f"process {index} has num_processes={count}, process 0 has "
            f"{num_processes}; wanted one number in all processes."
        )
    if int(index) not in missing:
        return RuntimeError(
            f"two processes have process_index={index}; wanted each of "
            f"0..{num_processes - 1} once."
        )
    missing.remove(int(index))
    return None


def _join(
    address: str, num_processes: int, index: int, timeout: float, deadline: float
) -> None:
    with _connect(address, index, timeout, deadline) as host:
        _say(host, f"{index} of {num_processes}")
        try:
            said = _line(host, deadline + GRACE)
        except TimeoutError as error:
            raise TimeoutError(
                f"{address} took the connection of process {index} and did not answer "
                f"within {timeout:g} s; wanted process 0 there: is it another program's"
                " port?"
            ) from error
    if said != READY:
        raise (TimeoutError if said and "did not come" in said else RuntimeError)(
            said
            or f"{address} closed the connection of process {index}; wanted process 0 "
            "of this program there: see its error, or is it another program's port?"
        )
    # The runtime would wait a second after a first refusal.
    _connect(address, index, timeout, deadline + GRACE).close()


def _listen(address: str) -> socket.socket:
    port = port_of(address)
    ipv6 = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    try:
        return socket.create_server(
            ("", port), family=family, dualstack_ipv6=ipv6, backlog=1024
        )
    except OSError as error:
        raise RuntimeError(
            f"port {port} of coordinator_address {address} cannot be used on this "
            f"machine ({os.strerror(error.errno or 0)}); wanted a free port, and one "
            "process 0: is another running?"
        ) from error


def _connect(
    address: str, index: int, timeout: float, deadline: float
) -> socket.socket:
    host, port = address.rpartition(":")[0].strip("[]"), port_of(address)
    while True:
        left = deadline - time.monotonic()
        try:
            return socket.create_connection((host, port), max(left, 1e-3))
        except OSError as error:
            if left <= PAUSE:
                raise TimeoutError(
                    f"process {index} could not reach the coordinator at {address} "
                    f"within {timeout:g} s ({error}); wanted process 0 to listen "
                    "there: start it, check the address, or raise timeout."
                ) from error
        time.sleep(PAUSE)


def _say(peer: socket.socket, words: str) -> None:
    try:
        peer.sendall(f"{words}\n".encode())
    except OSError:
        pass  # gone: its own error, or ours, says so


def _first_word(guest: socket.socket) -> str:
    try:
        return _line(guest, time.monotonic() + PATIENCE) or ""
    except TimeoutError:
        return ""


def _line(peer: socket.socket, deadline: float) -> str | None:
    """One line of at most 4096 bytes; None where the peer leaves first."""
    heard = b""
    while not heard.endswith(b"\n"):
        peer.settimeout(max(deadline - time.monotonic(), 1e-3))
        try:
            part = peer.recv(4096 - len(heard))
        except ConnectionError:
            part = b""
        if not part:
            return None
        heard += part
    return heard.decode(errors="replace").rstrip("\n")

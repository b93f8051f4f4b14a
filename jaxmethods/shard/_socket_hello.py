"""How two sockets learn who is at the other end, and that both know a secret."""

import hmac
import secrets
import socket
import struct
import time

_SECONDS = 2.0  # for one that was let in to say who it is; others may be waiting
_PAIR = struct.Struct("<II")  # who calls, and whom
_NONCE = 32


def call(
    link: socket.socket, worker: int, peer: int, secret: bytes, end: float
) -> None:
    """Says to `peer` who calls. Either side proves its secret on a fresh number.

    Args:
        link: Connected to `peer`.
        worker: Who calls.
        peer: Who is to answer.
        secret: Bytes that both know.
        end: On the clock of `time.monotonic`.

    Raises:
        PermissionError: `peer` does not know the secret.
        OSError: It closed the connection, or was late.
    """
    hello = _PAIR.pack(worker, peer) + secrets.token_bytes(_NONCE)
    link.sendall(hello)
    answer = _read(link, _NONCE + 32, end)
    hello += answer[:_NONCE]
    if not hmac.compare_digest(answer[_NONCE:], _proof(secret, b"answer", hello)):
        raise PermissionError
    link.sendall(_proof(secret, b"call", hello))


def answer(link: socket.socket, worker: int, secret: bytes, end: float) -> int:
    """Hears who calls `worker`, and that it knows the secret; the other side of `call`.

    Returns:
        The number of who calls.

    Raises:
        PermissionError: It does not know the secret, or means another worker.
        OSError: It closed the connection, or was late.
    """
    end = min(end, time.monotonic() + _SECONDS)
    hello = _read(link, _PAIR.size + _NONCE, end)
    caller, called = _PAIR.unpack_from(hello)
    number = secrets.token_bytes(_NONCE)
    hello += number
    link.sendall(number + _proof(secret, b"answer", hello))
    proof = _read(link, 32, end)
    known = hmac.compare_digest(proof, _proof(secret, b"call", hello))
    if not known or called != worker:
        raise PermissionError
    return caller


def receive(
    link: socket.socket, into: memoryview, end: float | None = None
) -> memoryview:
    """Fills a buffer from a socket, whose own timeout does not end it.

    Args:
        link: To read from.
        into: Its bytes are written in place.
        end: When to give up, on the clock of `time.monotonic`; None for never.

    Returns:
        `into`.

    Raises:
        ConnectionError: The other end has closed.
        TimeoutError: `end` came first.
    """
    left = into
    while left:
        if end is not None:
            link.settimeout(max(1e-3, end - time.monotonic()))
        try:
            size = link.recv_into(left)
        except TimeoutError:
            if end is not None:
                raise
            continue
        if not size:
            raise ConnectionResetError
        left = left[size:]
    return into


def _read(link: socket.socket, size: int, end: float) -> bytes:
    return bytes(receive(link, memoryview(bytearray(size)), end))


def _proof(secret: bytes, side: bytes, hello: bytes) -> bytes:
    return hmac.digest(secret, side + hello, "sha256")

"""Ports that processes of a test meet at, and nobody else meanwhile."""

import contextlib
import socket


@contextlib.contextmanager
def kept_port():
    """A free port. It is bound but does not listen, so that a server of this test can
    listen there (both reuse the address), and the system gives it to no other program
    that asks for a free one, as tests beside this one do all the time.
    """
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("", 0))
        yield keeper.getsockname()[1]

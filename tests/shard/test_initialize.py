"""Meeting before the runtime starts, in threads, and what initialize refuses.

That it joins real processes is in `test_processes`.
"""

import socket
import threading

import jax
import pytest

from jaxmethods.shard import _initialize, initialize
from jaxmethods.shard._rendezvous import meet

from ..ports import kept_port


@pytest.fixture
def where():
    with kept_port() as port:
        yield f"localhost:{port}"


def outcomes(where, *processes, timeout=5.0, runtime=True):
    """What `meet` did in each process (number, index): None or an error."""
    found: list[Exception | None] = [None] * len(processes)
    done = threading.Event()

    def run(place, number, index):
        try:
            meet(where, number, index, timeout)
            if index == 0 and runtime:  # listens there next, as jax's runtime would
                with socket.create_server(("", int(where.rpartition(":")[2]))):
                    done.wait(10)
        except Exception as error:
            found[place] = error

    threads = [
        threading.Thread(target=run, args=(place, *process))
        for place, process in enumerate(processes)
    ]
    for thread in threads:
        thread.start()
    for thread, (_, index) in zip(threads, processes, strict=True):
        if index:
            thread.join()
    done.set()
    for thread in threads:
        thread.join()
    return found


def test_all_come(where):
    assert outcomes(where, (1, 0)) == [None]
    assert outcomes(where, (3, 2), (3, 0), (3, 1)) == [None] * 3


def test_who_does_not_come_is_named_in_all(where):
    for error in outcomes(where, (4, 0), (4, 2), timeout=1.0):
        assert isinstance(error, TimeoutError)
        assert f"[1, 3] of 4 processes did not come to {where} within 1 s" in str(error)


def test_two_processes_with_one_index(where):
    for error in outcomes(where, (3, 0), (3, 1), (3, 1)):
        assert isinstance(error, RuntimeError)
        assert "process_index=1; wanted each of 0..2 once" in str(error)


def test_processes_that_disagree_on_their_number(where):
    for error in outcomes(where, (2, 0), (4, 1)):
        assert isinstance(error, RuntimeError)
        assert "process 1 has num_processes=4, process 0 has 2" in str(error)


def test_strangers_are_passed_over(where):
    found = []
    host = threading.Thread(
        target=lambda: found.append(outcomes(where, (2, 0), (2, 1))[0])
    )

    def stranger(words):
        for _ in range(200):
            try:
                with socket.create_connection(("localhost", int(where[10:])), 1) as s:
                    s.sendall(words)
                return
            except ConnectionError:
                pass

    strangers = [
        threading.Thread(target=stranger, args=(words,))
        for words in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff of \xff\n")
    ]
    for thread in (host, *strangers):
        thread.start()
    for thread in (host, *strangers):
        thread.join()
    assert found == [None]


def test_a_taken_port():
    with socket.create_server(("", 0)) as taken:
        where = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(RuntimeError, match=f"port .* of .*{where}.*in use.*a free"):
            meet(where, 2, 0, 1)
        with pytest.raises(
            TimeoutError, match=r"did not answer within 0.2 s; wanted p"
        ):
            meet(where, 2, 1, 0.2)


def test_nobody_listens(where):
    with pytest.raises(TimeoutError, match=r"process 1 could not.*within 0.2 s.*start"):
        meet(where, 2, 1, 0.2)


def test_the_runtime_of_process_0_does_not_start(where):
    host, guest = outcomes(where, (2, 0), (2, 1), timeout=1.0, runtime=False)
    assert host is None
    assert f"process 1 could not reach the coordinator at {where}" in str(guest)


def test_initialize_after_a_backend_exists(where):
    assert jax.devices()
    for arguments in ((), (where, 2, 1)):
        with pytest.raises(
            RuntimeError, match=r"jax was used before.*after the import"
        ):
            initialize(*arguments)
    with pytest.raises(RuntimeError, match="jax was used before"):
        initialize(num_processes=1, num_cpu_devices=3)
    assert jax.config.jax_num_cpu_devices == 8


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(num_processes=0), ValueError, "num_processes is 0; wanted at least 1"),
        (dict(num_processes=2, process_index=2), ValueError, "wanted 0..1"),
        (dict(process_index=-1), ValueError, "process_index is -1; wanted at least 0"),
        (dict(num_processes="4"), TypeError, "num_processes is str '4'"),
        (dict(num_cpu_devices=0), ValueError, "num_cpu_devices is 0"),
        (dict(timeout=0), ValueError, "timeout is 0; wanted a finite number above 0"),
        (dict(coordinator_address="host"), ValueError, "'host'; wanted host:port"),
        (dict(coordinator_address=":80"), ValueError, "':80'; wanted host:port"),
        (dict(coordinator_address="a:70000"), ValueError, "a port in 1..65535"),
    ],
)
def test_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        initialize(**arguments)


def test_where_other_code_has_started_the_runtime(monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert initialize() is None
    with pytest.raises(
        RuntimeError, match=r"before initialize with .*'a:1'.*wanted one"
    ):
        initialize("a:1", 2, 0)


def test_one_process_alone_starts_nothing(monkeypatch):
    monkeypatch.setattr(_initialize, "_asked", {})
    for _ in range(2):
        initialize(num_processes=1)
    assert not jax.distributed.is_initialized()
    with pytest.raises(RuntimeError, match="num_processes=1, now 2"):
        initialize("a:1", 2, 0)

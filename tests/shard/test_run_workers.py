"""Workers in processes of their own: equal to bsp, and none is left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmethods.shard import WorkerFailed, WorkerTimeout, graph, run_workers

from .test_neighbours import GRAPHS, LIKE, synchronous
from .worker_functions import (
    go_on,
    misbehave,
    stop_before_a_message,
    wander,
    wander_and_count,
)

ROOT = Path(__file__).parents[2]
PARENT = """
import sys
import numpy as np
from jaxmethods.shard import graph, run_workers
from tests.shard.worker_functions import misbehave
if __name__ == "__main__":
    args = sys.argv[1], "sleep"
    run_workers(misbehave, graph("ring", 2), np.zeros(3, "f"), args=args)
"""


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """A new process finds the functions of `worker_functions`."""
    monkeypatch.syspath_prepend(ROOT)


def check_equal(done, want):
    for x, y in zip(done, want, strict=True):
        jax.tree.map(np.testing.assert_array_equal, x, y)


def test_notify_ack_between_processes_is_bsp_bit_for_bit():
    g = graph("exp2", 4)
    counters = multiprocessing.get_context("spawn").RawArray("q", 4)
    done = run_workers(wander_and_count, g, LIKE, args=(LIKE, 60, 5, counters))
    check_equal([x for x, _, _ in done], synchronous(g, LIKE, 60, 5))
    for _, seen, _ in done:
        assert [set(held.values()) for held in seen] == [{t} for t in range(60)]
    # When one begins to wait for another: not in step, and at most a round apart.
    assert max(apart for _, _, apart in done) == 1


def test_bsp_between_processes():
    g = GRAPHS["metropolis"]
    done = run_workers(wander, g, LIKE, args=(LIKE, 20, 6), mode="bsp")
    check_equal([x for x, _ in done], synchronous(g, LIKE, 20, 6))


def test_sockets_between_processes():
    g = graph("one_peer", 3)
    done = run_workers(wander, g, LIKE, args=(LIKE, 20, 7), engine="sockets")
    check_equal([x for x, _ in done], synchronous(g, LIKE, 20, 7))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def check_none_left(folder, size):
    pids = [int(path.name) for path in folder.iterdir()]
    assert len(pids) == size and os.getpid() not in pids
    assert not any(is_alive(pid) for pid in pids)


def test_a_stalled_worker_is_named_by_its_neighbour_within_the_timeout(tmp_path):
    start = time.monotonic()
    with pytest.raises(WorkerTimeout) as e:
        run_workers(
            *(misbehave, graph("ring", 3), np.zeros(3, "f")),
            args=(str(tmp_path), "sleep"),
            timeout=3.0,
        )
    assert time.monotonic() - start < 60  # of the 600 that it sleeps
    error = e.value
    assert (error.peer, error.seconds) == (1, 3.0)
    # The one that it sends to, or the one that sends to it, which is a round ahead.
    waited = error.worker, error.waiting, error.round, error.edge
    assert waited in [(2, "notify", 1, (1, 2)), (0, "ack", 2, (0, 1))]
    assert f"In worker {error.worker}" in error.__notes__[0]
    assert "misbehave" in error.__notes__[0]
    check_none_left(tmp_path, 3)


@pytest.mark.parametrize(
    "how, code, message",
    [
        ("exit", 3, r"worker 1 left with exit code 3 and no result"),
        ("raise", None, r"worker 1 raised:\n(.|\n)*in fail\n(.|\n)*no such batch"),
    ],
)
def test_a_worker_that_ends_ends_all(tmp_path, how, code, message):
    start = time.monotonic()
    with pytest.raises(WorkerFailed, match=message) as e:
        run_workers(
            *(misbehave, graph("ring", 2), np.zeros(3, "f")),
            args=(str(tmp_path), how),
            timeout=600.0,
        )
    assert time.monotonic() - start < 60  # of the 600 that others would wait
    assert (e.value.worker, e.value.exit_code) == (1, code)
    check_none_left(tmp_path, 2)


def test_after_a_death_all_go_on_from_their_last_common_round(tmp_path):
    g, rounds, seed = graph("ring", 3), 8, 9
    saved, pids = tmp_path / "saved", tmp_path / "pids"
    saved.mkdir(), pids.mkdir()

    def run(start, death):
        args = LIKE, str(saved), str(pids), start, rounds, seed, death
        return run_workers(go_on, g, LIKE, args=args, timeout=600.0)

    begin = time.monotonic()
    with pytest.raises(WorkerFailed, match="worker 1 was killed by SIGKILL") as e:
        run(0, 4)
    assert time.monotonic() - begin < 60  # of the 600 that others would wait
    assert (e.value.worker, e.value.exit_code) == (1, -signal.SIGKILL)
    check_none_left(pids, 3)
    done = [{int(path.stem) for path in saved.glob(f"{i}/*")} for i in range(3)]
    assert max(done[1]) == 4
    start = max(set.intersection(*done))
    assert start in (3, 4)  # neighbours are at most a round apart
    check_equal(run(start, None), synchronous(g, LIKE, rounds, seed))


def test_a_message_that_is_not_taken_ends_in_the_error_too(tmp_path):
    size = 5 * 10**6  # its bytes are more than a system holds for one that is stopped
    with pytest.raises(WorkerTimeout) as e:
        run_workers(
            *(stop_before_a_message, graph("ring", 2), np.zeros(size, "f")),
            args=(str(tmp_path), size),
            timeout=3.0,
            engine="sockets",
        )
    assert (e.value.worker, e.value.waiting, e.value.edge) == (0, "put", (0, 1))
    check_none_left(tmp_path, 2)


def test_the_whole_run_has_a_limit(tmp_path):
    with pytest.raises(
        TimeoutError, match=r"workers \[.*1\] have not ended within 4 s"
    ):
        run_workers(
            *(misbehave, graph("ring", 2), np.zeros(3, "f")),
            args=(str(tmp_path), "sleep"),
            mode="async",
            limit=4.0,
        )
    assert not any(is_alive(int(path.name)) for path in tmp_path.iterdir())


def test_workers_end_with_a_caller_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    folder = tmp_path / "pids"
    folder.mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, script, folder], env=env)
    try:
        end = time.monotonic() + 60
        while len(list(folder.iterdir())) < 2:
            assert time.monotonic() < end and parent.poll() is None
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    pids = [int(path.name) for path in folder.iterdir()]
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < end + 20
        time.sleep(0.05)

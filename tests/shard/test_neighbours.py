"""NOTIFY-ACK between threads: the synchronous results, whatever the timing."""

import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.kernels import mean_of
from jaxmethods.shard import (
    Graph,
    Neighbours,
    WorkerFailed,
    WorkerLost,
    WorkerTimeout,
    graph,
    join_workers,
    mixing_matrix,
    run_workers,
    stochastic_reduce,
)
from jaxmethods.shard._neighbours import MODES
from jaxmethods.shard._shared_slots import shared_slots
from jaxmethods.shard._slot_layout import SlotLayout
from jaxmethods.shard._worker_errors import first_cause

from .test_codec import Pair, Swapped
from .worker_functions import wander

STAR = [[1, 2, 3], [0, -1, -1], [0, -1, -1], [0, -1, -1]]
GRAPHS = {
    "ring": graph("ring", 4),
    "exp2": graph("exp2", 5),
    "complete": graph("complete", 4),
    "shuffled": Graph([[2, 1], [2, 3], [0, 3], [1, 0]]),
    "one_peer": graph("one_peer", 6),
    "metropolis": Graph(STAR, weights="metropolis"),
    "in_degree": Graph(STAR, weights="in_degree"),
    "alone": graph("ring", 1),
}
every_graph = pytest.mark.parametrize("name", GRAPHS)
LIKE = {"b": np.zeros((), "f"), "w": np.zeros((3, 2), "f")}  # as jax sorts them


def synchronous(g, x, rounds, seed):
    """The rounds x <- W x of `wander`, in numpy, of all workers at once."""
    size = g.num_workers
    noise = [np.random.default_rng([seed, i]) for i in range(size)]
    all_x = [x] * size
    for t in range(rounds):
        for i in range(size):
            step = {k: noise[i].standard_normal(v.shape) for k, v in x.items()}
            all_x[i] = {k: v + step[k].astype("f") for k, v in all_x[i].items()}
        w = mixing_matrix(g, t).astype("f")
        columns = [t % g.send.shape[1]] if g.cycles else range(g.send.shape[1])
        new = []
        for i in range(size):
            senders = [int(g.senders[i, c]) for c in columns if g.senders[i, c] >= 0]
            each = {k: [all_x[j][k] for j in (i, *senders)] for k in x}
            if g.weights == "metropolis":
                shares = [w[i, j] for j in (i, *senders)]
                new.append({k: weighted(v, shares) for k, v in each.items()})
            else:
                new.append({k: mean_of(v[0], v[1:]) for k, v in each.items()})
        all_x = new
    return all_x


def weighted(values, shares):
    total = values[0] * shares[0]
    for value, share in zip(values[1:], shares[1:], strict=True):
        total = total + value * share
    return total


@every_graph
@pytest.mark.parametrize("mode", ["bsp", "notify_ack"])
def test_delays_change_no_bit_and_every_message_counts_once(name, mode):
    g = GRAPHS[name]
    degrees = [1 if g.cycles else int((row >= 0).sum()) for row in g.senders]
    for seed in range(3):

        def fn(neighbours, seed=seed):
            return wander(neighbours, LIKE, 12, seed, seconds=0.001)

        done = run_workers(fn, g, LIKE, mode=mode, engine="threads")
        want = synchronous(g, LIKE, 12, seed)
        for worker, (x, seen) in enumerate(done):
            jax.tree.map(np.testing.assert_array_equal, x, want[worker])
            rounds = [sorted(held.values()) for held in seen]
            assert rounds == [[t] * degrees[worker] for t in range(12)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "complex64"])
@pytest.mark.parametrize("name", ["ring", "exp2", "shuffled", "one_peer"])
def test_the_bits_are_those_of_stochastic_reduce(name, dtype, x64):
    g = GRAPHS[name]
    x = np.random.default_rng(0).standard_normal((g.num_workers, 40, 3))
    x = jnp.asarray(x).astype(dtype)

    def fn(neighbours):
        with jax.enable_x64(True):  # each thread has its own setting
            once = neighbours.average(x[neighbours.worker])
            return neighbours.average(once)

    got = run_workers(fn, g, x[0], engine="threads")
    want = x
    for t in range(2):
        rounds = lambda v, t=t: stochastic_reduce(v, "i", g, t)  # noqa: E731
        want = jax.vmap(rounds, axis_name="i")(want)
    for mine, theirs in zip(got, want, strict=True):
        assert isinstance(mine, jax.Array) and mine.sharding == x.sharding
        assert mine.dtype == dtype
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("device", [None, 3])
def test_an_array_is_committed_where_it_was(device):
    x = jnp.zeros(3)
    if device is not None:
        x = jax.device_put(x, jax.devices()[device])
    once, other = run_workers(
        *(lambda n: n.average(x), graph("ring", 2), x), engine="threads"
    )
    assert once.committed == other.committed == (device is not None)
    assert once.sharding == x.sharding


def test_arrays_of_more_than_a_block_and_odd_sizes():
    g = GRAPHS["exp2"]
    like = {"a": np.zeros(100_001, "f"), "b": np.zeros((7, 0), "f"), "c": np.zeros(3)}

    def fn(neighbours):
        tree = jax.tree.map(lambda v: v + neighbours.worker, like)
        tree["a"] += np.arange(100_001)
        out = neighbours.average({**tree, "a": tree["a"][::-1]})  # no copy: a view
        return {**out, "a": out["a"][::-1]}

    got = run_workers(fn, g, like, engine="threads")
    for worker, senders in enumerate(g.senders):
        mean = np.mean([worker, *senders])
        np.testing.assert_allclose(got[worker]["a"], np.arange(100_001) + mean, 1e-6)
        np.testing.assert_allclose(got[worker]["c"], mean, 1e-15)
        assert got[worker]["b"].shape == (7, 0)


@every_graph
def test_the_mean_of_all_workers_is_kept(name):
    if name == "in_degree":  # whose W has columns of other sums
        assert np.ptp(mixing_matrix(GRAPHS[name]).sum(0)) > 0.5
        return
    g = GRAPHS[name]
    x = np.random.default_rng(1).standard_normal((g.num_workers, 6))

    def fn(neighbours):
        mine = x[neighbours.worker]
        for _ in range(30):
            time.sleep(0.0005 * ((neighbours.worker + neighbours.round) % 3))
            mine = neighbours.average(mine)
        return mine

    got = np.array(run_workers(fn, g, x[0], engine="threads"))
    np.testing.assert_allclose(got.mean(0), x.mean(0), rtol=0, atol=1e-14)
    # ||W^30 x - mean|| <= sigma_2^30 ||x - mean||; of a ring of 4, 0.708^30 = 3e-5.
    assert np.ptp(got, 0).max() < 1e-3 * max(np.ptp(x, 0).max(), 1e-9)


def by_hand(g, like, mode, timeout=60.0):
    """The workers of a graph, to be driven in one thread or in several."""
    makers = shared_slots(g, SlotLayout(like).nbytes, mode)
    return [
        Neighbours(maker(), g, i, like, mode=mode, timeout=timeout)
        for i, maker in enumerate(makers)
    ]


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.002)


def test_workers_run_ahead_by_their_distance_in_the_graph_and_no_further():
    workers = by_hand(graph("ring", 5), np.zeros(2), "notify_ack")
    go = threading.Event()

    def work(me):
        if me.worker == 0:
            assert go.wait(20)
        for _ in range(6):
            me.average(np.zeros(2))

    with ThreadPoolExecutor(5) as pool:
        done = [pool.submit(work, me) for me in workers]
        # Worker 0 has not begun. Its neighbours are at most one round ahead.
        until(lambda: [me.round for me in workers] == [0, 0, 1, 2, 1])
        time.sleep(0.1)
        assert [me.round for me in workers] == [0, 0, 1, 2, 1]
        go.set()
        for future in done:
            future.result()
    assert [me.round for me in workers] == [6] * 5


class Late:
    """A transport whose NOTIFY is taken only after an event."""

    def __init__(self, inner, event):
        self.inner, self.event = inner, event
        self.out, self.slots = inner.out, inner.slots
        self.put, self.signal, self.close = inner.put, inner.signal, inner.close

    def wait(self, kind, peer, seconds):
        if kind == "notify":
            assert self.event.wait(20)
        return self.inner.wait(kind, peer, seconds)


class Unacknowledged(Late):
    """A transport that does not wait for an ACK."""

    def wait(self, kind, peer, seconds):
        return True if kind == "ack" else self.inner.wait(kind, peer, seconds)


@pytest.mark.parametrize("ack", ["no such thing", "awaited", "ignored"])
def test_without_ack_a_message_is_overwritten_before_it_is_read(ack):
    mode = "notify" if ack == "no such thing" else "notify_ack"
    workers = by_hand(graph("ring", 3), np.zeros(2), mode, timeout=2.0)
    event = threading.Event()
    workers[1].transport = Late(workers[1].transport, event)
    if ack == "ignored":
        workers[0].transport = Unacknowledged(workers[0].transport, event)

    def work(me):
        return [(me.average(np.zeros(2)), dict(me.seen))[1] for _ in range(2)]

    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(work, me) for me in workers]
        # Worker 0 has had its answer, and worker 1 has not read its message.
        until(lambda: workers[0].round >= 1)
        if ack == "awaited":
            time.sleep(0.1)
        else:
            until(lambda: workers[0]._out.round == 1)
        event.set()
        if ack == "ignored":
            with pytest.raises(
                RuntimeError,
                match=r"worker 1 found a message of round "
                r"1 of worker 0 in round 0; .*before its ACK",
            ):
                done[1].result()
            assert isinstance(done[2].exception(), WorkerTimeout)
        else:
            first = 0 if ack == "awaited" else 1
            assert done[1].result() == [{0: first}, {0: 1}]


def test_async_waits_for_nobody_and_does_not_keep_the_mean():
    one, two = by_hand(graph("ring", 2), np.zeros(()), "async")
    zero, four = np.array(0.0), np.array(4.0)
    first = one.average(zero)
    assert first == 0 and one.seen == {}  # no message yet, which is no zero
    second = two.average(four)
    assert second == 2 and two.seen == {0: 0}
    first = one.average(first)
    assert first == 2 and one.seen == {1: 0}
    first = one.average(first)
    assert first == 3 and one.seen == {1: 0}  # the same message again
    assert one.round == 3 and two.round == 1
    assert (first + second) / 2 != (zero + four) / 2


def test_async_shares_its_weights_among_those_that_have_sent():
    workers = by_hand(GRAPHS["metropolis"], np.zeros(()), "async")
    workers[2].average(np.array(8.0))
    # 1/4 for each, the two that have sent nothing left out.
    assert workers[0].average(np.array(4.0)) == 6


@pytest.mark.parametrize("mode", ["bsp", "notify", "notify_ack"])
def test_who_waits_for_a_stalled_worker_says_whom_where_and_when(mode):
    awake = threading.Event()

    def fn(neighbours):
        x = np.zeros(3)
        try:
            for t in range(4):
                if (neighbours.worker, t) == (1, 2):
                    assert awake.wait(20)
                x = neighbours.average(x)
        except WorkerTimeout as error:
            with pytest.raises(
                RuntimeError, match=f"failed in round {error.round}; st"
            ):
                neighbours.average(x)
            time.sleep(0.2)  # until the other has given up too
            awake.set()
            return error

    start = time.monotonic()
    g = graph("ring", 3)
    errors = run_workers(fn, g, np.zeros(3), mode=mode, timeout=1.0, engine="threads")
    assert time.monotonic() - start < 15
    got = {e.worker: (e.peer, e.waiting, e.round, e.edge) for e in errors if e}
    assert got[2] == (1, "notify", 2, (1, 2))
    assert errors[2].seconds == 1.0
    assert (
        "worker 2 waited 1 s in round 2 for the NOTIFY of worker 1 (edge 1 -> 2)"
        in (str(errors[2]))
    )
    if mode == "notify_ack":  # two rounds later it wants to send to it again
        assert got[0] == (1, "ack", 3, (0, 1))


def test_the_first_cause_is_raised_with_its_traceback():
    def fn(neighbours):
        if neighbours.worker == 2:
            raise ValueError("no such batch")
        neighbours.average(np.zeros(2))

    with pytest.raises(
        WorkerFailed, match=r"worker 2 raised:\n(.|\n)*no such batch"
    ) as e:
        run_workers(fn, graph("ring", 4), np.zeros(2), timeout=0.3, engine="threads")
    assert "in fn" in e.value.traceback and e.value.worker == 2


def test_threads_end_with_the_first_that_fails_and_within_a_limit():
    def leave(neighbours):
        if neighbours.worker == 1:
            sys.exit(3)
        neighbours.average(np.zeros(2))

    ring, start = graph("ring", 3), time.monotonic()
    with pytest.raises(WorkerFailed, match=r"worker 1 left with exit code 3") as e:
        run_workers(leave, ring, np.zeros(2), timeout=20.0, engine="threads")
    assert e.value.exit_code == 3
    go = threading.Event()
    with pytest.raises(
        TimeoutError, match=r"workers \[0, 1, 2\] have not ended within 0\.1 s"
    ):
        run_workers(
            *(lambda _: go.wait(20), ring, np.zeros(2)), limit=0.1, engine="threads"
        )
    go.set()
    assert time.monotonic() - start < 15  # of the 20 of each wait


def sockets(size):
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(size)]
    return listeners, [f"127.0.0.1:{one.getsockname()[1]}" for one in listeners]


def over_sockets(fn, g, like, **options):
    """`run_workers` in threads, but connected as hosts are: results or errors."""
    listeners, addresses = sockets(g.num_workers)
    options = {"authkey": b"secret", "timeout": 10.0, **options}

    def work(worker):
        try:
            with join_workers(
                *(worker, addresses, g, like), listener=listeners[worker], **options
            ) as neighbours:
                return fn(neighbours)
        except Exception as error:
            return error

    with ThreadPoolExecutor(g.num_workers) as pool:
        return list(pool.map(work, range(g.num_workers))), addresses


@pytest.mark.parametrize("name", ["exp2", "one_peer", "in_degree"])
@pytest.mark.parametrize("mode", MODES)
def test_sockets_carry_the_same_bits(name, mode):
    g = GRAPHS[name]
    done, _ = over_sockets(
        lambda n: wander(n, LIKE, 10, 0, seconds=0.001), g, LIKE, mode=mode
    )
    want = synchronous(g, LIKE, 10, 0)
    for (x, seen), y in zip(done, want, strict=True):
        assert len(seen) == 10
        if mode in ("bsp", "notify_ack"):
            jax.tree.map(np.testing.assert_array_equal, x, y)
        assert all(np.isfinite(leaf).all() for leaf in x.values())


def test_a_worker_that_went_is_lost_to_its_neighbours_and_is_not_let_in_again():
    g, like = graph("ring", 3), np.zeros(100_000, "f")

    def fn(neighbours):
        x = like
        for t in range(5):
            if (neighbours.worker, t) == (1, 3):
                raise KeyError("gone")
            x = neighbours.average(x)

    errors, addresses = over_sockets(fn, g, like)
    failures = dict(enumerate(errors))
    assert first_cause(failures) is errors[1] and isinstance(errors[1], KeyError)
    del failures[1]
    error = first_cause(failures)  # who closed because of it comes second
    assert isinstance(error, WorkerLost) and error.peer == 1 and error.round in (3, 4)
    assert f"worker {error.worker} lost worker 1 in round {error.round}" in str(error)
    with pytest.raises(
        WorkerTimeout, match=r"in round 0 for the connection with worker"
    ):
        join_workers(1, addresses, g, like, authkey=b"secret", timeout=0.3)


PAIR = Graph([[1], [0]]), Graph([[1], [0]], weights="metropolis")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((b"one", PAIR[0], np.zeros(3)), (b"other", PAIR[0], np.zeros(3))),
        ((b"one", PAIR[0], np.zeros(3)), (b"one", PAIR[1], np.zeros(3))),
        ((b"one", PAIR[0], np.zeros((2, 2), "f")), (b"one", PAIR[0], np.zeros(2))),
        ((b"one", PAIR[0], {"a": np.zeros(2)}), (b"one", PAIR[0], {"b": np.zeros(2)})),
    ],
    ids=["authkey", "weights", "shapes and dtypes", "names"],
)
def test_workers_that_differ_do_not_connect(first, second):
    listeners, addresses = sockets(2)

    def work(worker, authkey, g, like):
        return join_workers(
            *(worker, addresses, g, like),
            authkey=authkey,
            timeout=0.5,
            listener=listeners[worker],
        )

    with ThreadPoolExecutor() as pool:
        zero = pool.submit(work, 0, *first)
        one = pool.submit(work, 1, *second)
        with pytest.raises(
            PermissionError, match=r"worker 0 and worker 1 at 127.*same"
        ):
            zero.result()
        with pytest.raises(
            WorkerTimeout, match=r"connection with worker 0.*, or it refused: another"
        ):
            one.result()


def test_errors():
    g, like = graph("ring", 2), {"a": np.zeros(3, "f")}
    with pytest.raises(ValueError, match=r"mode is 'sync'; wanted one of \['bsp'"):
        run_workers(print, g, like, mode="sync")
    with pytest.raises(ValueError, match=r"engine is 'mpi'; wanted one of \['proc"):
        run_workers(print, g, like, engine="mpi")
    with pytest.raises(ValueError, match=r"timeout is 0; wanted a finite number abo"):
        run_workers(print, g, like, timeout=0)
    with pytest.raises(ValueError, match=r"limit is -1; wanted a finite number abo"):
        run_workers(print, g, like, limit=-1, engine="threads")
    with pytest.raises(TypeError, match=r"limit is str 'a'; wanted a Python number"):
        run_workers(print, g, like, limit="a")
    with pytest.raises(
        TypeError, match=r"leaf at tree\['a'\] is int32\[3\], which has"
    ):
        run_workers(print, g, {"a": np.zeros(3, np.int32)}, engine="threads")
    with pytest.raises(ValueError, match=r"1 addresses and 2 workers in the graph"):
        join_workers(0, ["here:1"], g, like, authkey=b"")
    with pytest.raises(ValueError, match=r"the address is 'here'; wanted 'host:port'"):
        join_workers(0, ["here", "there"], g, like, authkey=b"")
    alone = graph("ring", 1)
    with pytest.raises(ValueError, match=r"worker is 1; wanted 0..0"):
        Neighbours(shared_slots(alone, 40, "bsp")[0](), alone, 1, like)
    for wrong, message in (
        ({"b": np.zeros(3, "f")}, r"the tree is PyTreeDef.*'b'.*; wanted that of"),
        (
            {"a": np.zeros(4, "f")},
            r"leaf at tree\['a'\] is float32\[4\]; .*float32\[3\]",
        ),
        ({"a": np.zeros(3)}, r"leaf at tree\['a'\] is float64\[3\]; .*float32\[3\]"),
    ):
        (me,) = by_hand(alone, like, "notify_ack")
        with pytest.raises(ValueError, match=message):
            me.average(wrong)
    one, other = Pair(np.zeros(3), np.ones(3)), Swapped(np.ones(3), np.zeros(3))
    (me,) = by_hand(alone, one, "notify_ack")
    with pytest.raises(ValueError, match=r"the tree is PyTreeDef.*; wanted that of"):
        me.average(other)

"""What the processes of test_run_workers run: no test, so that they import little."""

import os
import signal
import time
from pathlib import Path

import numpy as np


def wander(neighbours, x, rounds, seed, seconds=0.004):
    """Local steps of their own, random delays between the averages."""
    noise = np.random.default_rng([seed, neighbours.worker])
    delays = np.random.default_rng([seed, neighbours.worker, 1])
    seen = []
    for _ in range(rounds):
        time.sleep(delays.exponential(seconds))
        x = {k: v + noise.standard_normal(v.shape).astype("f") for k, v in x.items()}
        x = neighbours.average(x)
        seen.append(dict(neighbours.seen))
    return x, seen


class Publishing:
    """A transport that lets all see how many rounds each worker has completed."""

    def __init__(self, neighbours, counters):
        self.neighbours, self.inner = neighbours, neighbours.transport
        self.counters, self.apart = counters, 0

    def put(self, peer):
        self.inner.put(peer)

    def signal(self, kind, peer):
        if kind == "ack":  # the round is over, and the neighbour not told yet
            self.counters[self.neighbours.worker] = self.neighbours.round
        self.inner.signal(kind, peer)

    def wait(self, kind, peer, seconds):
        mine, theirs = self.neighbours.round, self.counters[peer]
        self.apart = max(self.apart, abs(mine - theirs))
        return self.inner.wait(kind, peer, seconds)

    def close(self, seconds):
        self.inner.close(seconds)


def wander_and_count(neighbours, x, rounds, seed, counters):
    neighbours.transport = publishing = Publishing(neighbours, counters)
    return *wander(neighbours, x, rounds, seed), publishing.apart


def go_on(neighbours, x, saved, pids, start, rounds, seed, death):
    """The rounds of `wander` from one that was saved; worker 1 dies before another."""
    (Path(pids) / str(os.getpid())).touch()
    own = Path(saved) / str(neighbours.worker)
    own.mkdir(exist_ok=True)
    if start:
        x = dict(np.load(own / f"{start}.npz"))
    noise = np.random.default_rng([seed, neighbours.worker])
    for t in range(rounds):
        step = {k: noise.standard_normal(v.shape).astype("f") for k, v in x.items()}
        if t < start:
            continue
        if (neighbours.worker, t) == (1, death):
            DEEDS["kill"]()
        x = neighbours.average({k: v + step[k] for k, v in x.items()})
        # Whole under its name, or not there.
        np.savez(own.with_suffix(".npz"), **x)
        own.with_suffix(".npz").rename(own / f"{t + 1}.npz")
    return x


def misbehave(neighbours, folder, how):
    """Worker 1 does something else after its first round."""
    (Path(folder) / str(os.getpid())).touch()
    x = np.zeros(3, "f")
    for _ in range(5):
        x = neighbours.average(x)
        if neighbours.worker == 1:
            DEEDS[how]()


def stop_before_a_message(neighbours, folder, size):
    """Worker 1 is stopped, its threads too, when worker 0 sends to it."""
    own = Path(folder) / str(os.getpid())
    own.touch()
    if neighbours.worker == 1:
        own.write_text("stopping")
        os.kill(os.getpid(), signal.SIGSTOP)
    while not any(path.read_text() for path in Path(folder).iterdir()):
        time.sleep(0.01)
    time.sleep(0.3)
    neighbours.average(np.zeros(size, "f"))


def fail():
    raise ValueError("no such batch")


DEEDS = {
    "sleep": lambda: time.sleep(600),
    "raise": fail,
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}

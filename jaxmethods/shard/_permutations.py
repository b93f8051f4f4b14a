"""The edges of a graph as whole permutations, each of which one collective sends."""

import numpy as np


def as_permutations(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lays the edges of a graph into as few permutations as can hold them.

    A collective permutation that leaves a receiver out hands it zeros, so all are
    whole: where degrees differ, edges that carry nothing fill the gaps. The result
    depends on `edges` alone, so all workers find the same.

    Args:
        edges: bool (N, N), entry [i, j] where i sends to j.

    Returns:
        `senders` int32 (N, k), k the largest degree: column c is the permutation
        that says from whom each worker receives; and bool (N, k), whether it is an
        edge of the graph, no filling.

    Complexity:
        k matchings, N^3 steps each at worst, and about N^2 on graphs met in practice.
    """
    out, into = edges.sum(1), edges.sum(0)
    degree = int(max(out.max(initial=0), into.max(initial=0)))
    left = edges.astype(np.int64) + _filling(degree - out, degree - into)
    real = edges.copy()
    senders = np.empty((len(edges), degree), np.int32)
    used = np.empty((len(edges), degree), bool)
    for column in range(degree):
        # A regular graph always holds one more matching (Koenig's theorem).
        receivers = complete_matching(left > 0, np.full(len(edges), -1))
        rows = np.arange(len(edges))
        senders[receivers, column] = rows
        used[receivers, column] = real[rows, receivers]
        real[rows, receivers] = False
        left[rows, receivers] -= 1
    return senders, used


def complete_matching(allowed: np.ndarray, receivers: np.ndarray) -> np.ndarray:
    """Extends a matching of senders with receivers until all have one.

    Args:
        allowed: bool (N, N), entry [i, j] where i may send to j; it must hold a
            matching of all, as every regular graph does.
        receivers: integer (N,), the receiver of each sender so far, -1 where none.

    Returns:
        int64 (N,): a permutation.
    """
    receivers = np.array(receivers, np.int64)
    sender_of = np.full(len(receivers), -1)
    matched = receivers >= 0
    sender_of[receivers[matched]] = np.flatnonzero(matched)
    for sender in np.flatnonzero(~matched):
        _augment(int(sender), allowed, receivers, sender_of)
    return receivers


def _augment(
    start: int, allowed: np.ndarray, receivers: np.ndarray, sender_of: np.ndarray
) -> None:
    """Breadth first along alternating paths to a free receiver; then it turns them."""
    reached_by = np.full(len(receivers), -1)
    queue = [start]
    for sender in queue:
        for receiver in np.flatnonzero(allowed[sender] & (reached_by < 0)):
            reached_by[receiver] = sender
            if sender_of[receiver] >= 0:
                queue.append(int(sender_of[receiver]))
                continue
            while receiver >= 0:
                sender = int(reached_by[receiver])
                before = int(receivers[sender])
                receivers[sender], sender_of[receiver] = receiver, sender
                receiver = before
            return
    raise ValueError(f"worker {start} has nobody left to send to.")


def _filling(out: np.ndarray, into: np.ndarray) -> np.ndarray:
    """Numbers of edges that give every worker its missing `out` and `into`."""
    own = np.minimum(out, into)  # to itself: nothing travels
    filling = np.diag(own)
    senders = np.repeat(np.arange(len(out)), out - own)
    receivers = np.repeat(np.arange(len(into)), into - own)
    np.add.at(filling, (senders, receivers), 1)
    return filling

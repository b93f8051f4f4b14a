"""What the traces of workers tell: time, messages, agreement, worth of models."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.shard import Graph

from . import dense, stragglers
from .stragglers import Phase, Trace

CURVE = 1000  # test images of a curve


def clock(traces: Sequence[Trace]) -> dict[str, float]:
    """Milliseconds a round: until the last worker was done, the first, and waiting."""
    begun = min(trace.start for trace in traces)
    each = [trace.start - begun + trace.ends[-1] for trace in traces]
    per_round = 1e3 / len(traces[0].ends)
    return {
        "last": per_round * max(each),
        "first": per_round * min(each),
        "waited": per_round * float(np.mean([trace.waited for trace in traces])),
    }


def clock_of_sleeps(graph: Graph, mode: str, phase: Phase, rounds: int) -> float:
    """`clock`'s "last", were work and messages to take no time beyond the sleeps."""
    size = graph.num_workers
    asleep = np.stack([phase.delay.seconds(i, phase.seed, rounds) for i in range(size)])
    ends = np.zeros(size)  # of the round before, of each worker
    for delay in asleep.T:
        sent = ends + delay
        if mode == "bsp":
            ends = np.full(size, sent.max())
        elif mode == "async":
            ends = sent
        else:
            if mode == "notify_ack":
                sent = np.maximum(sent, ends[graph.send].max(1))
            ends = np.maximum(sent, sent[graph.senders].max(1))
    return float(1e3 * ends.max() / rounds)


def messages(traces: Sequence[Trace]) -> dict[str, float]:
    """Shares of the messages that were used once, never, and more than once.

    And by how many rounds a message was behind its receiver, least and most.
    """
    counts, behind = [], []
    for trace in traces:
        for sender in set().union(*trace.seen):
            used = [seen.get(sender, -1) for seen in trace.seen]
            behind += [number - round for number, round in enumerate(used)]
            counts.append([used.count(number) for number in range(len(used))])
    found = np.array(counts)
    return {
        "once": float((found == 1).mean()),
        "lost": float((found == 0).mean()),
        "again": float((found > 1).mean()),
        "least": min(behind),
        "most": max(behind),
    }


def agreement(traces: Sequence[Trace]) -> dict[str, float]:
    """How far workers are from each other, and their mean from where it belongs.

    Of `stragglers.drift`, both over how far from each other they began.
    """
    ends, own, first = (
        np.stack([getattr(trace.kept, name) for trace in traces]).astype(float)
        for name in ("values", "own", "first")
    )
    scale = (first - first.mean(0)).std()
    return {
        "apart": float((ends - ends.mean(0)).std() / scale),
        "mean_off": float(np.sqrt(((ends.mean(0) - own.mean(0)) ** 2).mean()) / scale),
    }


class Curve(NamedTuple):
    """A training, by one clock.

    Attributes:
        seconds: (n,), from the common start.
        loss: (n,), on test images, the mean over the models that workers have.
        worst: (n,), of the worst of them.
        last: Seconds until all were done.
        rounds: Of the slowest worker and of the quickest.
        accuracy: In % at the end: the mean over workers, the worst, and that of the
            mean of their models.
        params: Of each worker at the end.
    """

    seconds: np.ndarray
    loss: np.ndarray
    worst: np.ndarray
    last: float
    rounds: tuple[int, int]
    accuracy: tuple[float, float, float]
    params: list[Any]

    def at(self, seconds: float) -> float:
        """The loss at a time."""
        return float(self.loss[np.searchsorted(self.seconds, seconds, "right") - 1])

    def until(self, target: float, *, worst: bool = False) -> float:
        """Seconds until the loss is as low as that; infinite where it never was."""
        found = np.flatnonzero((self.worst if worst else self.loss) <= target)
        return float(self.seconds[found[0]]) if len(found) else math.inf


def curve(traces: Sequence[Trace], test: Any) -> Curve:
    """What the workers' models were worth, at each time that one of them changed.

    Args:
        traces: Of `stragglers.train`.
        test: Images and labels: the first 1,000 for the losses, all in the end.
    """
    begun = min(trace.start for trace in traces)
    few = [x[:CURVE] for x in test]
    times, losses = [], []
    for trace in traces:
        seconds = np.array([seconds for seconds, _ in trace.kept])
        times.append(trace.start - begun + seconds)
        losses.append(np.array([_loss(params, *few) for _, params in trace.kept]))
    grid = np.unique(np.concatenate(times))
    held = [
        loss[np.maximum(np.searchsorted(at, grid, "right") - 1, 0)]
        for at, loss in zip(times, losses, strict=True)
    ]
    models = [trace.kept[-1][1] for trace in traces]
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *models)
    *found, of_mean = (float(_accuracy(one, *test)) for one in (*models, mean))
    rounds = [len(trace.ends) for trace in traces]
    return Curve(
        grid,
        np.mean(held, 0),
        np.max(held, 0),
        max(trace.start - begun + float(trace.ends[-1]) for trace in traces),
        (min(rounds), max(rounds)),
        (float(np.mean(found)), min(found), of_mean),
        models,
    )


_loss = jax.jit(stragglers.loss)


@jax.jit
def _accuracy(params: Any, images: Any, labels: Any) -> jax.Array:
    """In %."""
    logits = jax.vmap(dense.logits, (None, 0))(params, images)
    return 100 * (jnp.argmax(logits, 1) == labels).mean()

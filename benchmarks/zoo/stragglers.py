"""Workers in processes of their own, some of them slow: what each of them runs.

`drift` does nothing but average, `train` trains a net of dense layers by steps of its
own between averages. Most of the work is a sleep, so that workers of one core do not
take it from each other. One run goes through several phases: to start the processes
takes longer than a phase.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxmethods.shard import Neighbours

from . import dense

PATIENCE = 120.0  # seconds until the others begin a phase too, compilation included
DRIFT = 0.05  # of a worker's values in a round; they begin with unit variance
WIDTH, LOCAL_STEPS, BATCH, RATE = 32, 5, 16, 0.1


class Delay(NamedTuple):
    """How long the work of a round takes.

    Attributes:
        name: For the table.
        work: Seconds of a round.
        slow: How many times as long worker 0 takes.
        share: Of the rounds of any worker that take longer.
        factor: How many times as long those take.
    """

    name: str
    work: float
    slow: float = 1.0
    share: float = 0.0
    factor: float = 1.0

    def seconds(self, worker: int, seed: int, rounds: int) -> np.ndarray:
        """Of each round (rounds,), whatever the graph and the mode."""
        late = np.random.default_rng([seed, worker, 1]).random(rounds) < self.share
        own = self.slow if worker == 0 else 1.0
        return self.work * own * np.where(late, self.factor, 1.0)


class Phase(NamedTuple):
    """What workers do from one common start to the next.

    Attributes:
        delay: How long their work takes.
        seed: Of delays, values, weights and batches.
        by_label: Whether a worker's examples are those of a few labels.
        limit: Seconds after which a worker of "async" stops; others would wait for one
            that stopped.
    """

    delay: Delay
    seed: int
    by_label: bool = False
    limit: float = math.inf


class Trace(NamedTuple):
    """What a worker saw in a phase.

    Attributes:
        start: On the clock that all processes of a host share.
        ends: Seconds from there to the end of each round (rounds,).
        waited: Seconds of them in `average`.
        seen: Of each round: by in-neighbour, the rounds of the messages used, from 0;
            -1 for what it held when the phase began.
        kept: What the phase is about.
    """

    start: float
    ends: np.ndarray
    waited: float
    seen: list[dict[int, int]]
    kept: Any


class Drift(NamedTuple):
    """What is left of a phase of `drift`.

    Attributes:
        values: float32 (size,), of the worker at the end.
        own: float64 (size,): what it began with and added, its part of the mean.
        first: float32 (size,): what it began with.
        mixed: Averages of messages that were not those they were taken for.
    """

    values: np.ndarray
    own: np.ndarray
    first: np.ndarray
    mixed: int


def drift(
    neighbours: Neighbours,
    phases: Sequence[Phase],
    rounds: int,
    size: int,
    barrier: Any,
) -> list[Trace]:
    """Random values that move a little in each round and are averaged."""
    return [_drift(neighbours, one, rounds, size, barrier) for one in phases]


def _drift(
    neighbours: Neighbours, phase: Phase, rounds: int, size: int, barrier: Any
) -> Trace:
    # The number of the round, before and after the values, is averaged with them: it
    # tells whether a message was overwritten while it was read.
    rng = np.random.default_rng([phase.seed, neighbours.worker])
    first, direction = rng.standard_normal((2, size), np.float32)
    moves = np.float32(DRIFT) * rng.standard_normal(rounds, np.float32)
    mixed = 0

    def move(number: int, tree: Any) -> Any:
        mark = np.float32(number)
        return mark, tree[1] + moves[number] * direction, mark

    def check(number: int, tree: Any, seen: dict[int, int]) -> None:
        nonlocal mixed
        wanted = (number + sum(seen.values())) / (1 + len(seen))
        # Marks differ by whole numbers, their means by a quarter and more.
        mixed += any(abs(mark - wanted) > 0.01 for mark in tree[::2])

    mark = np.float32(-1)
    tree, trace = _rounds(
        neighbours,
        barrier,
        (mark, first, mark),
        phase.delay.seconds(neighbours.worker, phase.seed, rounds),
        move,
        check,
    )
    own = first + float(moves.astype(float).sum()) * direction.astype(float)
    return trace._replace(kept=Drift(tree[1], own, first, mixed))


def train(
    neighbours: Neighbours,
    phases: Sequence[Phase],
    rounds: int,
    every: int,
    data: tuple[np.ndarray, np.ndarray],
    barrier: Any,
) -> list[Trace]:
    """SGD on the worker's own examples, parameters averaged after every 5 steps.

    A trace keeps (seconds, parameters) of the start, of each `every`-th round and of
    the end.
    """
    return [_train(neighbours, one, rounds, every, data, barrier) for one in phases]


def widths(data: tuple[np.ndarray, np.ndarray]) -> tuple[int, ...]:
    """Of the net for such images and labels."""
    return data[0][0].size, WIDTH, 1 + int(data[1].max())


def loss(params: Any, images: Any, labels: Any) -> jax.Array:
    """Mean cross-entropy."""
    logits = jax.vmap(dense.logits, (None, 0))(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@partial(jax.jit, static_argnums=1)
def _begin(key: jax.Array, widths: tuple[int, ...]) -> Any:
    return dense.init(key, widths)


@jax.jit
def _steps(params: Any, images: Any, labels: Any) -> Any:
    """SGD over batches (steps, batch, ...)."""

    def step(params: Any, batch: Any) -> tuple[Any, None]:
        slope = jax.grad(loss)(params, *batch)
        return jax.tree.map(lambda p, g: p - RATE * g, params, slope), None

    return jax.lax.scan(step, params, (images, labels))[0]


def _train(
    neighbours: Neighbours,
    phase: Phase,
    rounds: int,
    every: int,
    data: tuple[np.ndarray, np.ndarray],
    barrier: Any,
) -> Trace:
    order = np.arange(len(data[1]))
    if phase.by_label:
        order = np.argsort(data[1], kind="stable")
    own = np.array_split(order, barrier.parties)[neighbours.worker]
    rng = np.random.default_rng([phase.seed, neighbours.worker])
    chosen = rng.choice(own, (rounds, LOCAL_STEPS, BATCH))
    # On a device by name, as after each average: another compilation otherwise.
    params = _begin(jax.random.key(phase.seed), widths(data))
    params = jax.device_put(params, jax.devices()[0])
    jax.block_until_ready(_steps(params, *(x[chosen[0]] for x in data)))
    kept = {0: params}

    def work(number: int, params: Any) -> Any:
        batches = (x[chosen[number]] for x in data)
        return jax.block_until_ready(_steps(params, *batches))

    def keep(number: int, params: Any, seen: Any) -> None:
        if not (number + 1) % every:
            kept[number + 1] = params

    delays = phase.delay.seconds(neighbours.worker, phase.seed, rounds)
    last, trace = _rounds(neighbours, barrier, params, delays, work, keep, phase.limit)
    kept[len(trace.ends)] = last
    ends = np.concatenate([[0.0], trace.ends])
    found = [(ends[number], jax.device_get(params)) for number, params in kept.items()]
    return trace._replace(kept=found)


def _rounds(
    neighbours: Neighbours,
    barrier: Any,
    tree: Any,
    delays: np.ndarray,
    work: Callable[[int, Any], Any],
    after: Callable[[int, Any, dict[int, int]], None],
    limit: float = math.inf,
) -> tuple[Any, Trace]:
    """Work, a sleep and an average, once for each delay, from a common start."""
    barrier.wait(PATIENCE)
    neighbours.average(tree)  # so that slots hold nothing of another phase
    barrier.wait(PATIENCE)
    first, start = neighbours.round, time.monotonic()
    ends, waited, every_seen = [], 0.0, []
    for number, delay in enumerate(delays):
        tree = work(number, tree)
        time.sleep(delay)
        before = time.monotonic()
        tree = neighbours.average(tree)
        ends.append(time.monotonic() - start)
        waited += ends[-1] + start - before
        seen = {j: round - first for j, round in neighbours.seen.items()}
        every_seen.append(seen)
        after(number, tree, seen)
        if ends[-1] > limit:
            break
    return tree, Trace(start, np.array(ends), waited, every_seen, None)

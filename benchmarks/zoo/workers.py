"""Workers that train one net together and exchange their gradients as messages.

`study` trains a task once a seed in each of several settings and gives the rows of a
table: accuracy, how much shorter messages are by kind of layer, what leaves a worker.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods import shard

from .tasks import Task

AXIS, PROBED = "workers", 20
Exchange = optax.GradientTransformation


class Setting(NamedTuple):
    """How workers exchange.

    Attributes:
        name: For the table.
        codec: How they compress; None: the plain mean.
        bits: From the kind of a layer to the bits that the paper counts an entry that
            is sent; None where no paper's count is asked for.
        workers: How many.
    """

    name: str
    codec: shard.Codec | None
    bits: Callable[[str], int] | None = None
    workers: int = 4

    def exchange(self) -> Exchange:
        """What stands before the optimizer."""
        if self.codec is None:
            return shard.mean_exchange(AXIS)
        return shard.exchange(self.codec, AXIS)


class Run(NamedTuple):
    """How a run ended.

    Attributes:
        accuracy: On the test set.
        loss: Of the last tenth of the steps.
        sent: Name -> entries of a message that are not zero, the mean over workers and
            every 20th step; empty without a codec.
    """

    accuracy: float
    loss: float
    sent: dict[str, float]


def trainer(task: Task, setting: Setting) -> Callable[[int], Run]:
    """A compiled run from a seed: of the weights and of the order of the examples.

    Each worker takes an equal part of every batch.
    """
    codec, workers = setting.codec, setting.workers
    clip = optax.clip_by_global_norm(task.clip)
    optimizer = optax.chain(clip, setting.exchange(), task.optimizer(task.steps))
    update = jax.vmap(optimizer.update, axis_name=AXIS)

    @partial(jax.jit, donate_argnums=0)
    def step(carry: Any, key: jax.Array, data: Any) -> tuple[Any, jax.Array]:
        params, states = carry
        values, slopes = _gradients(task, workers, params, key, data)
        updates, states = update(slopes, states)
        first = jax.tree.map(lambda x: x[0], updates)
        return (optax.apply_updates(params, first), states), values.mean()

    @jax.jit
    def probe(carry: Any, key: jax.Array, data: Any) -> Any:
        params, states = carry
        _, slopes = _gradients(task, workers, params, key, data)
        slopes = jax.vmap(lambda g: clip.update(g, clip.init(g))[0])(slopes)
        return _count(codec, states[1], slopes)

    @jax.jit
    def start(key: jax.Array) -> Any:
        params = task.init(key)
        states = jax.vmap(lambda _: optimizer.init(params))(jnp.arange(workers))
        return params, states

    def trained(seed: int) -> Run:
        first, second = jax.random.split(jax.random.key(seed))
        data = jax.tree.map(jnp.asarray, task.train)
        carry, losses, counts = start(first), [], []
        for number, key in enumerate(jax.random.split(second, task.steps)):
            if codec is not None and number % PROBED == 0:
                counts.append(probe(carry, key, data))
            carry, value = step(carry, key, data)
            losses.append(value)
        names = task.shapes if counts else ()
        sent = {k: float(np.mean([c[k] for c in counts])) for k in names}
        last = np.mean(losses[-max(1, task.steps // 10) :])
        return Run(accuracy(task, carry[0]), float(last), sent)

    return trained


def _gradients(
    task: Task, workers: int, params: Any, key: jax.Array, data: Any
) -> tuple[Any, Any]:
    """Losses and gradients of all workers, stacked, each of its part of a batch."""
    size = workers, task.batch // workers
    rows = jax.random.randint(key, size, 0, len(data[1]))
    gradient = jax.value_and_grad(task.loss)
    if not task.one_by_one:
        of_batch = jax.vmap(gradient, (None, 0, 0))
        return of_batch(params, data[0][rows], data[1][rows])
    # Not by a loop of the program either, where convolutions are as slow.
    each = [gradient(params, data[0][r], data[1][r]) for r in rows]
    return jax.tree.map(lambda *x: jnp.stack(x), *each)


def _count(codec: Any, states: Any, gradients: Any) -> Any:
    """Entries of a message that are not zero, by leaf, the mean over workers."""

    def of_one(state: Any, gradients: Any) -> Any:
        sent = codec.decode(codec.encode(state, gradients)[0])
        return jax.tree.map(lambda x: (x != 0).sum(dtype=jnp.float32), sent)

    counts = jax.vmap(of_one)(states, gradients)
    return jax.tree.map(lambda x: x.mean(0), counts)


def accuracy(task: Task, params: Any, chunk: int = 1000) -> float:
    """The share of the test labels that is right."""

    @jax.jit
    def right(inputs: jax.Array, labels: jax.Array) -> jax.Array:
        return (jnp.argmax(task.logits(params, inputs), -1) == labels).sum()

    inputs, labels = task.test
    parts = [slice(i, i + chunk) for i in range(0, len(labels), chunk)]
    return sum(int(right(inputs[p], labels[p])) for p in parts) / labels.size


def ratios(task: Task, codec: shard.Codec | None) -> dict[str, float]:
    """Kind of layer -> 4 bytes an entry over the bytes of a message, all included.

    "bias" is of vectors, "all" of the whole net.
    """
    shapes = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in task.shapes.items()}
    messages: Any = shapes
    if codec is not None:
        messages = jax.eval_shape(lambda g: codec.encode(codec.init(g), g)[0], shapes)
    return _by_kind(
        task,
        {name: 4 * float(np.prod(shape)) for name, shape in task.shapes.items()},
        {name: shard.nbytes(messages[name]) for name in task.shapes},
    )


def paper_ratios(
    task: Task, bits: Callable[[str], int], sent: dict[str, float]
) -> dict[str, float]:
    """Kind -> 32 bits an entry over the bits of those sent: places and values alone.

    Vectors are left out, as are scales, counts and free room.
    """
    entries = {name: 32 * float(np.prod(task.shapes[name])) for name in task.kinds}
    taken = {name: bits(kind) * sent[name] for name, kind in task.kinds.items()}
    return _by_kind(task, entries, taken)


def _by_kind(
    task: Task, whole: dict[str, float], taken: dict[str, float]
) -> dict[str, float]:
    totals: dict[str, np.ndarray] = {}
    for name in whole:
        for kind in ("all", task.kinds.get(name, "bias")):
            totals[kind] = totals.get(kind, 0) + np.array([whole[name], taken[name]])
    return {kind: float(a / max(b, 1e-9)) for kind, (a, b) in totals.items()}


def sent_bytes(task: Task, setting: Setting) -> float:
    """Bytes that leave a worker in a step, read from the compiled exchange."""
    mesh = Mesh(np.array(jax.devices()[: setting.workers]), (AXIS,))
    exchange = setting.exchange()
    zeros = {k: jnp.zeros((setting.workers, *s)) for k, s in task.shapes.items()}
    states = jax.vmap(exchange.init, axis_size=setting.workers)(zeros)

    def own(gradients: Any, state: Any) -> Any:
        one = jax.tree.map(lambda x: x[0], (gradients, state))
        return jax.tree.map(lambda x: x[None], exchange.update(*one))

    over = jax.shard_map(own, mesh=mesh, in_specs=P(AXIS), out_specs=P(AXIS))
    return shard.wire(over)(zeros, states).total


def study(task: Task, settings: Sequence[Setting], seeds: int) -> list[dict[str, Any]]:
    """Trains in all settings, prints the table as it grows, and returns its rows.

    The first setting is what the others are compared with: their points of accuracy
    below it are the median over seeds, seed by seed.
    """
    kinds = ["all", *dict.fromkeys(task.kinds.values())]
    size = sum(int(np.prod(shape)) for shape in task.shapes.values())
    print(f"\n{task.name}, {size} parameters, {task.steps} steps, {seeds} seeds")
    titles = "".join(f"{kind:>13}" for kind in kinds)
    print(f"{'':26}{'accuracy in %':21}{'points':>7}{titles}{'psum/wire':>11}")
    rows: list[dict[str, Any]] = []
    for setting in settings:
        start, run = time.perf_counter(), trainer(task, setting)
        runs = [run(seed) for seed in range(seeds)]
        row = {
            "task": task.name,
            "setting": setting.name,
            "workers": setting.workers,
            "accuracy": [100 * one.accuracy for one in runs],
            "loss": [one.loss for one in runs],
            "ecr_wire": ratios(task, setting.codec),
            "bytes_sent": sent_bytes(task, setting),
        }
        if setting.bits is not None:
            sent = {k: float(np.mean([r.sent[k] for r in runs])) for k in task.shapes}
            row["ecr_paper"] = paper_ratios(task, setting.bits, sent)
        plain = Setting("", None, workers=setting.workers)
        row["less_than_psum"] = sent_bytes(task, plain) / row["bytes_sent"]
        first = rows[0]["accuracy"] if rows else row["accuracy"]
        row["points"] = float(np.median(np.subtract(first, row["accuracy"])))
        row["seconds"] = time.perf_counter() - start
        rows.append(row)
        _print_row(row, kinds)
    return rows


def _print_row(row: dict[str, Any], kinds: list[str]) -> None:
    found = row["accuracy"]
    low, middle, high = min(found), np.median(found), max(found)
    cells = ""
    for kind in kinds:
        cell = f"{row['ecr_wire'][kind]:.4g}"
        if "ecr_paper" in row:
            cell += f" / {row['ecr_paper'][kind]:.0f}"
        cells += f"{cell:>13}"
    print(
        f"{row['setting']:26}{middle:.2f} ({low:.2f}-{high:.2f})  {row['points']:7.2f}"
        f"{cells}{row['less_than_psum']:11.1f}",
        flush=True,
    )


def plot(path: Path, rows: Sequence[dict[str, Any]], other: str | None = None) -> None:
    """Accuracy over how much shorter messages are, a picture a task.

    Args:
        path: Of the picture.
        rows: What `study` returned, of all tasks.
        other: Key of a second ratio to draw, hollow, where a row has it.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    size = (5 * len(tasks), 4)
    figure, axes = plt.subplots(
        1, len(tasks), figsize=size, squeeze=False, layout="constrained"
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        for row in (row for row in rows if row["task"] == task):
            found = row["accuracy"]
            middle, ratio = np.median(found), row["ecr_wire"]["all"]
            spread = [[middle - min(found)], [max(found) - middle]]
            drawn = axis.errorbar(ratio, middle, spread, fmt="o", label=row["setting"])
            if other in row:
                color = drawn.lines[0].get_color()
                axis.plot(row[other]["all"], middle, "o", mfc="none", color=color)
        axis.set(title=task, xlabel="bytes of a gradient / message", xscale="log")
        axis.legend(fontsize=7)
    axes[0][0].set_ylabel("test accuracy in %")
    figure.savefig(path, dpi=130)

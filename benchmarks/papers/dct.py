"""A conv net and an LSTM trained with dynamic communication thresholding.

    python -m benchmarks.papers.dct [--data FOLDER] [--seeds N] [--quick] [--out DIR]

DCT (Gupta et al. 2020, arXiv:2010.08899) sends what reaches a threshold that is renewed
every 100 steps, here between data-parallel workers and between the parts of a net.

Data parallel: the two tasks of `benchmarks.papers.adacomp`, 4 workers, messages with 8
or 32 slots for each 1,024 entries and places of 16 bits. For each: the accuracy on
the test set, median and range over seeds; the points below the plain mean; how many
times smaller a message is than the gradient in float32, first of all its bytes, then of
the entries that were sent, values and places, without free slots; and what leaves a
worker beside the `psum` of the dense gradient, in the compiled programs.

Model parallel: the conv net, convolutions on 4 workers, each with its rows of the
batch, the first dense layer split by its columns. The 1,568 features of all rows go to
all workers through `shard.cut_gather`, with room for the share that is meant to pass
and no more; the way back carries the gradients of the same entries. Fractions of
features dropped, accuracy with the last threshold in place, the fraction that passes
there, and the bytes that leave a worker at the cut, both ways, beside `all_gather`, in
the compiled programs.

`--quick` trains the conv net on the digits that ship with the package. `--out` takes
the folder for `dct.json` and the plot `dct.png`.

Last result, one core of an x86_64 machine with much else running, jax 0.10.2, 3 seeds,
1,275 CPU seconds; all bytes / without free slots:

    conv net                  accuracy in %         points  all        psum/wire
    mean                      97.84 (97.82-97.92)     0.00   1              1
    dct 0.99, 32 slots        97.90 (97.78-97.98)    -0.06  21 / 79        10
    dct 0.99, 32 slots, bf16  97.82 (97.78-97.89)     0.02  31 / 119       16
    dct 0.998, 8 slots        97.58 (97.50-97.66)     0.24  83 / 374       41
    top-k 1 %                 97.89 (97.88-97.90)    -0.05  50             25

    LSTM
    mean                      88.43 (88.02-88.67)     0.00   1              1
    dct 0.99, 32 slots        88.09 (87.99-88.36)     0.07  21 / 147       11
    dct 0.998, 8 slots        87.94 (87.48-87.99)     0.45  84 / 718       42

    conv net, split           accuracy in %         points  passed  kB    less
    0                         98.01 (97.96-98.16)     0.00   0.349  1204   1.0
    0.75                      98.07 (98.00-98.10)     0.01   0.249   452   2.7
    0.9                       98.03 (97.87-98.12)     0.04   0.101   181   6.7
    0.95                      97.82 (97.57-97.83)     0.34   0.051    90  13.3
    0.967                     97.50 (97.50-97.59)     0.51   0.034    60  20.2

Between workers a share of 1 % costs nothing and makes messages 21 times smaller; three
quarters of their slots stay free, since between renewals fewer pass than at one. At the
cut 20 times less costs half a point, 13 times less a third.
"""

import json
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods import shard
from jaxmethods.data import load_digits, load_mnist

from ..zoo.tasks import (
    CONVOLUTION_STEPS,
    LSTM_STEPS,
    Task,
    digits,
    enlarged,
    sentiment,
)
from ..zoo.workers import AXIS, Setting, plot, study
from .command_line import read_options, timed

LIFE, BLOCK, WORKERS, CHUNK = 100, 1024, 4, 1000
CUTS = (0.0, 0.75, 0.9, 0.95, 0.967)
PLACE_BITS = 16


def setting(sparsity: float, slots: int, *, half: bool = False) -> Setting:
    """DCT with so many slots a block, its values in float32 or bfloat16."""
    value = shard.BFloat16() if half else shard.Float32()
    index = shard.LocalPlaces(BLOCK, slots)
    # The slots are the room; the capacity of a leaf has to be named all the same.
    codec = shard.dct(sparsity=sparsity, life=LIFE, value=value, index=index)
    name = f"dct {sparsity:g}, {slots} slots" + ", bf16" * half
    return Setting(name, codec, lambda kind: PLACE_BITS + (16 if half else 32))


def settings(kind: str) -> list[Setting]:
    """Of "quick", "LSTM" and "convolutions"; the plain mean first."""
    mean, middle = Setting("mean", None), setting(0.99, 32)
    if kind == "quick":
        return [mean, middle]
    found = [mean, middle, setting(0.998, 8)]
    if kind == "LSTM":
        return found
    half = setting(0.99, 32, half=True)
    return [*found, half, Setting("top-k 1 %", shard.top_k(sparsity=0.99))]


def features(params: Any, images: jax.Array) -> jax.Array:
    """What enters the dense layers of the zoo's conv net, (n, 1568)."""
    x = images
    for name in "kl":
        x = jax.lax.conv_general_dilated(
            x,
            params[name],
            (2, 2),
            [(1, 1)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + params["bias_" + name])
    return x.reshape(len(x), -1)


def room(sparsity: float, size: int) -> int:
    """The entries that a worker may send of so many."""
    return math.ceil((1 - sparsity) * size)


def split_logits(
    params: Any, threshold: jax.Array, images: jax.Array, sparsity: float
) -> jax.Array:
    """Logits of the net whose first dense layer is split over the workers."""
    columns = params["w0"].reshape(len(params["w0"]), WORKERS, -1)
    biases = params["b0"].reshape(WORKERS, -1)
    rows = params["w1"].reshape(WORKERS, -1, params["w1"].shape[1])

    def of_worker(images: Any, columns: Any, bias: Any, rows: Any) -> jax.Array:
        own = features(params, images)
        if sparsity:
            capacity = room(sparsity, own.size)
            own = shard.cut_gather(own, threshold, AXIS, capacity=capacity)
        else:
            own = jax.lax.all_gather(own, AXIS, tiled=True)
        hidden = jax.nn.relu(own @ columns + bias)
        return jax.lax.psum(hidden @ rows, AXIS)

    parts = images.reshape(WORKERS, -1, *images.shape[1:])
    over = jax.vmap(of_worker, (0, 1, 0, 0), axis_name=AXIS)
    return over(parts, columns, biases, rows)[0] + params["b1"]


def train_split(task: Task, sparsity: float) -> Any:
    """A compiled run from a seed: accuracy, and the share of features that passed."""
    optimizer = task.optimizer(task.steps)

    def loss(params: Any, threshold: jax.Array, images: Any, labels: Any) -> jax.Array:
        logits = split_logits(params, threshold, images, sparsity)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, threshold: Any, images: Any, labels: Any) -> Any:
        slope = jax.grad(loss)(params, threshold, images, labels)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def renewed(params: Any, images: Any) -> jax.Array:
        return shard.quantile_threshold(features(params, images), sparsity)

    @jax.jit
    def evaluated(params: Any, threshold: Any, images: Any, labels: Any) -> Any:
        kept = shard.threshold_cut(features(params, images), threshold)
        hidden = jax.nn.relu(kept @ params["w0"] + params["b0"])
        right = jnp.argmax(hidden @ params["w1"] + params["b1"], 1) == labels
        return right.sum(), (kept != 0).mean()

    def trained(seed: int) -> tuple[float, float]:
        rng, (images, labels) = np.random.default_rng(seed), task.train
        params = jax.jit(task.init)(jax.random.key(seed))
        state, threshold = optimizer.init(params), jnp.zeros(())
        for number in range(task.steps):
            rows = rng.integers(len(labels), size=task.batch)
            batch = images[rows], labels[rows]
            if sparsity and number % LIFE == 0:
                threshold = renewed(params, batch[0])
            params, state = step(params, state, threshold, *batch)
        parts = range(0, len(task.test[1]), CHUNK)
        found = [
            evaluated(params, threshold, *(x[i : i + CHUNK] for x in task.test))
            for i in parts
        ]
        right = sum(int(one) for one, _ in found)
        passed = float(np.mean([share for _, share in found]))
        return 100 * right / len(task.test[1]), passed

    return trained


def cut_bytes(task: Task, sparsity: float) -> float:
    """Bytes that leave a worker at the cut, forward and back, in the program."""
    mesh = Mesh(np.array(jax.devices()[:WORKERS]), (AXIS,))
    own, width = task.batch // WORKERS, task.shapes["w0"][0]

    def both(x: jax.Array, gradient: jax.Array) -> Any:
        def gathered(x: jax.Array) -> jax.Array:
            if not sparsity:
                return jax.lax.all_gather(x, AXIS, tiled=True)
            capacity = room(sparsity, x.size)
            return shard.cut_gather(x, 1.0, AXIS, capacity=capacity)

        whole, back = jax.vjp(gathered, x)
        return whole, *back(gradient)

    over = jax.shard_map(
        both, mesh=mesh, in_specs=(P(AXIS), P()), out_specs=P(AXIS), check_vma=False
    )
    rows = WORKERS * own
    x, gradient = jnp.zeros((rows, width)), jnp.zeros((rows, width))
    return shard.wire(over)(x, gradient).total


def study_cuts(task: Task, cuts: tuple[float, ...], seeds: int) -> list[dict[str, Any]]:
    """Trains the split net at each sparsity; prints the table as it grows."""
    print(f"\n{task.name}, split over {WORKERS} workers, {task.steps} steps")
    print(
        f"{'dropped':10}{'accuracy in %':21}{'points':>7}{'passed':>9}"
        f"{'kB at the cut':>15}{'less':>7}"
    )
    rows: list[dict[str, Any]] = []
    for sparsity in cuts:
        run = train_split(task, sparsity)
        runs = [run(seed) for seed in range(seeds)]
        row: dict[str, Any] = {
            "task": task.name,
            "cut": sparsity,
            "accuracy": [accuracy for accuracy, _ in runs],
            "passed": [passed for _, passed in runs],
            "bytes_sent": cut_bytes(task, sparsity),
        }
        first = rows[0] if rows else row
        row["less"] = first["bytes_sent"] / row["bytes_sent"]
        row["points"] = float(
            np.median(np.subtract(first["accuracy"], row["accuracy"]))
        )
        rows.append(row)
        found = row["accuracy"]
        print(
            f"{sparsity:<10g}{np.median(found):.2f} ({min(found):.2f}-{max(found):.2f})"
            f"  {row['points']:7.2f}{np.median(row['passed']):9.4f}"
            f"{row['bytes_sent'] / 1e3:15.1f}{row['less']:7.1f}",
            flush=True,
        )
    return rows


def main() -> None:
    options = read_options(
        "dct", __doc__, seeds="of each training", quick="the shipped digits"
    )
    jax.config.update("jax_num_cpu_devices", 8)  # for the bytes, nothing runs on them
    with timed():
        if options.quick:
            task = digits(enlarged(load_digits()), steps=100)
            rows = study(task, settings("quick"), 1)
            cuts = study_cuts(task, (0.0, 0.9), 1)
        else:
            task = digits(load_mnist(options.data / "mnist"), steps=CONVOLUTION_STEPS)
            rows = study(task, settings("convolutions"), options.seeds)
            cuts = study_cuts(task, CUTS, options.seeds)
            task = sentiment(options.data / "sst2", steps=LSTM_STEPS)
            rows += study(task, settings("LSTM"), options.seeds)
    if options.out:
        content = json.dumps([*rows, *cuts], indent=1)
        (options.out / "dct.json").write_text(content + "\n")
        plot(options.out / "dct.png", rows, "ecr_paper")


if __name__ == "__main__":
    main()

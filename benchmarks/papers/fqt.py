"""A conv net trained on MNIST with gradients of 8 to 2 bits, rounded in four ways.

    python -m benchmarks.papers.fqt [--data FOLDER] [--seeds N] [--quick] [--out DIR]

Fully quantized training (Chen et al. 2020, arXiv:2010.14298): operands in 8 bits,
rounded to the nearest, and both gradients of each layer in so many bits, rounded by
chance with one range for all (ptq), one a sample or feature (psq), after the block
Householder transform (bhq); or to the nearest, with the ranges of psq. The net has two
3 x 3 convolutions of stride 2 (16 and 32 channels) and dense layers of 64 and 10; SGD
with momentum in batches of 128, 5 epochs of the first 10,000 images of MNIST.

For each: the training loss of the last epoch, the accuracy on all test images, and the
gradient of one batch over 8 keys before training and after, its variance and squared
bias as fractions of the exact gradient's square. A bias of a few hundredths of the
variance is what 8 draws leave of zero. A run in 2 bits is repeated from three seeds,
and +- is half the range. `--quick` trains in 2 bits on the digits that ship with the
package. `--out` takes the folder for `fqt.json`, every point measured, and the plot
`fqt.png`.

Last result, two x86_64 cores (busy), jax 0.10, 428 s (399 CPU s); without a bias that
is smaller than 5 % of the variance:

    gradients     loss   accuracy in %    variance           bias^2
                                          first    last      first    last
    exact       0.0764   95.85
    ptq 8       0.0766   95.90           3.6e-05  1.9e-03
    psq 8       0.0775   95.90           2.3e-05  5.3e-04
    bhq 8       0.0756   95.96           3.1e-05  9.1e-06
    nearest 8   0.0765   95.95                               1.7e-04    5.9e-03
    ptq 6       0.0768   96.09           5.6e-04  1.9e-02
    psq 6       0.0771   95.89           3.9e-04  8.0e-03
    bhq 6       0.0778   95.97           4.8e-04  1.7e-04
    nearest 6   0.0789   95.92                               2.4e-03    1.5e-01
    ptq 5       0.0752   96.20           2.6e-03  4.3e-02
    psq 5       0.0778   95.89           1.7e-03  3.0e-02
    bhq 5       0.0776   96.05           2.2e-03  6.4e-04
    nearest 5   0.0802   96.09                               1.1e-02    4.6e-01
    ptq 4       0.0832   95.89           1.3e-02  1.8e-01
    psq 4       0.0790   96.04           7.5e-03  1.3e-01
    bhq 4       0.0801   95.93           9.6e-03  3.4e-03
    nearest 4   0.1125   95.37                               5.0e-02    1.4e+00
    ptq 3       0.0898   96.03           8.0e-02  4.4e-01
    psq 3       0.0812   95.92           3.1e-02  5.6e-01
    bhq 3       0.0772   96.16           4.9e-02  1.3e-02
    nearest 3   2.3056   9.58                                3.0e-01    2.5e-02
    ptq 2       0.1720   93.96 +- 0.70   1.4e+00  3.6e+00
    psq 2       0.1215   95.37 +- 0.26   2.4e-01  3.5e+00
    bhq 2       0.0867   95.89 +- 0.13   4.2e-01  1.2e-01
    nearest 2   2.3004   11.35 +- 0.00                       2.2e+00

Stochastic gradients of 2 bits train, those of bhq as well as exact ones. Nearest ones
collapse below 4 bits: the loss explodes, then every hidden unit is dead (the gradient
left is that of the last bias, which is not rounded, hence no bias at the end). At
first, when all samples have gradients of about a size, bhq has up to 1.8 times the
variance of psq; at the end, 1/29 to 1/54.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxmethods.data import Split, load_digits, load_mnist
from jaxmethods.quantize import (
    Noise,
    Policy,
    Quantizer,
    bhq,
    fqt,
    gradient_noise,
    psq,
    ptq,
    qat,
)

from .command_line import read_options, timed

NUM_TRAIN, BATCH_SIZE, RATE, MOMENTUM = 10_000, 128, 0.05, 0.9
EPOCHS, DRAWS = 5, 8
BITS = (8, 6, 5, 4, 3, 2)
METHODS = ("ptq", "psq", "bhq", "nearest")


class Net(nn.Module):
    """Two 3 x 3 convolutions of stride 2, 16 and 32 channels; dense layers 64, 10."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images (n, 28, 28, 1)."""
        for channels in (16, 32):
            x = nn.relu(nn.Conv(channels, (3, 3), strides=2)(x))
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


class Nearest(Quantizer):
    """A quantizer without a source of chance: the key is not looked at."""

    def __call__(self, key: jax.Array | None, x: jax.Array) -> jax.Array:
        """Rounds to the nearest."""
        return super().__call__(None, x)


class Point(NamedTuple):
    """Where a run stands after some epochs.

    Attributes:
        loss: Of the training set, the mean over the epoch's batches.
        accuracy: Of the test set.
        variance: Of the gradient of one fixed batch over keys, by `gradient_noise`,
            relative to the squared length of the exact gradient.
        bias: Squared length of what the mean is off by, likewise.
    """

    loss: float
    accuracy: float
    variance: float
    bias: float


Run = list[Point]


def policy(method: str, bits: int | None) -> Policy:
    """8 bits forward; both gradients in `bits`, or exact where that is None."""
    forward = {"activation": ptq(8, zero_aligned=False), "weight": ptq(8)}
    if bits is None:
        return Policy(**forward)
    by_row, by_column = psq(bits), psq(bits, per="feature")
    pairs = {
        "ptq": (ptq(bits), ptq(bits)),
        "psq": (by_row, by_column),
        "bhq": (bhq(bits), bhq(bits)),
        "nearest": tuple(Nearest(q.bits, q.scaling) for q in (by_row, by_column)),
    }
    input_grad, weight_grad = pairs[method]
    return Policy(**forward, input_grad=input_grad, weight_grad=weight_grad)


def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    logits = Net().apply({"params": params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def init(key: jax.Array, images: Any) -> Any:
    """Random weights."""
    fast = {"xla_backend_optimization_level": 0}
    return jax.jit(Net().init, compiler_options=fast)(key, images[:1])["params"]


_FORWARD = policy("exact", None)


@jax.jit
def exact_gradient(params: Any, images: Any, labels: Any) -> Any:
    """The gradient of the net with 8-bit operands."""
    return jax.grad(qat(loss, _FORWARD))(params, images, labels)


@jax.jit
def num_right(params: Any, images: Any, labels: Any) -> jax.Array:
    """How many images the net with 8-bit operands gets right."""
    net = qat(lambda p, x: Net().apply({"params": p}, x), _FORWARD)
    return jnp.sum(jnp.argmax(net(params, images), 1) == labels)


def stepper(quantization: Policy, rate: Any) -> tuple[Any, Callable[..., Any]]:
    """An optimizer, and a jitted step that returns the loss too."""
    optimizer = optax.sgd(rate, MOMENTUM)
    gradient = jax.value_and_grad(fqt(loss, quantization), argnums=1)

    @jax.jit
    def step(key: jax.Array, params: Any, state: Any, images: Any, labels: Any) -> Any:
        value, slope = gradient(key, params, images, labels)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(params, updates), state, value

    return optimizer, step


def reporter(quantization: Policy) -> Callable[..., tuple[float, float]]:
    """Variance and squared bias of a gradient, relative to the exact one's square."""
    noise = jax.jit(partial(gradient_noise(loss, quantization), num_samples=DRAWS))

    def report(*args: Any) -> tuple[float, float]:
        exact = jax.tree.leaves(exact_gradient(*args))
        size = sum(float(np.sum(np.square(x))) for x in exact)
        found = noise(jax.random.key(7), *args)
        of_leaves = jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, Noise))
        sums = (sum(float(n[i]) for n in of_leaves) / size for i in (1, 0))
        return tuple(sums)

    return report


def train(split: Split, epochs: int, quantization: Policy, seeds: range) -> list[Run]:
    """Trains once for each seed; what was measured before and after each epoch."""
    images, labels = (x[:NUM_TRAIN] for x in split.train)
    num_steps = len(labels) // BATCH_SIZE
    schedule = optax.cosine_decay_schedule(RATE, epochs * num_steps)
    optimizer, step = stepper(quantization, schedule)
    report, fixed = reporter(quantization), (images[:BATCH_SIZE], labels[:BATCH_SIZE])
    runs = []
    for seed in seeds:
        first, later = jax.random.split(jax.random.key(seed))
        rng = np.random.default_rng(seed)
        params = init(first, images)
        state, run, losses = optimizer.init(params), [], [np.nan]
        for epoch in range(epochs + 1):
            if epoch:
                order = rng.permutation(len(labels))[: num_steps * BATCH_SIZE]
                key, losses = jax.random.fold_in(later, epoch), []
                for i, rows in enumerate(order.reshape(num_steps, BATCH_SIZE)):
                    batch = images[rows], labels[rows]
                    new = jax.random.fold_in(key, i)
                    params, state, value = step(new, params, state, *batch)
                    losses.append(value)
            right = sum(int(num_right(params, *some)) for some in chunks(split.test))
            accuracy = right / len(split.test.labels)
            mean = float(np.mean(losses))
            run.append(Point(mean, accuracy, *report(params, *fixed)))
        runs.append(run)
    return runs


def chunks(examples: Any, size: int = 1000) -> Iterator[tuple[Any, Any]]:
    """Cuts images and labels into chunks."""
    for i in range(0, len(examples.labels), size):
        yield examples.images[i : i + size], examples.labels[i : i + size]


def line(name: str, runs: list[Run]) -> str:
    """A line of the table: means over seeds, and half the range of the accuracy."""
    last = np.array([run[-1] for run in runs])
    several = f" +- {50 * np.ptp(last[:, 1]):.2f}" if len(runs) > 1 else ""
    start = np.mean([run[0] for run in runs], axis=0)
    noise = [start[2], last[:, 2].mean(), start[3], last[:, 3].mean()]
    return (
        f"{name:11}{last[:, 0].mean():9.4f}   {100 * last[:, 1].mean():6.2f}{several:9}"
        + "".join(f"{value:9.1e}" for value in noise)
    )


def study(split: Split, epochs: int, bits: tuple[int, ...], seeds: int) -> dict:
    """Trains in all ways; prints the table as it grows.

    Returns:
        (method, bits) -> runs; bits is None for exact gradients.
    """
    print(
        f"{'gradients':11}{'loss':>9}   {'accuracy in %':15}"
        f"{'variance: first, last':>18}{'bias^2: first, last':>21}"
    )
    found = {}
    asked = [("exact", None), *((m, b) for b in bits for m in METHODS)]
    for method, b in asked:
        several = range(seeds if b == 2 else 1)
        found[method, b] = train(split, epochs, policy(method, b), several)
        name = method if b is None else f"{method} {b}"
        print(line(name, found[method, b]), flush=True)
    return found


def plot(path: Path, found: dict[tuple[str, int | None], list[Run]]) -> None:
    """Draws accuracy over bits, and noise and loss along the training."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    bits = sorted({b for _, b in found if b})
    colors = {method: f"C{i}" for i, method in enumerate(METHODS)}
    for method, color in colors.items():
        ends = [[100 * run[-1].accuracy for run in found[method, b]] for b in bits]
        axes[0].plot(bits, [np.mean(e) for e in ends], "o-", color=color, label=method)
        for b in (bits[0], 5):
            if b not in bits:
                continue
            style = "-" if b == 5 else "--"
            label = f"{method}, {b} bits"
            run = np.mean(found[method, b], axis=0)
            error = run[:, 2] + run[:, 3]
            axes[1].plot(error, style, color=color, label=label)
            axes[2].plot(np.arange(1, len(run)), run[1:, 0], style, color=color)
    exact = np.array(found["exact", None][0])
    axes[0].axhline(100 * exact[-1, 1], color="0.6", ls=":", label="exact")
    axes[2].plot(np.arange(1, len(exact)), exact[1:, 0], ":", color="0.4")
    axes[0].set(xlabel="bits of the gradients", ylabel="test accuracy in %")
    axes[1].set(xlabel="epoch", ylabel="error of the gradient / |g|²", yscale="log")
    axes[2].set(xlabel="epoch", ylabel="training loss", yscale="log")
    # A net that has died has neither noise nor a loss worth a decade of the picture.
    axes[1].set_ylim(1e-4, 20)
    axes[2].set_ylim(0.05, 10)
    axes[0].legend(fontsize=8)
    axes[1].legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=130)


def save(path: Path, found: dict[tuple[str, int | None], list[Run]]) -> None:
    """Writes every measured point as JSON."""
    rows = [
        {"method": m, "bits": b, "seed": i, "epochs": [p._asdict() for p in run]}
        for (m, b), runs in found.items()
        for i, run in enumerate(runs)
    ]
    path.write_text(json.dumps(rows, indent=1) + "\n")


def main() -> None:
    options = read_options(
        "fqt",
        __doc__,
        data="mnist",
        seeds="of the runs in 2 bits",
        quick="2 bits on shipped digits",
    )
    with timed():
        if options.quick:
            found = study(load_digits(), 10, (2,), 1)
        else:
            found = study(load_mnist(options.data), EPOCHS, BITS, options.seeds)
    if options.out:
        save(options.out / "fqt.json", found)
        plot(options.out / "fqt.png", found)


if __name__ == "__main__":
    main()

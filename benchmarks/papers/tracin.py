"""Wrong labels found by self-influence, and what moved single predictions.

    python -m benchmarks.papers.tracin [--data FOLDER] [--seeds N] [--plot F]
                                       [--pictures F]

TracIn (Pruthi et al. 2020, arXiv:2002.08484, section 4.1): a net is trained on images
of which a tenth have a wrong label, and the training examples are ranked by their
influence on themselves, highest first. Wrong labels are drawn uniformly from the other
classes, or are the class that a net trained on the right labels likes best after the
right one. Beside self-influence stand the losses, which cost less: their sum over the
same checkpoints, and at the end of the training.

Net and training: 784-256-128-10, SGD at 0.1 in batches of 64 for 20 epochs on the first
10,000 images of MNIST and of Fashion-MNIST, checkpoints after epochs 4, 8, 12, 16, 20.
For each ranking: the share of the wrong labels in its first tenth and its first fifth,
and the area under its receiver operating characteristic, all as means over seeds (of
the weights, the order of the batches and the flips) with half their range.

Last result, two x86_64 cores, jax 0.10, 3 seeds, 110 CPU s; first tenth / first fifth /
area, half the range up to 0.03 (0.05 for the last checkpoint and the final loss):

    MNIST                 uniform                 best wrong class
    self-influence        0.882 / 0.996 / 0.994   0.818 / 0.977 / 0.984
    of the last layer     0.903 / 0.996 / 0.995   0.827 / 0.974 / 0.985
    of the first layer    0.870 / 0.996 / 0.993   0.812 / 0.977 / 0.983
    at the last checkp.   0.812 / 0.961 / 0.980   0.674 / 0.866 / 0.944
    sum of losses         0.933 / 0.998 / 0.997   0.841 / 0.983 / 0.987
    final loss            0.831 / 0.954 / 0.981   0.667 / 0.854 / 0.940

    Fashion-MNIST
    self-influence        0.680 / 0.924 / 0.962   0.553 / 0.798 / 0.918
    of the last layer     0.724 / 0.946 / 0.970   0.611 / 0.814 / 0.928
    of the first layer    0.652 / 0.905 / 0.956   0.506 / 0.782 / 0.910
    at the last checkp.   0.653 / 0.920 / 0.957   0.447 / 0.711 / 0.876
    sum of losses         0.858 / 0.980 / 0.988   0.619 / 0.843 / 0.935
    final loss            0.787 / 0.943 / 0.974   0.494 / 0.713 / 0.881

Several checkpoints find more than the last one alone, the last layer as much as all of
them; the sum of the losses over the checkpoints finds more than self-influence does.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data import Split, load_mnist
from jaxmethods.influence import opponents, proponents, self_influence

from ..zoo import dense

WIDTHS = (784, 256, 128, 10)
NUM_TRAIN, FLIPPED, BATCH_SIZE, RATE = 10_000, 0.1, 64, 0.1
EPOCHS, EVERY = 20, 4
KINDS = ("uniform", "best wrong class")
TOP = 4


class Flipped(NamedTuple):
    """Training labels, of which some are wrong.

    Attributes:
        labels: (n,).
        wrong: (n,) bool.
    """

    labels: np.ndarray
    wrong: np.ndarray


class Ranking(NamedTuple):
    """How well a score finds wrong labels.

    Attributes:
        curve: The share found among the first 0, 1, ... n examples.
        area: Under the receiver operating characteristic.
    """

    curve: np.ndarray
    area: float


def loss(params: Any, example: Any) -> Any:
    """Cross-entropy of one (image, label)."""
    found = dense.logits(params, example[0])
    return jax.nn.logsumexp(found) - found[example[1]]


losses = jax.jit(jax.vmap(loss, (None, 0)))


@jax.jit
def train(key: Any, images: Any, labels: Any) -> Any:
    """Trains a net; returns its checkpoints, stacked."""
    first, second = jax.random.split(key)
    steps = len(images) // BATCH_SIZE

    def step(params, index):
        batch = images[index], labels[index]
        slope = jax.grad(lambda p: jax.vmap(loss, (None, 0))(p, batch).mean())(params)
        return jax.tree.map(lambda w, g: w - RATE * g, params, slope), None

    def epoch(params, key):
        order = jax.random.permutation(key, len(images))[: steps * BATCH_SIZE]
        return jax.lax.scan(step, params, order.reshape(steps, BATCH_SIZE))

    def interval(params, keys):
        params, _ = jax.lax.scan(epoch, params, keys)
        return params, params

    keys = jax.random.split(second, EPOCHS).reshape(-1, EVERY)
    return jax.lax.scan(interval, dense.init(first, WIDTHS), keys)[1]


def flip(rng: np.random.Generator, labels: np.ndarray, others: np.ndarray) -> Flipped:
    """Gives a tenth of the examples the label that `others` has for them."""
    wrong = np.zeros(len(labels), bool)
    wrong[rng.choice(len(labels), round(FLIPPED * len(labels)), replace=False)] = True
    return Flipped(np.where(wrong, others, labels), wrong)


def second_choice(params: Any, images: Any, labels: np.ndarray) -> np.ndarray:
    """For each image the class a net likes best of those that are not its label."""
    found = np.array(jax.vmap(dense.logits, (None, 0))(params, images))
    found[np.arange(len(labels)), labels] = -np.inf
    return found.argmax(1)


def scores(rng: np.random.Generator, checkpoints: Any, examples: Any) -> dict[str, Any]:
    """What the training examples are ranked by, one score an example."""
    rates = jnp.full(EPOCHS // EVERY, RATE)

    def by_influence(checkpoints, where=None):
        score = jax.jit(self_influence(loss, where=where))
        return score(checkpoints, rates[: len(checkpoints[0][0])], examples)

    last = jax.tree.map(lambda x: x[-1:], checkpoints)
    each = jax.lax.map(lambda p: losses(p, examples), checkpoints)
    return {
        "self-influence": by_influence(checkpoints),
        "last layer": by_influence(checkpoints, [(len(WIDTHS) - 2,)]),
        "first layer": by_influence(checkpoints, [(0,)]),
        "last checkpoint": by_influence(last),
        "sum of losses": each.sum(0),
        "final loss": each[-1],
        "random": rng.random(len(examples[1])),
    }


def rank(score: Any, wrong: np.ndarray) -> Ranking:
    """Ranks by a score, highest first."""
    order = np.argsort(-np.asarray(score), kind="stable")
    found, right = (np.cumsum([0, *x[order]]) for x in (wrong, ~wrong))
    curve = found / found[-1]
    return Ranking(curve, float(np.trapezoid(curve, right / right[-1])))


def study(split: Split, seeds: int) -> tuple[dict[str, dict[str, list[Ranking]]], Any]:
    """Flips, trains and ranks, for each kind of flip and each seed.

    Returns:
        Kind -> score -> rankings; and the first uniform flips with their checkpoints.
    """
    images, labels = (x[:NUM_TRAIN] for x in split.train)
    found: dict[str, dict[str, list[Ranking]]] = {kind: {} for kind in KINDS}
    first = None
    for seed in range(seeds):
        key, rng = jax.random.key(seed), np.random.default_rng(seed)
        clean = jax.tree.map(lambda x: x[-1], train(key, images, labels))
        others = {
            "uniform": (labels + rng.integers(1, 10, len(labels))) % 10,
            "best wrong class": second_choice(clean, images, labels),
        }
        for kind in KINDS:
            flips = flip(rng, labels, others[kind])
            checkpoints = train(jax.random.fold_in(key, 1), images, flips.labels)
            first = first or (flips, checkpoints)
            for name, score in scores(rng, checkpoints, (images, flips.labels)).items():
                found[kind].setdefault(name, []).append(rank(score, flips.wrong))
    return found, first


def figures(rankings: list[Ranking]) -> str:
    """Means over seeds and half the ranges: top tenth, top fifth, area."""
    n = len(rankings[0].curve) - 1
    several = np.array([[r.curve[n // 10], r.curve[n // 5], r.area] for r in rankings])
    spread = np.ptp(several, axis=0) / 2
    pairs = zip(several.mean(0), spread, strict=True)
    return "  ".join(f"{mean:.3f} +- {half:.3f}" for mean, half in pairs)


def plot(path: Path, studies: dict[str, dict[str, dict[str, list[Ranking]]]]) -> None:
    """Draws the share of wrong labels found against the share of examples looked at."""
    plt = _pyplot()
    size = (4.5 * len(KINDS), 3.8 * len(studies))
    figure, axes = plt.subplots(
        len(studies), len(KINDS), figsize=size, layout="constrained", squeeze=False
    )
    for row, (data, kinds) in zip(axes, studies.items(), strict=True):
        for axis, (kind, found) in zip(row, kinds.items(), strict=True):
            for name, rankings in found.items():
                curve = np.mean([r.curve for r in rankings], axis=0)
                style = "--" if "loss" in name else ":" if name == "random" else "-"
                share = np.linspace(0, 1, len(curve))
                axis.plot(share, curve, style, label=name)
            axis.axvline(0.2, color="0.8", zorder=0)
            axis.set(title=f"{data}, {kind}", xlim=(0, 0.5), ylim=(0, 1.02))
            axis.set_xlabel("share of examples looked at")
            axis.set_ylabel("share of wrong labels found")
    axes[0, 0].legend(loc="lower right")
    figure.savefig(path, dpi=120)


def choose(params: Any, images: np.ndarray, labels: np.ndarray) -> list[int]:
    """Test images: three that the net gets right, three that it gets wrong."""
    predicted = np.argmax(jax.vmap(dense.logits, (None, 0))(params, images), axis=1)
    wrong = np.flatnonzero(predicted != labels)[:3]
    return [*np.flatnonzero(predicted == labels)[:3], *wrong]


def pictures(path: Path, split: Split, flips: Flipped, checkpoints: Any) -> None:
    """Draws what helped and what harmed some predictions most."""
    plt = _pyplot()
    images = split.train.images[:NUM_TRAIN]
    final = jax.tree.map(lambda x: x[-1], checkpoints)
    chosen = choose(final, *split.test)
    asked = split.test.images[chosen], split.test.labels[chosen]
    args = checkpoints, jnp.full(EPOCHS // EVERY, RATE), (images, flips.labels), asked
    sides = [jax.jit(top(loss, TOP))(*args) for top in (proponents, opponents)]
    predicted = np.argmax(jax.vmap(dense.logits, (None, 0))(final, asked[0]), axis=1)
    figure, axes = plt.subplots(
        len(chosen), 2 * TOP + 1, figsize=(2 * TOP + 2, 1.25 * len(chosen) + 0.4),
        layout="constrained",
    )  # fmt: skip
    for axis in axes.flat:
        axis.axis("off")
    for i, row in enumerate(axes):
        row[0].imshow(asked[0][i, ..., 0], cmap="gray")
        row[0].set_title(f"{asked[1][i]}, taken for {predicted[i]}", fontsize=7)
        for side, found in enumerate(sides):
            picked = zip(found.indices[i], found.scores[i], strict=True)
            for axis, (j, score) in zip(row[1 + side * TOP :], picked, strict=False):
                axis.imshow(images[j, ..., 0], cmap="gray")
                color = "red" if flips.wrong[j] else "black"
                label = f"{flips.labels[j]}: {score:+.3g}"
                axis.set_title(label, fontsize=7, color=color)
    figure.suptitle(
        f"Test digit | {TOP} proponents | {TOP} opponents: label, influence; "
        "red: the label is wrong", fontsize=9,
    )  # fmt: skip
    figure.savefig(path, dpi=130)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.papers.tracin", description=__doc__.split("\n")[0]
    )
    shared = Path(os.environ.get("JAXMETHODS_SHARED", "../shared"))
    parser.add_argument("--data", type=Path, default=shared / "data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    studies, shown = {}, None
    for name in ("mnist", "fashion-mnist"):
        split = load_mnist(options.data / name)
        wall, cpu = time.perf_counter(), time.process_time()
        studies[name], first = study(split, options.seeds)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        shown = shown or (split, *first)
        print(f"{name}: top tenth, top fifth, area ({wall:.0f} s, {cpu:.0f} CPU s)")
        for kind, found in studies[name].items():
            for score, rankings in found.items():
                print(f"  {kind:16s}  {score:16s}  {figures(rankings)}")
    if options.plot:
        plot(options.plot, studies)
    if options.pictures:
        pictures(options.pictures, *shown)


if __name__ == "__main__":
    main()

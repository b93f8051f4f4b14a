"""Certified ensembles of five MNIST classifiers: one model, equal weights, RobBoost.

    python -m benchmarks.papers.robboost [--data FOLDER] [--quick] [--out DIR]

RobBoost (Zhang, Cheng, Hsieh 2019, arXiv:1910.14655): weights of trained models that
maximize the certified margins of their sum. Five nets are trained by
`bound.robust_loss`, linear bounds throughout, at linf 0.1 on all training images but
the last 5,000; `bound.ensemble.fit_weights` takes the first 1,000 of these, with either
objective, and once more with every member's logits over the mean size of its worst
margin ("scaled"). The best single model is chosen on all 5,000. Nothing is chosen on
the test set. Errors in per cent on the 10,000 test images,

- `clean`: without a perturbation;
- `cert.`: without a certificate by `ensemble_margin`, which adds the members' slopes
  before it takes their norm;
- `summed`: without one by the weighted sum of the members' own margins;

and on the first 2,000 (harder than the rest):

- `PGD`: under 40 steps of PGD;
- `cert.`: as above;
- `as one`: without a certificate of `crown` on the averaged net, one graph.

Balls are whole, not cut off at pixels of 0 and 1. Then `fit_weights` against HiGHS (its
interior-point method on sparse matrices) on the exact linear programme, also on 24
digits and five models of `goldens/31-robboost.npz`, where `JAXMETHODS_SHARED` is a
folder with that file. `--quick` trains small nets on the digits that ship with the
package.

Last result, one x86_64 core (busy), jax 0.10.2, 854 s (680 CPU s), of which 492 s to
train:

                           clean  cert. summed    PGD  cert. as one  weights
    dense 128-128           5.84  32.08  32.08  31.25  39.95  39.95
    dense 128-128, again    6.03  32.37  32.37  30.30  38.95  38.95
    dense 200               5.50  32.43  32.43  29.15  40.30  40.30
    dense 256-256           5.76  30.05  30.05  27.65  37.70  37.70
    conv 8, dense 64        6.98  25.95  25.95  26.10  32.85  32.85
    uniform                 5.57  27.94  29.54  26.35  35.15  35.15  .20 .20 .20 .20 .20
    RobBoost hinge          6.01  25.33  26.29  25.20  32.65  32.65  .09 .02 0 .27 .62
    RobBoost mean           6.46  25.17  25.86  25.55  31.85  31.85  0 0 .01 .17 .82
    RobBoost hinge, scaled  6.01  25.24  26.21  25.00  32.60  32.60  .03 0 .05 .28 .65

By either objective RobBoost certifies more than the best single model, the conv net on
the held-out images too: by 0.62 +- 0.40 points by "hinge" and 0.78 +- 0.29 by "mean"
(twice the standard error, of 236 images gained and 174 lost, and 145 and 67); and by
2.6 +- 0.5 and 2.8 +- 0.5 points more than equal weights, which certify less than the
best single model. That is little for five nets instead of one, and was measured with
one seed. The clean error is 0.5 to 1 point below the conv net's and 0.4 to 0.9 above
that of equal weights. Slopes that cancel are worth 0.7 to 1.6 points, `summed` less
`cert.`; the averaged net as one graph certifies no image more.

    on the linear programme   ours     HiGHS    value     optimum   relative
    24 digits, hinge          0.078 s  1.3 s    0.456816  0.456891  1.6e-4
    24 digits, mean           0.052 s  0.77 s   1.303305  1.303480  1.3e-4
    12 images, hinge          0.33 s   27 s     0.137018  0.137208  1.4e-3
    12 images, mean           0.33 s   25 s     1.037468  1.037820  3.4e-4

Values are of margins rounded outward, from 784 pixels more than from 64: of HiGHS's own
weights they are 0.456822, 1.303305, 0.137009 and 1.037467, at most 6e-6 above ours. On
1,000 images, for which HiGHS was not tried, `fit_weights` takes 35 to 40 s.
"""

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import linprog
from scipy.sparse import bmat, csr_array, eye_array

from jaxmethods import bound
from jaxmethods.bound import ensemble
from jaxmethods.data import Images, load_digits, load_mnist
from jaxmethods.robust import pgd

from ..harness import race
from ..zoo import dense
from .command_line import read_options, timed

EPS = 0.1
OBJECTIVES = ("hinge", "mean")
BATCH, CHUNK = 125, 250
HELD_OUT, FITTED, FEW, RACED = 5000, 1000, 2000, 12
# Of all test images, then of the first.
COLUMNS = ("clean", "cert.", "summed", "PGD", "cert.", "as one")
GOLDEN = "goldens/31-robboost.npz"


class Row(NamedTuple):
    """Of a method: errors in per cent, by `COLUMNS`, and weights."""

    name: str
    errors: tuple[float, ...]
    weights: tuple[float, ...]

    def text(self) -> str:
        """A line of the table."""
        errors = "".join(f"{error:8.2f}" for error in self.errors)
        return f"{self.name:24}{errors}   " + " ".join(f"{w:.2f}" for w in self.weights)


class Member(NamedTuple):
    """A net: widths of its dense layers, after a convolution if it has channels."""

    name: str
    widths: tuple[int, ...]
    channels: int = 0
    epochs: int = 8

    def init(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
        """Random weights for images of a shape (height, width, 1)."""
        keys = jax.random.split(key)
        if not self.channels:
            return None, dense.init(keys[1], (int(np.prod(shape)), *self.widths))
        kernel = jax.random.normal(keys[0], (4, 4, 1, self.channels)) / np.sqrt(8)
        first = kernel, jnp.zeros(self.channels)
        size = jax.eval_shape(convolved, first, jnp.zeros(shape)).size
        return first, dense.init(keys[1], (size, *self.widths))


MEMBERS = (
    Member("dense 128-128", (128, 128, 10)),
    Member("dense 128-128, again", (128, 128, 10)),
    Member("dense 200", (200, 10)),
    Member("dense 256-256", (256, 256, 10)),
    Member("conv 8, dense 64", (64, 10), 8, 4),
)
QUICK = tuple(
    Member(name, widths, channels, 60)
    for name, widths, channels in (
        ("dense 32-32", (32, 32, 10), 0),
        ("dense 32-32, again", (32, 32, 10), 0),
        ("dense 64", (64, 10), 0),
        ("dense 64-64", (64, 64, 10), 0),
        ("conv 8, dense 32", (32, 10), 8),
    )
)


def convolved(first: Any, image: jax.Array) -> jax.Array:
    """A convolution, 4 x 4 with stride 3, and a rectifier."""
    kernel, bias = first
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(
        image[None], kernel, (3, 3), [(1, 1)] * 2, dimension_numbers=numbers
    )
    return jax.nn.relu(x + bias[None, None, None])


def logits(params: Any, image: jax.Array) -> jax.Array:
    """Logits (10,) of one image."""
    first, rest = params
    return dense.logits(rest, image if first is None else convolved(first, image))


def train(member: Member, seed: int, data: Images) -> Any:
    """Weights that the linear bound of the loss has trained."""
    num_batches = len(data.labels) // BATCH
    steps = member.epochs * num_batches
    radius = bound.eps_schedule(EPS, steps // 8, 5 * steps // 8)
    share = bound.beta_schedule(radius, EPS, last=1.0)  # never intervals alone
    boundaries = {3 * steps // 4: 0.2, 9 * steps // 10: 0.2}
    rate = optax.piecewise_constant_schedule(1e-3, boundaries)
    optimizer = optax.chain(optax.clip_by_global_norm(8.0), optax.adam(rate))
    batched = jax.vmap(bound.robust_loss(logits), (None, 0, 0, None, None))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, count: Any, images: Any, labels: Any) -> Any:
        slope = jax.grad(
            lambda p: batched(p, images, labels, radius(count), share(count)).mean()
        )(params)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(params, updates), state

    params = member.init(jax.random.key(seed), data.images.shape[1:])
    state, rng = optimizer.init(params), np.random.default_rng(seed)
    orders = [rng.permutation(len(data.labels)) for _ in range(member.epochs)]
    # From the host: inside a loop of XLA convolutions are slower on CPUs.
    for count in range(steps):
        start = count % num_batches * BATCH
        rows = orders[count // num_batches][start : start + BATCH]
        batch = data.images[rows], data.labels[rows]
        params, state = step(params, state, count, *batch)
    return jax.block_until_ready(params)


def over(fn: Callable[..., Any], data: Images, *same: Any) -> Any:
    """A function of examples, in chunks of one size; its results in numpy.

    What is the same for all examples comes first.
    """
    run, found, size = jax.jit(fn), [], len(data.labels)
    for start in range(0, size, CHUNK):
        rows = np.minimum(np.arange(start, start + CHUNK), size - 1)
        of_chunk = run(*same, *(part[rows] for part in data))
        found.append(jax.tree.map(np.asarray, of_chunk))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:size], *found)


def lines(fns: Any, data: Images) -> tuple[np.ndarray, np.ndarray]:
    """The members' linear bounds on images, as `fit_weights` takes them."""
    return over(lambda x, y: ensemble.member_lines(fns, x, y, EPS), data)


def fit(bounds: Any, data: Images, objective: str, scales: Any = 1.0) -> np.ndarray:
    """Weights for logits divided by scales, as weights of the logits themselves."""
    slopes, biases = bounds
    scales = np.broadcast_to(np.float32(scales), biases.shape[2])
    deep = scales.reshape(-1, *[1] * (data.images.ndim - 1))
    found = ensemble.fit_weights(
        slopes / deep, biases / scales, data.images, EPS, objective=objective
    )
    weights = np.asarray(found.weights) / scales
    return weights / weights.sum()


def clean_and_certified(fns: Any, weights: np.ndarray, data: Images) -> Any:
    """Of each image and row of weights: predicted well, and every margin certified.

    And the margin that the weighted sum of the members' own bounds gives.
    """
    own = np.eye(len(fns), dtype=np.float32)

    def of_chunk(x: Any, y: Any) -> Any:
        bounds = ensemble.member_lines(fns, x, y, EPS)

        def worst(w: Any) -> Any:
            return ensemble.ensemble_margin(w, *bounds, x, EPS)

        margins = jax.lax.map(worst, np.concatenate([own, weights]))
        alone, together = margins[: len(fns)], margins[len(fns) :]
        summed = jnp.einsum("mt,tec->mec", weights, alone)
        all_logits = jnp.stack([jax.vmap(f)(x) for f in fns])
        right = jnp.argmax(jnp.einsum("mt,ten->men", weights, all_logits), -1) == y
        return right.T, together.min(-1).T > 0, summed.min(-1).T > 0

    return over(of_chunk, data)


def survives(fn: Any, x: Any, y: Any) -> jax.Array:
    """Whether 40 steps of PGD in the whole ball leave the predictions right."""

    def loss(x: Any) -> Any:
        found = jax.vmap(fn)(x)
        return optax.losses.softmax_cross_entropy_with_integer_labels(found, y)

    whole = (-EPS, 1 + EPS)
    found = pgd(loss, x, eps=EPS, step_size=EPS / 10, num_steps=40, bounds=whole)
    return jnp.argmax(jax.vmap(fn)(found.x), -1) == y


def certified_as_one(fn: Any, x: Any, y: Any) -> jax.Array:
    """Whether CROWN certifies a function, bounded as one graph."""

    def of_one(x: Any, y: Any) -> Any:
        rows = bound.crown(bound.margins(fn, y), side="lower")
        return jnp.all(rows(bound.Ball(x, EPS)).lower > 0)

    return jax.vmap(of_one)(x, y)


def linear_programme(
    bounds: Any, images: Any, eps: float, objective: str
) -> Callable[[], Any]:
    """The same problem for HiGHS, by its interior-point method, in sparse matrices.

    Variables: weights, each example's worst margin, absolute values of the slopes.
    """
    slopes, biases = (np.asarray(v, np.float64) for v in bounds)
    num, classes, models = biases.shape
    slopes = slopes.reshape(num, classes, models, -1)
    images = np.asarray(images, np.float64).reshape(num, -1)
    center = np.einsum("ectd,ed->ect", slopes, images) + biases
    rows = csr_array(np.moveaxis(slopes, 2, 3).reshape(-1, models))
    size = rows.shape[0]
    per_margin = np.repeat(np.arange(num * classes), size // (num * classes))
    summed = csr_array((np.full(size, eps), (per_margin, np.arange(size))))
    worst = csr_array(np.repeat(np.eye(num), classes, 0))
    absolute = eye_array(size)
    at_most = bmat(
        [
            [csr_array(-center.reshape(-1, models)), worst, summed],
            [rows, None, -absolute],
            [-rows, None, -absolute],
        ],
        format="csc",
    )
    cost = np.repeat([0, -1 / num, 0], [models, num, size])
    one = csr_array(cost[None] * 0 + np.repeat([1, 0], [models, num + size]))
    top = 1 if objective == "hinge" else None
    limits = [(0, None)] * models + [(None, top)] * num + [(0, None)] * size

    return partial(
        linprog,
        cost,
        A_ub=at_most,
        b_ub=np.zeros(at_most.shape[0]),
        A_eq=one,
        b_eq=[1.0],
        bounds=limits,
        method="highs-ipm",
    )


def raced(name: str, bounds: Any, images: Any, eps: float, rounds: int) -> list[Any]:
    """Seconds and values of `fit_weights`, and of HiGHS once its matrices are built."""
    rows, (slopes, biases) = [], bounds
    for objective in OBJECTIVES:
        fitted = partial(
            ensemble.fit_weights, slopes, biases, images, eps, objective=objective
        )
        found: dict[str, Any] = {}
        programme = linear_programme(bounds, images, eps, objective)

        def solved(programme: Any = programme, found: Any = found) -> None:
            found["HiGHS"] = programme()

        taken = race({"ours": fitted, "HiGHS": solved}, rounds=rounds)
        reached, optimum = float(fitted().value), -float(found["HiGHS"].fun)
        # The same weights, with margins rounded outward as `fit_weights` counts them.
        weights = np.float32(found["HiGHS"].x[: biases.shape[2]]).clip(0)
        worst = ensemble.ensemble_margin(weights, slopes, biases, images, eps).min(1)
        sound = jnp.minimum(worst, 1) if objective == "hinge" else worst
        seconds = {f"{k}_s": timing.median_s for k, timing in taken.items()}
        values = {"ours": reached, "HiGHS": optimum, "rounded": float(sound.mean())}
        rows.append({"name": f"{name}, {objective}", **seconds, **values})
        print(
            f"{name}, {objective}: {seconds['ours_s']:.3g} s, {reached:.6f}; HiGHS "
            f"{seconds['HiGHS_s']:.3g} s, {optimum:.6f}, its weights rounded outward "
            f"{values['rounded']:.6f}",
            flush=True,
        )
    return rows


def ensembles(fns: Any, fitted: Images) -> dict[str, np.ndarray]:
    """Weights of the members, by what chose them on some images."""
    bounds = lines(fns, fitted)
    own = np.eye(len(fns), dtype=np.float32)
    alone = [ensemble.ensemble_margin(w, *bounds, fitted.images, EPS) for w in own]
    scales = [float(jnp.abs(margins.min(1)).mean()) for margins in alone]
    found = {"uniform": np.full(len(fns), 1 / len(fns), np.float32)}
    for objective in OBJECTIVES:
        found[f"RobBoost {objective}"] = fit(bounds, fitted, objective)
    found["RobBoost hinge, scaled"] = fit(bounds, fitted, "hinge", scales)
    return found


def measure(
    methods: dict[str, np.ndarray], fns: Any, test: Images
) -> tuple[list[Row], np.ndarray]:
    """A row of errors for each method, and which images (n, methods) are certified."""
    few = Images(*(part[:FEW] for part in test))
    weights = np.stack(list(methods.values()))
    right, certified, summed = clean_and_certified(fns, weights, test)
    print(" " * 24 + "".join(f"{name:>8}" for name in COLUMNS) + "   weights")
    rows = []

    def of_chunk(chosen: Any, x: Any, y: Any) -> Any:
        fn = ensemble.averaged(fns, chosen)
        return survives(fn, x, y), certified_as_one(fn, x, y)

    for i, (name, chosen) in enumerate(methods.items()):
        survived, whole = over(of_chunk, few, chosen)
        proven = whole | certified[: len(whole), i]
        assert not np.any(proven & ~survived), "an attack succeeds on a certified image"
        good = (right[:, i], certified[:, i], summed[:, i])
        part = (survived, certified[: len(whole), i], whole)
        errors = tuple(100 * float(np.mean(~each)) for each in good + part)
        rows.append(Row(name, errors, tuple(map(float, chosen))))
        print(rows[-1].text(), flush=True)
    return rows, certified


def compared(
    methods: dict[str, np.ndarray], certified: np.ndarray, others: tuple[str, ...]
) -> list[Any]:
    """How many images RobBoost certifies that another method does not, and back."""
    by_name, rows = dict(zip(methods, certified.T, strict=True)), []
    for name in methods:
        for other in others if name.startswith("RobBoost") else ():
            gained = int(np.sum(by_name[name] & ~by_name[other]))
            lost = int(np.sum(by_name[other] & ~by_name[name]))
            rows.append({"name": name, "than": other, "gained": gained, "lost": lost})
            print(f"{name}: {gained} certified that {other} does not, {lost} back")
    return rows


def plot(path: Path, rows: list[Row]) -> None:
    """Draws clean error and error without a certificate by method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, 2, figsize=(9, 3.8), layout="constrained", sharey=True
    )
    places = np.arange(len(rows))
    clean, verified, summed = np.array([row.errors[:3] for row in rows]).T
    axes[0].plot(clean, places, "o")
    axes[1].plot(verified, places, "o", label="the ensemble's margin")
    axes[1].plot(summed, places, "ko", mfc="none", label="weighted sum of margins")
    axes[0].set_yticks(places, [row.name for row in rows])
    axes[0].invert_yaxis()
    axes[0].set_xlabel("error on test images in %")
    axes[1].set_xlabel(f"without a certificate at eps {EPS:g}, in %")
    axes[1].legend(fontsize=8)
    for axis in axes:
        axis.grid(axis="y", color="0.9")
    figure.savefig(path, dpi=150)


def golden_race() -> list[Any]:
    """`raced` on the instance of the shared goldens, where they are."""
    path = Path(os.environ.get("JAXMETHODS_SHARED", "../shared")) / GOLDEN
    if not path.exists():
        return []
    with np.load(path) as stored:
        slopes, biases, images = (stored[k].astype(np.float32) for k in ("A", "b", "x"))
        eps = float(stored["eps"])
    return raced(f"{len(images)} digits", (slopes, biases), images, eps, 5)


def main() -> None:
    options = read_options(
        "robboost", __doc__, data="mnist", quick="small nets on the shipped digits"
    )
    members = QUICK if options.quick else MEMBERS
    sizes = (240, 240, 6) if options.quick else (HELD_OUT, FITTED, RACED)
    num_held, num_fitted, num_raced = sizes
    data = load_digits() if options.quick else load_mnist(options.data)
    rest, held, fitted, few = (
        Images(*(part[rows] for part in data.train))
        for rows in (
            slice(-num_held),
            slice(-num_held, None),
            slice(-num_held, num_fitted - num_held or None),
            slice(-num_held, num_raced - num_held),
        )
    )
    with timed():
        races, fns = golden_race(), []
        for seed, member in enumerate(members):
            start = time.perf_counter()
            fns.append(partial(logits, train(member, seed, rest)))
            print(f"{member.name}: {time.perf_counter() - start:.0f} s", flush=True)
        own = np.eye(len(fns), dtype=np.float32)
        singles = {m.name: w for m, w in zip(members, own, strict=True)}
        certified = clean_and_certified(fns, own, held)[1].mean(0)
        best = members[int(np.argmax(certified))].name
        print(f"best single on held-out images: {best}", flush=True)
        methods = singles | ensembles(fns, fitted)
        rows, certified = measure(methods, fns, data.test)
        pairs = compared(methods, certified, (best, "uniform"))
        races += raced(f"{num_raced} images", lines(fns, few), few.images, EPS, 1)
    if options.out:
        table = [row._asdict() for row in rows]
        content = {"best": best, "rows": table, "pairs": pairs, "races": races}
        path = options.out / "robboost.json"
        path.write_text(json.dumps(content, indent=1) + "\n")
        plot(options.out / "robboost.png", rows)


if __name__ == "__main__":
    main()

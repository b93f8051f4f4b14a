"""Few-shot debugging of a sentiment classifier: what is corrected and what is lost.

    python -m benchmarks.papers.debugging [--data FOLDER] [--quick] [--plot F]

A text-CNN (64-d embeddings, 96 filters of width 3, max and mean pool) is trained on the
phrases of SST-2, several times. Each model is then debugged on ten examples of each of
the three released SST-2 suites by every method of `influence.debugging.debug` (Malon et
al. 2022, arXiv:2204.06555; Adam at 1e-3, at most 100 steps; not their model: a large
pretrained one). The table has the accuracy on the rest of the suite and on held-out
original phrases and whole sentences, as means over the models with 95 % intervals (t),
the steps and the passes over the original set. A method with a strength has a row for
each of several. "first order" adds the 20 phrases, among those that were right, whose
loss a step on the ten raises most (`loss_rise`), with no corrected model to compare to;
"in_danger 80" adds up to 80 phrases instead of 20.

Then, where the ten examples correct a suite at all, what in-danger sampling keeps more,
model by model, than each row that corrects as much (mean debug accuracy at most 0.02
below). All ten carry one label, and a weak model may learn no more than that.

Last result, two x86_64 cores, jax 0.10, 8 models, 468 s (454 CPU s), the suite 030
(negation of a positive with neutral stuff in between), before 0.494 of the rest of the
suite, 0.923 of the phrases, 0.824 of the sentences:

                debug          phrases        sentences        steps   passes
    debug_only  0.988 ±0.007   0.910 ±0.005   0.790 ±0.014       6.1   0
    random      0.989 ±0.007   0.910 ±0.005   0.790 ±0.012       6.8   0.0003
    in_danger   0.982 ±0.010   0.920 ±0.002   0.823 ±0.005      14.5   0.0211
    l2_ball 0.7 0.970 ±0.020   0.914 ±0.004   0.801 ±0.011      53.8   0
    l2_penalty 1  0.984 ±0.010 0.911 ±0.004   0.793 ±0.012       6.9   0
    kl 10       0.987 ±0.009   0.914 ±0.004   0.800 ±0.012       6.5   0.0021
    kl 100      0.981 ±0.009   0.921 ±0.002   0.823 ±0.005      11.2   0.0037
    fisher 1e4  0.982 ±0.010   0.915 ±0.004   0.805 ±0.010       7.1   0.0165
    first order 0.971 ±0.014   0.921 ±0.002   0.817 ±0.009      10.9   1
    intensive   0.996 ±0.013   0.925 ±0.003   0.825 ±0.022     948     1

Intensive: two models. In-danger sampling keeps nearly all, of the phrases 0.010 ±0.005
more than debug-only, 0.006 ±0.004 more than the best ball, 0.010 ±0.004 than the L2
penalty, 0.005 ±0.004 than the Fisher one and 0.006 ±0.004 than KL with a weight of 10
(of the sentences 0.033, 0.023, 0.030, 0.018 and 0.023 more, all intervals above 0). KL
with a weight tuned on what is held out keeps as much: at 30 in-danger sampling has
0.001 ±0.003 of the phrases more, at 100 0.001 ±0.002 less. Eighty phrases instead of 20
cost 0.022 ±0.007. On the two other suites these models cannot be debugged: the ten are
right after one and four steps, the rest is not (0.51 and 0.61 before, 0.51 and 0.60
after).
"""

import argparse
import csv
import functools
import gzip
import json
import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from jaxmethods.influence.debugging import debug, loss_rise

LENGTH, WIDTH, FILTERS = 32, 64, 96
PAD, UNKNOWN = range(2)
BATCH_SIZE = 64
LIMIT = 20
SLACK = 0.02
# What a family has rows for: strengths that reach from no effect to no correction.
GRIDS = {
    "l2_ball": ("radius", (0.5, 0.7, 1.0)),
    "l2_penalty": ("weight", (1.0, 3.0, 10.0)),
    "kl": ("weight", (1.0, 10.0, 30.0, 100.0)),
    "fisher": ("weight", (1e3, 1e4, 1e5)),
}
MORE = 4 * LIMIT
REFERENCES = ("epoch", "intensive")
FAMILIES = (
    "debug_only",
    "random",
    *GRIDS,
    "first order",
    f"in_danger {MORE}",
    *REFERENCES,
)


class Labelled(NamedTuple):
    """Token ids (n, LENGTH) and labels (n,), 1 if positive."""

    tokens: np.ndarray
    labels: np.ndarray


class Suite(NamedTuple):
    """Ten examples of a phenomenon, and the rest of it."""

    name: str
    bug: Labelled
    test: Labelled


class Data(NamedTuple):
    """Original phrases, to train on and held out, whole sentences, and the suites."""

    train: Labelled
    phrases: Labelled
    sentences: Labelled
    suites: list[Suite]
    num_words: int


def read_table(path: Path) -> list[tuple[str, int]]:
    """Texts and labels of a file with columns label and sentence, in any order."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence"], int(row["label"])) for row in rows]


def read_lines(path: Path) -> list[tuple[str, int]]:
    """Texts and labels of a suite."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(row["sentence"], int(row["label"] == "positive")) for row in rows]


def words(text: str) -> list[str]:
    """The words of a text as the treebank splits them: do n't, it 's."""
    text = re.sub(r"n't\b", " n't", text.lower())
    text = re.sub(r"'(s|m|re|ve|d|ll)\b", r" '\1", text)
    return re.sub(r"([.,!?;:()])", r" \1 ", text).split()


def load(folder: Path) -> Data:
    """Reads everything and numbers the words that occur twice."""
    sst = folder / "sst2"
    rows = {s: read_table(sst / f"phrases_{s}.tsv.gz") for s in ("train", "dev")}
    rows["sentences"] = read_table(sst / "sentences_dev.tsv")
    split = {
        name: [(words(text), y) for text, y in some] for name, some in rows.items()
    }
    counts = Counter(word for some, _ in split["train"] for word in some)
    known = [word for word, count in counts.most_common() if count > 1]
    ids = {word: i for i, word in enumerate(known, UNKNOWN + 1)}

    def encode(some: list[tuple[list[str], int]]) -> Labelled:
        tokens = np.full((len(some), LENGTH), PAD, np.int32)
        for row, (text, _) in zip(tokens, some, strict=True):
            numbers = [ids.get(word, UNKNOWN) for word in text[:LENGTH]]
            row[: len(numbers)] = numbers
        return Labelled(tokens, np.array([y for _, y in some], np.int32))

    suites = []
    for place in sorted((folder / "nlu-debug-suites" / "sst2-checklist").iterdir()):
        both = [
            encode(
                [(words(text), y) for text, y in read_lines(place / f"{part}.jsonl")]
            )
            for part in ("train", "test")
        ]
        suites.append(Suite(re.sub("_+", " ", place.name).strip(), *both))
    encoded = [encode(split[name]) for name in ("train", "dev", "sentences")]
    return Data(*encoded, suites, UNKNOWN + 1 + len(ids))


def init(key: Any, num_words: int) -> Any:
    """Random weights."""
    keys = jax.random.split(key, 3)
    shapes = {"table": (num_words, WIDTH), "filters": (3 * WIDTH, FILTERS)}
    shapes["classes"] = (2 * FILTERS, 2)
    scales = {"table": 0.1, "filters": (3 * WIDTH) ** -0.5, "classes": 0.05}
    params = {
        name: scales[name] * jax.random.normal(k, shape)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return params | {"offset": jnp.zeros(FILTERS), "bias": jnp.zeros(2)}


def logits(params: Any, tokens: Any) -> Any:
    """Logits (n, 2) of token ids (n, length)."""
    there = (tokens != PAD)[..., None]
    x = jnp.where(there, params["table"][tokens], 0)
    around = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    windows = jnp.concatenate(
        [around[:, i : i + tokens.shape[1]] for i in range(3)], -1
    )
    h = jax.nn.relu(windows @ params["filters"] + params["offset"])
    h = jnp.where(there, h, 0)
    pooled = [h.max(1), h.sum(1) / jnp.maximum(there.sum(1), 1)]
    return jnp.concatenate(pooled, -1) @ params["classes"] + params["bias"]


def predict(params: Any, tokens: Any) -> Any:
    """Labels (n,)."""
    return jnp.argmax(logits(params, tokens), -1)


def loss(params: Any, example: Any) -> Any:
    """The cross-entropy of one example."""
    tokens, label = example
    scores = logits(params, tokens[None])[0]
    return jax.nn.logsumexp(scores) - scores[label]


def trainer(data: Data, epochs: int) -> Any:
    """`train(key) -> params`, compiled once."""
    optimizer = optax.adam(1e-3)
    steps = len(data.train.labels) // BATCH_SIZE

    def step(carry, batch):
        params, state = carry
        gradient = jax.grad(
            lambda p: jax.vmap(loss, (None, 0))(p, tuple(batch)).mean()
        )(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def epoch(carry, key, train):
        order = jax.random.permutation(key, len(train.labels))
        order = order[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE)
        step_of = lambda c, rows: step(c, jax.tree.map(lambda x: x[rows], train))  # noqa: E731
        return jax.lax.scan(step_of, carry, order)[0]

    def train(key):
        params = init(jax.random.fold_in(key, 0), data.num_words)
        carry = params, optimizer.init(params)
        for n in range(epochs):
            carry = epoch(carry, jax.random.fold_in(key, 1 + n), data.train)
        return carry[0]

    return train


@functools.cache
def debugger(method: str, limit: int = LIMIT) -> Any:
    """`run(params, bug, original, key, strengths) -> Debugged`, a row a strength."""
    name, _ = GRIDS.get(method, (None, None))

    @jax.jit
    def run(params, bug, original, key, strengths):
        def one(strength):
            how = {} if name is None else {name: strength}
            options = dict(logits=logits, limit=limit, batch_size=BATCH_SIZE, **how)
            sets = tuple(bug), tuple(original)
            return debug(loss, predict, params, *sets, key, method=method, **options)

        return jax.vmap(one)(strengths)

    return run


@jax.jit
def most_endangered(params: Any, bug: Any, original: Any) -> Any:
    """The phrases, right so far, whose losses a step on the debug set raises most."""
    rise = loss_rise(loss, params, tuple(bug), tuple(original))
    fine = jax.lax.map(
        lambda e: predict(params, e.tokens[None])[0] == e.labels,
        original,
        batch_size=1024,
    )
    return jax.lax.top_k(jnp.where(fine, rise, -jnp.inf), LIMIT)[1]


def accuracy(params: Any, some: Labelled, size: int = 512) -> float:
    """The share that is right, in batches of one size, short texts with short ones."""
    lengths = (some.tokens != PAD).sum(1)
    order, right = np.argsort(lengths), 0
    for i in range(0, len(order), size):
        rows = order[i : i + size]
        width = -(-lengths[rows].max() // 8) * 8
        filled = np.resize(rows, size)
        answers = _predict(params, some.tokens[filled, :width])[: len(rows)]
        right += int((np.asarray(answers) == some.labels[rows]).sum())
    return right / len(order)


_predict = jax.jit(predict)


class Row(NamedTuple):
    """One method on one suite and model; accuracies in shares."""

    debug: float
    phrases: float
    sentences: float
    steps: float
    passes: float
    solved: bool


def methods(seed: int, references: int, fisher: int, data: Data) -> list[Any]:
    """(method, strengths, original set, its size in units of the whole) of a model."""
    part = fisher / len(data.train.labels)
    sample = jax.tree.map(lambda x: x[:fisher], data.train)
    found = []
    for method in ("debug_only", "random", "in_danger", *GRIDS, *REFERENCES):
        if method in REFERENCES and seed >= references:
            continue
        _, strengths = GRIDS.get(method, (None, (0.0,)))
        some = (sample, part) if method == "fisher" else (data.train, 1.0)
        found.append((method, strengths, *some))
    return found


def measure(
    params: Any, suite: Suite, data: Data, seed: int, options: Any
) -> dict[str, Row]:
    """All methods on one suite and model."""

    def judge(some: Any, steps: Any = 0, passes: Any = 0, solved: Any = False) -> Row:
        tests = (suite.test, data.phrases, data.sentences)
        shares = [accuracy(some, test) for test in tests]
        return Row(*shares, float(steps), float(passes), bool(solved))

    rows = {"before": judge(params)}
    key = jax.random.key(1000 + seed)
    for method, strengths, original, part in methods(
        seed, options.references, options.fisher, data
    ):
        done = debugger(method)(params, suite.bug, original, key, jnp.array(strengths))
        for i, strength in enumerate(strengths):
            one = jax.tree.map(lambda x, i=i: x[i], done)
            label = f"{method} {strength:g}" if method in GRIDS else method
            rows[label] = judge(*one._replace(passes=one.passes * part))
    more = debugger("in_danger", MORE)
    done = more(params, suite.bug, data.train, key, jnp.zeros(1))
    one = jax.tree.map(lambda x: x[0], done)
    rows[f"in_danger {MORE}"] = judge(*one)
    chosen = np.asarray(most_endangered(params, suite.bug, data.train))
    both = jax.tree.map(
        lambda a, b: np.concatenate([a, b[chosen]]), suite.bug, data.train
    )
    done = debugger("debug_only")(params, both, data.train, key, jnp.zeros(1))
    one = jax.tree.map(lambda x: x[0], done)
    rows["first order"] = judge(*one._replace(passes=1.0))
    return rows


def interval(values: Any) -> tuple[float, float]:
    """The mean and half the width of its 95 % interval (NaN of a single value)."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    spread = values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * spread)


def show(mean: float, half: float) -> str:
    """A number with its interval."""
    return f"{mean:.3f}" + ("        " if np.isnan(half) else f" ±{half:.3f}")


def mean_of(runs: list[dict[str, Row]], label: str, field: str) -> float:
    """The mean over the models that have the row."""
    return float(np.mean([getattr(run[label], field) for run in runs if label in run]))


def table(runs: list[dict[str, Row]]) -> str:
    """One suite's rows: means over the models, with intervals."""
    lines = [
        f"{'':16s}{'debug':15s}{'phrases':15s}{'sentences':15s}{'steps':>7s}"
        f"{'passes':>9s}  solved"
    ]
    for label in runs[0]:
        found = [run[label] for run in runs if label in run]
        cells = [show(*interval([row[i] for row in found])) for i in range(3)]
        steps, passes, solved = (np.mean([row[i] for row in found]) for i in (3, 4, 5))
        text = "".join(f"{cell:15s}" for cell in cells)
        share = (
            "" if label == "before" else f"{round(solved * len(found))}/{len(found)}"
        )
        lines.append(f"{label:16s}{text}{steps:7.1f}{passes:9.4f}  {share}")
    return "\n".join(lines)


def rows_of(runs: list[dict[str, Row]], family: str) -> list[str]:
    """The rows of a family: itself, or one a strength."""
    return [x for x in runs[0] if x == family or (family in GRIDS and family in x)]


def comparison(runs: list[dict[str, Row]]) -> str:
    """What in-danger sampling keeps more, model by model."""
    lines = ["in_danger keeps more than   (debug)    of phrases       of sentences"]
    least, less = mean_of(runs, "in_danger", "debug") - SLACK, []
    for label in [x for x in runs[0] if x not in ("before", "in_danger")]:
        debugged = mean_of(runs, label, "debug")
        if debugged < least:
            less.append(f"{label} ({debugged:.3f})")
            continue
        pairs = [(run["in_danger"], run[label]) for run in runs if label in run]
        gains = [
            show(*interval([getattr(a, field) - getattr(b, field) for a, b in pairs]))
            for field in ("phrases", "sentences")
        ]
        lines.append(
            f"  {label:24s} ({debugged:.3f})  {gains[0]:>14s}  {gains[1]:>14s}"
        )
    return "\n".join([*lines, f"  these correct less: {', '.join(less) or 'none'}"])


def verdict(runs: list[dict[str, Row]]) -> str:
    """Whether fitting the ten corrects the rest of the suite, and what is kept then."""
    before, after = (mean_of(runs, x, "debug") for x in ("before", "debug_only"))
    if after >= 0.75:
        return f"corrected by ten examples: {before:.3f} -> {after:.3f}\n" + comparison(
            runs
        )
    return (
        "this model cannot be debugged here: the ten are right after "
        f"{mean_of(runs, 'debug_only', 'steps'):.0f} steps, the rest of the suite is "
        f"not ({before:.3f} -> {after:.3f})"
    )


def plot(path: Path, results: dict[str, list[dict[str, Row]]]) -> None:
    """Draws original accuracy over debug accuracy, a line a family."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (5 * len(results), 4.2)
    figure, axes = plt.subplots(
        1, len(results), figsize=size, layout="constrained", sharey=True, squeeze=False
    )
    shades = [*plt.cm.tab20.colors[::2], *plt.cm.tab20.colors[1::2]]
    for axis, (name, runs) in zip(axes[0], results.items(), strict=True):
        families = zip(("before", "in_danger", *FAMILIES), ["black", *shades])  # noqa: B905
        for family, shade in families:
            labels = rows_of(runs, family)
            x = [mean_of(runs, label, "debug") for label in labels]
            y = [mean_of(runs, label, "phrases") for label in labels]
            first = family in ("before", "in_danger")
            style = {"marker": "*" if first else "o", "ms": 13 if first else 6}
            axis.plot(x, y, label=family, color=shade, **style)
        axis.set_title("\n".join(re.findall(r".{1,42}(?: |$)", name)), fontsize=9)
        axis.set_xlabel("accuracy on the rest of the suite")
    axes[0, 0].set_ylabel("accuracy on held-out original phrases")
    axes[0, 0].legend(fontsize=7)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.papers.debugging", description=__doc__.split("\n")[0]
    )
    shared = Path(os.environ.get("JAXMETHODS_SHARED", "../shared"))
    parser.add_argument("--data", type=Path, default=shared / "data")
    parser.add_argument("--models", type=int, default=8, help="how many are trained")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--references", type=int, default=2, help="models with the slow references"
    )
    parser.add_argument(
        "--fisher", type=int, default=1000, help="phrases that estimate the Fisher"
    )
    parser.add_argument("--quick", action="store_true", help="two models, one epoch")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.models, options.epochs, options.references = 2, 1, 0
    wall, cpu = time.perf_counter(), time.process_time()
    data = load(options.data)
    train = trainer(data, options.epochs)
    results: dict[str, list[dict[str, Row]]] = {s.name: [] for s in data.suites}
    for seed in range(options.models):
        params = jax.block_until_ready(train(jax.random.key(seed)))
        for suite in data.suites:
            seconds = time.perf_counter() - wall
            print(f"model {seed}, {seconds:4.0f} s: {suite.name}", flush=True)
            results[suite.name].append(measure(params, suite, data, seed, options))
    for suite in data.suites:
        runs = results[suite.name]
        print(f"\n{suite.name} ({len(suite.test.labels)} in the rest of the suite)")
        print(table(runs))
        print(verdict(runs))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"\n{options.models} models, {wall:.0f} s, {cpu:.0f} CPU s")
    if options.plot:
        plot(options.plot, results)


if __name__ == "__main__":
    main()

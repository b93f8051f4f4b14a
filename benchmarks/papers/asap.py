"""Averages with few neighbours, by workers of which some are slow.

    python -m benchmarks.papers.asap [--data FOLDER] [--seeds N] [--quick] [--out DIR]

ASAP (Kadav, Kruus 2016, arXiv:1612.08608): workers average their models with the
neighbours of a sparse graph, and wait for these alone. Three parts:

- consensus: rounds until the workers' disagreement is a thousandth, as the spectral gap
  promises (of whole cycles, where a graph cycles), and by `stochastic_reduce` on
  virtual devices, from the values that mix worst and from random ones; beyond 16
  workers by the mixing matrix. `models sent`: by a worker, in the rounds from random
  values; a ring all-reduce has the exact mean for less than 2;
- rounds: 8 processes that only average, over shared memory, their work a sleep of 10 ms
  a round. Worker 0 takes 3 times as long (one slow), or a tenth of all rounds 11 times
  (at random). Milliseconds a round until the last worker is done, by the sleeps alone
  and measured, median and range over seeds, and spent in `average`; the shares of the
  messages used once, never, more than once; by how many rounds they are older than
  their reader's round; averages, of 960, that took in a message while it was
  overwritten; how far workers are apart in the end, and their mean from where it would
  be were each message used once, over how far apart they began;
- training: 784-32-10 on 8,000 images of MNIST, 4 processes, 60 rounds of 5 SGD steps in
  batches of 16 and a sleep of 20 ms; examples shuffled, or by label (2 or 3 digits a
  worker). "async" goes on for as long as the all-reduce (complete, bsp) took. Seconds
  until the mean of the workers' test losses is what the all-reduce has after 3/4 of its
  time; how many times sooner than it, seed by seed; the accuracy of the workers' models
  on all test images and that of the mean of their models.

`--quick` runs less of all, with 3 processes, on the digits that ship with the package.
`--out` takes the folder for `asap.json` and the plot `asap.png`.

Last result, one core of an x86_64 machine with much else running, jax 0.10.2, 3 seeds,
577 s. All processes share the core: what they wait for are the sleeps.

                    N = 16                                  N = 64
                    gap     promised  worst  random  sent   gap     worst  random  sent
    ring            0.0192       357    357     290   290   0.0012   5732    3985  3985
    root            0.2103        30     30      25    50   0.0601    112      83   166
    halton          0.1754        36     36      31   124   0.0365    186     145   870
    chord           0.4000        14     14      11    44   0.2857     21      15    90
    exp2            0.4000        14     14      11    44   0.2857     21      15    90
    random_regular  0.3231        18     12      11    44   0.3396      9       8    48
    one_peer        1              4      4       4     4   1           6       6     6
    complete        1              1      1       1    15   1           1       1    63

    ms a round, at random  sleeps  measured          once   lost  again  mixed  mean off
    ring      bsp            65.0  71.3 (66.5-73.5)   100      0      0      0     4e-08
    ring      notify_ack     45.0  46.4 (39.2-49.0)   100      0      0      0     4e-08
    ring      notify         45.0  47.1 (39.8-48.5)  83.8   12.2    4.4      0      0.19
    ring      async          27.5  28.4 (26.0-32.0)  44.4   46.9    8.8      7      0.56
    exp2      bsp            65.0  72.6 (67.4-74.2)   100      0      0      0     4e-08
    exp2      notify_ack     57.5  60.9 (60.8-62.0)   100      0      0      0     4e-08
    exp2      notify         57.5  60.8 (58.0-60.9)  80.4   10.3    9.3      0      0.06
    exp2      async          27.5  28.6 (25.8-32.5)  47.4   44.1    8.5      7      0.42
    complete  bsp            65.0  73.7 (69.1-74.4)   100      0      0      0     6e-08
    complete  notify_ack     65.0  71.2 (65.8-71.2)   100      0      0      0     6e-08

                           one slow                      at random
                           sooner            accuracy    sooner            accuracy
    complete  bsp          1                 90.05       1                 90.05
    ring      bsp          0.90 (0.89-0.90)  89.55       0.87 (0.86-0.89)  89.55
    ring      notify_ack   0.94 (0.94-0.94)  89.55       1.00 (0.88-1.08)  89.55
    ring      notify       1.13 (1.05-1.17)  89.97       1.08 (1.00-1.22)  89.67
    ring      async        1.36 (1.33-1.53)  90.29       1.24 (1.01-1.38)  89.79
    exp2      notify_ack   0.99 (0.94-1.03)  89.89       0.90 (0.88-1.04)  89.89

    one slow, by label     accuracy             of the mean model
    complete  bsp          88.19 (87.75-88.43)  88.19
    ring      notify_ack   75.06 (74.95-76.01)  86.67
    ring      async        78.31 (76.45-79.04)  87.82
    exp2      notify_ack   85.68 (85.36-85.93)  87.70

What the paper says of the protocol holds. notify_ack gives the bits of bsp on every
graph, with every delay, in training too. The gap's promise is exact for the worst
values where all workers send by the same offsets, and a bound for random permutations.
Without the ACK a tenth of the messages is lost, without waits nearly half, and the mean
of all workers is not kept; now and then a message is overwritten while it is read.

What it says of time holds in part. With delays at random notify_ack makes rounds 1.5
times as short on the ring (1.4 to 1.8), 1.2 times on exp2, hardly on the complete graph
(1.05). One worker that is always slow sets the pace of all but async: the sleeps are 30
ms a round in every mode, and notify_ack saves the barriers alone, 4 to 5 ms.

The 2 to 10 times sooner in convergence did not show. The ring mixes less in a round,
which took back what 4 workers gained by shorter ones: 1.0 times the all-reduce with
delays at random, 0.94 with one slow; exp2 likewise. Such times are noisy: another run
had medians of 4.5 s for the all-reduce and 3.6 s for the ring with delays at random.
What was sooner does not keep the mean: notify 1.1 times, async, which makes more steps,
1.2 to 1.4 times. That cost no accuracy here, not by label either, where 4 workers on a
ring are far from agreement in any mode.

Nor does a sparse graph send less for the same agreement: 44 models by exp2 among 16,
15 in the one round of all to all, 1.9 by an all-reduce; a round of exp2 is 4 of them.
Only one_peer comes close, and agrees exactly.
"""

import json
import math
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmethods import shard
from jaxmethods.data import Split, load_digits, load_mnist

from ..zoo import dense, stragglers, traces
from ..zoo.mixing import REDUCED, consensus, make_graph
from ..zoo.stragglers import Delay, Phase, Trace
from ..zoo.traces import Curve
from .command_line import read_options, timed

GRAPHS = (
    *("ring", "root", "halton", "chord", "exp2"),
    *("random_regular", "one_peer", "complete"),
)
MODES = ("bsp", "notify_ack", "notify", "async")
SIZE = 50_000  # floats of a message that is timed
NUM_TRAIN, EVERY = 8000, 2  # images; rounds between points of a curve
MORE = 4  # times as many rounds as the others are there for "async", which has a limit

Rows = list[dict[str, Any]]


class Scale(NamedTuple):
    """How much is run.

    Attributes:
        meshes: Numbers of workers that average as virtual devices.
        timed: Modes by graph, of the processes that only average.
        workers: How many of these.
        rounds: Of these.
        trained: Graph and mode of the processes that train, the all-reduce first.
        trainers: How many of these.
        steps: Rounds of these.
        settings: Of these: name -> delays, and whether examples go by label.
        seeds: Of both.
    """

    meshes: tuple[int, ...]
    timed: Mapping[str, Sequence[str]]
    workers: int
    rounds: int
    trained: Sequence[tuple[str, str]]
    trainers: int
    steps: int
    settings: Mapping[str, tuple[Delay, bool]]
    seeds: int


def slow(work: float) -> Delay:
    """One worker that always takes three times as long."""
    return Delay("one slow", work, slow=3.0)


def late(work: float) -> Delay:
    """Rounds of any worker that take eleven times as long, a tenth of them."""
    return Delay("at random", work, share=0.1, factor=11.0)


DELAYS = slow(0.01), late(0.01)
SETTINGS = {
    "one slow": (slow(0.02), False),
    "at random": (late(0.02), False),
    "one slow, by label": (slow(0.02), True),
}
QUICK = Scale(
    meshes=(8,),
    timed={"ring": MODES},
    workers=3,
    rounds=15,
    trained=(("complete", "bsp"), ("ring", "notify_ack")),
    trainers=3,
    steps=20,
    settings={"at random": SETTINGS["at random"]},
    seeds=1,
)
FULL = Scale(
    meshes=(8, 16),
    timed={"ring": MODES, "exp2": MODES, "complete": ("bsp", "notify_ack")},
    workers=8,
    rounds=40,
    trained=(
        ("complete", "bsp"),
        *(("ring", mode) for mode in MODES),
        ("exp2", "notify_ack"),
    ),
    trainers=4,
    steps=60,
    settings=SETTINGS,
    seeds=3,
)


def study_consensus(meshes: Sequence[int], simulated: int) -> Rows:
    """A table of all graphs; the largest number of workers by the matrix alone."""
    rows: Rows = []
    for workers in (*meshes, simulated):
        on_devices = workers in meshes
        how = "stochastic_reduce" if on_devices else "the mixing matrix"
        print(
            f"\n{workers} workers, by {how}; an all-reduce sends "
            f"{2 * (workers - 1) / workers:.2f} models\n"
            f"{'':16}{'gap':>8}{'degree':>8}{'messages':>10}{'promised':>10}"
            f"{'worst':>8}{'random':>8}{'models sent':>13}"
        )
        for name in GRAPHS:
            row = consensus(make_graph(name, workers), on_devices=on_devices)
            rows.append({"graph": name, **row})
            print(
                f"{name:16}{row['gap']:8.4f}{row['degree']:8}{row['messages']:10}"
                f"{row['promised']:10}{row['worst']!s:>8}{row['random']!s:>8}"
                f"{row['degree'] * (row['random'] or 0):13}",
                flush=True,
            )
    off = max(row["off_matrix"] or 0.0 for row in rows)
    print(f"devices differ from the matrix by {off:.1e} at most")
    return rows


def in_processes(
    worker: Any, graph: shard.Graph, like: Any, mode: str, *args: Any
) -> list[tuple[Trace, ...]]:
    """The traces of all workers, of each phase."""
    barrier = multiprocessing.get_context("spawn").Barrier(graph.num_workers)
    found = shard.run_workers(
        worker, graph, like, mode=mode, args=(*args, barrier), timeout=120.0
    )
    return list(zip(*found, strict=True))


def study_rounds(scale: Scale) -> Rows:
    """Times processes that only average, in every mode; prints the table."""
    print(
        f"\n{scale.workers} processes, {scale.rounds} rounds, {SIZE} floats, "
        f"{scale.seeds} seeds; ms a round\n{'':32}{'sleeps':>6}  {'last':17}"
        f"{'first':>6}{'waited':>8}{'once %':>8}{'lost %':>8}{'again %':>9}"
        f"{'behind':>9}{'mixed':>7}{'apart':>8}{'mean off':>10}  = bsp"
    )
    phases = [Phase(delay, seed) for delay in DELAYS for seed in range(scale.seeds)]
    mark = np.zeros((), np.float32)
    like = mark, np.zeros(SIZE, np.float32), mark
    rows: Rows = []
    for name, modes in scale.timed.items():
        graph, exact = make_graph(name, scale.workers), []
        for mode in modes:
            args = phases, scale.rounds, SIZE
            found = in_processes(stragglers.drift, graph, like, mode, *args)
            ends = [np.stack([t.kept.values for t in one]) for one in found]
            exact = exact or ends
            for delay in DELAYS:
                mine = [i for i, phase in enumerate(phases) if phase.delay == delay]
                equal = all(np.array_equal(exact[i], ends[i]) for i in mine)
                row = {"graph": name, "mode": mode, "delay": delay.name}
                runs = [round_figures(graph, mode, phases[i], found[i]) for i in mine]
                rows.append(row | {"is_bsp": equal, "runs": runs})
                print_rounds(rows[-1])
    return rows


def round_figures(
    graph: shard.Graph, mode: str, phase: Phase, found: Sequence[Trace]
) -> dict[str, float]:
    """Of one phase: all that its traces tell."""
    rounds = len(found[0].ends)
    return {
        "sleeps": traces.clock_of_sleeps(graph, mode, phase, rounds),
        **traces.clock(found),
        **traces.messages(found),
        **traces.agreement(found),
        "mixed": sum(trace.kept.mixed for trace in found),
        "averages": rounds * len(found),
    }


def print_rounds(row: dict[str, Any]) -> None:
    """A line of the table of rounds: medians, and the range of the time."""
    every = {name: [run[name] for run in row["runs"]] for name in row["runs"][0]}
    middle = {name: float(np.median(values)) for name, values in every.items()}
    behind = f"{min(every['least'])}..{max(every['most'])}"
    print(
        f"{row['delay']:11}{row['graph']:10}{row['mode']:11}{middle['sleeps']:6.1f}  "
        f"{spread(every['last'], 1):17}{middle['first']:6.1f}{middle['waited']:8.1f}"
        f"{100 * middle['once']:8.1f}{100 * middle['lost']:8.1f}"
        f"{100 * middle['again']:9.1f}{behind:>9}{sum(every['mixed']):7}"
        f"{middle['apart']:8.3f}{middle['mean_off']:10.1e}  "
        f"{'yes' if row['is_bsp'] else 'no'}",
        flush=True,
    )


def spread(values: Sequence[float], digits: int) -> str:
    """The median and the range; "never" for what was not reached."""
    cells = [
        f"{value:.{digits}f}" if math.isfinite(value) else "never"
        for value in (float(np.median(values)), min(values), max(values))
    ]
    if cells[1] == "never":
        return "never"
    return f"{cells[0]} ({cells[1]}-{cells[2]})"


Curves = dict[tuple[str, str], list[Curve]]  # by graph and mode


def study_training(split: Split, scale: Scale) -> tuple[Rows, dict[str, Curves]]:
    """Trains a net by every graph and mode; prints a table for each setting."""
    data = split.train.images[:NUM_TRAIN], split.train.labels[:NUM_TRAIN]
    widths = stragglers.widths(data)
    like = jax.eval_shape(partial(dense.init, widths=widths), jax.random.key(0))
    print(
        f"\n{'-'.join(map(str, widths))} on {split.name}, {scale.trainers} processes, "
        f"{scale.steps} rounds of {stragglers.LOCAL_STEPS} steps, {scale.seeds} seeds"
    )
    phases = [
        Phase(delay, seed, by_label)
        for delay, by_label in scale.settings.values()
        for seed in range(scale.seeds)
    ]
    limits: list[float] = []
    curves: dict[str, Curves] = {name: {} for name in scale.settings}
    for graph, mode in scale.trained:
        rounds, own = scale.steps, phases
        if mode == "async":  # as long as the all-reduce took, not as many rounds
            pairs = zip(phases, limits, strict=True)
            own = [phase._replace(limit=limit) for phase, limit in pairs]
            rounds = MORE * scale.steps
        found = in_processes(
            stragglers.train,
            make_graph(graph, scale.trainers),
            like,
            mode,
            *(own, rounds, EVERY, data),
        )
        each = [traces.curve(one, tuple(split.test)) for one in found]
        limits = limits or [one.last for one in each]
        for i, name in enumerate(scale.settings):
            mine = slice(i * scale.seeds, (i + 1) * scale.seeds)
            curves[name][graph, mode] = each[mine]
    rows: Rows = []
    for name, by_mode in curves.items():
        rows += training_rows(name, by_mode)
    return rows, curves


def training_rows(name: str, curves: Curves) -> Rows:
    """The table of a setting; the target is what the all-reduce has at 3/4."""
    first = next(iter(curves.values()))
    target = float(np.median([one.at(0.75 * one.last) for one in first]))
    print(
        f"\n{name}, to a test loss of {target:.3f}\n{'':22}{'rounds':9}{'in all s':10}"
        f"{'s to the loss':18}{'all workers':18}{'sooner':18}{'accuracy in %':21}"
        f"{'worst':>6}{'mean':>7}  = bsp"
    )
    rows: Rows = []
    for (graph, mode), found in curves.items():
        row = {
            "setting": name,
            "graph": graph,
            "mode": mode,
            "target": target,
            "rounds": [one.rounds for one in found],
            "last": [one.last for one in found],
            "until": [one.until(target) for one in found],
            "until_worst": [one.until(target, worst=True) for one in found],
            "sooner": [
                known.until(target) / one.until(target)
                for known, one in zip(first, found, strict=True)
            ],
            "accuracy": [one.accuracy[0] for one in found],
            "accuracy_worst": [one.accuracy[1] for one in found],
            "accuracy_of_mean": [one.accuracy[2] for one in found],
            "is_bsp": is_equal(found, curves.get((graph, "bsp"))),
            "curves": [(one.seconds.tolist(), one.loss.tolist()) for one in found],
        }
        rows.append(row)
        print_training(row)
    return rows


def print_training(row: dict[str, Any]) -> None:
    """A line of the table of a setting."""
    rounds = [number for both in row["rounds"] for number in both]
    print(
        f"{row['graph']:10}{row['mode']:12}{f'{min(rounds)}-{max(rounds)}':9}"
        f"{np.median(row['last']):<10.1f}{spread(row['until'], 1):18}"
        f"{spread(row['until_worst'], 1):18}{spread(row['sooner'], 2):18}"
        f"{spread(row['accuracy'], 2):21}"
        f"{np.median(row['accuracy_worst']):6.2f}"
        f"{np.median(row['accuracy_of_mean']):7.2f}  {row['is_bsp']}",
        flush=True,
    )


def is_equal(found: list[Curve], exact: list[Curve] | None) -> str:
    """Whether all parameters of all workers and seeds are the same, bit for bit."""
    if exact is None:
        return "-"
    ours, theirs = (jax.tree.leaves([one.params for one in x]) for x in (found, exact))
    return "yes" if all(map(np.array_equal, ours, theirs)) else "no"


def plot(path: Path, mixing: Rows, rounds: Rows, curves: dict[str, Curves]) -> None:
    """Draws disagreement over rounds, times of rounds, and losses over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    width = 2 + len(curves)
    figure, axes = plt.subplots(
        1, width, figsize=(5 * width, 4.5), layout="constrained"
    )
    workers = max(row["workers"] for row in mixing if row["decay"])
    for row in (row for row in mixing if row["workers"] == workers):
        axes[0].plot(row["decay"], ".-", label=row["graph"])
    axes[0].set(xlabel="round", ylabel="disagreement", xscale="symlog", yscale="log")
    axes[0].set(title=f"{workers} workers", ylim=(REDUCED / 3, 1.5))
    late_rows = [row for row in rounds if row["delay"] == DELAYS[1].name]
    for place, row in enumerate(late_rows):
        last, sleeps = (
            np.array([r[k] for r in row["runs"]]) for k in ("last", "sleeps")
        )
        color = f"C{MODES.index(row['mode'])}"
        axes[1].barh(place, np.median(last), color=color)
        axes[1].plot(last, [place] * len(last), ".k")
        axes[1].plot(np.median(sleeps), place, "|w", ms=16)
    names = [f"{row['graph']} {row['mode']}" for row in late_rows]
    axes[1].set_yticks(range(len(names)), names)
    axes[1].set(xlabel="ms a round; white: sleeps alone", title=DELAYS[1].name)
    axes[1].invert_yaxis()
    for axis, (name, by_mode) in zip(axes[2:], curves.items(), strict=True):
        for i, ((graph, mode), found) in enumerate(by_mode.items()):
            for j, one in enumerate(found):
                label = None if j else f"{graph} {mode}"
                axis.plot(one.seconds, one.loss, color=f"C{i}", lw=1, label=label)
        axis.set(xlabel="seconds", ylabel="test loss", title=name)
        lowest = min(one.loss.min() for found in by_mode.values() for one in found)
        axis.set_ylim(0.95 * lowest, 3 * lowest)
    for axis in (axes[0], *axes[2:]):
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=130)


def main() -> None:
    options = read_options(
        "asap", __doc__, seeds="of delays and trainings", quick="less, on digits"
    )
    # Threads for the collectives of sixteen devices to wait on.
    os.environ.setdefault("NPROC", "32")
    jax.config.update("jax_num_cpu_devices", 16)
    scale = QUICK if options.quick else FULL._replace(seeds=options.seeds)
    with timed():
        mixing = study_consensus(scale.meshes, 64)
        rounds = study_rounds(scale)
        folder = options.data / "mnist"
        split = load_digits() if options.quick else load_mnist(folder)
        training, curves = study_training(split, scale)
    if options.out:
        # JSON has no infinity: null is what was never reached.
        for row in training:
            for name in ("until", "until_worst", "sooner"):
                row[name] = [x if math.isfinite(x) else None for x in row[name]]
        found = {"consensus": mixing, "rounds": rounds, "training": training}
        (options.out / "asap.json").write_text(json.dumps(found, indent=1) + "\n")
        plot(options.out / "asap.png", mixing, rounds, curves)


if __name__ == "__main__":
    main()

"""TracIn and self-influence of three nets beside captum, and beside materialising.

    OMP_NUM_THREADS=1 NPROC=1 taskset -c 0 python -m benchmarks influence [--quick]

Scores of 10,000 training examples on 100 test examples at 5 checkpoints, jitted,
float32, of an MLP 784-256-128-10 (235,146 weights), a CNN of two 3x3 convolutions with
16 and 32 channels, each before a 2x2 max pool, and a dense layer (20,490 weights), and
the zoo's transformer. Images and weights are random: the time does not depend on them.
Peers, in the same process and in turns:

- captum 0.9.0 with torch for CPUs where it is on PYTHONPATH: `TracInCP` (all layers)
  and `TracInCPFast` (the last layer's weight alone, whatever ours covers);
- by hand: what one writes in JAX, `vmap(grad)` in chunks of 100 and a matrix product.

A slow peer gets a part of the training examples, and its time is multiplied by how many
times as many the whole has, test examples included in both counts. Where a peer
computes the same scores, their greatest difference is printed, as a fraction of the
greatest score: rounding, and a rectifier whose input is 0 to rounding may fall on one
side here and on the other there.

Seconds are medians of processor time, so pin the process to one core as above. The
floor is arithmetic: the layers' products forward, backward to their outputs, and the
cheaper of two ways to multiply gradients, at the speed of the matrix product in the
first row. `mib` is what a call adds to the resident memory at its peak.

Last result, one core of an Intel Xeon at 150 GFLOP/s beside other jobs, jax 0.10.2,
torch 2.13; seconds for 10,000 x 100 x 5, floor, ours, captum's TracInCP, by hand:

    tracin, MLP                     0.29    0.38    61.3    44.2
    self_influence, MLP             0.18    0.25    42.7    18.0
    aggregate, MLP                  0.34    0.39    43.9    43.0
    tracin, CNN                     2.38    6.31    23.2   127
    self_influence, CNN             1.95    5.49    20.9   126
    aggregate, CNN                  1.97    4.69    20.4   128
    tracin, transformer             0.94    2.27    4.19    2.50
    self_influence, transformer     0.23    1.30    3.37    1.67
    aggregate, transformer          0.27    0.94    3.28    2.48

TracInCPFast takes 0.41, 11.6 and 1.06 s for the last layer of the three, ours for the
same 0.22, 3.1 and 0.41 s. All layers cost no more than its one on the MLP and the CNN,
and twice as much on the transformer, whose floor alone is 0.9 of it. The scores differ
by less than 1e-6 of the greatest. A call of ours adds up to 45 MiB (tracin, CNN),
captum's 822 and 190 on the MLP and the CNN.
"""

import ctypes
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmethods.influence import aggregate, self_influence, tracin

from .harness import Timing, matmul_row, race, ratios
from .peers import captum
from .zoo import NETS

NUM_CHECKPOINTS, NUM_TEST, CHUNK, ROUNDS = 5, 100, 100, 5
Layers = tuple[tuple[int, int, int], ...]


class Subject(NamedTuple):
    """A net to explain.

    Attributes:
        apply: `apply(params, image)`, the logits.
        shapes: Of its parameters; weights `w0` or kernels `k0`, biases `b0`, and so on.
        layers: For each layer its places, inputs a place and outputs a place.
        part: How many training examples the slow peers get.
    """

    apply: Callable[[Any, jax.Array], jax.Array]
    shapes: Mapping[str, tuple[int, ...]]
    layers: Layers
    part: int

    def loss(self, params: Any, example: Any) -> jax.Array:
        """Cross-entropy of one (image, label)."""
        logits = self.apply(params, example[0])
        return jax.nn.logsumexp(logits) - logits[example[1]]

    def draw(self) -> dict[str, jax.Array]:
        """Random parameters at each checkpoint, stacked."""
        keys = jax.random.split(jax.random.key(0), len(self.shapes))
        return {
            name: jax.random.normal(key, (NUM_CHECKPOINTS, *shape))
            / np.sqrt(max(1, np.prod(shape[:-1])))
            for key, (name, shape) in zip(keys, self.shapes.items(), strict=True)
        }


def mlp(p, x):
    h = jax.nn.relu(x.reshape(-1) @ p["w0"] + p["b0"])
    return jax.nn.relu(h @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]


def cnn(p, x):
    h = x[None]
    for kernel, bias in ((p["k0"], p["b0"]), (p["k1"], p["b1"])):
        numbers = ("NHWC", "HWIO", "NHWC")
        h = lax.conv_general_dilated(
            h, kernel, (1, 1), "SAME", dimension_numbers=numbers
        )
        h = jax.nn.relu(h + bias)
        window = (1, 2, 2, 1)
        h = lax.reduce_window(h, -jnp.inf, lax.max, window, window, "VALID")
    return h.reshape(-1) @ p["w2"] + p["b2"]


def subjects() -> dict[str, Subject]:
    """The nets."""
    dense = {"w0": (784, 256), "b0": (256,), "w1": (256, 128), "b1": (128,)}
    dense |= {"w2": (128, 10), "b2": (10,)}
    kernels = {"k0": (3, 3, 1, 16), "b0": (16,), "k1": (3, 3, 16, 32), "b1": (32,)}
    kernels |= {"w2": (7 * 7 * 32, 10), "b2": (10,)}
    encoder = NETS["transformer"]()
    shapes = {name: value.shape for name, value in encoder.params.items()}
    products = [shapes[f"w{i}"] for i in range(6)]
    places = (14, 14, 14, 14, 14, 1)
    return {
        "MLP": Subject(
            mlp, dense, ((1, 784, 256), (1, 256, 128), (1, 128, 10)), part=500
        ),
        "CNN": Subject(
            cnn, kernels, ((784, 9, 16), (196, 144, 32), (1, 7 * 7 * 32, 10)), part=200
        ),
        "transformer": Subject(
            encoder.apply,
            shapes,
            tuple((t, *pair) for t, pair in zip(places, products, strict=True)),
            part=1000,
        ),
    }


def images(n: int, seed: int):
    """Random images and labels."""
    a, b = jax.random.split(jax.random.key(seed))
    x = jax.random.uniform(a, (n, 28, 28, 1))
    return x, jax.random.randint(b, (n,), 0, 10)


def in_chunks(fn: Callable, some):
    """Applies fn to 100 examples at a time."""
    count = len(some[1]) // CHUNK
    chunks = jax.tree.map(lambda x: x.reshape(count, CHUNK, *x.shape[1:]), some)
    return lax.map(fn, chunks)


def flat_gradients(loss, params, some):
    """Per-example gradients (n, all parameters)."""
    leaves = jax.tree.leaves(jax.vmap(jax.grad(loss), (None, 0))(params, some))
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], 1)


def tracin_by_hand(loss, params, rates, train, test):
    """`tracin` from materialised gradients."""

    def add(total, checkpoint):
        p, rate = checkpoint
        targets = flat_gradients(loss, p, test)
        columns = in_chunks(
            lambda some: flat_gradients(loss, p, some) @ targets.T, train
        )
        return total + rate * columns.reshape(-1, len(targets)).T, None

    zero = jnp.zeros((len(test[1]), len(train[1])))
    return lax.scan(add, zero, (params, rates))[0]


def self_by_hand(loss, params, rates, train):
    """`self_influence` from materialised gradients."""

    def add(total, checkpoint):
        p, rate = checkpoint
        norms = in_chunks(lambda e: (flat_gradients(loss, p, e) ** 2).sum(1), train)
        return total + rate * norms.reshape(-1), None

    return lax.scan(add, jnp.zeros(len(train[1])), (params, rates))[0]


def total_by_hand(loss, params, rates, train, test):
    """`aggregate` from materialised gradients."""
    return tracin_by_hand(loss, params, rates, train, test).sum(0)


TASKS: dict[str, tuple[Callable, Callable]] = {
    "tracin": (tracin, tracin_by_hand),
    "self_influence": (self_influence, self_by_hand),
    "aggregate": (aggregate, total_by_hand),
}


def arithmetic(task: str, layers: Layers, n: int, m: int) -> float:
    """Floating-point operations of the layers' products, at all checkpoints."""
    total = 0
    for i, (places, p, q) in enumerate(layers):
        product = 2 * places * p * q
        passes = product if i == 0 else 2 * product  # forward; backward to its input
        pair = 2 * places**2 * (p + q)
        if task == "tracin":
            whole = (n + m) * product + n * m * 2 * p * q
            total += (n + m) * passes + min(n * m * pair, whole)
        elif task == "self_influence":
            total += n * (passes + min(pair, product + 2 * p * q))
        else:  # One more product forward: of the input and the direction.
            total += (n + m) * (passes + product)
    return NUM_CHECKPOINTS * total


def peak_memory(fn: Callable[[], Any]) -> tuple[np.ndarray, float | None]:
    """Calls; returns the result and the MiB added at the peak, None off Linux."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return np.asarray(fn()), None

    def held(name: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(re.findall(rf"{name}:\s+(\d+)", status)[0]) / 1024

    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")
    before = held("VmRSS")
    result = jax.block_until_ready(fn())
    return np.asarray(result), held("VmHWM") - before


class Peer(NamedTuple):
    """What ours is measured against.

    Attributes:
        label: For the title of the row.
        call: Returns the scores of the first training examples, or of all.
        scale: How many times longer it would take for all.
        beside: Which of our calls it is compared with.
        same_scores: Whether that call has the same scores.
    """

    label: str
    call: Callable[[], Any]
    scale: float
    beside: str = "ours"
    same_scores: bool = True


def peers(
    task: str, name: str, subject: Subject, n: int, args: tuple[Any, ...]
) -> list[Peer]:
    """The peers of one task; `args` are those of ours."""
    params, rates, train, *test = args
    part = min(subject.part, n)
    some = jax.tree.map(lambda x: x[:part], train)
    fewer = jax.jit(partial(TASKS[task][1], subject.loss))
    num_test = NUM_TEST if test else 0
    # A slow peer takes the gradients of the test examples too.
    scale = (n + num_test) / (part + num_test)
    found = [Peer("by hand", partial(fewer, params, rates, some, *test), scale)]
    if captum.missing:
        return found
    asked = test[0] if test else images(NUM_TEST, 1)
    whole = captum.all_layers(name, params, rates, some, asked)
    found = [Peer("captum", whole[task], scale), *found]
    if task == "tracin":
        part = min(2000, n)
        some = jax.tree.map(lambda x: x[:part], train)
        fast = captum.last_layer(name, params, rates, some, asked)[task]
        # It takes the gradients of the test examples for each batch again.
        found += [
            Peer("TracInCPFast", fast, n / part, same_scores=False),
            Peer("last layer, TracInCPFast", fast, n / part, beside="last layer"),
        ]
    return found


def measure(task: str, name: str, subject: Subject, n: int, speed: float) -> list[dict]:
    """A row for each peer of one task on one net."""
    transform = TASKS[task][0]
    sets = [images(n, 0), images(NUM_TEST, 1)][: 1 if task == "self_influence" else 2]
    args = (subject.draw(), jnp.full(NUM_CHECKPOINTS, 0.1), *sets)
    ours = {"ours": partial(jax.jit(transform(subject.loss)), *args)}
    others = peers(task, name, subject, n, args)
    if any(peer.beside == "last layer" for peer in others):
        last = [(max(key for key in subject.shapes if key[0] == "w"),)]
        alone = jax.jit(transform(subject.loss, where=last))
        ours["last layer"] = partial(alone, *args)
    calls = ours | {peer.label: peer.call for peer in others}
    taken = race(calls, rounds=ROUNDS)
    found = {label: peak_memory(call) for label, call in calls.items()}
    floor_s = arithmetic(task, subject.layers, n, NUM_TEST) / speed
    rows = []
    for peer in others:
        title = f"{task}, {name}, {n:,}, {peer.label}"
        row = {"name": title, "floor_s": floor_s if peer.beside == "ours" else None}
        row |= timings(taken[peer.beside], taken[peer.label], peer.scale)
        scores, row["ours_mib"] = found[peer.beside]
        theirs, row["peer_mib"] = found[peer.label]
        if peer.same_scores:
            row["difference"] = difference(scores, theirs)
        rows.append(row)
        note(row)
    return rows


def timings(ours: Timing, peer: Timing, scale: float) -> dict[str, float]:
    """Processor seconds of two contestants, the peer's scaled up."""
    return {
        "ours_s": ours.cpu_s,
        "peer_s": scale * peer.cpu_s,
        "ratio": float(np.median(ratios(ours, peer, cpu=True, scale=scale))),
        "first_s": ours.first_s,
    }


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The greatest difference of the scores that both have, over the greatest score."""
    ours = ours[..., : theirs.shape[-1]]
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def note(row: Mapping[str, Any]) -> None:
    """Prints what the table has no column for."""
    ours, peer = (row[key] for key in ("ours_mib", "peer_mib"))
    memory = "" if ours is None else f"{ours:.0f} MiB, peer {peer:.0f} MiB; "
    same = row.get("difference")
    scores = "" if same is None else f"scores differ by {same:.1e}; "
    times = f"{1 / row['ratio']:.3g} times faster"
    print(f"{row['name']}: {memory}{scores}{times}", flush=True)


def run(quick: bool) -> list[dict]:
    """The rows of this area."""
    if captum.missing:
        print(captum.missing)
    rows = [matmul_row()]
    speed = rows[0]["gflops"]
    print(f"matrix products at {speed:.0f} GFLOP/s")
    for name, subject in subjects().items():
        n = 1000 if quick else 10_000
        for task in TASKS:
            rows += measure(task, name, subject, n, 1e9 * speed)
    return rows

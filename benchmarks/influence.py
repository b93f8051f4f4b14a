"""TracIn and self-influence beside materialised per-example gradients.

    python -m benchmarks influence [--quick]

All contestants are exact, jitted, float32, on 5 checkpoints. The MLP is 784-256-128-10
(235,146 weights); the CNN two 3x3 convolutions of 16 and 32 channels, each before a
2x2 max pool, and a dense layer (20,490 weights, images 28 x 28); the linen CNN the same
convolutions, strided, as flax modules, with two dense layers. Data and weights are
random: the time does not depend on their values. The peer is what one writes by hand,
`vmap(grad)` in chunks of 100 and a matrix product; it is timed on a tenth (MLP) or a
third (linen CNN) of the training examples and multiplied. The floor is one forward pass
of every example through every checkpoint, which any method needs. `ours_s`, `peer_s`
and `floor_s` are CPU seconds (medians), `ratio` is `ours_s / peer_s`, `first_s` the
wall time of the first call, tracing and compiling included.

Last result (2 cores of an Intel Xeon, jax 0.10.2, others at work on them), 100 test
examples:

                                      ours_s    peer_s     ratio   floor_s   first_s
    tracin, MLP, 10,000                   0.564    49.529     0.011     0.193     1.219
    self_influence, MLP, 10,000           0.391    18.281     0.021     0.192     1.153
    aggregate, MLP, 10,000                0.500    51.071     0.010     0.198     1.278
    tracin, CNN, 500                      0.678     7.567     0.090     0.208     5.172
    self_influence, CNN, 500              0.531     6.295     0.084     0.173     2.851
    aggregate, CNN, 500                   0.483     7.699     0.063     0.209     7.708
    tracin, linen CNN, 1,500              0.583     6.909     0.084     0.194     3.455
    self_influence, linen CNN, 1,500      0.443     3.836     0.116     0.166     2.955
    aggregate, linen CNN, 1,500           0.386     6.839     0.056     0.184     1.847
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxmethods.influence import aggregate, self_influence, tracin

from .harness import race

NUM_CHECKPOINTS, NUM_TEST, CHUNK, ROUNDS = 5, 100, 100, 5
MLP = {"w0": (784, 256), "b0": (256,), "w1": (256, 128), "b1": (128,)}
MLP |= {"w2": (128, 10), "b2": (10,)}
CNN = {"k0": (3, 3, 1, 16), "b0": (16,), "k1": (3, 3, 16, 32), "b1": (32,)}
CNN |= {"w": (7 * 7 * 32, 10), "b": (10,)}


def cross_entropy(logits, label):
    return jax.nn.logsumexp(logits) - logits[label]


def mlp_loss(p, example):
    x, y = example
    h = jax.nn.relu(x.reshape(-1) @ p["w0"] + p["b0"])
    h = jax.nn.relu(h @ p["w1"] + p["b1"])
    return cross_entropy(h @ p["w2"] + p["b2"], y)


def cnn_loss(p, example):
    x, y = example
    h = x[None]
    for kernel, bias in ((p["k0"], p["b0"]), (p["k1"], p["b1"])):
        numbers = ("NHWC", "HWIO", "NHWC")
        h = lax.conv_general_dilated(
            h, kernel, (1, 1), "SAME", dimension_numbers=numbers
        )
        h = jax.nn.relu(h + bias)
        window = (1, 2, 2, 1)
        h = lax.reduce_window(h, -jnp.inf, lax.max, window, window, "VALID")
    return cross_entropy(h.reshape(-1) @ p["w"] + p["b"], y)


class Strided(nn.Module):
    """Two strided convolutions and two dense layers."""

    @nn.compact
    def __call__(self, x):
        """Logits of one image."""
        x = nn.relu(nn.Conv(16, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x.reshape(-1))))


def linen_loss(p, example):
    return cross_entropy(Strided().apply(p, example[0]), example[1])


def draw(shapes: dict) -> dict:
    """Random parameters of each checkpoint, stacked."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: jax.random.normal(key, (NUM_CHECKPOINTS, *shape)) * 0.05
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def images(n: int, seed: int):
    """Random images and labels."""
    a, b = jax.random.split(jax.random.key(seed))
    x = jax.random.uniform(a, (n, 28, 28, 1))
    return x, jax.random.randint(b, (n,), 0, 10)


def forward(loss, params, rates, *sets):
    """Every loss of every checkpoint: the floor."""
    return lax.map(
        lambda p: [jax.vmap(loss, (None, 0))(p, some) for some in sets], params
    )


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


def compare(name, loss, params, ours, by_hand, train, *test, share=1) -> dict:
    """One row; the peer sees one `share`-th of the training examples."""
    rates = jnp.full(NUM_CHECKPOINTS, 0.1)
    part = jax.tree.map(lambda x: x[: len(x) // share], train)
    args, fewer = (params, rates, train, *test), (params, rates, part, *test)
    contestants = {
        "ours": partial(jax.jit(ours(loss)), *args),
        "peer": partial(jax.jit(partial(by_hand, loss)), *fewer),
        "floor": partial(jax.jit(partial(forward, loss)), *args),
    }
    taken = race(contestants, rounds=ROUNDS)
    peer_s = share * taken["peer"].cpu_s
    return {
        "name": name,
        "ours_s": taken["ours"].cpu_s,
        "peer_s": peer_s,
        "ratio": taken["ours"].cpu_s / peer_s,
        "floor_s": taken["floor"].cpu_s,
        "first_s": taken["ours"].first_s,
    }


def total_by_hand(loss, params, rates, train, test):
    """`aggregate` from materialised gradients."""
    return tracin_by_hand(loss, params, rates, train, test).sum(0)


def run(quick: bool) -> list[dict]:
    """The rows `{name, ours_s, peer_s, ratio, floor_s, first_s}` of this area."""
    many, few = (1000, 200) if quick else (10_000, 500)
    share = 1 if quick else 10
    test = images(NUM_TEST, 1)
    keys = jax.random.split(jax.random.key(2), NUM_CHECKPOINTS)
    linen = jax.jit(jax.vmap(Strided().init, (0, None)))(keys, test[0][0])
    nets = (
        ("MLP", mlp_loss, draw(MLP), many, share),
        ("CNN", cnn_loss, draw(CNN), few, 1),
        ("linen CNN", linen_loss, linen, 3 * few, 3),
    )
    rows = []
    for name, loss, params, n, share in nets:
        train = images(n, 0)
        for ours, by_hand, sets in (
            (tracin, tracin_by_hand, (train, test)),
            (self_influence, self_by_hand, (train,)),
            (aggregate, total_by_hand, (train, test)),
        ):
            title = f"{ours.__name__}, {name}, {n:,}"
            row = compare(title, loss, params, ours, by_hand, *sets, share=share)
            rows.append(row)
    return rows

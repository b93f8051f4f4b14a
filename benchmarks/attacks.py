"""Gradient attacks beside a host loop over the jitted step.

    python -m benchmarks.attacks [--quick]

Task: PGD on 512 images (28, 28, 1), 40 steps, float32, a net of two strided
convolutions (16 of 5x5, 32 of 3x3) and a dense layer. Images and weights are drawn at
random: the time does not depend on their values. The peer is what one writes by hand: a
Python loop that calls the jitted step. The floor is that loop with the gradient alone.
`compile_s` is the first call less a warm one. An eager call traces the loss each time,
some 20 ms here whatever the number of images. "plain fori_loop" is the same step in
`lax.fori_loop` without the rewrite of convolutions: why the rewrite is there.

Last result (2 shared cores of an Intel Xeon, jax 0.10.2; seconds, ratio to the peer):

    pgd linf, eager                           1.26   0.999   compile 0.49
    pgd linf, eager, new closure each call    1.21   1.013           0.00
    pgd linf, jitted                          1.19   0.971           0.36
    pgd linf, plain fori_loop                 4.61   3.835           0.48
    pgd l2, eager                             1.31   1.034           0.82
    pgd l2, eager, new closure each call      1.28   1.064           0.01
    pgd l2, jitted                            1.31   1.053           0.80
    pgd l2, plain fori_loop                   4.84   3.676           0.33
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxmethods.robust import pgd

Row = dict[str, str | float]
EPS, STEP_SIZE = 0.1, 0.01


def network(params, x):
    """Logits (B, 10) of images (B, 28, 28, 1)."""
    for kernel, bias in params["convolutions"]:
        numbers = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=numbers
        )
        x = jax.nn.relu(x + bias.reshape(1, 1, 1, -1))
    return x.reshape(len(x), -1) @ params["dense"]


def problem(batch: int):
    """Random weights, images and labels."""
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = ((5, 5, 1, 16), (3, 3, 16, 32))
    kernels = [
        0.2 * jax.random.normal(k, s) for k, s in zip(keys[:2], shapes, strict=True)
    ]
    params = {
        "convolutions": [(kernel, jnp.zeros(kernel.shape[-1])) for kernel in kernels],
        "dense": 0.03 * jax.random.normal(keys[2], (7 * 7 * 32, 10)),
    }
    x = jax.random.uniform(keys[3], (batch, 28, 28, 1))
    return params, x, jax.random.randint(keys[4], (batch,), 0, 10)


def cross_entropy(params, x, y):
    """Losses (B,)."""
    log_p = jax.nn.log_softmax(network(params, x))
    return -jnp.take_along_axis(log_p, y[:, None], axis=1)[:, 0]


def hand_written(params, x, y, steps: int, norm: str) -> dict[str, Callable]:
    """The attack without this library: host loop, its gradient alone, a plain loop."""
    gradient = jax.grad(lambda adv: cross_entropy(params, adv, y).sum())

    def length(v):
        return jnp.sqrt((v**2).sum((1, 2, 3), keepdims=True))

    def step(adv):
        g = gradient(adv)
        if norm == "linf":
            move = jnp.clip(adv + STEP_SIZE * jnp.sign(g) - x, -EPS, EPS)
        else:
            move = adv + STEP_SIZE * g / jnp.maximum(length(g), 1e-12) - x
            move *= jnp.minimum(1, EPS / jnp.maximum(length(move), 1e-12))
        return jnp.clip(x + move, 0, 1)

    def repeat(fn, adv):
        for _ in range(steps):
            adv = fn(adv)
        return adv

    return {
        "peer": functools.partial(repeat, jax.jit(step), x),
        "floor": functools.partial(repeat, jax.jit(gradient), x),
        "plain fori_loop": functools.partial(
            jax.jit(lambda x: lax.fori_loop(0, steps, lambda _, adv: step(adv), x)), x
        ),
    }


def attacks(params, x, y, steps: int, norm: str) -> dict[str, Callable]:
    """The same attack by `pgd`, in the ways a user may call it."""
    options = dict(eps=EPS, step_size=STEP_SIZE, num_steps=steps, norm=norm)

    def loss(x):
        return cross_entropy(params, x, y)

    def fresh(x):
        return pgd(lambda x: cross_entropy(params, x, y), x, **options).x

    return {
        "eager": lambda: pgd(loss, x, **options).x,
        "eager, new closure each call": lambda: fresh(x),
        "jitted": functools.partial(jax.jit(fresh), x),
    }


def seconds(call: Callable) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def compare(name: str, ours: Callable, peer: Callable, repeats: int) -> Row:
    """Medians over interleaved pairs; the ratio is the median of the pairs' ratios."""
    first, peer_first = seconds(ours), seconds(peer)
    pairs = [(seconds(ours), seconds(peer)) for _ in range(repeats)]
    ratios = sorted(mine / theirs for mine, theirs in pairs)
    ours_s, peer_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "name": name,
        "ours_s": ours_s,
        "peer_s": peer_s,
        "ratio": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "compile_s": max(first - ours_s, 0.0),
        "peer_compile_s": max(peer_first - peer_s, 0.0),
    }


def run(quick: bool) -> list[Row]:
    """One row a way of calling; `quick` attacks 256 images, in linf only."""
    batch, steps, repeats = (256, 40, 5) if quick else (512, 40, 7)
    params, x, y = problem(batch)
    rows = []
    for norm in ("linf",) if quick else ("linf", "l2"):
        by_hand = hand_written(params, x, y, steps, norm)
        floor = by_hand.pop("floor")
        seconds(floor)
        floor_s = statistics.median(seconds(floor) for _ in range(5))
        peer = by_hand.pop("peer")
        if quick:
            by_hand.clear()
        for name, call in (attacks(params, x, y, steps, norm) | by_hand).items():
            row = compare(f"pgd {norm}, {name}", call, peer, repeats)
            rows.append(row | {"floor_s": floor_s})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="256 images, linf only")
    columns = ("ours_s", "peer_s", "floor_s", "ratio", "ratio_min", "ratio_max")
    columns += ("compile_s", "peer_compile_s")
    print(f"{'':38}", *(f"{column:>14}" for column in columns))
    for row in run(parser.parse_args().quick):
        print(f"{row['name']:38}", *(f"{row[column]:14.3f}" for column in columns))


if __name__ == "__main__":
    main()

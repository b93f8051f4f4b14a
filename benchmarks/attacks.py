"""Gradient attacks beside a host loop over the jitted step.

    python -m benchmarks attacks [--quick]

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

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxmethods.robust import pgd

from .harness import compare

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


def run(quick: bool) -> list[dict]:
    """One row a way of calling; `quick` attacks 256 images, in linf only."""
    batch, steps = (256, 40) if quick else (512, 40)
    params, x, y = problem(batch)
    rows = []
    for norm in ("linf",) if quick else ("linf", "l2"):
        by_hand = hand_written(params, x, y, steps, norm)
        others = {label: by_hand.pop(label) for label in ("peer", "floor")}
        calls = attacks(params, x, y, steps, norm)
        for name, call in (calls if quick else calls | by_hand).items():
            rows.append(compare(f"pgd {norm}, {name}", ours=call, **others))
    return rows

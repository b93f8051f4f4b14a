"""Bounds of an MLP and a small convolutional net beside bounds written by hand.

    python -m benchmarks bound [--quick]

Lower bounds of the 9 margins of a 10-class net on 28 x 28 images in an linf ball, one
compiled call for a batch of B images, float32. The nets: an MLP 784-256-256-10, and two
convolutions (16 and 32 channels, 4 x 4, stride 2) with two dense layers (100, 10). The
peer is what one writes by hand for that net alone, in plain float32 without an account
of rounding, where it is short enough to be written: intervals for both nets, CROWN-IBP
for the MLP. The floor is the forward pass of the same batch; of `train` rows, a value
and gradient in the weights, the plain loss's: what a certified training step costs.
Seconds are medians of wall time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods import bound

from .harness import compare

_EPS = 0.02
_METHODS: dict[str, Callable] = {
    "ibp": bound.ibp,
    "crown_ibp": lambda fn: bound.crown_ibp(fn, side="lower"),
    "crown": lambda fn: bound.crown(fn, side="lower"),
}


def run(quick: bool) -> list[dict[str, Any]]:
    """The rows of this area."""
    rows = []
    for name, net, params in (("mlp", mlp, mlp_params()), ("cnn", cnn, cnn_params())):
        for batch in (1, 32) if quick else (1, 32, 256):
            args = (params, *images(batch))
            floor = partial(jax.jit(jax.vmap(net, (None, 0))), *args[:2])
            for method in _METHODS:
                contestants = {"ours": partial(margin_bounds(net, method), *args)}
                if (name, method) in BY_HAND:
                    by_hand = jax.jit(jax.vmap(BY_HAND[name, method], (None, 0, 0)))
                    contestants["peer"] = partial(by_hand, *args)
                contestants["floor"] = floor
                rows.append(compare(f"{name} {method}, B = {batch}", **contestants))
        rows += training_rows(name, net, params, 32 if quick else 128)
    return rows


def training_rows(
    name: str, net: Callable, params: dict, batch: int
) -> list[dict[str, Any]]:
    xs, ys = images(batch)

    def plain(params):
        logits = jax.vmap(net, (None, 0))(params, xs)
        return jnp.mean(
            jax.nn.logsumexp(logits, axis=1)
            - jnp.take_along_axis(logits, ys[:, None], axis=1)[:, 0]
        )

    def certified(lower):
        def loss(params):
            margins = lower(params, xs, ys)
            zeros = jnp.zeros_like(margins[:, :1])
            return jnp.mean(
                jax.nn.logsumexp(jnp.concatenate([zeros, -margins], 1), axis=1)
            )

        return jax.jit(jax.value_and_grad(loss))

    floor = partial(jax.jit(jax.value_and_grad(plain)), params)
    rows = []
    for method in ("ibp", "crown_ibp"):
        ours = certified(margin_bounds(net, method))
        contestants = {"ours": partial(ours, params), "floor": floor}
        if (name, method) in BY_HAND:
            by_hand = certified(jax.vmap(BY_HAND[name, method], (None, 0, 0)))
            contestants["peer"] = partial(by_hand, params)
        rows.append(compare(f"{name} {method} train, B = {batch}", **contestants))
    return rows


def margin_bounds(net: Callable, method: str) -> Callable:
    def one(params, x, y):
        margins = bound.margins(lambda x: net(params, x), y)
        return _METHODS[method](margins)(bound.Ball(x, _EPS)).lower

    return jax.jit(jax.vmap(one, (None, 0, 0)))


def images(batch: int) -> tuple[jax.Array, jax.Array]:
    key_x, key_y = jax.random.split(jax.random.key(0))
    xs = jax.random.uniform(key_x, (batch, 28, 28, 1))
    return xs, jax.random.randint(key_y, (batch,), 0, 10)


def mlp(params: dict, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(x.reshape(-1) @ params["w0"] + params["b0"])
    x = jax.nn.relu(x @ params["w1"] + params["b1"])
    return x @ params["w2"] + params["b2"]


def cnn(params: dict, x: jax.Array) -> jax.Array:
    x = x[None]
    for name in "kl":
        x = jax.lax.conv_general_dilated(
            x,
            params[name],
            (2, 2),
            [(1, 1), (1, 1)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + params["bias_" + name])
    x = jax.nn.relu(x.reshape(-1) @ params["w0"] + params["b0"])
    return x @ params["w1"] + params["b1"]


def mlp_params() -> dict:
    return drawn({"w0": (784, 256), "w1": (256, 256), "w2": (256, 10)})


def cnn_params() -> dict:
    shapes = {
        "k": (4, 4, 1, 16),
        "l": (4, 4, 16, 32),
        "w0": (1568, 100),
        "w1": (100, 10),
    }
    return drawn(shapes)


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict:
    keys = jax.random.split(jax.random.key(1), len(shapes))
    params = {}
    for key, (name, shape) in zip(keys, shapes.items(), strict=True):
        fan_in = jnp.prod(jnp.array(shape[:-1]))
        params[name] = jax.random.normal(key, shape) * jnp.sqrt(2 / fan_in)
        bias = "b" + name[1:] if name[0] == "w" else "bias_" + name
        params[bias] = jnp.zeros((1, 1, 1, shape[-1]) if name in "kl" else shape[-1])
    return params


def dense_interval(low, high, w, b):
    center, radius = (low + high) / 2, (high - low) / 2
    middle, spread = center @ w + b, radius @ jnp.abs(w)
    return middle - spread, middle + spread


def spec_rows(w, b, y):
    """The last layer's weights and bias of the margins of class y."""
    others = jnp.where(jnp.arange(9) < y, jnp.arange(9), jnp.arange(9) + 1)
    return w[:, y][:, None] - w[:, others], b[y] - b[others]


def mlp_ibp_by_hand(p, x, y):
    low, high = x.reshape(-1) - _EPS, x.reshape(-1) + _EPS
    for k in "01":
        low, high = map(jax.nn.relu, dense_interval(low, high, p["w" + k], p["b" + k]))
    return dense_interval(low, high, *spec_rows(p["w2"], p["b2"], y))[0]


def mlp_crown_ibp_by_hand(p, x, y):
    x = x.reshape(-1)
    before, low, high = [], x - _EPS, x + _EPS
    for k in "01":
        before.append(dense_interval(low, high, p["w" + k], p["b" + k]))
        low, high = map(jax.nn.relu, before[-1])
    rows, bias = spec_rows(p["w2"], p["b2"], y)
    rows = rows.T
    for k in "10":
        low, high = before[int(k)]
        chord = jnp.maximum(high, 0) / jnp.maximum(high - jnp.minimum(low, 0), 1e-12)
        slope = jnp.where(low >= 0, 1.0, jnp.where(high <= 0, 0.0, chord))
        foot = jnp.where(high > -low, 1.0, 0.0)
        foot = jnp.where(low >= 0, 1.0, jnp.where(high <= 0, 0.0, foot))
        up, down = jnp.maximum(rows, 0), jnp.minimum(rows, 0)
        crossing = (low < 0) & (high > 0)
        bias = bias + down @ jnp.where(crossing, -slope * low, 0.0)
        rows = up * foot + down * slope
        bias = bias + rows @ p["b" + k]
        rows = rows @ p["w" + k].T
    return rows @ x - jnp.abs(rows).sum(1) * _EPS + bias


def cnn_ibp_by_hand(p, x, y):
    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        padding = [(1, 1), (1, 1)]
        return jax.lax.conv_general_dilated(
            x[None], kernel, (2, 2), padding, dimension_numbers=numbers
        )[0]

    low, high = x - _EPS, x + _EPS
    for k in "kl":
        middle = convolve((low + high) / 2, p[k]) + p["bias_" + k][0]
        spread = convolve((high - low) / 2, jnp.abs(p[k]))
        low, high = jax.nn.relu(middle - spread), jax.nn.relu(middle + spread)
    low, high = low.reshape(-1), high.reshape(-1)
    low, high = map(jax.nn.relu, dense_interval(low, high, p["w0"], p["b0"]))
    return dense_interval(low, high, *spec_rows(p["w1"], p["b1"], y))[0]


BY_HAND: dict[tuple[str, str], Callable] = {
    ("mlp", "ibp"): mlp_ibp_by_hand,
    ("mlp", "crown_ibp"): mlp_crown_ibp_by_hand,
    ("cnn", "ibp"): cnn_ibp_by_hand,
}

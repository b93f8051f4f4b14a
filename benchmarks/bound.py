"""Bounds of an MLP and a small convolutional net beside the plain forward pass.

    python -m benchmarks.bound [--quick]

Lower bounds of the 9 margins of a 10-class net on 28 x 28 images in an linf ball, one
compiled call for a batch of B images, float32. The nets: an MLP 784-256-256-10, and two
convolutions (16 and 32 channels, 4 x 4, stride 2) with two dense layers (100, 10). The
floor is the forward pass of the same batch. `train` rows are a value and gradient in
the weights, with the plain loss's as the floor: what a certified training step costs.
No peer is run; `peer_s` and `ratio` are None. Seconds are medians of wall time.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmethods import bound

_ROUNDS = 7
_EPS = 0.02
_METHODS: dict[str, Callable] = {
    "ibp": bound.ibp,
    "crown_ibp": lambda fn: bound.crown_ibp(fn, side="lower"),
    "crown": lambda fn: bound.crown(fn, side="lower"),
}


def run(quick: bool) -> list[dict]:
    """The rows `{name, ours_s, peer_s, ratio, floor_s}` of this area."""
    rows = []
    for name, net, params in (("mlp", mlp, mlp_params()), ("cnn", cnn, cnn_params())):
        for batch in (1, 32) if quick else (1, 32, 256):
            xs, ys = images(batch)
            floor = seconds(jax.jit(jax.vmap(net, (None, 0))), params, xs)
            for method in _METHODS:
                ours = seconds(margin_bounds(net, method), params, xs, ys)
                rows.append(row(f"{name} {method}, B = {batch}", ours, floor))
        rows += training_rows(name, net, params, 32 if quick else 128)
    return rows


def training_rows(name: str, net: Callable, params: dict, batch: int) -> list[dict]:
    xs, ys = images(batch)

    def plain(params, xs, ys):
        logits = jax.vmap(net, (None, 0))(params, xs)
        return jnp.mean(
            jax.nn.logsumexp(logits, axis=1)
            - jnp.take_along_axis(logits, ys[:, None], axis=1)[:, 0]
        )

    floor = seconds(jax.jit(jax.value_and_grad(plain)), params, xs, ys)
    rows = []
    for method in ("ibp", "crown_ibp"):
        lower = margin_bounds(net, method)

        def certified(params, xs, ys, lower=lower):
            margins = lower(params, xs, ys)
            zeros = jnp.zeros_like(margins[:, :1])
            return jnp.mean(
                jax.nn.logsumexp(jnp.concatenate([zeros, -margins], 1), axis=1)
            )

        ours = seconds(jax.jit(jax.value_and_grad(certified)), params, xs, ys)
        rows.append(row(f"{name} {method} train, B = {batch}", ours, floor))
    return rows


def margin_bounds(net: Callable, method: str) -> Callable:
    def one(params, x, y):
        margins = bound.margins(lambda x: net(params, x), y)
        return _METHODS[method](margins)(bound.Ball(x, _EPS)).lower

    return jax.jit(jax.vmap(one, (None, 0, 0)))


def row(name: str, ours: float, floor: float) -> dict:
    return dict(name=name, ours_s=ours, peer_s=None, ratio=None, floor_s=floor)


def seconds(fn: Callable, *args) -> float:
    jax.block_until_ready(fn(*args))
    times = []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        jax.block_until_ready(fn(*args))
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


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


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmarks of jaxmethods.bound.")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    print(f"{'':28} {'ours ms':>9} {'floor ms':>9} {'ours / floor':>13}")
    for r in run(parser.parse_args().quick):
        ours, floor = 1e3 * r["ours_s"], 1e3 * r["floor_s"]
        print(f"{r['name']:28} {ours:9.2f} {floor:9.2f} {ours / floor:13.1f}")


if __name__ == "__main__":
    main()

"""What one writes by hand for one net alone, without an account of rounding.

`BY_HAND[net, method](params, image, label, eps)` are lower bounds of the margins.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def _dense_interval(low, high, w, b):
    center, radius = (low + high) / 2, (high - low) / 2
    middle, spread = center @ w + b, radius @ jnp.abs(w)
    return middle - spread, middle + spread


def _margin_layer(w, b, y):
    """The last layer's weights and bias of the margins of class y."""
    others = jnp.where(jnp.arange(9) < y, jnp.arange(9), jnp.arange(9) + 1)
    return w[:, y][:, None] - w[:, others], b[y] - b[others]


def mlp_ibp(p, x, y, eps):
    low, high = x.reshape(-1) - eps, x.reshape(-1) + eps
    for k in "01":
        low, high = map(jax.nn.relu, _dense_interval(low, high, p["w" + k], p["b" + k]))
    return _dense_interval(low, high, *_margin_layer(p["w2"], p["b2"], y))[0]


def mlp_crown_ibp(p, x, y, eps):
    x = x.reshape(-1)
    before, low, high = [], x - eps, x + eps
    for k in "01":
        before.append(_dense_interval(low, high, p["w" + k], p["b" + k]))
        low, high = map(jax.nn.relu, before[-1])
    rows, bias = _margin_layer(p["w2"], p["b2"], y)
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
    return rows @ x - jnp.abs(rows).sum(1) * eps + bias


def cnn_ibp(p, x, y, eps):
    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        padding = [(1, 1), (1, 1)]
        return jax.lax.conv_general_dilated(
            x[None], kernel, (2, 2), padding, dimension_numbers=numbers
        )[0]

    low, high = x - eps, x + eps
    for k in "kl":
        middle = convolve((low + high) / 2, p[k]) + p["bias_" + k][0]
        spread = convolve((high - low) / 2, jnp.abs(p[k]))
        low, high = jax.nn.relu(middle - spread), jax.nn.relu(middle + spread)
    low, high = low.reshape(-1), high.reshape(-1)
    low, high = map(jax.nn.relu, _dense_interval(low, high, p["w0"], p["b0"]))
    return _dense_interval(low, high, *_margin_layer(p["w1"], p["b1"], y))[0]


BY_HAND: dict[tuple[str, str], Callable] = {
    ("mlp", "ibp"): mlp_ibp,
    ("mlp", "crown_ibp"): mlp_crown_ibp,
    ("cnn", "ibp"): cnn_ibp,
}

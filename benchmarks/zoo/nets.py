"""Six small classifiers of 28 x 28 images, with random weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_NUM_TOKENS, _WIDTH, _NUM_HEADS = 14, 32, 2
_NUM_STEPS, _HIDDEN = 7, 32


class Net(NamedTuple):
    """A classifier: logits (10,) of an image (28, 28, 1), and what goes with it.

    Attributes:
        apply: `apply(params, image)`.
        params: A flat dict of arrays.
        eps: The radius that its bounds are taken over.
    """

    apply: Callable[[dict, jax.Array], jax.Array]
    params: dict[str, jax.Array]
    eps: float


def images(batch: int) -> tuple[jax.Array, jax.Array]:
    """Random images (batch, 28, 28, 1) and labels."""
    key_x, key_y = jax.random.split(jax.random.key(0))
    xs = jax.random.uniform(key_x, (batch, 28, 28, 1))
    return xs, jax.random.randint(key_y, (batch,), 0, 10)


def settled(net: Net) -> Net:
    """A net most of whose units keep their sign over its ball, as trained ones do."""
    key, params = jax.random.key(2), dict(net.params)
    for i, (name, value) in enumerate(sorted(net.params.items())):
        if name[0] == "b":
            noise = jax.random.normal(jax.random.fold_in(key, i), value.shape)
            params[name] = 2 * noise
    return net._replace(params=params, eps=net.eps / 4)


def mlp(params: dict, x: jax.Array) -> jax.Array:
    """784-256-256-10."""
    x = jax.nn.relu(x.reshape(-1) @ params["w0"] + params["b0"])
    x = jax.nn.relu(x @ params["w1"] + params["b1"])
    return x @ params["w2"] + params["b2"]


def cnn(params: dict, x: jax.Array) -> jax.Array:
    """Convolutions 16 and 32, 4 x 4, stride 2; dense 100 and 10."""
    x = x[None]
    for name in "kl":
        x = jax.nn.relu(_convolved(x, params, name, stride=2))
    x = jax.nn.relu(x.reshape(-1) @ params["w0"] + params["b0"])
    return x @ params["w1"] + params["b1"]


def pooled(params: dict, x: jax.Array) -> jax.Array:
    """Convolutions 8 and 16, 3 x 3, each before a 2 x 2 max pool; dense 10."""
    x = x[None]
    for name in "kl":
        x = jax.nn.relu(_convolved(x, params, name, stride=1))
        window = (1, 2, 2, 1)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
    return x.reshape(-1) @ params["w0"] + params["b0"]


def residual(params: dict, x: jax.Array) -> jax.Array:
    """A convolution, a residual block of two with one on the skip, a dense layer."""
    x = jax.nn.relu(_convolved(x[None], params, "k", stride=2))
    inside = jax.nn.relu(_convolved(x, params, "l", stride=2))
    skipped = _convolved(x, params, "n", stride=2, padding=0)
    x = jax.nn.relu(_convolved(inside, params, "m", stride=1) + skipped)
    return x.reshape(-1) @ params["w0"] + params["b0"]


def transformer(params: dict, x: jax.Array) -> jax.Array:
    """One encoder block, 2 heads, over 14 tokens of two image rows each."""
    x = x.reshape(_NUM_TOKENS, -1) @ params["w0"] + params["b0"]
    heads = _normalized(x) @ params["w1"] + params["b1"]
    heads = heads.reshape(_NUM_TOKENS, 3, _NUM_HEADS, -1)
    q, k, v = jnp.moveaxis(heads, 0, 2)  # each (heads, tokens, width of a head)
    scores = q @ k.transpose(0, 2, 1) / jnp.sqrt(q.shape[-1])
    mixed = jax.nn.softmax(scores, axis=-1) @ v
    mixed = mixed.transpose(1, 0, 2).reshape(_NUM_TOKENS, _WIDTH)
    x = x + mixed @ params["w2"] + params["b2"]
    inside = jax.nn.relu(_normalized(x) @ params["w3"] + params["b3"])
    x = x + inside @ params["w4"] + params["b4"]
    return x.mean(0) @ params["w5"] + params["b5"]


def lstm(params: dict, x: jax.Array) -> jax.Array:
    """An LSTM with 32 cells over 7 steps of four image rows each."""

    def step(state: Any, x: jax.Array) -> tuple[Any, None]:
        hidden, cell = state
        gates = x @ params["w0"] + hidden @ params["w1"] + params["b1"]
        i, f, g, o = jnp.split(gates, 4)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(cell), cell), None

    none = jnp.zeros(_HIDDEN)
    (hidden, _), _ = jax.lax.scan(step, (none, none), x.reshape(_NUM_STEPS, -1))
    return hidden @ params["w2"] + params["b2"]


def _convolved(
    x: jax.Array, params: dict, name: str, *, stride: int, padding: int = 1
) -> jax.Array:
    x = jax.lax.conv_general_dilated(
        x,
        params[name],
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return x + params["bias_" + name]


def _normalized(x: jax.Array) -> jax.Array:
    centered = x - x.mean(-1, keepdims=True)
    variance = (centered * centered).mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + 1e-5)


def _drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, jax.Array]:
    """Weights of unit gain through rectifiers; no biases."""
    keys = jax.random.split(jax.random.key(1), len(shapes))
    params = {}
    for key, (name, shape) in zip(keys, shapes.items(), strict=True):
        fan_in = jnp.prod(jnp.array(shape[:-1]))
        params[name] = jax.random.normal(key, shape) * jnp.sqrt(2 / fan_in)
        bias = "b" + name[1:] if name[0] == "w" else "bias_" + name
        is_kernel = len(shape) == 4
        params[bias] = jnp.zeros((1, 1, 1, shape[-1]) if is_kernel else shape[-1])
    return params


def _mlp() -> Net:
    shapes = {"w0": (784, 256), "w1": (256, 256), "w2": (256, 10)}
    return Net(mlp, _drawn(shapes), 0.02)


def _cnn() -> Net:
    shapes = {
        "k": (4, 4, 1, 16),
        "l": (4, 4, 16, 32),
        "w0": (1568, 100),
        "w1": (100, 10),
    }
    return Net(cnn, _drawn(shapes), 0.02)


def _pooled() -> Net:
    shapes = {"k": (3, 3, 1, 8), "l": (3, 3, 8, 16), "w0": (784, 10)}
    return Net(pooled, _drawn(shapes), 0.01)


def _residual() -> Net:
    shapes = {
        "k": (3, 3, 1, 8),
        "l": (3, 3, 8, 16),
        "m": (3, 3, 16, 16),
        "n": (1, 1, 8, 16),
        "w0": (784, 10),
    }
    return Net(residual, _drawn(shapes), 0.01)


def _transformer() -> Net:
    width = _WIDTH
    shapes = {
        "w0": (784 // _NUM_TOKENS, width),
        "w1": (width, 3 * width),
        "w2": (width, width),
        "w3": (width, 2 * width),
        "w4": (2 * width, width),
        "w5": (width, 10),
    }
    return Net(transformer, _drawn(shapes), 0.001)


def _lstm() -> Net:
    shapes = {
        "w0": (784 // _NUM_STEPS, 4 * _HIDDEN),
        "w1": (_HIDDEN, 4 * _HIDDEN),
        "w2": (_HIDDEN, 10),
    }
    return Net(lstm, _drawn(shapes), 0.01)


NETS: dict[str, Callable[[], Net]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "pooled": _pooled,
    "residual": _residual,
    "transformer": _transformer,
    "lstm": _lstm,
}

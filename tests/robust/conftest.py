"""Small problems that the attacks are tested on."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest


class Digits(NamedTuple):
    """24 images of digits (8, 8) and a softplus network that gets most of them."""

    params: dict[str, jax.Array]
    x: jax.Array
    y: np.ndarray
    golden: Any

    def logits(self, x, params=None):
        p = self.params if params is None else params
        h = jax.nn.softplus(x.reshape(len(x), -1) @ p["w0"] + p["b0"].reshape(1, -1))
        h = jax.nn.softplus(h @ p["w1"] + p["b1"].reshape(1, -1))
        return h @ p["w2"] + p["b2"].reshape(1, -1)

    def loss(self, x, y=None, params=None):
        log_p = jax.nn.log_softmax(self.logits(x, params))
        y = jnp.asarray(self.y if y is None else y)
        return -jnp.take_along_axis(log_p, y[:, None], axis=1)[:, 0]


@pytest.fixture
def digits(shared):
    def load(name):
        golden = np.load(shared / "goldens" / f"robust-{name}.npz")
        names = ("w0", "b0", "w1", "b1", "w2", "b2")
        params = {name: jnp.asarray(golden[name]) for name in names}
        return Digits(params, jnp.asarray(golden["x"]), golden["y"], golden)

    return load


class ConvNet(NamedTuple):
    """A strided convolution and a dense layer on images (B, 8, 8, 2), 3 classes."""

    kernel: jax.Array
    dense: jax.Array

    def logits(self, x):
        h = jax.lax.conv_general_dilated(
            x, self.kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(h).reshape(len(x), -1) @ self.dense


@pytest.fixture
def conv_net():
    first, second = jax.random.split(jax.random.key(11))
    return ConvNet(
        0.4 * jax.random.normal(first, (3, 3, 2, 4)),
        0.4 * jax.random.normal(second, (64, 3)),
    )


@pytest.fixture
def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

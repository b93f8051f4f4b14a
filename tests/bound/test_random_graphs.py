"""Random programs of mixed operations: every method holds every sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import bound

METHODS = (bound.ibp, bound.forward, bound.crown_ibp, bound.crown)

UNARY = [
    jax.nn.relu,
    jax.nn.sigmoid,
    jax.nn.softplus,
    jnp.abs,
    jnp.cos,
    jnp.floor,
    jnp.square,
    jnp.tanh,
    lambda x: jnp.clip(x, -0.7, 1.3),
    lambda x: jnp.cumsum(x, 0) / 3,
    lambda x: jnp.exp(-jnp.abs(x)),
    lambda x: jnp.sort(x, 1),
    lambda x: jnp.sqrt(1 + x * x),
    lambda x: jnp.where(x > 0.2, x, -2 * x),
    lambda x: x / (1 + jnp.square(x)),
    lambda x: x - x.max(1, keepdims=True),
    lambda x: x.T.reshape(x.shape),
    lambda x: x[:, ::-1] * 0.5,
]
BINARY = [
    jnp.add,
    jnp.maximum,
    jnp.minimum,
    jnp.multiply,
    jnp.subtract,
    lambda x, y: jnp.where(x < y, x, y * 0.5),
    lambda x, y: jnp.tanh(x @ y.T) @ y,
    lambda x, y: jnp.concatenate([x, y])[1:4] * jnp.stack([x, y]).sum(0),
]


def program(seed, num_steps=6):
    """A function of an array (3, 4), from steps drawn with a seed."""
    rng = np.random.default_rng(seed)
    plan = [
        (rng.integers(len(UNARY)), rng.integers(len(BINARY)), *rng.integers(0, 99, 2))
        for _ in range(num_steps)
    ]
    weights = rng.normal(size=(num_steps, 4, 4)) / 2

    def fn(x):
        values = [x]
        for (one, two, i, j), w in zip(plan, weights, strict=True):
            left, right = (values[k % len(values)] for k in (i, j))
            kind = (i + j) % 3
            if kind == 0:
                values.append(BINARY[two](left, right))
            elif kind == 1:
                values.append(UNARY[one](right))
            else:
                values.append(values[-1] @ jnp.asarray(w, x.dtype))
        return values[-1] + values[-2], values[-1].sum(0)

    return fn


def check(seed, dtype, p):
    fn, rng = program(seed), np.random.default_rng(seed + 1)
    center = jnp.asarray(rng.normal(size=(3, 4)), dtype)
    direction = rng.normal(size=(400, 3, 4))
    if p == 2:
        direction /= np.linalg.norm(direction.reshape(400, -1), axis=1)[:, None, None]
        direction *= rng.uniform(size=(400, 1, 1)) ** 0.1
    else:
        direction = np.clip(direction, -1, 1)
    radius = 0.3
    points = jnp.asarray(np.asarray(center) + 0.999 * radius * direction, dtype)
    run = jax.jit(lambda ball, x: ([m(fn)(ball) for m in METHODS], jax.vmap(fn)(x)))
    found, reached = run(bound.Ball(center, radius, p), points)
    for method, bounds in zip(METHODS, found, strict=True):
        for low, high, value in zip(
            *map(jax.tree.leaves, (*bounds, reached)), strict=True
        ):
            assert low.dtype == dtype and np.isfinite(low).all(), method
            assert (low <= value.min(0)).all(), f"{method.__name__}: below"
            assert (value.max(0) <= high).all(), f"{method.__name__}: above"


@pytest.mark.parametrize("seed", [0, 2, 7])
def test_float32(seed):
    check(seed, jnp.float32, jnp.inf)


@pytest.mark.parametrize("seed", [4])
def test_float64(seed, x64):
    check(seed, jnp.float64, 2)

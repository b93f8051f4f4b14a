"""Small policies and critics that the tests of this folder perturb."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

EPS = np.float32([0.1, 0.2, 0.0, 0.05])  # one entry is not perturbed
SIGMA = np.float32([0.5, 1.0, 2.0])


def init(sizes, seed=0, scale=1.5):
    keys = jax.random.split(jax.random.key(seed), len(sizes))
    pairs = list(itertools.pairwise(sizes))
    return [
        (scale * jax.random.normal(k, (a, b)) / a**0.5, 0.1 * jnp.arange(1.0, b + 1))
        for k, (a, b) in zip(keys, pairs, strict=False)
    ]


def apply(params, state, act=jax.nn.relu):
    for weight, bias in params[:-1]:
        state = act(state @ weight + bias)
    return state @ params[-1][0] + params[-1][1]


PARAMS = init([4, 8, 3])
CRITIC = init([7, 8, 1], seed=1)
STATES = jax.random.normal(jax.random.key(2), (8, 4))


def mean(state):
    return apply(PARAMS, state)


def smooth_mean(state):
    return apply(PARAMS, state, jnp.tanh)


def critic(state, action):
    return apply(CRITIC, jnp.concatenate([state, action]))[0]


def keys(num=8, seed=3):
    return jax.random.split(jax.random.key(seed), num)


def points(state, eps, num=200, seed=0):
    """Points of the box: corners, faces, the inside."""
    r = np.random.default_rng(seed)
    move = np.clip(r.uniform(-2, 2, (num, *state.shape)), -1, 1)
    return jnp.asarray(np.asarray(state) + eps * move, state.dtype)


def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

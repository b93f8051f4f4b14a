"""Unmodified flax and equinox models: bounds hold what samples of the set reach."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmethods import bound

KEY = jax.random.key(0)
QUICK = {"xla_backend_optimization_level": 0}


class Perceptron(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dropout(0.5, deterministic=True)(nn.tanh(nn.Dense(5)(x)))
        return nn.Dense(3)(nn.gelu(nn.Dense(4)(nn.silu(x))))


class Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.leaky_relu(nn.Conv(2, (2, 2), padding="VALID")(x))
        return nn.Dense(3)(nn.avg_pool(x, (2, 2)).reshape(-1))


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2, (3, 3), use_bias=False)(x)
        y = nn.Conv(2, (3, 3))(nn.relu(nn.GroupNorm(num_groups=1)(x)))
        x = x + nn.Conv(2, (3, 3))(nn.relu(y))
        x = nn.Conv(3, (1, 1), (2, 2))(x)
        return nn.Dense(3)(x.mean((0, 1)))


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(x)
        x = x + nn.Dense(4)(nn.relu(nn.Dense(6)(nn.LayerNorm()(x))))
        return nn.Dense(3)(x.mean(0))


class Recurrent(nn.Module):
    cell: type
    both_ways: bool = False

    @nn.compact
    def __call__(self, x):
        states = nn.RNN(self.cell(3))(x)
        if self.both_ways:
            backward = nn.RNN(self.cell(3), reverse=True, keep_order=True)(x)
            states = jnp.concatenate([states, backward], 1)
        return nn.Dense(2)(states.mean(0))


class Sentence(nn.Module):
    def setup(self):
        self.embed = nn.Embed(7, 3)
        self.head = nn.Dense(2)

    def __call__(self, shift):
        words = self.embed(jnp.array([3, 0, 6, 3]))
        return self.head(nn.tanh(words + shift).sum(0))


def linen(model, x):
    variables = jax.jit(model.init, compiler_options=QUICK)(KEY, x)
    return functools.partial(model.apply, variables)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(2, use_running_average=True, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.max_pool(x, (2, 2), (2, 2))
        return self.head(self.dropout(x.reshape(-1)))


class NnxRecurrent(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.SimpleCell(2, 3, rngs=rngs))
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x, initial_carry=jnp.zeros(3))[-1])


def of_nnx(kind):
    graph, state = nnx.split(kind(nnx.Rngs(0)))
    return lambda x: nnx.merge(graph, jax.tree.map(jnp.asarray, state))(x)


def of_equinox():
    keys = jax.random.split(KEY, 2)
    conv = eqx.nn.Conv2d(1, 2, 3, key=keys[0])
    norm = eqx.nn.LayerNorm((2, 2, 2))
    mlp = eqx.nn.MLP(8, 3, 4, 1, activation=jax.nn.softplus, key=keys[1])
    params, static = eqx.partition((conv, norm, mlp), eqx.is_array)

    def fn(x):
        conv, norm, mlp = eqx.combine(params, static)
        return mlp(norm(conv(x)).reshape(-1))

    return fn


ALL = ("ibp", "crown_ibp", "crown")
LSTM, GRU = nn.OptimizedLSTMCell, nn.GRUCell
# name: what makes the function, the shape of its input, the methods
MODELS = {
    "equinox": (lambda x: of_equinox(), (1, 4, 4), ALL[::2]),
    "linen attention": (lambda x: linen(Encoder(), x), (2, 4), ALL[:2]),
    "linen cnn": (lambda x: linen(Convolutional(), x), (6, 6, 1), ALL[::2]),
    "linen embedding": (lambda x: linen(Sentence(), x), (4, 3), ALL),
    "linen gru": (lambda x: linen(Recurrent(GRU), x), (2, 2), ("ibp", "crown_ibp")),
    "linen gru, both ways": (
        lambda x: linen(Recurrent(GRU, both_ways=True), x),
        (3, 2),
        ("ibp",),
    ),
    "linen lstm": (lambda x: linen(Recurrent(nn.LSTMCell), x), (3, 2), ("ibp",)),
    "linen mlp": (lambda x: linen(Perceptron(), x), (4,), ALL),
    "linen optimized lstm": (lambda x: linen(Recurrent(LSTM), x), (2, 2), ALL[:2]),
    "linen resnet": (lambda x: linen(Residual(), x), (4, 4, 1), ALL[::2]),
    "nnx cnn": (lambda x: of_nnx(NnxNet), (4, 4, 1), ALL[::2]),
    "nnx rnn": (lambda x: of_nnx(NnxRecurrent), (3, 2), ALL),
}


@pytest.mark.parametrize("name", MODELS)
def test_bounds_of_models_hold_samples(name):
    make, shape, methods = MODELS[name]
    x = jax.random.normal(jax.random.key(1), shape)
    fn, ball = make(x), bound.Ball(x, 0.1)
    signs = jax.random.uniform(
        jax.random.key(2), (256, *shape), minval=-1.2, maxval=1.2
    )

    @jax.jit
    def run(ball, points):
        return [getattr(bound, m)(fn)(ball) for m in methods], jax.vmap(fn)(points)

    found, reached = run(ball, x[None] + 0.1 * jnp.clip(signs, -1, 1))
    for method, bounds in zip(methods, found, strict=True):
        check_hold(bounds, reached, f"{name} {method}")
        rounding = 1e-6 * jnp.abs(found[0].upper)
        assert (bounds.upper <= found[0].upper + rounding).all()


def check_hold(bounds, reached, what):
    assert np.isfinite(bounds.lower).all() and np.isfinite(bounds.upper).all(), what
    assert (bounds.lower <= reached.min(0)).all(), what
    assert (bounds.upper >= reached.max(0)).all(), what


@pytest.mark.parametrize("name, leaf", [("linen mlp", "kernel"), ("linen gru", "bias")])
def test_weights_as_sets(name, leaf):
    """A ball round one leaf of the parameters, of a model as it comes."""
    shape = MODELS[name][1]
    model = Perceptron() if name == "linen mlp" else Recurrent(GRU)
    x = jax.random.normal(jax.random.key(1), shape)
    params = jax.jit(model.init, compiler_options=QUICK)(KEY, x)
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    chosen = next(p for p, _ in paths if leaf in jax.tree_util.keystr(p))

    def with_leaf(change):
        return jax.tree_util.tree_map_with_path(
            lambda p, v: change(v) if p == chosen else v, params
        )

    sets = with_leaf(lambda v: bound.Ball(v, 0.05))
    noise = jax.random.uniform(jax.random.key(3), (128,), minval=-0.05, maxval=0.05)
    keys = jax.random.split(jax.random.key(4), 128)

    def sample(key, scale):
        def moved(v):
            return v + scale * jax.random.rademacher(key, v.shape, v.dtype)

        return model.apply(with_leaf(moved), x)

    reached = jax.jit(jax.vmap(sample))(keys, noise)
    methods = bound.ibp, bound.crown
    run = jax.jit(lambda sets: [method(model.apply)(sets, x) for method in methods])
    for bounds in run(sets):
        check_hold(bounds, reached, f"{name} {leaf}")

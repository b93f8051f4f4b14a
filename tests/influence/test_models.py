"""Models of flax and equinox: exact scores, and factors where they multiply."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxmethods.core import leaf_paths
from jaxmethods.influence import forms, self_influence, tracin
from tests.influence.definition import assert_close, at, draw, gradients

MODELS = {}


def model(*example, words=None):
    """Adds a model: `make() -> (apply, shapes of params, names with factors)`.

    Args:
        *example: The shape of an example's input.
        words: The input is whole numbers below this.
    """

    def add(make):
        MODELS[make.__name__] = (make, example, words)
        return make

    return add


def build(name, n=5, m=3):
    """(loss, params, train, test, names) of a model, in the default precision."""
    make, example, words = MODELS[name]
    apply, shapes, names = make()
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        value = rng.normal(size=leaf.shape) / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        kept = abs(value) if "var" in jax.tree_util.keystr(path) else value
        return jnp.asarray(kept, float)

    def loss(params, example):
        x, y = example
        return -jax.nn.log_softmax(apply(params, x).astype(float))[..., y].mean()

    def examples(n):
        shape = (n, *example)
        x = rng.normal(size=shape) if words is None else rng.integers(0, words, shape)
        x = jnp.asarray(x, float if words is None else jnp.int32)
        return x, jnp.asarray(rng.integers(0, 3, n))

    params = jax.tree_util.tree_map_with_path(fill, shapes)
    return loss, params, examples(n), examples(m), names


def linen(net, x, names):
    """A linen model that sees one example as it is."""
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    return net.apply, variables, names


def of_nnx(make, names):
    """An nnx model, its parameters a plain dict."""
    net = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph, state, rest = nnx.split(net, nnx.Param, ...)

    def apply(params, x):
        return nnx.merge(graph, params, rest)(x)

    return apply, nnx.to_pure_dict(state), names


@model(4)
def linen_mlp():
    net = nn.Sequential([nn.Dense(6), nn.tanh, nn.Dense(3)])
    return linen(net, jnp.ones(4), {"kernel"})


@model(4)
def nnx_mlp():
    def make(rngs):
        first, last = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)
        return nnx.Sequential(first, nnx.gelu, last)

    return of_nnx(make, {"kernel"})


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x[None]))
        x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
        x = nn.Conv(4, (3, 3), feature_group_count=2, strides=2)(x)
        return nn.Dense(3)(nn.relu(x).reshape(-1))


@model(8, 8, 1)
def linen_cnn_with_batch_norm_at_inference():
    return linen(Convolutions(), jnp.ones((8, 8, 1)), {"kernel"})


class Recurrent(nn.Module):
    cell: type
    layers: int

    @nn.compact
    def __call__(self, x):
        for layer in range(self.layers):
            loop = nn.RNN(self.cell(4, param_dtype=x.dtype), reverse=layer == 1)
            x = loop(x)
        return nn.Dense(3)(x[-1])


@model(6, 2)
def linen_gru():
    return linen(Recurrent(nn.GRUCell, 2), jnp.ones((6, 2)), {"kernel"})


@model(6, 2)
def linen_lstm_with_joined_gates():
    return linen(Recurrent(nn.OptimizedLSTMCell, 1), jnp.ones((6, 2)), {"kernel"})


@model(6, 2)
def nnx_gru():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.loop = nnx.RNN(nnx.GRUCell(2, 4, param_dtype=float, rngs=rngs))
            self.head = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(self.loop(x, initial_carry=jnp.zeros(4, float))[-1])

    return of_nnx(Net, {"kernel"})


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(h, h)
        return x + nn.Dense(4)(nn.gelu(nn.Dense(8)(h))), None


class Transformer(nn.Module):
    scanned: bool = False

    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(9, 4)
        x = table(tokens) + self.param("place", nn.initializers.ones, (5, 4))
        if self.scanned:
            axes = dict(variable_axes={"params": 0}, split_rngs={"params": True})
            x, _ = nn.scan(nn.remat(Block), **axes, length=2)()(x, None)
        else:
            x, _ = Block()(x, None)
        return table.attend(nn.LayerNorm()(x))


@model(5, words=9)
def linen_transformer_with_a_tied_table():
    tokens = jnp.zeros(5, int)
    return linen(Transformer(), tokens, {"kernel", "embedding"})


@model(5, words=9)
def linen_transformer_scanned_over_layers():
    tokens = jnp.zeros(5, int)
    return linen(Transformer(scanned=True), tokens, {"kernel", "embedding"})


@model(5, words=9)
def equinox_closure():
    def make(key):
        keys = jax.random.split(key, 4)
        return {
            "table": eqx.nn.Embedding(9, 4, key=keys[0]),
            "cell": eqx.nn.GRUCell(4, 4, key=keys[1]),
            "attention": eqx.nn.MultiheadAttention(2, 4, key=keys[2]),
            "head": eqx.nn.MLP(4, 3, 5, 1, key=keys[3]),
        }

    net = eqx.filter_eval_shape(make, jax.random.key(0))
    params, rest = eqx.partition(net, lambda x: isinstance(x, jax.ShapeDtypeStruct))

    def apply(params, tokens):
        parts = eqx.combine(params, rest)
        x = jax.vmap(parts["table"])(tokens)
        x = parts["attention"](x, x, x)
        h, _ = lax.scan(lambda h, x: (parts["cell"](x, h), None), jnp.ones(4), x)
        return parts["head"](h)

    return apply, params, {"weight", "weight_ih", "weight_hh"}


def expected(name):
    """Scores and norms by the definition, in float64."""
    with jax.enable_x64(True):
        loss, params, train, test, _ = build(name)
        a, b = gradients(loss, params, train, test)
    return b @ a.T, (a**2).sum(1)


# In single precision, where a part left out is seen as well; the others in double.
SINGLE = {
    "nnx_mlp",
    "nnx_gru",
    "linen_cnn_with_batch_norm_at_inference",
    "linen_transformer_with_a_tied_table",
}


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_the_definition(name):
    dtype = "float32" if name in SINGLE else "float64"
    with jax.enable_x64(dtype == "float64"):
        loss, params, train, test, _ = build(name)
        stacked = jax.tree.map(lambda x: np.asarray(x)[None], params)

        @jax.jit
        def both(train, test):
            pairs = tracin(loss)(stacked, [1.0], train, test)
            return pairs, self_influence(loss)(stacked, [1.0], train)

        got = both(train, test)
    for found, want in zip(got, expected(name), strict=True):
        assert found.dtype == dtype
        assert_close(found, want, rtol=1e-5 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_matrices_and_tables_have_factors(name):
    loss, params, train, _, names = build(name)
    report = forms(loss)(params, at(train, 0))
    found = {path: form for path, form in report.items() if form.kind == "factors"}
    assert found.keys() == {p for p in leaf_paths(params) if p[-1] in names}
    assert {form.kind for form in report.values()} == {"factors", "whole"}


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x[None]))
        return nn.Dense(3)(nn.tanh(x))[0]


def test_running_statistics_are_left_out_by_where_or_closed_over():
    net = Normalised()
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.ones(4))
    variables = jax.tree.map(lambda x: draw(1, x.shape) ** 2 + 0.5, shapes)
    params = {"params": variables["params"]}
    statistics = {"batch_stats": variables["batch_stats"]}
    train, test = (draw(2, (5, 4)), jnp.arange(5) % 3), (draw(3, (2, 4)), jnp.arange(2))

    def loss(variables, example):
        x, y = example
        return -jax.nn.log_softmax(net.apply(variables, x))[y]

    def closed(params, example):
        return loss(params | statistics, example)

    @jax.jit
    def every(train, test):
        chosen = tracin(loss, where=[("params",)])([variables], [1.0], train, test)
        return (
            chosen,
            tracin(closed)([params], [1.0], train, test),
            tracin(loss)([variables], [1.0], train, test),
        )

    chosen, without, whole = every(train, test)
    assert_close(chosen, without, 1e-5)
    assert np.abs(whole - chosen).max() > 0.01 * np.abs(chosen).max()


def test_parameters_of_nnx_without_its_statistics():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
            self.head = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(self.norm(x[None]))[0]

    graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    params = nnx.to_pure_dict(params)

    def loss(params, example):
        x, y = example
        return -jax.nn.log_softmax(nnx.merge(graph, params, rest)(x))[y]

    example = draw(0, (4,)), 1
    paths = {("head", "bias"), ("head", "kernel"), ("norm", "bias"), ("norm", "scale")}
    assert forms(loss)(params, example).keys() == paths
    some = jax.tree.map(lambda x: np.stack([x, x]), example)
    assert self_influence(loss)([params], [1.0], some).shape == (2,)

"""Vectors over their root mean square are found however that is written."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmethods import core

X = jnp.sin(jnp.arange(24.0)).reshape(3, 8) * 3
IMAGE = jnp.cos(jnp.arange(2 * 2 * 3 * 8.0)).reshape(2, 2, 3, 8)


def mean(x):
    return x.mean(-1, keepdims=True)


def rms(x):
    return jnp.sqrt(mean(x * x) + 1e-3)


def centered(x):
    return x - mean(x)


def linen(module, x=X):
    params = module.init(jax.random.key(0), x)
    params = jax.tree.map(lambda p: p + jnp.arange(1.0, 9) / 7, params)
    return lambda x: module.apply(params, x)


FUNCTIONS = {
    "quotient": lambda x: x / rms(x),
    "centred": lambda x: centered(x) / rms(centered(x)),
    "rsqrt": lambda x: x * jax.lax.rsqrt(mean(jnp.square(x)) + 1e-3),
    "power": lambda x: x * (mean(x**2) + 1e-3) ** -0.5,
    "reciprocal": lambda x: x * (2 / rms(x)),
    "gain first": lambda x: jnp.arange(8.0)[None] * x / rms(x),
    "gain in the factor": lambda x: x * (jnp.arange(8.0)[None] / rms(x)),
    "unit length": lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
    "unit length of all": lambda x: x / jnp.linalg.norm(x),
    "over rows": lambda x: x / jnp.sqrt((x * x).sum(0, keepdims=True)),
    "var": lambda x: centered(x) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3),
    "std": lambda x: centered(x) / x.std(-1, keepdims=True),
    "fast variance": lambda x: centered(x) / jnp.sqrt(mean(x * x) - mean(x) ** 2),
    "standardize": jax.nn.standardize,
    "bfloat16 in float32": lambda x: nn.LayerNorm(
        use_scale=False, use_bias=False, dtype=jnp.float32
    ).apply({}, x),
}
MODULES = {
    "linen layer": lambda: (linen(nn.LayerNorm()), X),
    "linen layer, slow": lambda: (linen(nn.LayerNorm(use_fast_variance=False)), X),
    "linen layer, plain": lambda: (linen(nn.LayerNorm(use_scale=False)), X),
    "linen layer, axes": lambda: (
        linen(nn.LayerNorm(reduction_axes=(0, 1), feature_axes=-1)),
        X,
    ),
    "linen group": lambda: (linen(nn.GroupNorm(4), IMAGE), IMAGE),
    "linen group, slow": lambda: (
        linen(nn.GroupNorm(4, use_fast_variance=False), IMAGE),
        IMAGE,
    ),
    "linen instance": lambda: (linen(nn.InstanceNorm(), IMAGE), IMAGE),
    "linen rms": lambda: (linen(nn.RMSNorm()), X),
    "nnx layer": lambda: (nnx.LayerNorm(8, rngs=nnx.Rngs(0)), X),
    "nnx group": lambda: (nnx.GroupNorm(8, 2, rngs=nnx.Rngs(0)), IMAGE),
    "nnx rms": lambda: (nnx.RMSNorm(8, rngs=nnx.Rngs(0)), X),
    "equinox layer": lambda: (jax.vmap(eqx.nn.LayerNorm(8)), X),
    "equinox rms": lambda: (jax.vmap(eqx.nn.RMSNorm(8)), X),
    "equinox group": lambda: (eqx.nn.GroupNorm(2, 2), IMAGE[0]),
}


def matched(fn, *args):
    return core.match_normalizations(core.without_repeats(core.flatten(fn, *args)))


def check(fn, x):
    graphs = []

    def run(x):
        graphs.append(matched(fn, x))
        return graphs[-1].evaluate(x)

    values, want = (run(x), jax.jit(run)(x)), fn(x)
    for graph, value in zip(graphs, values, strict=True):
        names = [n.name for n in graph.nodes]
        assert names.count("norm") == names.count("normalize") == 1
        assert not {"sqrt", "rsqrt", "square", "pow", "integer_pow"} & set(names)
        np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", FUNCTIONS)
def test_found(case):
    check(FUNCTIONS[case], X)


@pytest.mark.parametrize("case", MODULES)
def test_found_in_layers(case):
    check(*MODULES[case]())


def test_a_traced_constant_under_the_root_is_captured():
    def fn(x, eps):
        return x / jnp.sqrt(mean(x * x) + eps)

    def run(x, eps):
        graph = matched(lambda x: fn(x, eps), x)
        assert [n.name for n in graph.nodes] == ["norm", "normalize"]
        return graph.evaluate(x)

    np.testing.assert_allclose(jax.jit(run)(X, 0.3), fn(X, 0.3), rtol=1e-6)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: centered(x) / rms(x),
        lambda x: x / rms(centered(x)),
        lambda x: x[:, ::-1] / rms(x),
        lambda x: x / rms(x)[::-1],
        lambda x: x[:, :3] / jnp.sqrt((x[:, :3] ** 2).sum(-1))[None],
        lambda x: x * rms(x),
        lambda x: x / (mean(x * x) + 1e-3),
        lambda x: x / jnp.sqrt(mean(x**4) + 1e-3),
        lambda x: centered(x) / jnp.sqrt(mean(x * x) - 0.5 * mean(x) ** 2),
        lambda x: x / jnp.sqrt(1 - mean(x * x)),
    ],
)
def test_what_is_something_else_is_not_matched(fn):
    graph = matched(fn, X)
    assert "normalize" not in {n.name for n in graph.nodes}
    np.testing.assert_allclose(graph.evaluate(X), fn(X), rtol=1e-5, equal_nan=True)

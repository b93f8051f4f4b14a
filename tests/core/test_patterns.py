"""Composite functions are found as the installed jax writes them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import core

X = jnp.linspace(-3, 3, 12).reshape(3, 4)

# name -> (function, how many scalars the node captures)
OCCURRENCES = {
    "gelu": (functools.partial(jax.nn.gelu, approximate=False), ()),
    "gelu_tanh": (nn.gelu, ()),
    "silu": (jax.nn.swish, ()),
    "softplus": (nn.softplus, ()),
    "selu": (jax.nn.selu, ()),
    "celu": (functools.partial(jax.nn.celu, alpha=0.3), (0.3,)),
    "elu": (functools.partial(jax.nn.elu, alpha=0.5), (0.5,)),
    "leaky_relu": (functools.partial(jax.nn.leaky_relu, negative_slope=0.2), (0.2,)),
    "hard_tanh": (jax.nn.hard_tanh, ()),
}


def matched(fn, x):
    graph = core.flatten(fn, x)
    return core.match_patterns(graph, list(core.PATTERNS.values()))


def test_the_table_has_an_occurrence_of_every_pattern():
    assert OCCURRENCES.keys() == core.PATTERNS.keys()


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", OCCURRENCES)
def test_found_between_other_operations(name, traced):
    fn, scalars = OCCURRENCES[name]
    seen = []

    def run(x):
        graph = matched(lambda v: 2 * fn(v + 1), x)
        seen.append(graph)
        return graph.evaluate(x)

    got = (jax.jit(run) if traced else run)(X)
    (node,) = [n for n in seen[0].nodes if n.name in core.PATTERNS]
    assert node.name == name
    assert len(seen[0].nodes) == 3
    np.testing.assert_allclose(np.array(node.inputs[1:], float), scalars, rtol=1e-6)
    np.testing.assert_allclose(got, 2 * fn(X + 1), rtol=1e-5, atol=1e-6)


def test_several_at_once_and_nested():
    def fn(x):
        return jax.nn.softplus(jnp.tanh(jax.nn.elu(x))) + jax.nn.silu(x)

    names = [node.name for node in matched(fn, X).nodes]
    assert names == ["elu", "tanh", "softplus", "silu", "add"]


def test_a_value_inside_a_match_may_be_used_elsewhere():
    def fn(x):
        s = jax.nn.sigmoid(x)
        return x * s + s

    graph = matched(fn, X)
    assert [node.name for node in graph.nodes] == ["logistic", "silu", "add"]
    np.testing.assert_allclose(graph.evaluate(X), fn(X), rtol=1e-6)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jnp.where(x > 0.1, x, jnp.expm1(x)),
        lambda x: x * jax.nn.sigmoid(2 * x),
    ],
    ids=["shifted elu", "scaled silu"],
)
def test_what_is_something_else_is_not_matched(fn):
    assert not core.PATTERNS.keys() & {node.name for node in matched(fn, X).nodes}


def test_float64(x64):
    node = matched(jax.nn.softplus, jnp.ones(3, jnp.float64)).nodes[0]
    assert node.name == "softplus" and node.outputs[0].dtype == jnp.float64

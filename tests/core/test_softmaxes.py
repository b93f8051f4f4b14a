"""Softmax, log_softmax and logsumexp are found however they are written."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxmethods import core

X = jnp.linspace(-2, 2, 24).reshape(4, 6) ** 3
NAMES = {"softmax", "log_softmax", "logsumexp"}
CAUSAL = nn.make_causal_mask(jnp.ones(4))


def shifted(x):
    return x - jax.lax.stop_gradient(x.max(-1, keepdims=True))


def total(x):
    return x.sum(-1, keepdims=True)


def linen_attention():
    module = nn.MultiHeadDotProductAttention(num_heads=2)
    params = module.init(jax.random.key(0), X)
    return lambda x: module.apply(params, x, mask=CAUSAL)


def nnx_attention():
    module = nnx.MultiHeadAttention(2, 6, decode=False, rngs=nnx.Rngs(0))
    return lambda x: module(x, mask=CAUSAL)


def equinox_attention():
    module = eqx.nn.MultiheadAttention(2, 6, key=jax.random.key(0))
    return lambda x: module(x, x, x, mask=jnp.tril(jnp.ones((4, 4), bool)))


def jax_attention(x):
    heads = x.reshape(1, 4, 2, 3)
    return jax.nn.dot_product_attention(heads, heads, heads, is_causal=True)


# name -> (function, or what makes it, and what is found)
FOUND = {
    "softmax": (jax.nn.softmax, "softmax"),
    "over rows": (lambda x: jax.nn.softmax(x, 0), "softmax"),
    "over both": (lambda x: jax.nn.softmax(x, (0, 1)), "softmax"),
    "of a vector": (lambda x: jnp.exp(x[0]) / jnp.exp(x[0]).sum(), "softmax"),
    "without a shift": (lambda x: jnp.exp(x) / total(jnp.exp(x)), "softmax"),
    "with a shift": (
        lambda x: jnp.exp(shifted(x)) / total(jnp.exp(shifted(x))),
        "softmax",
    ),
    "shifted by the maximum": (
        lambda x: (
            jnp.exp(x - x.max(-1)[:, None])
            / jnp.exp(x - x.max(-1)[:, None]).sum(-1)[:, None]
        ),
        "softmax",
    ),
    "mapped": (jax.vmap(lambda v: jnp.exp(v) / jnp.exp(v).sum()), "softmax"),
    "exp of log_softmax": (lambda x: jnp.exp(jax.nn.log_softmax(x)), "softmax"),
    "exp of a difference": (
        lambda x: jnp.exp(x - jax.nn.logsumexp(x, -1, keepdims=True)),
        "softmax",
    ),
    "masked": (lambda x: jax.nn.softmax(x, where=X > -1), "softmax"),
    "logsumexp": (lambda x: jax.nn.logsumexp(x, 0), "logsumexp"),
    "logsumexp of all": (jax.nn.logsumexp, "logsumexp"),
    "log of a sum": (lambda x: jnp.log(jnp.exp(x).sum(-1)), "logsumexp"),
    "log of a shifted sum": (
        lambda x: jnp.log(jnp.exp(shifted(x)).sum(-1)),
        "logsumexp",
    ),
    "log_softmax": (jax.nn.log_softmax, "log_softmax"),
    "log of softmax": (lambda x: jnp.log(jax.nn.softmax(x)), "log_softmax"),
    "less logsumexp": (
        lambda x: x - jax.nn.logsumexp(x, -1, keepdims=True),
        "log_softmax",
    ),
    "cross entropy": (
        lambda x: optax.softmax_cross_entropy(x, jax.nn.one_hot(jnp.arange(4), 6)),
        "log_softmax",
    ),
    "cross entropy of labels": (
        lambda x: optax.softmax_cross_entropy_with_integer_labels(x, jnp.arange(4)),
        "logsumexp",
    ),
    "jax attention": (jax_attention, "softmax"),
}
MODULES = {
    "linen": linen_attention,
    "nnx": nnx_attention,
    "equinox": equinox_attention,
}


def matched(fn, *args):
    return core.match_softmax(core.without_repeats(core.flatten(fn, *args)))


def check(fn, name, x):
    graphs = []

    def run(x):
        graphs.append(matched(fn, x))
        return graphs[-1].evaluate(x)

    got, want = (run(x), jax.jit(run)(x)), fn(x)
    for graph, value in zip(graphs, got, strict=True):
        assert [n.name for n in graph.nodes if n.name in NAMES] == [name]
        assert "exp" not in {n.name for n in graph.nodes}
        np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", FOUND)
def test_found(case):
    check(*FOUND[case], X)


@pytest.mark.parametrize("case", MODULES)
def test_found_in_attention_layers(case):
    check(MODULES[case](), "softmax", X)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jnp.exp(x) / jnp.exp(2 * x).sum(-1, keepdims=True),
        lambda x: jnp.exp(x[:4, :4]) / jnp.exp(x[:4, :4]).sum(-1)[None],
        lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True)[::-1],
        lambda x: x - jax.nn.logsumexp(x, 0)[None][:, ::-1],
        lambda x: jnp.exp(x) / (1 + jnp.exp(x).sum(-1, keepdims=True)),
    ],
    ids=["other sum", "other axis", "other row", "other entry", "one more"],
)
def test_what_is_something_else_keeps_its_values(fn):
    graph = matched(fn, X)
    assert not {"softmax", "log_softmax"} & {n.name for n in graph.nodes}
    np.testing.assert_allclose(graph.evaluate(X), fn(X), rtol=1e-5)


def test_a_shift_that_is_no_shift_stays():
    def fn(x):  # what is subtracted is not one number a row
        z = x - jnp.sort(x, -1)
        return jnp.exp(z) / jnp.exp(z).sum(-1, keepdims=True)

    graph = matched(fn, X)
    assert "sub" in {n.name for n in graph.nodes}
    np.testing.assert_allclose(graph.evaluate(X), fn(X), rtol=1e-5)


def test_bfloat16():
    x = X.astype(jnp.bfloat16)
    for fn in (jax.nn.softmax, jax.nn.log_softmax):
        (node,) = matched(fn, x).nodes
        assert node.name in NAMES and node.outputs[0].dtype == jnp.bfloat16


def test_repeats_are_merged_and_others_kept():
    def fn(x):
        return jnp.sin(x) * jnp.sin(x) + jnp.sin(2 * x) + 3 * x + 3.5 * x

    graph = core.without_repeats(core.flatten(fn, X))
    names = [n.name for n in graph.nodes]
    assert names.count("sin") == 2 and names.count("mul") == 4
    np.testing.assert_allclose(graph.evaluate(X), fn(X), rtol=1e-6)

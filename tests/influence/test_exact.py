"""Equality with materialised per-example gradients, whatever the loss does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.influence import aggregate, forms, self_influence, tracin
from tests.influence.definition import (
    LOSSES,
    assert_close,
    at,
    build,
    scores,
    scores_and_norms,
)

FACTORED = {
    "dense": {"w", "v"},
    "weight_on_the_left_of_rows": {"w", "v"},
    "used_again_and_transposed": {"w", "v"},
    "reshaped": {"w"},
    "weights_times_weights": set(),
    "a_weight_for_each_head": {"w"},
    "decayed": set(),
    "convolutions_and_pools": {"k", "l", "w"},
    "channels_first": {"k", "l"},
    "one_dimension_grouped_and_twice": {"k", "l"},
    "loops_and_look_ups": {"e", "w"},
    "custom_derivative": {"v"},
}


@pytest.mark.parametrize("name", LOSSES)
def test_scores_are_the_definition(name):
    loss, checkpoints, rates, train, test = build(name)
    want, own = scores_and_norms(loss, checkpoints, rates, train, test)
    assert np.abs(want).max() > 0.01
    weights = jnp.asarray([1.0, -2.0, 0.5])

    @jax.jit
    def all_scores(*args):
        pairs, summed = tracin(loss)(*args), aggregate(loss)(*args, weights)
        return pairs, self_influence(loss)(*args[:3]), summed

    pairs, norms, summed = all_scores(checkpoints, rates, train, test)
    assert_close(pairs, want)
    assert_close(norms, own)
    assert_close(summed, weights @ want)


@pytest.mark.parametrize("name", LOSSES)
def test_what_has_factors(name):
    loss, checkpoints, _, train, _ = build(name)
    report = forms(loss)(at(checkpoints, 0), np.asarray(train)[0])
    assert {k for (k,), form in report.items() if form.kind == "factors"} == FACTORED[
        name
    ]


def test_forms_say_where_and_why():
    loss, checkpoints, _, train, _ = build("decayed")
    params = at(checkpoints, 0)
    report = forms(loss)(params, train[0])
    assert report["unused",] == ("unused", "the loss does not depend on it")
    assert report["w",].kind == "whole"
    assert report["w",].place.startswith("integer_pow at ")
    assert "definition.py" in report["w",].place
    report = forms(loss, where=[("scale",)])(params, train[0])
    assert list(report) == [("scale",)]
    loss, checkpoints, _, train, _ = build("used_again_and_transposed")
    params = at(checkpoints, 0)
    assert forms(loss)(params, train[0])["v",].place.count("dot_general at") == 2


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_every_form_of_the_inner_product(rows):
    # 1 row: two Gram matrices; 3 rows: Gram matrices of rows; 40: the whole gradient.
    rng = np.random.default_rng(rows)
    params = {"w": jnp.asarray(rng.normal(size=(1, 30, 40)) / 6, jnp.float32)}
    train, test = (
        jnp.asarray(rng.normal(size=(n, rows, 30)), jnp.float32) for n in (6, 4)
    )

    def loss(p, x):
        return jnp.sum(jnp.sin(x @ p["w"]))

    want, own = scores_and_norms(loss, params, [2.0], train, test)
    assert_close(jax.jit(tracin(loss))(params, [2.0], train, test), want)
    assert_close(jax.jit(self_influence(loss))(params, [2.0], train), own)


def test_training_and_test_examples_of_different_lengths():
    # Long examples use the weight itself as well: there it has no factors.
    def loss(p, x):
        extra = jnp.sum(p["w"][0] ** 3) if len(x) > 3 else 0.0
        return jnp.sum(jnp.sin(x @ p["w"].T)) + extra + jnp.sum(x[:, :3] @ p["v"])

    rng = np.random.default_rng(0)
    params = {
        k: jnp.asarray(rng.normal(size=s), jnp.float32)
        for k, s in {"w": (1, 30, 20), "v": (1, 3, 2)}.items()
    }
    train, test = (
        jnp.asarray(rng.normal(size=(3, n, 20)), jnp.float32) for n in (2, 4)
    )
    want = scores(loss, params, [1.0], train, test)
    assert_close(tracin(loss)(params, [1.0], train, test), want)
    assert_close(tracin(loss)(params, [1.0], test, train), want.T)


@pytest.mark.parametrize("ties", [False, True])
def test_pooling_keeps_the_derivative_of_the_primitive(ties):
    # The gradient of a bias before a pool is the pool's own.
    def loss(p, x):
        h = jax.lax.reduce_window(
            x + p["b"], -jnp.inf, jax.lax.max, (3, 2), (2, 1), ((1, 1), (0, 1))
        )
        return jnp.sum(jnp.arange(1.0, h.size + 1).reshape(h.shape) * h**2)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 7, 6)), jnp.float32)
    x = jnp.round(x) if ties else x
    params = {"b": jnp.full((1, 7, 6), 0.25)}
    want = scores(loss, params, [1.0], x, x)
    assert_close(tracin(loss)(params, [1.0], x, x), want, rtol=1e-6)
    with_nan = x.at[0, 2, 2].set(jnp.nan)
    found = jax.jit(self_influence(loss))(params, [1.0], with_nan)
    assert jnp.isnan(found).tolist() == [True, *[False] * 3]


def test_frozen_layers_of_a_vision_model_cost_nothing():
    # Only what `where` names is differentiated: here nothing before the last layer.
    loss, checkpoints, rates, train, test = build("convolutions_and_pools")
    fn = functools.partial(tracin(loss, where=[("w",)]), checkpoints, rates)
    text = str(jax.make_jaxpr(fn)(train, test))
    # Two sets of examples, two convolutions forward in each, none backward.
    assert text.count("= conv_general_dilated[") == 4

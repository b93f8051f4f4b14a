"""Debugging's parts: who is in danger, grouped labels, penalties, rising losses."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from jaxmethods.influence import _chunks
from jaxmethods.influence.debugging import (
    _penalties,
    debug,
    find_in_danger,
    grouped,
    loss_rise,
)
from tests.influence.definition import per_example

CLASSES = ("entailment", "neutral", "contradiction")
LABELS = (*CLASSES, "non-entailment")
GROUPS = np.concatenate([np.eye(3), [[0], [1], [1]]], 1)


def linear(params, x):
    return x @ params["w"] + params["b"][None]


def cross_entropy(params, example):
    scores = linear(params, example[0][None])[0]
    return jax.nn.logsumexp(scores) - scores[example[1]]


def draw(seed, *shape):
    return jnp.asarray(
        np.random.default_rng(seed).normal(size=shape), jnp.result_type(float)
    )


def model(seed=0):
    return {"w": draw(seed, 4, 3), "b": draw(seed + 1, 3)}


def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------ in danger


def look_up(params, inputs):
    """A classifier whose parameters are its answers: an input is a number."""
    return params[inputs]


@pytest.mark.parametrize("limit, chunk", [(4, 1), (9, 7), (30, 16), (3, 500)])
def test_those_found_are_the_first_of_the_order(limit, chunk):
    n = 30
    find = functools.partial(find_in_danger, look_up, limit=limit, chunk=chunk)
    find = jax.jit(find)

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 2**16), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    def holds(seed, share):
        draw = np.random.default_rng(seed)
        y = draw.integers(0, 3, n)
        before = np.where(draw.random(n) < 0.7, y, (y + 1) % 3)
        after = np.where(draw.random(n) < share, (y + 2) % 3, before)
        found = find(before, after, np.arange(n), y, jax.random.key(seed))
        order = np.asarray(jax.random.permutation(jax.random.key(seed), n))
        danger = ((before == y) & (after != y))[order]
        want = order[danger][:limit]
        np.testing.assert_array_equal(found.indices[: len(want)], want)
        np.testing.assert_array_equal(found.valid, np.arange(limit) < len(want))
        last = n if len(want) < limit else np.flatnonzero(danger)[limit - 1] + 1
        assert int(found.scanned) == min(-(-last // chunk) * chunk, n)

    holds()


def test_inputs_may_be_a_tree_and_answers_a_table():
    x, y = jnp.arange(20), jnp.arange(20) % 3
    after = jnp.where(x % 4 == 0, (y + 1) % 3, y)

    def table(params, inputs):
        return jax.nn.one_hot(params[inputs["x"]] + inputs["zero"][:, 0], 3) > 0

    tree = {"x": x, "zero": jnp.zeros((20, 2), int)}
    options = {"limit": 4, "chunk": 6}
    a = find_in_danger(table, y, after, tree, y, jax.random.key(3), **options)
    b = find_in_danger(look_up, y, after, x, y, jax.random.key(3), **options)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert a.valid.all() and (a.indices % 4 == 0).all()


def test_more_examples_than_32_bits_count():
    n = 2**31 - 100
    shapes = (jax.ShapeDtypeStruct((n,), jnp.int8),) * 2

    def find(inputs, labels):
        one, key = jnp.int8(1), jax.random.key(0)
        return find_in_danger(jnp.add, -one, one, inputs, labels, key)

    with pytest.raises(ValueError, match=r"no places in 32 bits; .*jax_enable_x64"):
        jax.eval_shape(find, *shapes)


@pytest.mark.parametrize(
    "change, kind, hint",
    [
        ({"limit": 0}, ValueError, "limit is 0; wanted at least 1"),
        ({"chunk": -1}, ValueError, "chunk is -1; wanted at least 1"),
        ({"limit": 2.0}, TypeError, r"limit is float 2.0; wanted a Python int"),
        ({"key": np.zeros(2, np.uint32)}, TypeError, r"key is uint32\[2\]; .*typed"),
        (
            {"labels": np.zeros(4, int)},
            ValueError,
            r"labels is int.*\[4\] for 5 inputs",
        ),
        ({"labels": np.zeros(5)}, TypeError, "labels is float.* wanted integers"),
        ({"labels": np.full(5, -1)}, ValueError, "the label -1; wanted 0 or more"),
        (
            {
                "predict": lambda p, x: jnp.zeros((len(x), 3), bool),
                "labels": np.full(5, 3),
            },
            ValueError,
            r"label 3; wanted 0\.\.2",
        ),
        (
            {"inputs": np.zeros(0), "labels": np.zeros(0, int)},
            ValueError,
            "no examples",
        ),
        ({"inputs": (np.zeros(5), 1.0)}, ValueError, "wanted one leading axis"),
        ({"after": {"w": np.zeros(3)}}, ValueError, "two sets of parameters of one"),
        (
            {"predict": lambda p, x: x * 1.5},
            ValueError,
            r"predict returns float.*\[5\] for 5 inputs; .* argmax",
        ),
    ],
)
def test_refusals_of_find_in_danger(change, kind, hint):
    right = {"predict": lambda p, x: jnp.zeros(len(x), int), "key": jax.random.key(0)}
    right |= {"before": {"w": np.zeros(2)}, "after": {"w": np.zeros(2)}}
    right |= {"inputs": np.zeros(5), "labels": np.zeros(5, int)}
    with pytest.raises(kind, match=hint):
        find_in_danger(**right | change)


# ---------------------------------------------------------------------------- groups


def test_the_loss_of_a_group_is_of_its_probability():
    params, x = model(), draw(5, 9, 4)
    loss, predict = grouped(linear, GROUPS)
    scores = np.asarray(linear(params, x))
    p = softmax(scores, -1) @ GROUPS
    each = jax.vmap(jax.vmap(lambda g, x: loss(params, (x, g)), (None, 0)), (0, None))
    losses = jax.jit(each)(np.arange(4), x)
    np.testing.assert_allclose(losses, -np.log(p).T, rtol=1e-5, atol=1e-6)
    answers = jax.jit(predict)(params, x)
    np.testing.assert_array_equal(answers, GROUPS[scores.argmax(-1)] > 0)


def test_one_group_a_class_is_the_cross_entropy(x64):
    params, x, y = model(), draw(5, 6, 4), np.arange(6) % 3
    loss, predict = grouped(linear, np.eye(3, dtype=bool))

    @jax.jit
    def both(params, some):
        each = (jax.value_and_grad(f) for f in (loss, cross_entropy))
        return [jax.vmap(f, (None, 0))(params, some) for f in each]

    jax.tree.map(assert_close, *both(params, (x, y)))
    answers = np.argmax(jax.jit(predict)(params, x), -1)
    np.testing.assert_array_equal(answers, np.argmax(linear(params, x), -1))


def test_gradients_of_groups_are_finite_at_certainty():
    loss, _ = grouped(linear, GROUPS)
    sure = {"w": jnp.zeros((4, 3)), "b": jnp.asarray([200.0, 0.0, -200.0])}
    x, slope = np.ones(4, np.float32), jax.jit(jax.value_and_grad(loss))
    for label, want in enumerate([0.0, 200.0, 400.0, 200.0]):
        value, gradient = slope(sure, (x, label))
        assert float(value) == want
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_the_labels_of_the_hans_suites_are_groups(shared):
    """A model that answers neutral is right on HANS, and wrong on entailments."""
    _, predict = grouped(lambda params, x: params[x], GROUPS)
    suites = sorted((shared / "data" / "nlu-debug-suites" / "hans").iterdir())
    opposite = 0
    for suite in suites:
        rows = (suite / "train-plus.jsonl").read_text().splitlines()
        labels = [LABELS.index(json.loads(row)["label"]) for row in rows]
        assert set(labels[:10]) == {3}
        answers = np.eye(3)[np.full(len(labels), 1)]
        right = predict(answers, jnp.arange(len(labels)))[
            np.arange(len(labels)), labels
        ]
        np.testing.assert_array_equal(right, np.isin(labels, (1, 3)))
        opposite += labels[10:].count(0)
    assert len(suites) == 5 and opposite == 81


def test_wide_and_narrow_labels_are_debugged_together():
    """Debug rows say non-entailment; those in danger keep their class."""
    params = {"w": jnp.eye(4)[:, :3] * 2, "b": jnp.zeros(3)}
    loss, predict = grouped(linear, GROUPS)
    bug = jnp.asarray([[1.0, 0, 0, 1], [1.0, 0.2, 0, 1]]), jnp.full(2, 3)
    x = jnp.concatenate([jnp.eye(3, 4), jnp.asarray([[1.0, 0, 0, 0.5]])])
    original = (x, jnp.asarray([0, 1, 2, 0]))
    options = {"optimizer": optax.adam(0.1), "key": jax.random.key(0)}
    run = jax.jit(lambda m: debug(loss, predict, m, bug, original, **options))
    done = run(params)
    assert done.solved and done.passes == 1  # not all four were in danger
    assert linear(done.params, x).argmax(-1).tolist() == [0, 1, 2, 0]
    assert 0 not in linear(done.params, bug[0]).argmax(-1)
    with pytest.raises(
        ValueError, match=r"original_set has the label 4; wanted 0\.\.3"
    ):
        debug(loss, predict, params, bug, (x, original[1] + 2), **options)


@pytest.mark.parametrize(
    "groups, hint",
    [
        (np.ones(3), r"groups is float.*\[3\]; wanted a matrix"),
        (np.full((3, 2), 0.5), "groups holds 0.5; wanted 0 or 1"),
        (np.array([[1, 0], [0, 1], [0, 0]]), r"class 2 is in no group of groups int"),
        (np.array([[1, 0], [1, 0], [1, 0]]), "group 1 is empty of groups int"),
    ],
)
def test_refusals_of_groups(groups, hint):
    with pytest.raises(ValueError, match=hint):
        grouped(linear, groups)


def test_logits_of_another_number_of_classes():
    loss, predict = grouped(linear, np.eye(4))
    for call in (loss, predict):
        with pytest.raises(ValueError, match=r"\[1,3\]; wanted \[n, 4\]"):
            call(model(), (jnp.ones(4), 0) if call is loss else jnp.ones((1, 4)))


# ------------------------------------------------------------------------- penalties


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16), size=st.sampled_from([0.0, 1e-3, 0.5, 1.0, 2.0, 1e3])
)
def test_the_projection_is_the_nearest_point_of_the_ball(seed, size):
    with jax.enable_x64(True):
        center, offset = model(seed), model(seed + 2)
        offset = optax.tree.scale(size / optax.tree.norm(offset), offset)
        point = optax.tree.add(center, offset)
        radius = 1.0001
        got = _penalties.l2_ball(center, radius)(point)
        if size < radius:
            jax.tree.map(np.testing.assert_array_equal, got, point)
            return
        moved = optax.tree.sub(got, center)
        want = optax.tree.scale(radius / size, offset)
        jax.tree.map(assert_close, moved, want)
        assert_close(optax.tree.norm(moved), radius)


def test_half_precision_has_long_distances():
    far = {"w": jnp.full(4, 300.0, jnp.float16)}
    near = _penalties.l2_ball({"w": jnp.zeros(4, jnp.float16)}, 4.0)(far)
    assert near["w"].dtype == jnp.float16
    np.testing.assert_allclose(near["w"], 2.0, rtol=1e-3)


def test_the_divergence_is_zero_and_flat_at_the_old_model():
    params, x = model(), draw(5, 6, 4)
    penalty = _penalties.kl_penalty(linear, params, 3.0)
    value, slope = jax.jit(jax.value_and_grad(penalty))(params, x)
    assert float(value) == 0
    for g in jax.tree.leaves(slope):  # 0 but for the rounding of probabilities
        np.testing.assert_allclose(g, 0, atol=1e-6)
    other = model(7)
    p, q = (softmax(np.asarray(linear(m, x), np.float64), -1) for m in (params, other))
    want = 3 * (p * np.log(p / q)).sum(-1).mean()
    np.testing.assert_allclose(jax.jit(penalty)(other, x), want, rtol=1e-5)


def test_a_class_that_is_ruled_out_costs_nothing():
    def masked(params, x):
        return linear(params, x) + jnp.asarray([[0, 0, -jnp.inf]])

    penalty = _penalties.kl_penalty(masked, model(), 1.0)
    value, slope = jax.jit(jax.value_and_grad(penalty))(model(7), draw(5, 6, 4))
    assert float(value) > 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(slope))


@pytest.mark.parametrize("budget", [2**24, 50])
def test_the_fisher_diagonal_is_the_mean_square(budget, monkeypatch):
    monkeypatch.setattr(_chunks, "BUDGET", budget)
    params, some = model(), (draw(5, 7, 4), np.arange(7) % 3)

    @jax.jit
    def diagonal(params):
        return _penalties.diagonal_fisher(cross_entropy, params, some)

    got = diagonal(params)
    each = per_example(cross_entropy)(params, some)
    want = jax.tree.map(lambda g: (np.asarray(g) ** 2).mean(0), each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)
    other = model(7)
    penalty = jax.jit(_penalties.fisher_penalty(params, got, 2.0))(other)
    away = jax.tree.map(lambda a, b: np.subtract(a, b) ** 2, other, params)
    parts = jax.tree.map(lambda f, square: (f * square).sum(), want, away)
    np.testing.assert_allclose(penalty, 2 * sum(jax.tree.leaves(parts)), rtol=1e-5)


# -------------------------------------------------------------------- the first order


def test_the_rise_is_the_derivative_of_a_step(x64):
    params = model()
    bug, original = ((draw(s, n, 4), np.arange(n) % 3) for s, n in ((5, 3), (6, 8)))

    @jax.jit
    def rise(params):
        each = jax.vmap(cross_entropy, (None, 0))
        slope = jax.grad(lambda p: each(p, bug).mean())(params)
        ends = [optax.tree.add_scale(params, rate, slope) for rate in (-1e-4, 1e-4)]
        want = (each(ends[0], original) - each(ends[1], original)) / 2e-4
        return loss_rise(cross_entropy, params, bug, original), want

    got, want = rise(params)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)


def test_refusals_of_the_rise():
    some = (draw(5, 3, 4), jnp.arange(3))
    with pytest.raises(ValueError, match="debug_set has no examples"):
        loss_rise(cross_entropy, model(), (some[0][:0], some[1][:0]), some)
    with pytest.raises(ValueError, match="wanted one floating scalar"):
        loss_rise(lambda p, e: e[0], model(), some, some)

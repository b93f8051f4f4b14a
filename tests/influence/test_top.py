"""Proponents and opponents: the ends of the scores, without the matrix of scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxmethods.influence import _chunks, opponents, proponents, tracin
from jaxmethods.influence._ranking import NOBODY, Order, merge
from tests.influence.definition import assert_close, build, draw

TOPS = {"proponents": (proponents, 1), "opponents": (opponents, -1)}


def ends(scores, k, sign):
    """The definition: a stable sort, so that of equal scores the first comes first."""
    at = np.argsort(-sign * np.asarray(scores), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(np.asarray(scores), at, 1), at


def assert_top(got, scores, sign):
    want, at = ends(scores, got.indices.shape[1], sign)
    assert_close(got.scores, want, 1e-5)
    np.testing.assert_array_equal(got.indices, at)
    assert got.indices.dtype == jnp.int32


@functools.cache
def scored(n=24, m=5):
    args = build("dense", n=n, m=m)
    return args, np.asarray(jax.jit(tracin(args[0]))(*args[1:]))


@pytest.mark.parametrize(
    "name, budget, k",
    [
        ("proponents", 2**24, 24),
        ("opponents", 2**24, 2),
        ("proponents", 1500, 1),
        ("opponents", 1, 3),
    ],
)
def test_the_ends_of_the_scores_in_any_chunks(name, budget, k, monkeypatch):
    monkeypatch.setattr(_chunks, "BUDGET", budget)
    (loss, *args), scores = scored()
    top, sign = TOPS[name]
    assert_top(jax.jit(top(loss, k))(*args), scores, sign)


small = st.integers(-2, 2).map(float)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(small, min_size=24, max_size=24),
    st.sampled_from([1, -1]),
    st.booleans(),
)
def test_ties_go_to_the_lower_number_whatever_the_parts(values, sign, backwards):
    scores = np.asarray(values, np.float32).reshape(2, 12)
    scores = np.where(scores == 1, np.float32(-0.0), scores)  # As good as 0.
    order, best = Order(4, sign), Order(4, sign).empty(2, jnp.float32)
    parts = [np.arange(i, 12, 3) for i in range(3)]
    for part in parts[:: -1 if backwards else 1]:
        index = np.asarray([*part, NOBODY], np.int32)
        some = np.concatenate([scores[:, part], np.full((2, 1), 9, np.float32)], 1)
        best = merge(order, best, some, index)
    assert_top(best, scores, sign)


def test_the_ends_of_projected_scores():
    def loss(p, x):
        return jnp.sum(jnp.sin(x @ p["w"]))

    args = {"w": draw(0, (1, 6, 5))}, np.ones(1), draw(1, (24, 6)), draw(2, (5, 6))
    key = jax.random.key(3)
    want = jax.jit(tracin(loss, project=6))(key, *args)
    found = jax.jit(proponents(loss, 4, project=6))(key, *args)
    assert_top(found, want, 1)
    stream = iter([args[2][:20], args[2][20:]])
    found = opponents(loss, 4, project=6)(key, *args[:2], stream, args[3])
    assert_top(found, want, -1)
    with pytest.raises(ValueError, match="project is 0; wanted at least 1"):
        proponents(loss, 4, project=0)


@pytest.mark.parametrize("name", TOPS)
def test_equal_examples_tie(name, monkeypatch):
    monkeypatch.setattr(_chunks, "BUDGET", 1)
    (loss, checkpoints, rates, train, test), _ = scored()
    top, _ = TOPS[name]
    train = jnp.concatenate([train[:5]] * 3)
    got = jax.jit(top(loss, 6))(checkpoints, rates, train, test)
    for row in np.asarray(got.indices).reshape(5, 2, 3):
        for three in row:
            assert three.tolist() == [three[0], three[0] + 5, three[0] + 10]


def test_k_of_one_device_is_more_than_it_has():
    (loss, checkpoints, rates, train, test), scores = scored()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    for top, sign in TOPS.values():
        found = jax.shard_map(
            lambda train, top=top: top(loss, 5, axis_name="data")(
                checkpoints, rates, train, test
            ),
            mesh=mesh,
            in_specs=P("data"),
            out_specs=P(),  # The same on each device.
        )
        assert_top(jax.jit(found)(train), scores, sign)


def test_training_and_test_examples_over_two_mesh_axes(monkeypatch):
    monkeypatch.setattr(_chunks, "BUDGET", 300)
    (loss, checkpoints, rates, train, test), scores = scored(m=4)
    kinds = (AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("data", "test"), axis_types=kinds)
    visits = jnp.arange(24.0)

    def found(train, test, visits):
        top = proponents(loss, 3, axis_name="data")
        return top(checkpoints, rates, train, test, visits=visits)

    specs = (P("data"), P("test"), P("data"))
    found = jax.shard_map(found, mesh=mesh, in_specs=specs, out_specs=P("test"))
    assert_top(jax.jit(found)(train, test, visits), scores * np.arange(24), 1)


def test_eager_is_jit_and_vmap_over_models():
    (loss, checkpoints, *rest), scores = scored()
    top = opponents(loss, 4)
    assert_top(top(checkpoints, *rest), scores, -1)
    several = jax.tree.map(lambda x: np.stack([0.5 * np.asarray(x), x]), checkpoints)
    got = jax.jit(jax.vmap(lambda c: top(c, *rest)))(several)
    assert_top(jax.tree.map(lambda x: x[1], got), scores, -1)


def test_a_score_that_is_not_finite_leads():
    def loss(p, x):
        return jnp.sum(x * p["w"] ** 2)

    params, rates = {"w": np.ones((1, 3), np.float32)}, np.ones(1)
    train, test = np.ones((6, 3), np.float32), np.ones((2, 3), np.float32)
    train[4, 1], train[2, 0] = np.nan, -np.inf
    for top, _ in TOPS.values():
        got = jax.jit(top(loss, 3))(params, rates, train, test)
        assert got.indices.tolist() == [[2, 4, 0]] * 2
        assert not np.isfinite(got.scores[:, :2]).any()
    with pytest.raises(ValueError, match=r"not finite: the scores of train \[2, 4"):
        opponents(loss, 3)(params, rates, train, test)
    with pytest.raises(ValueError, match=r"not finite: the scores of test \[1\]"):
        test[1, 0] = np.inf
        proponents(loss, 1)(params, rates, np.ones((4, 3)), test)


@pytest.mark.optimized
def test_memory_does_not_grow_with_the_training_set(monkeypatch):
    monkeypatch.setattr(_chunks, "BUDGET", 2**19)

    def loss(p, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ p["w"]) @ p["v"]))

    params = {"w": jnp.zeros((2, 32, 64)), "v": jnp.zeros((2, 64, 32))}
    test = jnp.zeros((100, 32))

    def used(n):
        fn = jax.jit(lambda x: proponents(loss, 10)(params, jnp.ones(2), x, test))
        x = jax.ShapeDtypeStruct((n, 32), jnp.float32)
        return fn.lower(x).compile().memory_analysis().temp_size_in_bytes

    # Primes: there is a remainder for any number of chunks.
    some, many = used(20_011), used(320_009)
    assert many < 1.05 * some
    assert many < 0.05 * 4 * 100 * 320_009  # The matrix of scores.


def test_the_loss_is_traced_once():
    (loss, *args), _ = scored()
    calls = []

    def counted(params, example):
        calls.append(1)
        return loss(params, example)

    proponents(counted, 2)(*args)
    assert len(calls) == 1


@pytest.mark.parametrize("name", TOPS)
def test_what_is_refused(name):
    (loss, *args), _ = scored()
    top, _ = TOPS[name]
    with pytest.raises(ValueError, match=r"k is 25; wanted 1\.\.24, the training"):
        top(loss, 25)(*args)
    with pytest.raises(ValueError, match="k is 0; wanted at least 1"):
        top(loss, 0)
    with pytest.raises(TypeError, match=r"k is float 2\.0; wanted a Python int"):
        top(loss, 2.0)
    with pytest.raises(ValueError, match=r"float32\[3\] for 2 checkpoints"):
        top(loss, 1)(args[0], jnp.ones(3), *args[2:])
    with pytest.raises(ValueError, match=r"visits is float32\[7\]; wanted \(24,\)"):
        top(loss, 1)(*args, visits=jnp.ones(7))
    with pytest.raises(ValueError, match=r"k is 30; wanted 1\.\.24"):
        stream = iter([args[2]])
        top(loss, 30)(*args[:2], stream, args[3])
    with pytest.raises(ValueError, match="axis_name is 'data', while batches"):
        top(loss, 1, axis_name="data")(*args[:2], iter([args[2]]), args[3])

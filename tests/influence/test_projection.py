"""Projected scores: unbiased at any size, exact where there is room for all numbers."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxmethods.influence import datastore, proponents, tracin
from jaxmethods.influence._projection import lay_out
from tests.influence.definition import assert_close, build, draw

shape = st.lists(st.integers(1, 30), min_size=1, max_size=3).map(tuple)


@settings(max_examples=200, deadline=None)
@given(st.lists(shape, min_size=1, max_size=6), st.integers(1, 400))
def test_numbers_are_shared_out(shapes, most):
    layout = lay_out(dict(enumerate(shapes)), most)
    sizes = [math.prod(s) for s in shapes]
    kept = [slot.size for slot in layout.slots]
    assert 1 <= layout.width <= most
    assert all(1 <= k <= size for k, size in zip(kept, sizes, strict=True))
    for slot in layout.slots:
        for k, n in zip(slot.sides, slot.shape[-2:], strict=True):
            assert 1 <= k <= n
    if most >= len(shapes):  # No number is shared.
        assert sum(kept) == layout.width
    if most >= sum(sizes):
        assert kept == sizes
        assert layout == lay_out(dict(enumerate(shapes)), None)


def test_what_a_small_parameter_leaves_goes_to_the_large():
    shapes = {0: (100, 100), 1: (4,), 2: (1000,), 3: (3, 90)}
    layout = lay_out(shapes, 604)
    # 200 for each of three after the one of 4; 3 x 66 of that whose short side is kept
    # whole leave 402 for two; 14 x 14 fit into 201.
    kept = {slot.part: (slot.sides, slot.size) for slot in layout.slots}
    assert kept == {
        0: ((14, 14), 196),
        1: ((4,), 4),
        2: ((201,), 201),
        3: ((3, 66), 198),
    }
    assert layout.width == 4 + 198 + 201 + 196


def test_groups_share_their_numbers_or_are_sketched_together():
    (slot,) = lay_out({0: (6, 20, 30)}, 60).slots
    assert (slot.sides, slot.size) == ((3, 3), 54)
    (slot,) = lay_out({0: (6, 20, 30)}, 4).slots
    assert (slot.sides, slot.size) == ((1, 1), 4)


def draws(loss, args, project, count):
    keys = jax.random.split(jax.random.key(0), count)
    scores = tracin(loss, project=project)
    return np.asarray(jax.jit(jax.vmap(lambda key: scores(key, *args)))(keys))


CASES = [
    ("dense", 1),  # All parameters in one number.
    ("convolutions_and_pools", 12),
    ("a_weight_for_each_head", 2),  # Groups that are sketched together.
    ("loops_and_look_ups", 6),
]


@pytest.mark.parametrize("name, project", CASES)
def test_unbiased_at_any_size(name, project):
    loss, *args = build(name, n=4, m=2)
    want = np.asarray(tracin(loss)(*args), np.float64)
    got = draws(loss, args, project, 600)
    slope = (got * want).sum((1, 2)) / (want**2).sum()
    error = slope.std() / np.sqrt(len(slope))
    # A scale that is off by half, or a part that is left out, is seen.
    assert 0 < error < 0.1
    assert abs(slope.mean() - 1) < 4 * error
    spread = got.std(0) / np.sqrt(len(got)) + 1e-6
    assert (np.abs(got.mean(0) - want) / spread).max() < 5


@pytest.mark.parametrize("name", ["dense", "loops_and_look_ups"])
def test_exact_with_room_for_all_numbers(name):
    loss, *args = build(name)
    numbers = sum(x[0].size for x in jax.tree.leaves(args[0]))
    got = jax.jit(tracin(loss, project=numbers))(jax.random.key(1), *args)
    assert_close(got, jax.jit(tracin(loss))(*args), 1e-5)


def test_nothing_to_keep():
    loss, checkpoints, rates, train, test = build("decayed")
    key = jax.random.key(0)
    unused = tracin(loss, project=3, where=[("unused",)])
    assert not unused(key, checkpoints, rates, train, test).any()
    none = tracin(loss, project=1)(key, checkpoints, rates, train, test[:0])
    assert none.shape == (0, 5)


@pytest.mark.parametrize("project", [5, 40])
def test_the_error_is_that_of_the_formula(project):
    # A vector of 300 numbers: Var <= (|u|^2 |v|^2 + (u.v)^2) / project.
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(3, 300)), jnp.float32) for _ in range(2))

    def loss(p, x):
        return jnp.sum(jnp.tanh(p["w"]) * x)

    got = draws(loss, ({"w": jnp.zeros((1, 300))}, jnp.ones(1), x, y), project, 400)
    variance = got.var(0)
    norms = np.square(y).sum(1)[:, None] * np.square(x).sum(1)
    formula = (norms + np.square(y @ x.T)) / project
    # Of 400 draws a variance has an error of some 7 %, more for heavy tails.
    assert 0.7 < (variance / formula).mean() < 1.2


def matrix_loss(p, x):
    return jnp.sum(jnp.sin(x @ p["w"]))


def matrix_case(n):
    checkpoints = {"w": jnp.stack([draw(0, (6, 5))] * 2)}
    return checkpoints, draw(1, (n, 6)), draw(2, (4, 6))


def test_checkpoints_have_sketches_of_their_own():
    # Of two equal checkpoints the errors average out.
    checkpoints, train, test = matrix_case(4)

    @functools.partial(jax.vmap, in_axes=(0, None))
    def scores(key, rates):
        return tracin(matrix_loss, project=6)(key, checkpoints, rates, train, test)

    keys, scores = jax.random.split(jax.random.key(0), 400), jax.jit(scores)
    one, two = (scores(keys, jnp.asarray(r)).var(0) for r in ([1.0, 0.0], [0.5, 0.5]))
    assert 0.4 < (two / one).mean() < 0.62


def test_a_key_names_a_sketch_that_all_examples_share():
    checkpoints, train, _ = matrix_case(7)
    scores = jax.jit(tracin(matrix_loss, project=5))
    args = checkpoints, jnp.ones(2)
    gram = np.asarray(scores(jax.random.key(3), *args, train, train))
    np.testing.assert_allclose(gram, gram.T, rtol=1e-5, atol=1e-5)
    assert np.linalg.eigvalsh(gram)[0] > -1e-5 * np.abs(gram).max()
    turned = scores(jax.random.key(3), *args, train[::-1], train)
    assert_close(turned, gram[:, ::-1], 1e-5)
    other = scores(jax.random.key(4), *args, train, train)
    assert np.abs(other - gram).max() > 0.1 * np.abs(gram).max()


def test_over_devices_as_on_one():
    checkpoints, train, test = matrix_case(16)
    args = jax.random.key(5), checkpoints, jnp.ones(2)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def scores(train):
        return tracin(matrix_loss, project=6)(*args, train, test)

    specs = {"in_specs": P("data"), "out_specs": P(None, "data")}
    mapped = jax.shard_map(scores, mesh=mesh, **specs)
    assert_close(jax.jit(mapped)(train), jax.jit(scores)(train), 1e-5)


@pytest.mark.optimized
def test_no_gradient_is_formed():
    def loss(p, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ p["w"]) @ p["v"]))

    params = {"w": jnp.zeros((1, 64, 128)), "v": jnp.zeros((1, 128, 64))}
    x = jax.ShapeDtypeStruct((1024, 64), jnp.float32)
    scores = tracin(loss, project=64)
    fn = jax.jit(lambda x: scores(jax.random.key(0), params, jnp.ones(1), x, x[:4]))
    used = fn.lower(x).compile().memory_analysis().temp_size_in_bytes
    assert used < 0.1 * 1024 * 4 * 2 * 64 * 128


def test_what_is_refused():
    loss, *args = build("dense")
    with pytest.raises(ValueError, match="project is 0; wanted at least 1"):
        tracin(loss, project=0)
    with pytest.raises(TypeError, match=r"project is float 8\.0; wanted a Python int"):
        tracin(loss, project=8.0)
    with pytest.raises(TypeError, match=r"key is uint32\[2\]; wanted a typed key"):
        tracin(loss, project=8)(jnp.zeros(2, jnp.uint32), *args)
    hint = r"(?s)with project= a key comes first; key is dict .*; wanted a typed key"
    for score in (tracin(loss, project=8), proponents(loss, 2, project=8)):
        with pytest.raises(TypeError, match=hint):
            score(*args)
    for score in (tracin(loss), proponents(loss, 2), datastore(loss).build):
        with pytest.raises(TypeError, match=r"key came first, and project is None; w"):
            score(jax.random.key(0), *args)
    first, *_ = inspect.signature(tracin(loss)).parameters
    assert first == "checkpoints"
    first, *_ = inspect.signature(tracin(loss, project=8)).parameters
    assert first == "key"

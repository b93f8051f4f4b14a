"""Backward passes for some rows at a time: the same bounds, mapped or not."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from jaxmethods import bound
from jaxmethods.bound import _chunks as chunks
from jaxmethods.bound._rows import Dense, Entries

RNG = np.random.default_rng(0)
SIZES = (5, 70, 40, 3)  # neither a multiple of the rows of a step
WEIGHTS = [
    jnp.asarray(RNG.normal(size=shape) / shape[0] ** 0.5, jnp.float32)
    for shape in itertools.pairwise(SIZES)
]
X = jnp.asarray(RNG.normal(size=(8, SIZES[0])), jnp.float32)
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "two readers": lambda x: jnp.abs(x) + jnp.clip(x, -0.5, 0.25),
    "a smooth reader": lambda x: jax.nn.relu(x) + jnp.tanh(x),
}


def net(weights, x, act=jax.nn.relu):
    for w in weights[:-1]:
        x = act(x @ w + 0.1)
    return x @ weights[-1]


def lower(weights, x, eps, act=jax.nn.relu):
    fn = lambda x: net(weights, x, act)  # noqa: E731
    return bound.crown(fn)(bound.Ball(x, eps)).lower


@pytest.fixture(scope="module")
def batched():
    return jax.jit(jax.vmap(lower, (None, 0, None)))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_as_tight_as_passes_from_every_entry(act, x64, monkeypatch):
    weights, x = jax.tree.map(lambda a: a.astype(float), (WEIGHTS, X[:2]))
    run = lambda: jax.jit(jax.vmap(lambda x: lower(weights, x, 0.1, ACTIVATIONS[act])))  # noqa: E731
    some = run()(x)
    monkeypatch.setattr(chunks, "_ROWS", 10**9)
    every = run()(x)
    width = jax.vmap(lambda x: net(weights, x, ACTIVATIONS[act]))(x) - every
    # Entries whose interval decides them keep it, which a later interval may feel.
    assert (np.abs(some - every) <= 1e-6 * width).all()


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_rectifier_of_decided_entries_is_as_tight_as_they_are(shift, x64):
    weights = [w.astype(float) for w in WEIGHTS[:2]]  # 40 outputs: passes in steps
    inside = lambda x: shift * (net(weights, x) + 10)  # noqa: E731
    fn = lambda x: jnp.abs(inside(x))  # noqa: E731
    run = lambda f: jax.jit(bound.crown(f))(bound.Ball(X[0].astype(float), 0.1))  # noqa: E731
    got, want = run(fn), run(inside)
    width = want.upper - want.lower
    np.testing.assert_allclose(got.upper - got.lower, width, rtol=1e-6)


def sets():
    x = np.linspace(-1, 1, SIZES[1]) ** 3
    ball = lambda p: bound.Ball(jnp.asarray(x), 0.3, p)  # noqa: E731
    choices = jnp.asarray(RNG.normal(size=(4, 3, 12)))
    return {
        "l1": ball(1),
        "l2": ball(2),
        "linf": ball(jnp.inf),
        "l2 in a box": bound.Intersection(ball(2), bound.Box(-0.5, 0.9)),
        "words": bound.Substitutions(choices[:, 0], choices, jnp.ones((4, 3), bool), 1),
    }


@pytest.mark.parametrize("name", ["l1", "l2", "linf", "l2 in a box", "words"])
def test_rows_of_single_entries_meet_every_set(name, x64):
    region = sets()[name]
    shape = jax.tree.leaves(region.placeholder)[0].shape
    rows = Entries(jnp.array([1.0, -2.0, 0.5]), jnp.array([3, 0, 11]), shape)
    got, want = (region.minimum([r]) for r in (rows, Dense(rows.dense())))
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_mapped_over_examples_the_branch_stays_a_branch():
    run = jax.vmap(jax.vmap(lower, (None, 0, None)), (None, 0, None))
    jaxpr = str(jax.make_jaxpr(run)(WEIGHTS, X.reshape(2, 4, -1), 0.1))
    assert "cond[" in jaxpr


def test_composes(batched):
    got = batched(WEIGHTS, X, 0.1)
    one_by_one = jnp.stack([jax.jit(lower)(WEIGHTS, x, 0.1) for x in X[:2]])
    np.testing.assert_allclose(got[:2], one_by_one, rtol=1e-5, atol=1e-5)
    twice = jax.vmap(jax.vmap(lower, (None, 0, None)), (None, 0, None))
    nested = jax.jit(twice)(WEIGHTS, X.reshape(2, 4, -1), 0.1).reshape(8, -1)
    np.testing.assert_allclose(got, nested, rtol=1e-5, atol=1e-5)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    one_each = jax.shard_map(
        lambda x: jax.vmap(lower, (None, 0, None))(WEIGHTS, x, 0.1),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P("data"),
    )
    np.testing.assert_allclose(got, jax.jit(one_each)(X), rtol=1e-5, atol=1e-5)


def test_an_example_that_needs_few_rows_beside_one_that_needs_all(batched):
    eps = jnp.array([0.0, 10.0])
    both = jax.jit(jax.vmap(lower, (None, 0, 0)))(WEIGHTS, X[:2], eps)
    np.testing.assert_allclose(
        both[0], batched(WEIGHTS, X[:2], 0.0)[0], rtol=1e-4, atol=1e-4
    )
    assert (both[0] <= net(WEIGHTS, X[0])).all()
    points = X[1:2] + RNG.uniform(-10, 10, (200, SIZES[0]))
    assert (both[1] <= net(WEIGHTS, points).min(0)).all()


def test_gradients_are_those_of_finite_differences(x64):
    weights, x = jax.tree.map(lambda a: a.astype(float), (WEIGHTS, X[:2]))

    def total(weights, x, eps):
        return jax.vmap(lower, (None, 0, None))(weights, x, eps).sum()

    check_grads(jax.jit(total), (weights, x, 0.1), 1, eps=1e-6, rtol=1e-4)


def convolved(x, act):
    dimensions = ("NHWC", "HWIO", "NHWC")
    kernel = WEIGHTS[1].reshape(-1)[:108].reshape(3, 3, 2, 6)
    x = x.reshape(1, 5, 5, 2)
    x = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=dimensions
    )
    return act(act(x).reshape(-1) @ WEIGHTS[1].reshape(-1)[:2100].reshape(150, 14))


@pytest.mark.parametrize(
    ("act", "side"), [(jnp.tanh, "both"), (jnp.tanh, "lower"), (jax.nn.relu, "upper")]
)
def test_chunks_of_rows_change_nothing(act, side):
    x = bound.Ball(jnp.asarray(RNG.normal(size=50), jnp.float32), 0.05)
    fn = lambda x: convolved(x, act)  # noqa: E731
    want, got = (
        jax.jit(bound.crown(fn, side=side, chunk=chunk))(x) for chunk in (None, 4)
    )
    np.testing.assert_allclose(got.lower, want.lower, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.upper, want.upper, rtol=1e-4, atol=1e-5)


def test_chunks_of_rows_save_memory():
    weights = jnp.asarray(RNG.normal(size=(300, 300)) / 300, jnp.float32)
    fn = lambda x: jnp.tanh(jnp.tanh(x @ weights) @ weights)  # noqa: E731
    x = bound.Ball(jnp.zeros(300), 0.1)
    some, whole = (
        jax.jit(bound.crown(fn, chunk=c)).lower(x).compile().memory_analysis()
        for c in (10, None)
    )
    assert some.temp_size_in_bytes < whole.temp_size_in_bytes / 5


@pytest.mark.parametrize("method", [bound.crown, bound.crown_ibp, bound.alpha_crown])
def test_a_chunk_is_a_number_of_rows(method):
    with pytest.raises(ValueError, match="chunk is 0; wanted at least 1"):
        method(jnp.tanh, chunk=0)
    with pytest.raises(TypeError, match="wanted a Python int"):
        method(jnp.tanh, chunk=2.0)

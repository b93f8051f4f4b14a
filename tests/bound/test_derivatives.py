"""Bounds of derivatives: no two points change faster, no sign is claimed in vain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import bound

W = jax.random.normal(jax.random.key(0), (4, 6))
V = jax.random.normal(jax.random.key(1), (6, 2)) / 2
X = jnp.linspace(-0.5, 0.5, 4)
NETS = {
    "relu": lambda x: jax.nn.relu(x @ W) @ V,
    "leaky": lambda x: jax.nn.leaky_relu(x @ W, 0.1) @ V,
    "tanh": lambda x: jnp.tanh(x @ W) @ V,
    "gelu": lambda x: jax.nn.gelu(x @ W) @ V,
    "deep": lambda x: jax.nn.relu(jax.nn.relu(x @ W) @ V @ V.T - 0.1) @ V,
    "max": lambda x: jnp.maximum(x @ W, 0.1) @ V,
    "abs": lambda x: jnp.abs(x @ W) @ V,
}


@pytest.mark.parametrize("name", NETS)
def test_no_two_points_of_the_ball_change_faster(name):
    fn = NETS[name]
    noise = jax.random.uniform(jax.random.key(2), (3000, 4), minval=-0.3, maxval=0.3)
    points = X[None] + noise
    norms = ((jnp.inf, 1), (2, 2), (1, jnp.inf))

    @jax.jit
    def run(ball, points):
        found = [bound.lipschitz(fn, p=p)(ball) for p, _ in norms]
        return found, jax.vmap(fn)(points), jax.vmap(jax.jacrev(fn))(points)

    found, values, slopes = run(bound.Ball(X, 0.3), points)
    change, steps = jnp.abs(jnp.diff(values, axis=0)), jnp.diff(points, axis=0)
    for got, (p, dual) in zip(found, norms, strict=True):
        moved = jnp.linalg.norm(steps, p, axis=1)
        assert got.shape == (2,)
        assert (change <= got[None] * moved[:, None] * (1 + 1e-5)).all()
        reached = jnp.linalg.norm(slopes, dual, axis=2).max(0)
        assert (reached <= got).all()
        if name not in ("tanh", "gelu"):  # wide, but not absurd
            assert (got <= 4 * reached).all()


@pytest.mark.parametrize("method", ["ibp", "forward", "crown_ibp", "crown"])
def test_an_affine_function_has_its_exact_constants(method):
    fn = lambda x: x @ W + 1  # noqa: E731
    for p, dual in ((jnp.inf, 1), (2, 2), (1, np.inf)):
        got = jax.jit(bound.lipschitz(fn, p=p, method=method))(bound.Ball(X, 0.3))
        want = np.linalg.norm(np.asarray(W), dual, axis=0)
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_where_the_signs_are_settled_it_is_the_slope_itself():
    fn = NETS["relu"]
    tiny = bound.Ball(X, 1e-5)
    want = jnp.abs(jax.jacrev(fn)(X)).sum(1)
    np.testing.assert_allclose(jax.jit(bound.lipschitz(fn))(tiny), want, rtol=1e-4)


def test_trees_in_and_out_keep_their_structure():
    fn = lambda t: {"s": (t["a"] ** 2).sum() + t["b"][0, 1], "v": 2 * t["a"]}  # noqa: E731
    tree = {"a": jnp.array([1.0, 2.0]), "b": jnp.ones((2, 2))}
    got = jax.jit(bound.lipschitz(fn, p=1))(bound.Ball(tree, 0.5))
    np.testing.assert_allclose(got["s"], 5.0, rtol=1e-5)
    np.testing.assert_allclose(got["v"], [2.0, 2.0], rtol=1e-5)
    found = jax.jit(bound.monotonicity(fn))(bound.Ball(tree, 0.5))
    assert found.increasing["s"]["a"].shape == (2,)
    assert found.increasing["v"]["b"].shape == (2, 2, 2)
    assert found.increasing["s"]["a"].all() and not found.decreasing["s"]["a"].any()
    assert found.increasing["v"]["b"].all() and found.decreasing["v"]["b"].all()


def test_a_net_of_nonnegative_weights_rises_and_its_mirror_falls():
    w, v = jnp.abs(W), jnp.abs(V)
    ball = bound.Ball(X, 1.0)
    for act in (jax.nn.relu, jax.nn.sigmoid):
        found = jax.jit(bound.monotonicity(lambda x: act(x @ w) @ v))(ball)  # noqa: B023
        assert found.increasing.shape == (2, 4) and found.increasing.all()
        assert not found.decreasing.any()
        mirror = lambda x: act(-(x @ w)) @ v  # noqa: B023, E731
        found = jax.jit(bound.monotonicity(mirror))(ball)
        assert found.decreasing.all() and not found.increasing.any()


@pytest.mark.parametrize("name", ["relu", "tanh", "deep"])
def test_no_direction_is_claimed_that_a_sample_refutes(name):
    fn = NETS[name]
    noise = jax.random.uniform(jax.random.key(3), (2000, 4), minval=-1, maxval=1)

    @jax.jit
    def run(eps):
        slopes = jax.vmap(jax.jacrev(fn))(X[None] + eps * noise)
        return slopes, bound.monotonicity(fn)(bound.Ball(X, eps))

    for eps in (0.02, 0.3):
        slopes, found = run(eps)
        slack = 1e-4 * jnp.abs(slopes).max()
        assert (jnp.where(found.increasing[None], slopes, 0) >= -slack).all()
        assert (jnp.where(found.decreasing[None], slopes, 0) <= slack).all()
        if eps == 0.02:
            assert (found.increasing | found.decreasing).any()


def test_between_two_sentences_counts_as_well():
    words = bound.Substitutions(
        jnp.zeros((1, 1)), jnp.ones((1, 1, 1)), jnp.ones((1, 1), bool), 1
    )
    fn = lambda x: (x[0] - 0.5) ** 2  # noqa: E731
    got = jax.jit(bound.lipschitz(fn))(words)
    assert got[0] >= 1
    assert not jax.jit(bound.monotonicity(fn))(words).increasing.any()


def test_vmap_over_sets_equals_a_loop():
    fn, xs = NETS["relu"], jnp.stack([X, X + 1, -X])
    one = lambda x: bound.lipschitz(fn)(bound.Ball(x, 0.1))  # noqa: E731
    alone = jax.jit(one)
    want = jnp.stack([alone(x) for x in xs])
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(xs), want, rtol=1e-5)


@pytest.mark.parametrize(
    "call, error, hint",
    [
        (lambda: bound.lipschitz(jnp.sin, p=3), ValueError, "p is 3"),
        (lambda: bound.lipschitz(jnp.sin, method="x"), ValueError, "method is 'x'"),
        (
            lambda: bound.lipschitz(jnp.sin)(X),
            ValueError,
            r"float32\[4\]; wanted one set",
        ),
        (
            lambda: bound.monotonicity(jnp.sin, tolerance=-1.0),
            ValueError,
            "tolerance is -1",
        ),
        (lambda: bound.monotonicity(jnp.sin, method="x"), ValueError, "method is 'x'"),
        (
            lambda: bound.monotonicity(jnp.sin)(bound.Ball(X, -1.0)),
            ValueError,
            "radius",
        ),
        (
            lambda: bound.monotonicity(jnp.sin, tolerance="a"),
            TypeError,
            "tolerance is str 'a'; wanted a real number",
        ),
        (lambda: bound.lipschitz(jnp.sin, p=True), ValueError, "p is bool True"),
        (
            lambda: bound.lipschitz(lambda x: x > 0)(bound.Ball(X, 0.1)),
            TypeError,
            r"returns bool\[4\]; wanted floating",
        ),
    ],
)
def test_bad_arguments_are_refused(call, error, hint):
    with pytest.raises(error, match=hint):
        call()

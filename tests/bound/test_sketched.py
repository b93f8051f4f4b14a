"""Bounds of sketched values: `S @ x` is one linear map, bounded exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import bound, sketch

M, N, D = 8, 37, 2
METHODS = {"ibp": bound.ibp, "crown_ibp": bound.crown_ibp, "crown": bound.crown}
X = jax.random.normal(jax.random.key(0), (N, D))
RADIUS = jnp.abs(jax.random.normal(jax.random.key(1), (N, D))) / 3
KEY = jax.random.key(2)
# Weights of any real value, and buckets that several columns share.
BUCKET = jax.random.randint(jax.random.key(3), (4, N), 0, M // 4)
COLUMNS = sketch.SparseColumns(BUCKET, jax.random.normal(jax.random.key(4), (4, N)), M)

OPERATORS = {
    "countsketch": lambda: sketch.countsketch(KEY, M, N),
    "sparse_stack": lambda: sketch.sparse_stack(KEY, M, N),
    "three a column": lambda: sketch.sparse_stack(KEY, 9, N, k=3),
    "SparseColumns": lambda: COLUMNS,
    "columns of a larger one": lambda: sketch.sparse_stack(KEY, M, 90).columns(20, N),
    "transposed": lambda: sketch.sparse_stack(KEY, 36, M).T,
    "transposed SparseColumns": lambda: COLUMNS.T,
}


def draw(name):
    """An operator, its matrix, and as much of X and RADIUS as it takes."""
    S = OPERATORS[name]()
    dense = np.asarray(jax.jit(lambda S: S.dense())(S))
    return S, dense, X[: dense.shape[1]], RADIUS[: dense.shape[1]]


def box(x, radius):
    return bound.Box(x - radius, x + radius)


@pytest.mark.parametrize("name", OPERATORS)
def test_intervals_planes_and_their_slopes_are_exact(name, x64):
    S, dense, x, radius = draw(name)
    x, radius = x.astype(float), radius.astype(float)
    fn = lambda x: S @ x  # noqa: E731
    middle, reach = dense @ x, np.abs(dense) @ radius
    methods = *METHODS.values(), bound.linear_bounds
    *found, planes = jax.jit(lambda b: [m(fn)(b) for m in methods])(box(x, radius))
    for got in found:
        np.testing.assert_allclose(got.lower, middle - reach, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(got.upper, middle + reach, rtol=1e-9, atol=1e-9)
    rows = np.einsum("mn,de->mdne", dense, np.eye(D))
    np.testing.assert_allclose(planes.lower_slope, rows, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(planes.lower_slope, planes.upper_slope)
    np.testing.assert_allclose(planes.lower_bias, 0, atol=1e-9)


@pytest.mark.parametrize("name", ["sparse_stack", "SparseColumns", "transposed"])
def test_float32_loses_nothing_to_rounding(name):
    """The worst corners, in float32 as the user computes them, are inside."""
    S, dense, x, _ = draw(name)
    x, eps = 100 * x, 1e-4
    corner = jax.jit(jax.vmap(lambda side: S @ (x + eps * side)))
    sign = np.sign(dense)[:, :, None] * np.ones((1, 1, D), np.float32)
    at = np.arange(len(dense))
    most, least = corner(sign)[at, at], corner(-sign)[at, at]
    ball, reach = bound.Ball(x, eps), np.abs(dense).sum(1)[:, None]
    run = jax.jit(lambda b: [m(lambda x: S @ x)(b) for m in METHODS.values()])
    for lower, upper in run(ball):
        assert (most <= upper).all() and (lower <= least).all()
        loss = np.abs(np.asarray(upper - lower) - 2 * eps * reach)
        assert loss.max() < 0.02  # of terms that sum to some thousand


def test_a_ball_meets_the_rows_in_the_dual_norm(x64):
    S, dense, x, _ = draw("three a column")
    fn, x = (lambda x: S @ x), x[:, 0].astype(float)
    for p, dual in ((1, np.inf), (2, 2)):
        spread = np.linalg.norm(dense, dual, axis=1) / 10
        methods = bound.crown, bound.ibp
        run = jax.jit(lambda b: [m(fn)(b) for m in methods])  # noqa: B023
        got, wide = run(bound.Ball(x, 0.1, p))
        np.testing.assert_allclose(got.upper, dense @ x + spread, rtol=1e-9)
        assert (wide.upper >= got.upper - 1e-12).all()
        if p == 2:
            np.testing.assert_allclose(wide.upper, got.upper, rtol=1e-9)


def test_a_sketch_of_a_sketch_is_exact_by_a_backward_pass(x64):
    first, last = sketch.sparse_stack(KEY, 16, N), sketch.countsketch(KEY, 4, 16)
    both, x, radius = last @ first, X.astype(float), RADIUS.astype(float)
    for fn, dense in (
        (lambda x: both @ x, np.asarray(last.dense() @ first.dense())),
        (lambda x: both.T @ x[:4], np.asarray((last.dense() @ first.dense()).T)),
    ):
        n = dense.shape[1]
        reach = np.abs(dense) @ radius[:n]
        methods = bound.crown, bound.ibp
        run = jax.jit(lambda b: [m(fn)(b) for m in methods])  # noqa: B023
        got, wide = run(box(x, radius))
        np.testing.assert_allclose(got.lower, dense @ x[:n] - reach, atol=1e-9)
        np.testing.assert_allclose(got.upper, dense @ x[:n] + reach, atol=1e-9)
        assert (wide.lower <= got.lower + 1e-12).all()


def net(S, weights, x):
    """A layer, a sketch of its units, and a layer on that."""
    return jnp.tanh(S @ jax.nn.relu(weights @ x)) @ jnp.arange(1.0, M + 1)


def test_inside_a_network_nothing_escapes():
    S = sketch.sparse_stack(KEY, M, N)
    weights = jax.random.normal(jax.random.key(5), (N, 3)) / 2
    x, eps = jnp.array([0.5, -1.0, 0.2]), 0.1
    noise = jax.random.uniform(jax.random.key(6), (500, 3), minval=-eps, maxval=eps)
    values = jax.jit(jax.vmap(lambda n: net(S, weights, x + n)))(noise)

    @jax.jit
    def run(S, ball):
        return [m(lambda x: net(S, weights, x))(ball) for m in METHODS.values()]

    ball = bound.Ball(x, eps)
    for got, want in zip(run(S, ball), run(S.dense(), ball), strict=True):
        assert got.lower <= values.min() and values.max() <= got.upper
        np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_eager_is_jit_is_vmap_over_sets_and_over_operators(method):
    x, radius, keys = X, RADIUS, jax.random.split(jax.random.key(7))
    S = sketch.sparse_stack(keys[0], M, N)
    fn = lambda S, x: METHODS[method](lambda x: S @ x)(box(x, radius))  # noqa: E731
    want = fn(S, x)
    both = jnp.stack([x, 2 * x])
    of_key = lambda key: fn(sketch.sparse_stack(key, M, N), x)  # noqa: E731
    of_sets = jax.jit(jax.vmap(lambda x: fn(S, x)))
    others = (
        jax.jit(fn)(S, x),
        jax.tree.map(lambda b: b[0], of_sets(both)),
        jax.tree.map(lambda b: b[0], jax.jit(jax.vmap(of_key))(keys)),
    )
    for got in others:
        for mine, theirs in zip(got, want, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_gradients_in_the_centre_the_radius_and_the_signs(method, x64):
    S, dense, x, radius = draw("SparseColumns")
    x, radius, bucket = x.astype(float), radius.astype(float), S.bucket

    def top(sign, x, radius):
        S = sketch.SparseColumns(bucket, sign, M)
        return METHODS[method](lambda x: S @ x)(box(x, radius)).upper.sum()

    sign, at, width = jax.jit(jax.grad(top, (0, 1, 2)))(S.sign.astype(float), x, radius)
    np.testing.assert_allclose(at, dense.sum(0)[:, None] * np.ones((1, D)), rtol=1e-6)
    reach = np.abs(dense).sum(0)[:, None] * np.ones((1, D))
    np.testing.assert_allclose(width, reach, rtol=1e-6)
    # d/ds of (s x + |s| r) / sqrt(4), summed over the columns of x.
    want = (x.sum(1)[None] + np.sign(S.sign) * radius.sum(1)[None]) / 2
    np.testing.assert_allclose(sign, want, rtol=1e-6)


def test_sets_of_operators_are_refused():
    S, _, x, radius = draw("SparseColumns")
    of_signs = lambda sign, x: sketch.SparseColumns(S.bucket, sign, M) @ x  # noqa: E731
    signs = bound.Ball(S.sign, 0.1)
    for method in METHODS.values():
        with pytest.raises(NotImplementedError, match=r"'sketch_apply'.*register_rule"):
            method(of_signs)(signs, x)
        with pytest.raises(NotImplementedError, match="keep it away from the sets"):
            method(of_signs)(signs, box(x, radius))


@jax.tree_util.register_static
class Doubling:
    """An operator of the user's: 2 I."""

    shape = (3, 3)

    def apply(self, matrix):
        return 2 * matrix

    apply_transpose = apply
    __matmul__ = sketch.SparseColumns.__matmul__


def test_an_operator_without_absolute_values_says_what_to_write():
    with pytest.raises(NotImplementedError, match=r"Doubling .* method absolute"):
        bound.ibp(lambda x: Doubling() @ x)(bound.Ball(jnp.ones(3), 0.1))

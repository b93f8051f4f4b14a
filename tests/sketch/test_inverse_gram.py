"""Inverses of sketched Gram matrices: unbiased, averaged, with a ridge, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

from jaxmethods import sketch

from .derivatives import check_derivatives

N, D, M = 48, 4, 24
UNBIASED = ("less", "sparse_stack", "srht", "gaussian", "rademacher")


def rows(seed=0, n=N, d=D):
    """Rows of which a few stand out, whose Gram is far from the identity."""
    r = np.random.RandomState(seed)
    A = r.randn(n, d) / np.sqrt(r.chisquare(1, (n, 1)))
    return jnp.float32(A / np.abs(A).max() * np.arange(1, d + 1))


def whitened(A, Q, ridge=0.0):
    """Estimates between the roots of what they estimate the inverse of."""
    A = np.float64(A)
    L = np.linalg.cholesky(A.T @ A + ridge * np.eye(A.shape[1]))
    return L.T @ np.float64(Q) @ L


def estimates(A, num, ridge=0.0, **options):
    keys = jax.random.split(jax.random.key(0), num)
    one = lambda key: sketch.inverse_gram(key, A, ridge=ridge, **options)  # noqa: E731
    return jax.jit(jax.vmap(one))(keys)


def mean_and_error(x):
    return x.mean(0), x.std(0, ddof=1) / len(x) ** 0.5


@pytest.mark.parametrize("family", UNBIASED)
def test_mean_over_keys_is_the_inverse_without_a_ridge_and_with(family):
    A = rows(20240611)
    gram = np.float64(A).T @ np.float64(A)
    ridge = np.float32(np.median(np.linalg.eigvalsh(gram)))
    dimension = np.trace(np.linalg.solve(gram + ridge * np.eye(D), gram))
    assert 1 < dimension < 3  # or the wrong scalar would pass
    run = lambda ridge: estimates(A, 400, m=M, family=family, ridge=ridge)  # noqa: E731
    ridges = np.array([0, ridge])
    # The scalar is exact to first order in 1 / (m - d - 1); undebiased it were 1.2.
    for value, Q, bias in zip(
        ridges, jax.vmap(run)(ridges), (1 / (M - D - 1), 0.02), strict=True
    ):
        W = whitened(A, Q, value)
        mean, error = mean_and_error(np.trace(W, axis1=1, axis2=2) / D)
        assert abs(mean - 1) < 4 * error + bias
        assert error < 0.03


def test_gaussian_is_unbiased_to_the_wishart_identity():
    A = rows(1)
    W = whitened(A, estimates(A, 2000, m=12, family="gaussian"))
    mean, error = mean_and_error(W)
    assert (np.abs(mean - np.eye(D)) < 5 * error).all()


def test_uniform_less_where_no_row_stands_out():
    A = jnp.float32(np.random.RandomState(2).randn(N, D))
    W = whitened(A, estimates(A, 400, m=M, family="less_uniform"))
    mean, error = mean_and_error(np.trace(W, axis1=1, axis2=2) / D)
    assert abs(mean - 1) < 4 * error + 2 / (M - D - 1)
    assert error < 0.02


def test_a_traced_ridge_of_zero_is_none():
    A = rows()
    new = lambda **options: sketch.inverse_gram(  # noqa: E731
        jax.random.key(0), A, M, **options
    )
    run = jax.jit(lambda ridge: new(ridge=ridge))
    np.testing.assert_allclose(run(0.0), new(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(run(1e6), 1e-6 * np.eye(D), atol=1e-9)


@pytest.mark.parametrize("family", ["less", "sparse_stack"])
def test_a_ridge_makes_a_matrix_of_zeros_well_posed(family):
    run = jax.jit(lambda key, A: sketch.inverse_gram(key, A, M, family=family, ridge=2))
    np.testing.assert_allclose(run(jax.random.key(0), 0 * rows()), np.eye(D) / 2)


def test_workers_divide_the_squared_error():
    A, options = rows(4), dict(m=M, family="sparse_stack")
    off = [
        ((whitened(A, estimates(A, num, workers=q, **options)) - np.eye(D)) ** 2).mean()
        for q, num in ((1, 320), (8, 40))
    ]
    assert 4 < off[0] / off[1] < 16


def test_result_is_symmetric_and_has_the_dtype_of_the_rows():
    for dtype in ("float32", "bfloat16"):
        Q = sketch.inverse_gram(jax.random.key(0), rows().astype(dtype), M)
        assert Q.shape == (D, D) and Q.dtype == dtype
        np.testing.assert_array_equal(Q, Q.T)


@pytest.mark.usefixtures("x64")
def test_float64_at_a_condition_of_a_million():
    A = np.float64(rows()) * np.logspace(0, -6, D)
    W = whitened(A, sketch.inverse_gram(jax.random.key(0), A, 400, workers=20))
    np.testing.assert_allclose(W, np.eye(D), atol=0.15)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_gradient(ridge):
    A = jnp.float64(rows())

    def value(A):
        key = jax.random.key(0)
        Q = sketch.inverse_gram(key, A, M, family="sparse_stack", ridge=ridge)
        return jnp.log(jnp.linalg.det(Q))

    check_derivatives(value, (A,), rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_gradients_by_less_are_unbiased():
    """With the scores held fixed; those of the weights alone would be 0.3 off."""
    r = np.random.RandomState(0)
    A = jnp.asarray(r.randn(60, 3) / np.sqrt(r.chisquare(1, (60, 1))))
    weight = jnp.asarray(np.diag([1.0, 3.0, -2.0]))
    grad = jax.grad(lambda A, key: (weight * sketch.inverse_gram(key, A, M)).sum())
    keys = jax.random.split(jax.random.key(0), 1500)
    got = np.asarray(jax.jit(jax.vmap(grad, (None, 0)))(A, keys))
    inverse = np.linalg.inv(A.T @ A)
    want = -2 * A @ inverse @ weight @ inverse
    size = np.linalg.norm(want)
    error = np.linalg.norm(got.std(0)) / size / len(keys) ** 0.5
    assert error < 0.07
    assert np.linalg.norm(got.mean(0) - want) / size < 2 * error + 1 / (M - 3 - 1)


def test_one_key_one_result_eagerly_and_jitted():
    A = rows()
    run = lambda key: sketch.inverse_gram(key, A, M)  # noqa: E731
    got, want = run(jax.random.key(3)), jax.jit(run)(jax.random.key(3))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    assert np.abs(got - run(jax.random.key(4))).max() > 1e-3


def test_errors():
    key, A = jax.random.key(0), rows()
    run = sketch.inverse_gram
    for m in (0, 3, 4):
        with pytest.raises(ValueError, match=rf"m is {m}\b"):
            run(jax.random.key(m), A, m)
    with pytest.raises(ValueError, match=r"d is 4 and m is 4.*more rows m"):
        run(jax.random.key(9), A, 4, family="sparse_stack")
    with pytest.raises(ValueError, match=r"family is 'fourier'; wanted one of .*less"):
        run(key, A, M, family="fourier")
    with pytest.raises(ValueError, match=r"countsketch.*sparse_stack"):
        run(jax.random.key(5), A, M, family="countsketch")
    with pytest.raises(ValueError, match=r"no debiasing scalar.*less"):
        run(jax.random.key(6), A, M, family="sample_rows")
    with pytest.raises(ValueError, match=r"workers is 0"):
        run(key, A, M, workers=0)
    with pytest.raises(ValueError, match=r"ridge is -1"):
        run(key, A, M, ridge=-1.0)
    with pytest.raises(ValueError, match=r"not finite.*drop or fill"):
        run(key, A.at[3, 1].set(jnp.nan), M)
    with pytest.raises(ValueError, match=r"at least one row"):
        run(key, A[:0], M)
    with pytest.raises(ValueError, match=r"depend on each other.*give a ridge"):
        run(jax.random.key(7), A.at[:, 1].set(0), M)
    with pytest.raises(TypeError, match=r"int32.*astype"):
        run(key, A.astype(int), M)
    with pytest.raises(TypeError, match=r"jax.random.key\(0\)"):
        run(0, A, M)
    with pytest.raises(ValueError, match=r"3 rows and 6 columns.*or a ridge"):
        sketch.inverse_gram(jax.random.key(7), jnp.ones((3, 6)), 24)
    with pytest.raises(ValueError, match=r"ridge is float32\[3\]; wanted a scalar"):
        sketch.inverse_gram(jax.random.key(7), jnp.ones((9, 3)), 24, ridge=jnp.ones(3))
    with pytest.raises(ValueError, match="ridge is inf; wanted a finite number"):
        sketch.inverse_gram(jax.random.key(7), jnp.ones((9, 3)), 24, ridge=jnp.inf)
    with pytest.raises(TypeError, match=r"sparse BCOO\[9, 3\]; wanted a dense matrix"):
        sketch.inverse_gram(jax.random.key(7), BCOO.fromdense(jnp.ones((9, 3))), 24)

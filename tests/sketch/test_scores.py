"""Leverage scores: exact against goldens, approximate within their factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.sketch import (
    approximate_leverage_scores,
    leverage_scores,
    sparse_stack,
)


def approximate(A, **options):
    return approximate_leverage_scores(jax.random.key(7), A, **options)


def test_leverage_scores_are_those_of_the_range(shared, x64):
    golden = np.load(shared / "goldens" / "06-less-embeddings.npz")
    A, d = jnp.asarray(golden["A"]), golden["A"].shape[1]
    score = jax.jit(leverage_scores)
    np.testing.assert_allclose(score(A), golden["leverage"], rtol=1e-9)
    scaled = A * jnp.logspace(0, -20, d)[None]  # the scale of a column does not matter
    np.testing.assert_allclose(score(scaled), golden["leverage"], rtol=1e-9)
    twice = score(jnp.concatenate([A, A @ jnp.ones((d, 3)), 0 * A[:, :1]], 1))
    np.testing.assert_allclose(twice, golden["leverage"], rtol=1e-8)
    ridge = golden["ridge_lambda"]
    got = jax.jit(lambda A, r: leverage_scores(A, ridge=r))(A, ridge)
    np.testing.assert_allclose(got, golden["ridge_leverage"], rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_gradients_also_where_singular_values_meet():
    r = np.random.default_rng(0)
    weight = r.standard_normal(9)

    def by_definition(A, ridge, S):
        sketched = A if S is None else S @ A
        inverse = jnp.linalg.inv(sketched.T @ sketched + ridge * jnp.eye(3))
        return weight @ ((A @ inverse) * A).sum(1)

    @jax.jit
    def gradients(A, ridge):
        S = sparse_stack(jax.random.split(jax.random.key(7))[0], 24, 9)
        functions = (
            lambda A: weight @ leverage_scores(A, ridge=ridge),
            lambda A: by_definition(A, ridge, None),
            lambda A: weight @ approximate(A, ridge=ridge),
            lambda A: by_definition(A, ridge, S),
        )
        return [jax.grad(fn)(A) for fn in functions]

    for A in (np.eye(9)[:, :3], r.standard_normal((9, 3))):
        for ridge in (0.0, 0.3):
            exact, want, rough, wanted = gradients(A, ridge)
            np.testing.assert_allclose(exact, want, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(rough, wanted, rtol=1e-9, atol=1e-12)


def test_leverage_of_degenerate_matrices():
    np.testing.assert_array_equal(leverage_scores(jnp.zeros((4, 2))), np.zeros(4))
    wide = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    np.testing.assert_allclose(leverage_scores(wide), [1, 1], rtol=1e-5)
    half = leverage_scores(jnp.eye(3, 2, dtype=jnp.bfloat16), ridge=1.0)
    assert half.dtype == jnp.bfloat16 and half.tolist() == [0.5, 0.5, 0]
    none = approximate_leverage_scores(jax.random.key(0), jnp.zeros((4, 2)))
    np.testing.assert_array_equal(none, np.zeros(4))


@pytest.mark.parametrize(("n", "d"), [(500, 5), (2000, 50)])
@pytest.mark.parametrize("ridge", [0.0, 3.0])
def test_approximate_scores_are_within_their_factors(n, d, ridge):
    A = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
    A[:3] *= 100
    A[5] = 0
    exact = np.asarray(leverage_scores(A, ridge=ridge))
    got = np.asarray(approximate_leverage_scores(jax.random.key(1), A, ridge=ridge))
    assert got[5] == 0 and got.dtype == np.float32
    # To rounding: the exact score of a row of zeros is not quite 0.
    assert (got >= exact / 4 - 1e-9).all() and got.sum() < 2 * exact.sum()


@pytest.mark.parametrize("score", [leverage_scores, approximate])
def test_errors_of_leverage(score):
    with pytest.raises(TypeError, match=r"int32\[4,2\].*floating"):
        score(jnp.ones((4, 2), int))
    with pytest.raises(ValueError, match=r"float32\[4\]; wanted a matrix"):
        score(jnp.ones(4))
    with pytest.raises(
        ValueError, match=r"float32\[0,2\]; wanted a matrix with at least"
    ):
        score(jnp.ones((0, 2)))
    with pytest.raises(ValueError, match=r"not finite.*drop or fill"):
        score(jnp.ones((4, 2)).at[1, 1].set(jnp.nan))
    with pytest.raises(ValueError, match=r"ridge is -1.0; wanted 0 or more"):
        score(jnp.ones((4, 2)), ridge=-1.0)


@pytest.mark.parametrize("power", [-80, 70, 120])
def test_scores_do_not_depend_on_the_size_of_the_matrix(power):
    A = jax.random.normal(jax.random.key(5), (40, 3))
    scaled = A * jnp.float32(2.0) ** power
    for score in (leverage_scores, approximate):
        np.testing.assert_allclose(score(scaled), score(A), rtol=1e-4, atol=1e-6)

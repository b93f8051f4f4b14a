"""Least squares: numpy's solution at any condition, derivatives, batches, errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmethods import sketch

from .derivatives import check_derivatives

solve = jax.jit(sketch.lstsq)


def problem(n, d, cond=1.0, seed=0, noise=1e-3):
    """A of that condition number with a few rows that stand out, and b."""
    r = np.random.RandomState(seed)
    left = np.linalg.qr(r.standard_t(1, (n, d)) + 0.1 * r.randn(n, d))[0]
    right = np.linalg.qr(r.randn(d, d))[0]
    A = (left * np.logspace(0, -np.log10(cond), d)) @ right
    return A, A @ r.randn(d) + noise * r.randn(n)


def numpy_solution(A, b):
    return np.linalg.lstsq(A, b, rcond=None)[0]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("cond", [1.0, 1e6, 1e10])
@pytest.mark.parametrize("n", [100, 400])  # by QR, and by a sketch
def test_numpys_solution_at_any_condition(cond, n):
    A, b = problem(n, 12, cond)
    found, want = solve(jax.random.key(0), A, b), numpy_solution(A, b)
    left = np.linalg.norm(A @ want - b)
    # What one rounding of A does to the fit, times a few.
    floor = 20 * 2e-16 * (cond * left + np.linalg.norm(b))
    assert np.linalg.norm(A @ (found.x - want)) < floor
    assert found.error < floor
    np.testing.assert_allclose(found.residual, left, rtol=1e-9)
    assert found.rank == 12 and found.x.dtype == jnp.float64


@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_float32(seed):
    A, b = problem(400, 12, 100.0, seed % 1000)
    found = solve(jax.random.key(seed), jnp.float32(A), jnp.float32(b))
    want = numpy_solution(A, b)
    assert np.linalg.norm(A @ (np.float64(found.x) - want)) < 1e-5 * np.linalg.norm(b)
    assert found.x.dtype == jnp.float32


def test_half_precision_is_solved_in_float32():
    A, b = (jnp.asarray(v, jnp.bfloat16) for v in problem(100, 3, 2.0))
    found = solve(jax.random.key(0), A, b)
    want = numpy_solution(np.float64(A), np.float64(b))
    assert found.x.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(found.x), want, rtol=2**-7)


def test_error_estimates_the_distance_to_the_solution():
    """At float32 accuracy the exact solution is known, and so is the distance."""
    A, b = problem(400, 12, 1e3, noise=0.1)
    A, b = np.float32(A), np.float32(b)
    found = solve(jax.random.key(1), A, b)
    want = numpy_solution(np.float64(A), np.float64(b))
    distance = np.linalg.norm(A @ (np.float64(found.x) - want))
    assert distance / 20 < found.error < 20 * distance  # both of the size of rounding


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("n", [100, 400])
def test_least_norm_where_columns_depend_on_each_other(n):
    A, b = problem(n, 9, 10.0)
    A = np.concatenate([A, A[:, :2] @ np.ones((2, 3))], axis=1)
    found = solve(jax.random.key(0), A, b)
    np.testing.assert_allclose(found.x, numpy_solution(A, b), rtol=1e-8, atol=1e-11)
    assert found.rank == 9


def test_a_matrix_of_zeros_has_the_zero_solution():
    found = solve(jax.random.key(0), jnp.zeros((400, 12)), jnp.ones(400))
    np.testing.assert_array_equal(found.x, 0)
    assert found.rank == 0 and found.error == 0
    np.testing.assert_allclose(found.residual, 20, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_golden(shared):
    with np.load(shared / "goldens" / "06-less-embeddings.npz") as g:
        found = solve(jax.random.key(3), g["A"], g["b"])
        np.testing.assert_allclose(found.x, g["lstsq"], rtol=1e-7)
        np.testing.assert_allclose(found.residual**2, g["residual_sq"], rtol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("n", [30, 80])
def test_derivatives_in_both_modes(n):
    A, b = (jnp.asarray(v) for v in problem(n, 3, 10.0, noise=0.1))

    def values(A, b):
        found = sketch.lstsq(jax.random.key(0), A, b)
        return found.x, found.residual

    check_derivatives(values, (A, b), rtol=1e-5, eps=1e-5)


@pytest.mark.usefixtures("x64")
def test_second_derivative():
    A, b = (jnp.asarray(v) for v in problem(80, 3, 10.0, noise=0.1))
    first = jax.grad(lambda A: (sketch.lstsq(jax.random.key(0), A, b).x ** 2).sum())
    along = np.random.RandomState(1).randn(*A.shape)
    both = jax.jit(lambda A: jax.jvp(first, (A,), (along,)))
    above, below = (both(A + step * along)[0] for step in (1e-5, -1e-5))
    np.testing.assert_allclose(both(A)[1], (above - below) / 2e-5, rtol=1e-4, atol=1e-7)


@pytest.mark.usefixtures("x64")
def test_batches_of_right_hand_sides_and_of_matrices():
    A, b = problem(200, 4, 100.0)
    B = np.stack([b, np.sin(b), np.zeros_like(b)])
    key = jax.random.key(0)
    many = jax.jit(jax.vmap(lambda b: sketch.lstsq(key, A, b).x))(B)
    want = numpy_solution(A, B.T).T
    np.testing.assert_allclose(many, want, rtol=1e-10, atol=1e-12)
    As = np.stack([A, A[::-1], A + 0.01])
    keys = jax.random.split(jax.random.key(1), 3)
    many = jax.jit(jax.vmap(sketch.lstsq))(keys, As, B)
    for A, b, x in zip(As, B, many.x, strict=True):
        np.testing.assert_allclose(x, numpy_solution(A, b), rtol=1e-8, atol=1e-12)


def test_one_trace_serves_every_key():
    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(sketch.lstsq, n=1))
    A, b = (jnp.float32(v) for v in problem(30, 3))
    for seed in range(3):
        traced(jax.random.key(seed), A, b * seed)


@pytest.mark.parametrize("where", ["A", "b"])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_values_that_are_not_finite(where, bad):
    values = {k: jnp.float32(v) for k, v in zip("Ab", problem(100, 3), strict=True)}
    values[where] = values[where].at[7].set(bad)
    with pytest.raises(ValueError, match=rf"{where} is float32\[100.*drop or fill"):
        sketch.lstsq(jax.random.key(0), **values)
    assert not jnp.isfinite(solve(jax.random.key(0), **values).x).all()


def test_errors():
    key, A, b = jax.random.key(0), jnp.ones((16, 3)), jnp.ones(16)
    with pytest.raises(ValueError, match=r"b is float32\[15\].*jax.vmap over b"):
        sketch.lstsq(key, A, b[:15])
    with pytest.raises(ValueError, match=r"float32\[16\]; wanted a matrix"):
        sketch.lstsq(key, b, b)
    with pytest.raises(ValueError, match=r"at least one row"):
        sketch.lstsq(key, A[:0], b[:0])
    with pytest.raises(ValueError, match=r"2 rows and 3 columns.*add rows"):
        sketch.lstsq(key, A[:2], b[:2])
    with pytest.raises(TypeError, match=r"A is int32.*astype"):
        sketch.lstsq(key, A.astype(int), b)
    with pytest.raises(TypeError, match=r"b is int32.*astype"):
        sketch.lstsq(key, A, b.astype(int))
    with pytest.raises(TypeError, match=r"jax.random.key\(0\)"):
        sketch.lstsq(jnp.zeros(2, jnp.uint32), A, b)


def test_the_size_of_b_does_not_matter():
    A, b = (np.float32(v) for v in problem(240, 3))
    want = solve(jax.random.key(0), A, b)
    for power in (-100, -60, 60, 100):  # squares of 2^-100 and 2^100 are 0, infinite
        got = solve(jax.random.key(0), A, b * np.float32(2.0) ** power)
        for name in ("x", "residual", "error"):
            scaled = np.float64(getattr(got, name)) / 2.0**power
            np.testing.assert_array_equal(scaled, getattr(want, name), err_msg=name)

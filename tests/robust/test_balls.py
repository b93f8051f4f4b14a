import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxmethods.robust.balls import (
    check_inputs,
    direction,
    l2_norm,
    per_input,
    projection,
    random_start,
)

NORMS = ("linf", "l2")


def size(move, norm):
    move = np.asarray(move, np.float64).reshape(len(move), -1)
    return np.abs(move).max(1) if norm == "linf" else np.sqrt((move**2).sum(1))


def distance(a, b, norm):
    return size(np.asarray(a, np.float64) - np.asarray(b, np.float64), norm)


# XLA's optimisations on: they fuse products with sums and skip casts to bfloat16.
@pytest.mark.optimized
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("norm", NORMS)
@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.example(seed=10007, exponent=-5.0, far=1)  # holds a subnormal float16
@hypothesis.given(
    seed=st.integers(0, 10**6), exponent=st.floats(-6, 1), far=st.sampled_from([1, 9])
)
def test_projection_stays_in_ball_and_bounds(norm, dtype, seed, exponent, far):
    r = np.random.default_rng(seed)
    x = jnp.asarray(r.uniform(size=(5, 30)), dtype)
    eps = np.float32(10**exponent)
    point = x.astype("float32") + far * eps * r.normal(size=x.shape).astype("float32")
    got = _project(x, point, eps, norm)
    assert got.dtype == x.dtype
    assert distance(got, x, norm).max() <= eps * (1 + 1e-6)
    assert 0 <= got.min() and got.max() <= 1


_project = jax.jit(
    lambda x, point, eps, norm: projection(x, eps, norm, (0.0, 1.0))(point),
    static_argnames="norm",
)


def test_rounding_to_nearest_would_leave_the_ball():
    """What the rounding towards the centre is for."""
    x = np.float32(np.random.default_rng(0).uniform(size=(1, 500)))
    eps = np.float32(1e-3)
    assert distance(x + eps, x, "linf").max() > eps * (1 + 1e-6)
    moved = projection(jnp.asarray(x), eps, "linf", (0.0, 2.0))(x + 1)
    assert distance(moved, x, "linf").max() <= eps
    assert distance(moved, x, "linf").min() >= eps - 2e-7  # by one float at most


@pytest.mark.parametrize("norm", NORMS)
def test_rounding_to_bfloat16_is_explicit(norm):
    """XLA may drop a cast to bfloat16 and back; accelerators do."""
    x, point = jnp.zeros((1, 2), "bfloat16"), jnp.ones((1, 2))
    jaxpr = jax.make_jaxpr(lambda x: projection(x, 0.3, norm, (0.0, 1.0))(point))(x)
    assert "reduce_precision" in str(jaxpr)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_keeps_points_inside_and_returns_centres_at_eps_0(norm):
    x = jax.random.uniform(jax.random.key(0), (4, 6))
    near = x + 0.01 * (0.5 - x)
    assert np.array_equal(projection(x, 1.0, norm, (0.0, 1.0))(near), near)
    assert np.array_equal(projection(x, 0.0, norm, (0.0, 1.0))(near), x)
    assert np.array_equal(projection(x, np.inf, norm, (0.0, 1.0))(x + 9), 0 * x + 1)


def test_projection_is_the_nearest_point_of_the_l2_ball():
    project = projection(jnp.zeros((1, 2)), 0.5, "l2", (-1.0, 1.0))
    np.testing.assert_allclose(project(jnp.array([[3.0, -4.0]])), [[0.3, -0.4]])


def test_projection_comes_before_the_bounds():
    project = projection(jnp.zeros((1, 2)), 1.0, "l2", (0.0, 1.0))
    np.testing.assert_allclose(project(jnp.array([[3.0, -4.0]])), [[0.6, 0]], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e15])
def test_direction_has_length_1_whatever_the_gradient(scale):
    gradient = scale * jax.random.normal(jax.random.key(1), (3, 2, 5))
    unit = direction(gradient, "l2")
    np.testing.assert_allclose(size(unit, "l2"), np.ones(3), rtol=1e-6)
    length = size(gradient, "l2").reshape(3, 1, 1)
    np.testing.assert_allclose(unit * length, gradient, rtol=1e-5)
    assert np.array_equal(direction(gradient, "linf"), np.sign(gradient))


@pytest.mark.parametrize("norm", NORMS)
def test_direction_of_zero_is_zero_and_a_floor_damps(norm):
    assert np.array_equal(direction(jnp.zeros((2, 3)), norm), np.zeros((2, 3)))
    damped = direction(jnp.full((1, 1), 1e-3), "l2", floor=1e-3)
    np.testing.assert_allclose(damped, [[0.5]], rtol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (3, 700), (3, 4, 5, 1)])
def test_l2_norm(shape):
    x = jax.random.normal(jax.random.key(2), shape)
    want = size(np.reshape(x, (3, -1)), "l2").reshape(3, *[1] * (len(shape) - 1))
    np.testing.assert_allclose(l2_norm(x), want, rtol=1e-6)


def test_random_starts_are_uniform_in_the_ball():
    x, eps = jnp.full((3000, 2, 2), 5.0), 0.5
    cube = np.asarray(random_start(jax.random.key(3), x, eps, "linf")).reshape(-1, 4)
    for column in cube.T:
        uniform = (column - 4.5) / 1.0
        assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-3
    ball = np.asarray(random_start(jax.random.key(4), x, eps, "l2")).reshape(-1, 4) - 5
    radius = size(ball, "l2")
    assert scipy.stats.kstest((radius / eps) ** 4, "uniform").pvalue > 1e-3
    # The mean direction of n unit vectors in D dimensions has entries of 1 / sqrt(n D).
    mean = (ball / radius[:, None]).mean(0)
    assert np.abs(mean).max() < 4 / np.sqrt(3000 * 4)


def test_per_input_shapes_and_errors():
    x = jnp.zeros((3, 4, 4))
    assert per_input(0.1, x, "eps").shape == (1, 1, 1)
    assert per_input(np.ones(3), x, "eps").shape == (3, 1, 1)
    assert per_input(0.1, x.astype("bfloat16"), "eps").dtype == jnp.float32
    with pytest.raises(ValueError, match=r"eps is -0\.1; wanted 0 or more"):
        per_input(-0.1, x, "eps")
    with pytest.raises(ValueError, match=r"radius is float32\[4\].*shape \(3,\)"):
        per_input(jnp.ones(4), x, "radius")


@pytest.mark.parametrize(
    ("x", "norm", "bounds", "error", "hint"),
    [
        (jnp.ones((2, 3)), "l7", (0, 1), ValueError, "l7.*linf"),
        (jnp.ones((2, 3), int), "l2", (0, 1), TypeError, "int.*astype"),
        (jnp.ones(()), "l2", (0, 1), ValueError, r"batch \(B, ...\)"),
        (jnp.ones((2, 3)), "l2", (1, 1), ValueError, "low < high"),
        (255 * jnp.ones((2, 3)), "l2", (0, 1), ValueError, r"255.*pass the bounds"),
    ],
)
def test_check_inputs_errors(x, norm, bounds, error, hint):
    with pytest.raises(error, match=hint):
        check_inputs(x, norm, bounds)

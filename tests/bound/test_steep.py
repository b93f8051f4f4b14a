"""Where a function is infinitely steep derivatives of its bounds stay finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import bound
from jaxmethods.bound._steep import finite_derivatives

W = np.float32([[1, -2, 0], [0.5, 0, 0]])


def root_of_rectifier(x):
    return jnp.sqrt(jax.nn.relu(x))


def normalized(x):
    return x / (1e-3 + jnp.linalg.norm(x))


@pytest.mark.parametrize("radius", [0.0, 1e-6, 1.0])
@pytest.mark.parametrize("fn", [root_of_rectifier, normalized, jnp.cbrt])
@pytest.mark.parametrize("method", [bound.ibp, bound.crown])
def test_weights_and_radius_get_finite_derivatives(method, fn, radius):
    def loss(weights, radius):
        found = method(lambda x: fn(x @ weights))(bound.Ball(jnp.zeros(2), radius))
        return jnp.sum(found.upper), found

    run = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    slopes, found = run(W, jnp.float32(radius))
    assert all(np.isfinite(end).all() for end in found)
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_an_end_that_has_overflowed_hands_nothing_back():
    def least(upper):
        ends = bound.ibp(jnp.exp)(bound.Box(jnp.zeros(2), upper))
        return ends.lower.sum() + ends.upper[0]

    upper = jnp.array([1.0, 100.0])
    np.testing.assert_allclose(jax.grad(least)(upper), [np.e, 0], rtol=1e-5)


def test_a_product_that_has_overflowed_hands_nothing_back():
    """On a wide interval the exponential is at most infinite, where it is not tight."""
    fn = lambda x: x * jnp.exp(-x * x)  # noqa: E731
    width = lambda r: jnp.diff(jnp.stack(bound.ibp(fn)(bound.Ball(0.0, r))))[0]  # noqa: E731
    assert np.isfinite(
        jax.jit(jax.vmap(jax.grad(width)))(jnp.array([8.0, 20, 1e30]))
    ).all()


def test_finite_derivatives_stay_as_they_are():
    def root(x):
        ends = finite_derivatives(bound.Bounds(x, x))
        return jnp.sqrt(ends.lower) + jnp.sqrt(ends.upper)

    xs = jnp.array([0.0, 4.0])
    np.testing.assert_array_equal(jax.vmap(jax.grad(root))(xs), [0.0, 0.5])
    assert jax.jvp(root, (xs[1],), (1.0,))[1] == 0.5
    assert jax.grad(jax.grad(root))(xs[1]) == -1 / 16
    whole = bound.Bounds(jnp.array(1), jnp.array(2))
    assert finite_derivatives(whole) is whole


def test_bounds_may_be_bounded():
    inner = lambda r: bound.ibp(jnp.exp)(bound.Ball(jnp.ones(()), r)).upper  # noqa: E731
    got = bound.ibp(inner)(bound.Box(jnp.float32(0.1), jnp.float32(0.2)))
    np.testing.assert_allclose(got, [np.exp(1.1), np.exp(1.2)], rtol=1e-4)

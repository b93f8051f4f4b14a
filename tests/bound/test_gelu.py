"""The slopes of GELU on an interval: enclosed, and no wider than rounding demands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import bound
from jaxmethods.bound._bounds import Bounds
from jaxmethods.bound._gelu import slope_of_gelu

FORMS = {"gelu": False, "gelu_tanh": True}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FORMS)
def test_slopes_enclose_a_dense_grid_and_no_more(name, dtype, x64):
    random = np.random.default_rng(0)
    lower = random.uniform(-4, 4, 300).astype(dtype)
    upper = lower + (10 ** random.uniform(-4, 0.6, 300)).astype(dtype)
    share = np.linspace(0, 1, 2001)[:, None]
    points = lower.astype(float) * (1 - share) + upper.astype(float) * share
    slope = jax.grad(lambda x: jax.nn.gelu(x, approximate=FORMS[name]).sum())
    slopes = np.asarray(slope(jnp.asarray(points)))
    found = slope_of_gelu(name)(Bounds(jnp.asarray(lower), jnp.asarray(upper)))
    low, high = (np.asarray(end, float) for end in found)
    assert found.lower.dtype == dtype
    # Of which jax's own derivative, whose 1 - tanh(z)^2 cancels, may lose a half.
    room = 64 * np.finfo(dtype).eps
    assert (low < slopes.min(0)).all() and (high > slopes.max(0)).all()
    # The grid misses a turning point by a 4000th of the widest interval.
    missed = np.where(upper - lower < 1, 1e-6, 1e-4)
    assert (low > slopes.min(0) - 2 * room - missed).all()
    assert (high < slopes.max(0) + 2 * room + missed).all()


@pytest.mark.parametrize("name", FORMS)
def test_slopes_of_what_has_no_end_are_those_of_the_whole_line(name):
    ends = Bounds(jnp.array([-jnp.inf, 1e30, -1e30]), jnp.array([jnp.inf, 1e38, -20.0]))
    low, high = slope_of_gelu(name)(ends)
    np.testing.assert_allclose(low, [-0.129, 1, 0], atol=1e-4)
    np.testing.assert_allclose(high, [1.129, 1, 0], atol=1e-4)
    unknown = slope_of_gelu(name)(Bounds(jnp.array(jnp.nan), jnp.array(1.0)))
    assert unknown.lower == -jnp.inf and unknown.upper == jnp.inf


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", FORMS)
def test_half_precision_encloses_slopes_too(name, dtype):
    lower = jnp.linspace(-5, 4, 200).astype(dtype)
    upper = lower + jnp.linspace(0, 2, 200).astype(dtype)
    found = slope_of_gelu(name)(Bounds(lower, upper))
    assert found.lower.dtype == found.upper.dtype == dtype
    share = jnp.linspace(0, 1, 99)[:, None]
    ends = (end.astype("float32")[None] for end in (lower, upper))
    points = next(ends) * (1 - share) + next(ends) * share
    slopes = jax.grad(lambda x: jax.nn.gelu(x, approximate=FORMS[name]).sum())(points)
    low, high = (np.asarray(end, float) for end in found)
    assert (low <= slopes.min(0)).all() and (slopes.max(0) <= high).all()
    room = 3 * float(jnp.finfo(dtype).eps)
    assert (low > slopes.min(0) - room).all() and (high < slopes.max(0) + room).all()


def test_bounds_of_gelu_in_half_precision():
    box = bound.Box(jnp.array([-1.0], "bfloat16"), jnp.array([1.0], "bfloat16"))
    for approximate in FORMS.values():
        fn = lambda x, how=approximate: jax.nn.gelu(3 * x + 1, approximate=how)  # noqa: E731
        for method in (bound.ibp, bound.crown):
            low, high = (float(end[0]) for end in method(fn)(box))
            assert low <= -0.17 and 3.99 <= high < 8


def test_other_functions_have_none():
    assert slope_of_gelu("silu") is None


@pytest.mark.parametrize("approximate", [True, False])
def test_a_narrow_interval_has_lines_as_close_as_its_curvature(approximate):
    def fn(x):
        return jax.nn.gelu(x, approximate=approximate)

    box = bound.Box(jnp.array([-0.3, 0.9]), jnp.array([-0.1, 1.1]))
    planes = jax.jit(bound.linear_bounds(fn))(box)
    middle = (box.lower + box.upper) / 2
    low, high = (
        jnp.diagonal(slope) * middle + bias for slope, bias in (planes[:2], planes[2:])
    )
    # |f''| <= 2 phi(0) = .8: a chord is at most .8 width^2 / 8 above.
    assert (high - low < 0.004 + 2e-4).all() and (high > low).all()

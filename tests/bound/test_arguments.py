"""What is no set, no label or no floating result is refused; dtypes are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import bound

METHODS = (bound.ibp, bound.crown_ibp, bound.crown)
X = jnp.array([1.0, 2.0, 3.0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "label, error, hint",
    [
        (3, ValueError, r"label is 3 .* wanted 0\.\.2"),
        (-1, ValueError, r"label is -1 .* wanted 0\.\.2"),
        (1.0, TypeError, "wanted one integer"),
        (jnp.array([1]), TypeError, "wanted one integer"),
        ("a", TypeError, "label is str 'a'; wanted one integer"),
    ],
)
def test_a_label_that_is_no_class_is_refused(method, label, error, hint):
    with pytest.raises(error, match=hint):
        method(bound.margins(lambda x: x, label))(bound.Ball(X, 0.1))


def test_a_traced_label_gives_the_margins_of_a_fixed_one():
    def lower(label):
        return bound.crown(bound.margins(lambda x: x, label))(bound.Ball(X, 0.1)).lower

    np.testing.assert_allclose(jax.jit(lower)(1), lower(1), rtol=1e-6)


AB, BC = {"a": X, "b": X}, {"b": X + 1, "c": X + 9}


@pytest.mark.parametrize(
    "region, error, hint",
    [
        (bound.Ball(jnp.zeros((0,)), 0.1), ValueError, "without entries"),
        (bound.Ball(X, jnp.ones(4)), ValueError, r"radius .* \(4,\); .* \(3,\)"),
        (bound.Ball(X, "a"), TypeError, "radius .* wanted a real number"),
        (bound.Ball(X, 1j), TypeError, "radius .* complex 1j; wanted a real number"),
        (bound.Ball(X, None), ValueError, r"PyTreeDef\(None\).*same structure"),
        (bound.Ball(AB, BC), ValueError, r"{'b': \*, 'c': \*}.*{'a': \*, 'b': \*}"),
        (bound.Ball(AB, AB, 2), ValueError, r"structure .*'a'.* wanted a scalar"),
        (bound.Ball("a", 0.1), TypeError, "center .* str 'a'; wanted an array"),
        (bound.Ball(X > 0, 0.1), TypeError, r"bool\[3\]; wanted a floating dtype"),
        (bound.Ball(X + 1j, 0.1), TypeError, "real and imaginary parts apart"),
        (bound.Ball({}, 0.1), ValueError, r"center .* dict {}, without an array"),
        (bound.Ball(None, 0.1), ValueError, "center .* NoneType None, without"),
        (bound.Ball(X, 0.1, True), ValueError, "p of a Ball is bool True; wanted"),
        (bound.Ball(X, 0.1, jnp.array(2)), ValueError, r"int32\[\]; wanted a number"),
        (bound.Box(AB, BC), ValueError, r"{'a': \*, 'b': \*}.*{'b': \*, 'c': \*}"),
        (bound.Box({}, {}), ValueError, "lower of a Box .* without an array"),
    ],
)
def test_a_region_that_is_none_is_refused(region, error, hint):
    with pytest.raises(error, match=hint):
        bound.ibp(lambda x: x.sum() + 1)(region)


@pytest.mark.parametrize(
    "method", [*METHODS, bound.forward, bound.alpha_crown, bound.linear_bounds]
)
def test_arguments_may_be_named(method):
    def scaled(x, factor, *, name):
        return factor * x if name == "times" else x

    ball = bound.Ball(X, 0.5)
    got = method(scaled)(factor=2.0, name="times", x=ball)
    want = method(lambda x: 2.0 * x)(ball)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_margins_need_two_floating_logits():
    with pytest.raises(ValueError, match=r"float32\[1\] .* two classes or more"):
        bound.margins(lambda x: x[:1], 0)(X)
    with pytest.raises(TypeError, match=r"int32\[3\]; wanted a floating dtype"):
        bound.margins(lambda x: x.astype(int), 0)(X)


def test_linear_bounds_of_truth_values_are_refused():
    with pytest.raises(TypeError, match=r"returns bool\[3\]; wanted floating"):
        bound.linear_bounds(lambda x: x > 0)(bound.Ball(X, 0.1))


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_with_a_wider_step_inside_keeps_its_dtype(method):
    def normalised(x):
        return jax.lax.rsqrt(jnp.var(x) + 0.1) * x  # jnp.var computes in float32

    center = jnp.array([0.5, -1.0, 2.0], jnp.bfloat16)
    bounds = method(normalised)(bound.Ball(center, 0.125))
    assert bounds.lower.dtype == bounds.upper.dtype == jnp.bfloat16
    corners = np.stack(np.meshgrid(*[[-0.125, 0, 0.125]] * 3), -1).reshape(-1, 3)
    values = jax.vmap(normalised)(center[None] + corners.astype(jnp.bfloat16))
    points = center[None].astype(jnp.float32) + corners.astype("f4")
    for found in (values, jax.vmap(normalised)(points)):
        assert bool((bounds.lower[None] <= found).all())
        assert bool((found <= bounds.upper[None]).all())

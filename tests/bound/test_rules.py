"""Rules for primitives, the users' and the missing ones; merged margins; rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive
from jax.interpreters import mlir

from jaxmethods import bound
from jaxmethods.bound import _registry
from jaxmethods.bound._rounding import unit
from jaxmethods.bound._walk import walk

BALL = bound.Ball(jnp.array([-1.0, 0.2, 3.0]), 0.5)


@pytest.fixture
def halve():
    """A primitive that halves, unknown to the package; rules are undone afterwards."""
    primitive = Primitive("halve_in_a_test")
    primitive.def_impl(lambda x: x / 2)
    primitive.def_abstract_eval(lambda x: x)
    mlir.register_lowering(
        primitive, mlir.lower_fun(lambda x: x / 2, multiple_results=False)
    )
    yield primitive.bind
    for rules in (_registry._INTERVAL, _registry._RELAX):
        rules.pop("halve_in_a_test", None)


def interval(node, x):
    return bound.Bounds(*(node.evaluate(end)[0] for end in x))


@pytest.mark.parametrize("method", [bound.ibp, bound.crown_ibp, bound.crown])
def test_a_missing_rule_names_primitive_line_and_remedy(method, halve):
    hint = r"'halve_in_a_test'.*test_rules\.py:\d+.*register_rule\('halve_in_a_test'"
    with pytest.raises(NotImplementedError, match=hint):
        method(lambda x: halve(2 * x))(BALL)
    loop = lambda x: jax.lax.while_loop(lambda v: v.sum() < 9, lambda v: 2 * v, x)  # noqa: E731
    with pytest.raises(NotImplementedError, match=r"'while'.*register_rule"):
        method(loop)(BALL)


def test_a_primitive_that_no_set_reaches_needs_no_rule(halve):
    got = bound.crown(lambda x, c: x + halve(c))(BALL, jnp.ones(3))
    np.testing.assert_allclose(got.upper, BALL.center + 1.0, rtol=1e-6)


def test_an_interval_alone_serves_every_method(halve):
    bound.register_rule("halve_in_a_test", interval)
    fn = lambda x: halve(x) - x  # noqa: E731
    for method in (bound.ibp, bound.crown):
        got = method(fn)(BALL)
        np.testing.assert_allclose(got.upper, -BALL.center / 2 + 0.75, rtol=1e-5)


def test_planes_of_a_rule_are_used(halve):
    def relax(node, x):
        slope, zero = jnp.full_like(x.lower, 0.5), jnp.zeros_like(x.lower)
        return bound.Lines(slope, zero, slope, zero)

    bound.register_rule("halve_in_a_test", interval, relax)
    got = bound.crown(lambda x: halve(x) - x)(BALL)
    np.testing.assert_allclose(got.upper, -BALL.center / 2 + 0.25, atol=1e-4)


@pytest.mark.parametrize(
    "args, hint",
    [
        ((3, interval), "name is a int"),
        (("p", None), r"interval of the rule for 'p' is a NoneType"),
        (("p", interval, 1), r"relax of the rule for 'p' is a int"),
    ],
)
def test_bad_rules_are_refused(args, hint):
    with pytest.raises(TypeError, match=hint):
        bound.register_rule(*args)


def names_of(fn, *args):
    return [node.name for node in walk(fn, args, "a test").graph.nodes]


W = jax.random.normal(jax.random.key(0), (3, 6))
V = jax.random.normal(jax.random.key(1), (6, 4))


def net(x, v=V):
    return (jax.nn.relu(x[None] @ W) @ v + 1)[0]


def test_margins_become_one_product():
    rows = bound.margins(net, 2)
    assert names_of(rows, BALL).count("dot_general") == 2
    got = bound.ibp(rows)(BALL)
    hidden = bound.ibp(lambda x: jax.nn.relu(x @ W))(BALL)
    merged = V[:, 2:3] - V[:, jnp.array([0, 1, 3])]
    want = (
        jnp.maximum(merged, 0).T @ hidden.lower
        + jnp.minimum(merged, 0).T @ hidden.upper
    )
    np.testing.assert_allclose(got.lower, want, rtol=1e-4, atol=1e-4)


def test_margins_merge_into_weights_that_vary():
    sets = bound.Ball(V, 0.1)
    x = BALL.center
    got = bound.ibp(bound.margins(net, 2))(x, sets)
    h = jax.nn.relu(x @ W)
    # Each margin moves by the radius of two columns: exact, as h is fixed.
    np.testing.assert_allclose(
        got.upper - got.lower, jnp.full(3, 4 * 0.1 * h.sum()), rtol=1e-4
    )


def test_a_wide_product_is_not_merged():
    narrow = jnp.ones((3, 2))
    fn = lambda x: (x @ narrow) @ jnp.ones((2, 8))  # noqa: E731
    assert names_of(fn, BALL) == ["dot_general", "dot_general"]
    assert names_of(lambda x: (x @ W) @ V, BALL).count("dot_general") == 1


def test_first_layer_of_a_ball_is_exact_also_after_moving_entries():
    """By the dual norm, for scaled, moved and padded entries, convolutions too."""
    x = jax.random.normal(jax.random.key(2), (4, 4, 1))
    kernel = jax.random.normal(jax.random.key(3), (3, 3, 1, 2))

    def first(x):
        x = (x[::-1] - 0.5) / 0.2
        return jax.lax.conv_general_dilated(
            x[None], kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    rows = jax.jacobian(first)(x).reshape(8, -1)
    reach = 0.1 * jnp.linalg.norm(rows, axis=1).reshape(1, 2, 2, 2)
    got = bound.ibp(first)(bound.Ball(x, 0.1, 2))
    np.testing.assert_allclose(got.upper, first(x) + reach, rtol=1e-4, atol=1e-4)
    twice = bound.ibp(lambda x: jnp.stack([x, x]).sum(0))(bound.Ball(x, 0.1, 2))
    assert (twice.upper >= 2 * x + 0.2).all()  # not independent: no root of 2


@pytest.mark.parametrize("method", [bound.ibp, bound.crown])
def test_float32_bounds_hold_for_sums_of_many_terms(method):
    """Bounds in float32 contain the exact value, and what float32 makes of it."""
    w = jax.random.normal(jax.random.key(4), (2000, 5))
    x = jax.random.normal(jax.random.key(5), (2000,))
    fn = lambda x: 3.0 * (x @ w) - 1e-3  # noqa: E731
    got = method(fn)(bound.Ball(x, 0.0))
    exact = 3.0 * (np.asarray(x, np.float64) @ np.asarray(w, np.float64)) - 1e-3
    for value in (exact, np.asarray(fn(x)), np.asarray(jax.jit(fn)(x))):
        assert (got.lower <= value).all() and (value <= got.upper).all()
    terms = 3 * np.abs(x) @ np.abs(w)
    assert (
        np.asarray(got.upper - got.lower) <= 6 * unit(2000, jnp.float32) * terms
    ).all()


def test_unit_is_the_worst_case_for_short_sums_and_grows_as_a_root():
    eps = float(jnp.finfo(jnp.float32).eps)
    assert unit(4, jnp.float32) == 4 * eps
    assert unit(10_000, jnp.float32) == 400 * eps
    assert unit(0, jnp.float32) == 0


def test_overflow_gives_infinities_not_nan():
    box = bound.Box(jnp.array([-1.0, 2.0]), jnp.array([-0.5, 3.0]))
    fn = lambda x: jnp.exp(100 * x).sum() - x  # noqa: E731
    for method in (bound.ibp, bound.crown_ibp, bound.crown):
        got = method(fn)(box)
        assert not jnp.isnan(got.lower).any() and (got.upper == jnp.inf).all()
    planes = bound.linear_bounds(fn)(box)
    assert not any(jnp.isnan(part).any() for part in planes)


def test_values_without_floats_come_as_intervals():
    got = bound.crown(lambda x: (x > 0.4, x.sum()))(BALL)
    assert got.lower[0].tolist() == [False, False, True]
    assert got.upper[0].tolist() == [False, True, True]


def test_half_precision_is_sound():
    x = jnp.asarray(BALL.center, jnp.bfloat16)
    fn = lambda x: jnp.tanh(x @ W.astype(jnp.bfloat16))  # noqa: E731
    got = bound.crown(fn)(bound.Ball(x, jnp.bfloat16(0.1)))
    assert got.lower.dtype == jnp.bfloat16
    signs = jnp.sign(jax.random.normal(jax.random.key(6), (50, 3), jnp.bfloat16))
    points = x[None] + jnp.bfloat16(0.1) * signs
    values = jax.vmap(fn)(points)
    assert (got.lower[None] <= values).all() and (values <= got.upper[None]).all()


@pytest.mark.parametrize(
    "call, error, hint",
    [
        (lambda: bound.ibp(jnp.abs)(jnp.ones(3)), ValueError, "no argument is a set"),
        (
            lambda: bound.ibp(jnp.abs)(bound.Ball(jnp.ones(3), jnp.ones(3), 2)),
            ValueError,
            r"shape \(3,\); wanted a scalar",
        ),
        (
            lambda: bound.ibp(jnp.abs)(bound.Box(jnp.ones(3), jnp.ones(4))),
            ValueError,
            "wanted the same",
        ),
        (
            lambda: bound.ibp(jnp.abs)(bound.Ball(jnp.array([jnp.nan]), 1.0)),
            ValueError,
            "NaN or infinity",
        ),
        (
            lambda: bound.ibp(lambda x: 1 / x)(BALL),
            ValueError,
            r"division at .*test_rules\.py",
        ),
        (
            lambda: bound.crown(jax.lax.rsqrt)(BALL),
            ValueError,
            "rsqrt at .*down to -1.5",
        ),
        (
            lambda: bound.linear_bounds(lambda x, y: x + y)(BALL, BALL),
            ValueError,
            "one set that holds one array",
        ),
    ],
)
def test_errors(call, error, hint):
    with pytest.raises(error, match=hint):
        call()

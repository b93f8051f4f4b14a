"""Elementwise functions of one variable are one operation, bounded soundly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import bound
from jaxmethods.bound import _fuse
from jaxmethods.bound._walk import walk

BOX = bound.Box(jnp.array([-1.0, 0.2, -3.0, 0.5]), jnp.array([0.5, 1.5, 2.0, 0.5]))


def names(fn, *args):
    return [node.name for node in walk(fn, args, "a test").graph.nodes]


FUNCTIONS = {
    "x sigmoid(x)": lambda x: x * jax.nn.sigmoid(x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu, tanh form": jax.nn.gelu,
    "silu": jax.nn.silu,
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "bell": lambda x: jnp.exp(-(x**2)),
    "quotient": lambda x: x / (1 + x**2),
    "cubic": lambda x: x**3 - 2 * x,
    "with a kink": lambda x: jnp.where(x > 0, x, 0.1 * jnp.expm1(x)),
    "with a jump": lambda x: jnp.where(x > 0.25, 1.0, x * x),
    "step": lambda x: (x > 0).astype(x.dtype),
    "clip": lambda x: jnp.clip(x, -0.5, 1.0),
    "root": lambda x: jnp.sqrt(x * x),
    "relu squared": lambda x: jax.nn.relu(x) ** 2,
}


def lines_at(planes, points):
    """The two lines of each entry, at points (n, entries)."""
    slopes = [np.diagonal(s) for s in (planes.lower_slope, planes.upper_slope)]
    low = points * slopes[0] + np.asarray(planes.lower_bias)
    return low, points * slopes[1] + np.asarray(planes.upper_bias)


@pytest.mark.parametrize(
    "name, dtype",
    [
        *((name, jnp.float32) for name in FUNCTIONS),
        *((name, jnp.float64) for name in ("gelu", "with a kink", "quotient")),
    ],
)
def test_range_and_lines_enclose_a_dense_grid(name, dtype, x64):
    fn = FUNCTIONS[name]
    box = jax.tree.map(lambda end: end.astype(dtype), BOX)
    points = np.linspace(
        *(np.asarray(end, np.float64) for end in (BOX.lower, BOX.upper))
    )
    points = points.clip(
        *(np.asarray(end, np.float64) for end in (BOX.lower, BOX.upper))
    )
    run = jax.jit(lambda b, x: (bound.ibp(fn)(b), bound.linear_bounds(fn)(b), fn(x)))
    got, planes, values = run(box, points)
    assert (got.lower <= values.min(0)).all() and (values.max(0) <= got.upper).all()
    low, high = lines_at(
        jax.tree.map(lambda v: np.asarray(v, np.float64), planes), points
    )
    assert (low <= values).all() and (values <= high).all()
    width, spread = np.asarray(got.upper - got.lower), np.ptp(values, 0)
    assert (width <= 1.12 * spread + 1e-2).all()


def test_what_comes_from_one_value_is_one_operation():
    assert names(FUNCTIONS["x sigmoid(x)"], BOX) == ["univariate"]
    assert names(lambda x: jax.nn.relu(x + 1.0), BOX) == ["add", "max"]
    assert names(lambda x: 3 * jnp.exp(-(x**2)) + 1, BOX)[-2:] == ["mul", "add"]
    two = lambda x, y: x * jax.nn.sigmoid(y)  # noqa: E731
    assert names(two, BOX, BOX) == ["logistic", "mul"]


def test_a_jump_that_no_comparison_of_the_variable_places_stays_apart():
    fn = lambda x: jnp.where(jnp.sin(3 * x) > 0.5, x, -x)  # noqa: E731
    assert "select_n" in names(fn, BOX)


def test_a_long_chain_is_cut(monkeypatch):
    monkeypatch.setattr(_fuse, "_MOST_STEPS", 12)

    def fn(x):
        for _ in range(6):
            x = x - 0.01 * x**3
        return x

    found = names(fn, BOX)
    assert found.count("univariate") > 1
    points = np.linspace(BOX.lower, BOX.upper, 50)
    got, values = jax.jit(lambda b, x: (bound.ibp(fn)(b), fn(x)))(BOX, points)
    assert (got.lower <= values.min(0)).all() and (values.max(0) <= got.upper).all()


W = jax.random.normal(jax.random.key(0), (3, 6))
V = jax.random.normal(jax.random.key(1), (6, 5))


def scalar(act):
    return lambda x: act(act(x @ W) @ V).sum()


@pytest.mark.parametrize(
    "act, methods",
    [
        (jnp.tanh, (bound.ibp,)),
        (jax.nn.sigmoid, (bound.ibp, bound.crown)),
        (jax.nn.gelu, (bound.ibp,)),
        (jax.nn.silu, (bound.crown,)),
    ],
)
def test_derivatives_become_products_with_functions_of_one_variable(act, methods):
    """tanh's 1 - tanh(x) ** 2 comes as (g + g y) (1 - y) from reverse mode."""
    slope, ball = jax.grad(scalar(act)), bound.Ball(jnp.array([0.3, -0.2, 0.9]), 0.1)
    found = names(slope, ball)
    assert "univariate" in found and "add_any" not in found and "sub" not in found
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (500, 3))
    check_holds(slope, ball, methods, noise)


def check_holds(fn, ball, methods, noise):
    run = jax.jit(lambda b, x: ([m(fn)(b) for m in methods], jax.vmap(fn)(x)))
    found, values = run(ball, ball.center[None] + np.float32(noise))
    for got in found:
        assert (got.lower <= values.min(0)).all() and (values.max(0) <= got.upper).all()
        assert np.isfinite(got.lower).all() and np.isfinite(got.upper).all()


def test_a_rectifiers_derivative_is_bounded():
    slope, ball = jax.grad(scalar(jax.nn.relu)), bound.Ball(jnp.zeros(3), 0.5)
    noise = np.random.default_rng(2).uniform(-0.5, 0.5, (500, 3))
    check_holds(slope, ball, (bound.crown,), noise)


@pytest.mark.parametrize("name", ["relu squared", "silu"])
def test_bounds_have_derivatives(name, x64):
    fn = FUNCTIONS[name]

    def width(ends):
        bounds = bound.crown(lambda x: fn(x).sum() - x.sum())(bound.Box(*ends))
        return bounds.upper - 0.7 * bounds.lower

    run, step = jax.jit(jax.value_and_grad(width)), 1e-5
    ends = np.array([[-1.0, 0.2, -3.0], [0.5, 1.5, 2.0]])
    for seed in range(3):
        direction = np.random.default_rng(seed).normal(size=(2, 3))
        slope = np.vdot(run(ends)[1], direction)
        up, down = (run(ends + t * direction)[0] for t in (step, -step))
        np.testing.assert_allclose(slope, (up - down) / (2 * step), 1e-3, 1e-3)


@pytest.mark.optimized
@pytest.mark.parametrize("fn", [jax.nn.silu, jax.nn.gelu])
def test_an_endless_interval_among_many_contains_the_function(fn, x64):
    lower = np.linspace(-3, 3, 300).astype(np.float32)
    upper = lower + 1
    lower[-1], upper[-1] = 0, np.inf
    for method in (bound.ibp, bound.crown):
        each = jax.jit(jax.vmap(lambda a, b, m=method: m(fn)(bound.Box(a, b))))
        low, high = each(lower, upper)
        assert low[-1] <= 0 and high[-1] == np.inf


@pytest.mark.parametrize(
    "fn, least, at_one",
    [
        (jax.nn.silu, -0.278465, 0.731059),
        (lambda x: x * jax.nn.sigmoid(x), -0.278465, 0.731059),
        (jax.nn.gelu, -0.170041, 0.841192),
        (lambda x: jax.nn.gelu(x, approximate=False), -0.169972, 0.841345),
    ],
)
def test_a_function_that_vanishes_far_below_has_its_range_there(fn, least, at_one):
    """At -inf it is computed as -inf times 0, which is NaN."""
    lower = np.float32([-np.inf, -np.inf, -np.inf, -2, 1, 0])
    upper = np.float32([np.inf, -20, 1, np.inf, np.inf, np.inf])
    want = [least, 0, least, least, at_one, 0], [np.inf, 0, at_one, *[np.inf] * 3]
    methods = bound.ibp, bound.crown_ibp, bound.crown, bound.forward
    run = jax.jit(lambda a, b: [method(fn)(bound.Box(a, b)) for method in methods])
    for got in run(lower, upper):
        np.testing.assert_allclose(got.lower, want[0], atol=1e-4)
        np.testing.assert_allclose(got.upper, want[1], atol=1e-4)


@pytest.mark.parametrize("name", ["silu", "mish"])
def test_derivatives_are_finite_where_a_function_is_nearly_constant(name):
    """Far below 0 the slopes are so small that their squares underflow."""
    lower = np.float32([-90, -90, -100, -60, -1e30])
    upper = np.float32([-80, 90, 100, 1, 1e30])

    def width(lower, upper):
        found = bound.crown(FUNCTIONS[name])(bound.Box(lower, upper))
        return jnp.sum(found.upper - found.lower)

    slopes = jax.jit(jax.grad(width, (0, 1)))(lower, upper)
    assert all(np.isfinite(slope).all() for slope in slopes)
    if name == "silu":  # whose range on [-90, 90] grows with its upper end alone
        assert abs(slopes[0][1]) < 1e-3 and abs(slopes[1][1] - 1) < 1e-3


def test_no_derivative_comes_back_from_an_endless_interval():
    lower, upper = np.float32([-np.inf, -1, 0.0]), np.float32([np.inf, 1, np.inf])

    def least(lower, upper):
        found = bound.ibp(jax.nn.silu)(bound.Box(lower, upper))
        return jnp.sum(found.lower)

    for slope in jax.jit(jax.grad(least, (0, 1)))(lower, upper):
        assert np.isfinite(slope).all()


def test_infinite_and_empty_widths_do_not_make_nan():
    box = bound.Box(jnp.array([0.0, 1.0, 80.0]), jnp.array([0.0, 1e30, 90.0]))
    fn = lambda x: jnp.exp(x) * jnp.sqrt(x)  # noqa: E731
    methods = bound.ibp, bound.crown, bound.forward
    for got in jax.jit(lambda box: [m(fn)(box) for m in methods])(box):
        assert not (jnp.isnan(got.lower).any() or jnp.isnan(got.upper).any())
        assert got.upper[1] == jnp.inf


def test_outside_of_a_domain_is_an_error_and_no_finite_lie():
    fn = lambda x: jnp.log(x) * x  # noqa: E731
    with pytest.raises(ValueError, match=r"log at .*test_univariate"):
        bound.ibp(fn)(BOX)
    got = jax.jit(bound.crown(fn))(BOX)
    assert not (jnp.isfinite(got.lower[0]) and jnp.isfinite(got.upper[0]))


def test_vmap_and_jit_give_the_same(x64):
    fn = lambda x: FUNCTIONS["bell"](x @ W)  # noqa: E731
    xs = jax.random.normal(jax.random.key(3), (2, 3))
    one = lambda x: bound.crown(fn)(bound.Ball(x, 0.3))  # noqa: E731
    run, mapped = jax.jit(one), jax.jit(jax.vmap(one))(xs)
    want = [run(x) for x in xs]
    np.testing.assert_allclose(mapped.lower, [w.lower for w in want], rtol=1e-9)
    np.testing.assert_allclose(mapped.upper, [w.upper for w in want], rtol=1e-9)

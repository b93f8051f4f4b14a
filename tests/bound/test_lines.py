"""Lines and planes enclose each nonlinear operation, at any interval and dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmethods import bound

# name: function, and the ends between which intervals are drawn
ELEMENTWISE = {
    "abs": (jnp.abs, -5, 5),
    "asinh": (jnp.arcsinh, -9, 9),
    "atan": (jnp.arctan, -9, 9),
    "celu": (lambda x: jax.nn.celu(x, 0.5), -5, 5),
    "clamp": (lambda x: lax.clamp(-jnp.ones_like(x), x, 2 * jnp.ones_like(x)), -5, 5),
    "clip": (lambda x: jnp.clip(x, -1, 2), -5, 5),
    "elu": (jax.nn.elu, -5, 5),
    "elu, steep": (lambda x: jax.nn.elu(x, 2.0), -5, 5),
    "elu, falling": (lambda x: jax.nn.elu(x, -0.5), -5, 5),
    "erf": (lax.erf, -4, 4),
    "erfc": (lax.erfc, -4, 4),
    "exp": (jnp.exp, -8, 6),
    "exp2": (jnp.exp2, -8, 6),
    "expm1": (jnp.expm1, -8, 3),
    "floor": (jnp.floor, -5, 5),
    "hard_tanh": (jax.nn.hard_tanh, -3, 3),
    "leaky_relu": (lambda x: jax.nn.leaky_relu(x, 0.1), -5, 5),
    "leaky_relu, steep": (lambda x: jax.nn.leaky_relu(x, 3.0), -5, 5),
    "leaky_relu, falling": (lambda x: jax.nn.leaky_relu(x, -0.5), -5, 5),
    "log": (jnp.log, 1e-3, 20),
    "log1p": (jnp.log1p, -0.9, 20),
    "max": (lambda x: jnp.maximum(x, -1.0), -5, 5),
    "max, never reached": (lambda x: jnp.maximum(x, -jnp.inf), -5, 5),
    "min": (lambda x: jnp.minimum(2.0, x), -5, 5),
    "power": (lambda x: x**1.7, 0.01, 9),
    "reciprocal": (lambda x: 1 / x, 0.05, 20),
    "reciprocal, negative": (lambda x: 2 / x, -20, -0.05),
    "relu": (jax.nn.relu, -5, 5),
    "relu6": (jax.nn.relu6, -3, 9),
    "rsqrt": (lax.rsqrt, 0.01, 20),
    "selu": (jax.nn.selu, -5, 5),
    "sigmoid": (jax.nn.sigmoid, -9, 9),
    "sign": (jnp.sign, -3, 3),
    "sinh": (jnp.sinh, -4, 4),
    "softplus": (jax.nn.softplus, -9, 9),
    "sqrt": (jnp.sqrt, 1e-3, 20),
    "square": (jnp.square, -5, 5),
    "tanh": (jnp.tanh, -6, 6),
    "where": (lambda x: jnp.where(x > 1, 2 * x, 3.0), -5, 5),
    "x * x": (lambda x: x * x, -5, 5),
    "x ** -1": (lambda x: x**-1, 0.05, 5),
    "x ** -2": (lambda x: x**-2, 0.2, 5),
    "x ** -3": (lambda x: x**-3, -5, -0.3),
    "x ** 3": (lambda x: x**3, -4, 4),
    "x ** 4": (lambda x: x**4, -4, 4),
}
# Several operations, or one with jumps: sound, but the interval is not the range.
LOOSE = {"power", "where"}


def intervals(low, high, n=32):
    """Random intervals: of any width, narrow, about the middle, and without width."""
    rng = np.random.default_rng(0)
    ends = np.sort(rng.uniform(low, high, (n, 2)), 1)
    ends[::4, 1] = ends[::4, 0] + 1e-4 * (high - ends[::4, 0])
    half = rng.uniform(0.01, 0.5, (n // 4, 1)) * (high - low)
    around = (low + high) / 2 + half * np.array([-1, 1]) * rng.uniform(size=(n // 4, 2))
    ends[1::4] = around
    ends[-3:, 1] = ends[-3:, 0]
    ends[0] = low, high
    return tuple(jnp.asarray(e, jnp.float32) for e in np.clip(ends, low, high).T)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_lines_and_interval_hold_on_a_dense_grid(name):
    """In float32, no slack for the interval; the lines are evaluated in float64."""
    fn, low, high = ELEMENTWISE[name]
    box = bound.Box(*intervals(low, high))
    grid = np.linspace(0, 1, 201)[:, None]
    points = np.asarray(box.lower) * (1 - grid) + np.asarray(box.upper) * grid
    points = np.concatenate([points, np.zeros_like(points[:1])])
    points = np.clip(points.astype(box.lower.dtype), box.lower, box.upper)
    run = jax.jit(lambda b, x: (bound.ibp(fn)(b), bound.linear_bounds(fn)(b), fn(x)))
    got, planes, values = run(box, points)
    values = np.asarray(values, np.float64)
    assert (np.asarray(got.lower) <= values.min(0)).all()
    assert (np.asarray(got.upper) >= values.max(0)).all()
    if name not in LOOSE:
        slack = 1e-4 * (1 + np.abs(values).max(0)) + 1e-3 * np.ptp(values, 0)
        assert (values.min(0) - got.lower <= slack).all()
        assert (got.upper - values.max(0) <= slack).all()
    below, base, above, top = (np.asarray(a, np.float64) for a in planes)
    below, above = np.diag(below), np.diag(above)
    scale = 1e-13 * (
        1 + np.abs(values) + np.abs(points) * np.abs([below, above]).max(0)
    )
    assert (below * points + base <= values + scale).all()
    assert (values <= above * points + top + scale).all()


def test_lines_of_a_sigmoid_are_tangents(x64):
    """Through the far end and touching inside: no line above has less area."""
    lower, upper = jnp.array([-2.0]), jnp.array([3.0])
    planes = jax.jit(bound.linear_bounds(jnp.tanh))(bound.Box(lower, upper))
    slope, bias = float(planes.upper_slope[0, 0]), float(planes.upper_bias[0])
    np.testing.assert_allclose(slope * -2 + bias, np.tanh(-2), atol=1e-9)
    touch = np.arctanh(np.sqrt(1 - slope))
    np.testing.assert_allclose(slope * touch + bias, np.tanh(touch), atol=1e-9)
    assert 0.5 < touch < 3


@pytest.mark.parametrize("name", ["tanh", "softplus", "exp", "relu"])
def test_lines_are_differentiable_in_the_interval(name, x64):
    fn, _, _ = ELEMENTWISE[name]

    def corner(ends, weights):
        lower, upper = ends
        planes = bound.linear_bounds(fn)(bound.Box(lower, upper))
        return weights @ (jnp.diag(planes.upper_slope) * 0.3 + planes.lower_bias)

    run = jax.jit(jax.value_and_grad(corner))
    rng, step = np.random.default_rng(0), 1e-5
    ends = np.array([[-2.0, -1.0, -3.0, 0.5], [1.0, 2.5, -0.5, 1.5]])
    for _ in range(5):
        weights, direction = rng.normal(size=4), rng.normal(size=(2, 4))
        slope = np.vdot(run(ends, weights)[1], direction)
        up, down = (run(ends + t * direction, weights)[0] for t in (step, -step))
        np.testing.assert_allclose(slope, (up - down) / (2 * step), 1e-4, 1e-6)


JOINT = {
    "avg_pool": lambda v: (
        lax.reduce_window(v, 0.0, lax.add, (2, 2), (1, 2), "SAME") / 4
    ),
    "convolution of two": lambda v: lax.conv_general_dilated(
        v[None, None], v[None, None, :2, :2], (1, 2), "SAME"
    ),
    "max of two": lambda v: jnp.maximum(v[0], v[1]),
    "max over axes": lambda v: v.max((0, 1)),
    "max_pool": lambda v: lax.reduce_window(
        v, -jnp.inf, lax.max, (2, 3), (1, 2), "SAME"
    ),
    "max_pool, dilated": lambda v: lax.reduce_window(
        v, -jnp.inf, lax.max, (2, 2), (1, 1), [(0, 1), (1, 0)], (1, 2), (1, 2)
    ),
    "min of two": lambda v: jnp.minimum(v[0], 1 - v[1]),
    "min over an axis": lambda v: v.min(1),
    "min_pool": lambda v: lax.reduce_window(
        v, jnp.inf, lax.min, (2, 2), (2, 2), "VALID"
    ),
    "product": lambda v: v[0] * v[1],
    "product of matrices": lambda v: v @ v.T + v[:, :1] @ v[:1, :3],
    "quotient": lambda v: v[0] / (2 + v[1] ** 2),
    "select": lambda v: jnp.where(v[0] + v[1] > 0, v[2], -1.0),
    "sort": lambda v: jnp.sort(v, 1),
}


@pytest.mark.parametrize("name", JOINT)
def test_planes_of_several_variables_hold(name, x64):
    fn, rng = JOINT[name], np.random.default_rng(1)
    lower = rng.normal(size=(3, 4))
    upper = lower + rng.choice([0.0, 0.1, 2.0], size=(3, 4))
    box = bound.Box(jnp.asarray(lower), jnp.asarray(upper))
    mix = rng.uniform(size=(300, 3, 4))
    mix = np.where(mix < 0.3, 0, np.where(mix > 0.7, 1, mix))
    points = jnp.asarray(lower + mix * (upper - lower))
    methods = bound.ibp, bound.crown, bound.linear_bounds
    run = jax.jit(lambda b, x: ([m(fn)(b) for m in methods], jax.vmap(fn)(x)))
    (got, crown, planes), values = run(box, points)
    for bounds in (got, crown):
        assert (np.asarray(bounds.lower) <= values.min(0) + 1e-12).all()
        assert (np.asarray(bounds.upper) >= values.max(0) - 1e-12).all()
    axes = ((1, 2), (values.ndim - 1, values.ndim))
    below, base, above, top = map(np.asarray, planes)
    low = np.tensordot(points, below, axes) + base
    high = np.tensordot(points, above, axes) + top
    assert (low <= values + 1e-11).all() and (values <= high + 1e-11).all()


def test_products_of_many_terms_go_by_signs(x64, monkeypatch):
    """The way for large matrices: sound, and exact where no two factors hold zero."""
    from jaxmethods.bound import _products

    x = bound.Box(
        jnp.array([[1.0, -2.0], [0.5, -1.0]]), jnp.array([[2.0, -1.0], [1, 0]])
    )
    y = bound.Box(
        jnp.array([[-1.0, 1.0], [2.0, -2]]), jnp.array([[1.0, 2.0], [3.0, -1]])
    )

    def run(x, y):
        return jax.jit(bound.ibp(jnp.matmul))(x, y)

    exact = run(x, y)
    monkeypatch.setattr(_products, "_TERM_BY_TERM", 0)
    for a, b in zip(run(x, y), exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
    both_signs = bound.Box(-jnp.ones((2, 2)), jnp.ones((2, 2)))
    wide, exact = run(both_signs, both_signs), jnp.full((2, 2), 2.0)
    np.testing.assert_allclose(wide.upper, exact)

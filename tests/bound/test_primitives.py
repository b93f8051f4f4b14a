"""Every primitive: its interval and its planes contain what samples reach."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxmethods import bound

INDEX = np.array([2, 0, -1])
MASK = np.array([[True, False, True, True], [False, False, True, False], [True] * 4])

# name: function of one number, lowest and highest value of its intervals
ELEMENTWISE = {
    "acos": (jnp.arccos, -1, 1),
    "acosh": (jnp.arccosh, 1, 20),
    "asin": (jnp.arcsin, -1, 1),
    "asinh": (jnp.arcsinh, -9, 9),
    "atan": (jnp.arctan, -9, 9),
    "atan2 of a constant": (lambda x: jnp.arctan2(x, -0.5), -3, 3),
    "atanh": (jnp.arctanh, -0.99, 0.99),
    "bessel_i0e": (lax.bessel_i0e, -5, 5),
    "cbrt": (jnp.cbrt, -5, 5),
    "ceil": (jnp.ceil, -3, 3),
    "clamp": (lambda x: lax.clamp(-1.0, x, 2.0), -5, 5),
    "cosh": (jnp.cosh, -4, 4),
    "cos": (jnp.cos, -9, 9),
    "digamma": (lax.digamma, 0.05, 9),
    "erf": (lax.erf, -4, 4),
    "erf_inv": (lax.erf_inv, -0.99, 0.99),
    "erfc": (lax.erfc, -4, 4),
    "exp2": (jnp.exp2, -5, 5),
    "expm1": (jnp.expm1, -5, 3),
    "floor": (jnp.floor, -3, 3),
    "floor division": (lambda x: x // 0.75, -3, 3),
    "gelu": (jax.nn.gelu, -6, 6),
    "gelu, erf": (functools.partial(jax.nn.gelu, approximate=False), -6, 6),
    "integer_pow -2": (lambda x: x**-2, 0.2, 5),
    "integer_pow -3": (lambda x: x**-3, -5, -0.2),
    "integer_pow 3": (lambda x: x**3, -4, 4),
    "integer_pow 4": (lambda x: x**4, -4, 4),
    "lgamma": (lax.lgamma, 0.05, 9),
    "log": (jnp.log, 1e-3, 20),
    "log1p": (jnp.log1p, -0.9, 20),
    "logaddexp": (lambda x: jnp.logaddexp(x, 0.3), -9, 9),
    "logistic": (lax.logistic, -9, 9),
    "mod": (lambda x: jnp.mod(x, 1.5), -4, 4),
    "nextafter": (lambda x: jnp.nextafter(x, 1.0), -3, 3),
    "pow 2.0": (lambda x: jnp.power(x, 2.0), -4, 4),
    "pow -3.0": (lambda x: jnp.power(x, -3.0), 0.3, 4),
    "pow 1.7": (lambda x: jnp.power(x, 1.7), 0, 4),
    "pow 0.3": (lambda x: jnp.power(x, 0.3), 0, 4),
    "pow -1.5": (lambda x: jnp.power(x, -1.5), 0.05, 4),
    "pow of a constant": (lambda x: jnp.power(1.7, x), -4, 4),
    "pow x x": (lambda x: jnp.power(x, x), 0.05, 3),
    "reduce_precision": (lambda x: lax.reduce_precision(x, 5, 3), -4, 4),
    "rem": (lambda x: lax.rem(x, jnp.full_like(x, -1.5)), -4, 4),
    "round": (jnp.round, -3, 3),
    "rsqrt": (lax.rsqrt, 0.01, 20),
    "sigmoid": (jax.nn.sigmoid, -9, 9),
    "sign": (jnp.sign, -2, 2),
    "silu": (jax.nn.silu, -9, 9),
    "sin": (jnp.sin, -9, 9),
    "sinc": (jnp.sinc, 0.5, 3),
    "sinh": (jnp.sinh, -4, 4),
    "sqrt": (jnp.sqrt, 0, 20),
    "square": (jnp.square, -4, 4),
    "tan": (jnp.tan, -1.5, 1.5),
    "tan, next branch": (jnp.tan, 1.6, 4.6),
    "tanh": (jnp.tanh, -6, 6),
    "to int32 and back": (lambda x: 1.0 * x.astype(jnp.int32), -3, 3),
    "to bool and back": (lambda x: 1.0 * x.astype(bool), -1, 1),
    "where, less": (lambda x: jnp.where(x < 0.5, 2 - x, x), -3, 3),
    "where, not equal": (lambda x: jnp.where(x != 0.0, x, 5.0), -3, 3),
    "where, between": (lambda x: jnp.where((x > -1) & (x <= 1), x, -x), -3, 3),
    "where, either": (lambda x: jnp.where((x < -1) | (x >= 1), x, 9.0), -3, 3),
    "where, xor": (lambda x: jnp.where((x < -1) ^ (x >= 1), x, 9.0), -3, 3),
    "where, nan": (lambda x: jnp.where(jnp.isnan(x), 0.0, x), -3, 3),
    "where, isfinite": (lambda x: jnp.where(jnp.isfinite(x), x, 0.0), -3, 3),
    "clip by itself": (lambda x: jnp.clip(x, -x, 2.0), -3, 3),
}


def pool_gradient(x):
    return jax.grad(lambda v: jnp.sin(max_pool(v)).sum())(x)


def max_pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (1, 2), "VALID")


def in_scan(x):
    def step(carry, row):
        count, total = carry
        total = jnp.tanh(total + row * count)
        return (count + 1, total), total.sum()

    (count, total), sums = lax.scan(step, (0, jnp.zeros(4, x.dtype)), x, reverse=True)
    return total + count, sums


# name: function of an array (3, 4) with entries in [-2, 2]
JOINT = {
    "argmax": lambda x: jnp.argmax(x, 1),
    "argmin, as a number": lambda x: 1.0 * jnp.argmin(x),
    "argsort": lambda x: jnp.argsort(x, 1),
    "atan2": lambda x: jnp.arctan2(x[0], x[1]),
    "comparisons": lambda x: (x[0] < x[1], x[0] >= x[1], x[0] == x[1], x > 0),
    "celu, reversed": lambda x: x @ jax.nn.celu(x, -1.0).T,
    "cond": lambda x: lax.cond(x[0, 0] > 0.3, jnp.sin, lambda v: v - 1, x),
    "cumlogsumexp": lambda x: lax.cumlogsumexp(x, 1),
    "cummax": lambda x: lax.cummax(x, 0),
    "cummin": lambda x: lax.cummin(x, 1, reverse=True),
    "cumprod": lambda x: jnp.cumprod(x, 1),
    "cumsum": lambda x: jnp.cumsum(x, 1),
    "diff": lambda x: jnp.diff(x, axis=1),
    "division of integers": lambda x: (4 * x).astype(int) // (1 + (x < 0)),
    "empty": lambda x: x[:0].sum() + jnp.max(x[:, :0], initial=-1.0) + x,
    "einsum": lambda x: jnp.einsum("ij,kj->ki", x, jnp.sin(x)),
    "fori_loop": lambda x: lax.fori_loop(1, 4, lambda i, v: jnp.sin(v) + i * x, x),
    "gather": lambda x: x[INDEX, 1:] - jnp.take(x, abs(INDEX), axis=0)[:, :3],
    "integers": lambda x: jnp.cumsum((3 * x).astype(jnp.int32), 1) * 2 - 1,
    "integer products": lambda x: (3 * x).astype(int) * (2 * x).astype(int).T[:3, :1],
    "integer matrix product": lambda x: (
        jnp.round(2 * x).astype(jnp.int32) @ jnp.arange(-2, 6).reshape(4, 2)
    ),
    "inner products": lambda x: x @ x.T,
    "linalg.norm": lambda x: jnp.linalg.norm(x, axis=0),
    "linalg.norm, whole": lambda x: jnp.linalg.norm(x),
    "log of a norm": lambda x: jnp.log(1 + jnp.linalg.norm(x, ord=1, axis=1)),
    "max and min": lambda x: x.max(0) - x.min(),
    "median": lambda x: jnp.median(x, axis=1),
    "name": lambda x: checkpoint_name(x, "hidden") ** 2,
    "pad": lambda x: jnp.pad(x, 1, mode="reflect"),
    "pool": max_pool,
    "powers": lambda x: x ** jnp.array([[0.0, 1.0, 2.0, 3.0]]),
    "pool, gradient": pool_gradient,
    "products of integers": lambda x: jnp.prod(jnp.round(x).astype(int), 0),
    "quantile": lambda x: jnp.quantile(x, 0.3),
    "random": lambda x: x + jax.random.normal(jax.random.key(3), x.shape),
    "reduce_prod": lambda x: jnp.prod(x, 1),
    "reduce_prod, whole": lambda x: jnp.prod(x),
    "remat": jax.checkpoint(lambda x: jnp.sin(x) * x),
    "resize": lambda x: jax.image.resize(x, (5, 6), "linear"),
    "resize, nearest": lambda x: jax.image.resize(x, (5, 6), "nearest"),
    "rev": lambda x: x[::-1, ::-1] * x,
    "roll": lambda x: jnp.roll(x, 1, 0) * x,
    "scan": in_scan,
    "scatter": lambda x: x.at[0, 1].set(x[2, 2]).at[1].add(x[0]),
    "scatter, min and max": lambda x: x.at[0].min(x[1]).at[2].max(0.5),
    "sort": lambda x: jnp.sort(x, 1),
    "sort along with a key": lambda x: lax.sort((x[0], x[1]), num_keys=1),
    "sort by a constant": lambda x: lax.sort((jnp.asarray(INDEX), x[:, 0]))[1],
    "softmax": lambda x: jax.nn.softmax(x, 1),
    "square of a sum": lambda x: jnp.square(x.sum(0)),
    "stack and split": lambda x: jnp.stack(jnp.split(x, 2, 1)[::-1]) * 2,
    "std": lambda x: jnp.std(x, 1, ddof=1),
    "switch": lambda x: lax.switch(
        (x[0, 0] + 1).astype(int), [jnp.sin, jnp.abs, jnp.negative], x
    ),
    "top_k": lambda x: lax.top_k(x, 2),
    "triangle": lambda x: jnp.tril(x) + jnp.triu(x * 2, 1),
    "truths": lambda x: (jnp.all(x > -1, 0), jnp.any(x > 1), ~(x > 0)),
    "var": lambda x: jnp.var(x, 0),
    "vmap": jax.vmap(lambda row: jnp.cumsum(row)[::-1] * row),
    "where, constant": lambda x: jnp.where(MASK, x, 0.0) / jnp.where(MASK, 2, x + 5),
    "where, key": lambda x: jnp.where(x > x[::-1], jnp.sin(x), 1.0),
    "zero times infinity": lambda x: jnp.exp(1e3 * (x + 3)) * (x - x),
}


def intervals(rng, low, high, shape):
    """Intervals of any width, narrow ones, and some of width zero."""
    a, b = np.sort(rng.uniform(low, high, (2, *shape)), 0)
    kind = rng.integers(0, 4, shape)
    b = np.where(kind == 0, a, np.where(kind == 1, a + 0.05 * (b - a), b))
    return a, b


def points_in(rng, low, high, num):
    """Points of a box; of half the entries, ends."""
    share = rng.uniform(size=(num, *np.shape(low)))
    share = np.where(rng.uniform(size=share.shape) < 0.5, np.round(share), share)
    share[0], share[-1] = 0, 1
    return np.clip(low + share * (high - low), low, high)


def contains(bounds, values, name):
    """The bounds are ordered, are no NaN and hold every value."""
    for low, high, value in zip(*map(jax.tree.leaves, (*bounds, values)), strict=True):
        low, high, value = np.asarray(low), np.asarray(high), np.asarray(value)
        assert low.dtype == high.dtype == value.dtype, name
        assert low.shape == value.shape[1:], name
        assert not np.isnan(1.0 * low).any() and not np.isnan(1.0 * high).any(), name
        usable = ~np.isnan(1.0 * value)
        assert (np.where(usable, low <= value, True)).all(), f"{name}: below"
        assert (np.where(usable, value <= high, True)).all(), f"{name}: above"


def check_elementwise(name, method, dtype="float32"):
    fn, low, high = ELEMENTWISE[name]
    rng = np.random.default_rng(len(name))
    a, b = (v.astype(dtype) for v in intervals(rng, low, high, (24,)))
    a[0], b[0] = low, high
    grid = np.clip(a + np.linspace(0, 1, 201, dtype=dtype)[:, None] * (b - a), a, b)
    run = jax.jit(lambda box, grid: (method(fn)(box), fn(grid)))
    contains(*run(bound.Box(a, b), grid), name)


def check_joint(name, methods, dtype="float32"):
    fn, rng = JOINT[name], np.random.default_rng(len(name))
    a, b = (v.astype(dtype) for v in intervals(rng, -2, 2, (3, 4)))
    points = points_in(rng, a, b, 300).astype(dtype)
    run = jax.jit(lambda box, x: ([m(fn)(box) for m in methods], jax.vmap(fn)(x)))
    found, values = run(bound.Box(a, b), points)
    for bounds in found:
        contains(bounds, values, name)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_intervals_of_one_number(name):
    check_elementwise(name, bound.ibp)


@pytest.mark.parametrize(
    "name", ["acos", "erf", "floor division", "lgamma", "nextafter", "pow 1.7", "sin"]
)
def test_intervals_of_one_number_in_float64(name, x64):
    check_elementwise(name, bound.ibp, "float64")


# Smooth functions of one number have tests of their lines elsewhere.
@pytest.mark.parametrize("name", ["floor division", "nextafter", "pow x x", "rem"])
def test_planes_of_one_number(name):
    check_elementwise(name, bound.crown)


@pytest.mark.parametrize("name", JOINT)
def test_bounds_of_an_array(name):
    check_joint(name, (bound.ibp, bound.crown))


@pytest.mark.parametrize(
    "name",
    ["argsort", "cumprod", "inner products", "quantile", "random", "scan", "var"],
)
def test_intervals_of_an_array_in_float64(name, x64):
    check_joint(name, (bound.ibp,), "float64")


# name: function, an interval that leaves its domain, what the message says
OUTSIDE = {
    "acos": (jnp.arccos, 0.5, 1.5, "acos at .*up to 1.5 .*at most 1"),
    "acosh": (jnp.arccosh, 0.5, 2.0, "acosh at .*down to 0.5 .*at least 1"),
    "asin": (jnp.arcsin, -1.5, 0.0, "asin at .*down to -1.5 .*at least -1"),
    "atanh": (jnp.arctanh, 0.0, 1.0, "atanh at .*up to 1 .*below 1"),
    "digamma": (lax.digamma, -0.5, 2.0, "digamma at .*above 0"),
    "division": (lambda x: 1 / x, -0.5, 2.0, "division at .*divide by zero"),
    "erf_inv": (lax.erf_inv, 0.0, 1.5, "erf_inv at .*below 1"),
    "integer_pow": (lambda x: x**-2, -0.5, 2.0, "divide by zero"),
    "lgamma": (lax.lgamma, -0.5, 2.0, "lgamma at .*above 0"),
    "log": (jnp.log, -0.5, 2.0, "log at .*down to -0.5 .*above 0"),
    "log1p": (jnp.log1p, -1.0, 2.0, "log1p at .*above -1"),
    "pow": (lambda x: jnp.power(x, 1.5), -0.5, 2.0, "pow at .*at least 0"),
    "rsqrt": (lax.rsqrt, 0.0, 2.0, "rsqrt at .*above 0"),
    "sqrt": (jnp.sqrt, -0.5, 2.0, "sqrt at .*at least 0"),
    "tan": (jnp.tan, 1.0, 2.0, "tan at .*pole"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_leaving_the_domain_is_an_error_or_gives_no_bound(name):
    fn, low, high, hint = OUTSIDE[name]
    box = bound.Box(jnp.array([low]), jnp.array([high]))
    with pytest.raises(ValueError, match=hint):
        bound.ibp(fn)(box)
    found = jax.jit(bound.ibp(fn))(box)
    assert not np.isnan(found.lower).any() and not np.isnan(found.upper).any()
    assert np.isinf(found.lower).all() or np.isinf(found.upper).all()


# name: function of an array (3, 4), what the message says
REFUSED = {
    "bits": (lambda x: x.astype(int) & 3, "'and'.*register_rule"),
    "bitcast": (lambda x: jnp.copysign(x, x), "bitcast_convert.*write jnp.copysign"),
    "cholesky": (lambda x: jnp.linalg.cholesky(x @ x.T + 9 * jnp.eye(3)), "cholesky"),
    "complex": (lambda x: jnp.abs(x + 1j), "meets complex values.*apart"),
    "dynamic_slice": (
        lambda x: lax.dynamic_slice(x, (x[0, 0].astype(int), 0), (1, 2)),
        "'dynamic_slice' at .*test_primitives.py.*indices that no set reaches",
    ),
    "fft": (lambda x: jnp.fft.rfft(x), "fft.*two real matrices"),
    "gather": (lambda x: x[jnp.argmax(x[:, 0])], "indices that no set reaches"),
    "interp": (
        lambda x: jnp.interp(x[0, 0], jnp.arange(4.0), x[1]),
        "indices that no set reaches",
    ),
    "scatter": (
        lambda x: x.at[x[0, 0].astype(int)].set(1.0),
        "'scatter' at .*indices that no set reaches",
    ),
    "scatter-mul": (lambda x: x.at[0].multiply(2.0), "array of factors"),
    "searchsorted": (
        lambda x: jnp.searchsorted(jnp.arange(4.0), x[0]),
        r"'gather' at .*test_primitives.py:\d+.*indices that no set reaches",
    ),
    "solve": (lambda x: jnp.linalg.solve(jnp.eye(3), x), "multiply by .*linalg.inv"),
    "while": (
        lambda x: lax.while_loop(lambda v: v.sum() < 9, lambda v: 2 * v, x),
        r"'while', which .*test_primitives.py:\d+ .*lax.scan.*fori_loop",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("method", [bound.ibp, bound.crown])
def test_what_cannot_be_bounded_says_what_to_do(name, method):
    fn, hint = REFUSED[name]
    with pytest.raises(NotImplementedError, match=hint):
        jax.eval_shape(method(fn), bound.Box(jnp.zeros((3, 4)), jnp.ones((3, 4))))


def test_a_cast_that_does_not_fit_gives_the_range_of_its_type():
    box = bound.Box(jnp.array([-1.0, 3.2, 100.0]), jnp.array([2.0, 9.9, 300.0]))
    found = bound.ibp(lambda x: x.astype(jnp.uint8))(box)
    np.testing.assert_array_equal(found.lower, [0, 3, 0])
    np.testing.assert_array_equal(found.upper, [255, 9, 255])


def test_whole_numbers_that_may_wrap_have_the_range_of_their_type():
    box = bound.Box(jnp.array([0.205, 1.005]), jnp.array([0.405, 1.205]))
    found = bound.ibp(lambda x: (100 * x).astype(jnp.uint8) + jnp.uint8(140))(box)
    np.testing.assert_array_equal(found.lower, [160, 0])
    np.testing.assert_array_equal(found.upper, [180, 255])
    found = bound.ibp(lambda x: (30 * x).astype(jnp.int32) * 2**27)(box)
    np.testing.assert_array_equal(found.lower, [6 * 2**27, -(2**31)])
    found = bound.ibp(lambda x: (100 * x).astype(jnp.uint8) - jnp.uint8(30))(box)
    np.testing.assert_array_equal(found.lower, [0, 70])
    np.testing.assert_array_equal(found.upper, [255, 90])


def test_a_row_without_a_score_has_no_logsumexp():
    fn = lambda x: jax.nn.logsumexp(jnp.where(x < 9, -jnp.inf, x))  # noqa: E731
    for method in (bound.ibp, bound.crown):
        found = jax.jit(method(fn))(bound.Ball(jnp.zeros(3), 0.1))
        assert (found.lower == -jnp.inf).all()


def test_places_of_the_largest_entry_are_exact_where_it_is_clear():
    low = jnp.array([[0.0, 3.0, 1.0], [0.0, 3.0, 2.0]])
    found = bound.ibp(lambda x: jnp.argmax(x, 1))(bound.Box(low, low + 1.5))
    np.testing.assert_array_equal(found.lower, [1, 1])
    np.testing.assert_array_equal(found.upper, [1, 2])


def test_a_reversed_box_is_refused():
    with pytest.raises(ValueError, match="exceeds upper"):
        bound.ibp(jnp.sin)(bound.Box(jnp.ones(2), jnp.zeros(2)))


def test_a_set_of_width_zero_gives_the_value():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    for name in (
        "argsort",
        "cond",
        "cumprod",
        "scan",
        "sort along with a key",
        "top_k",
    ):
        fn = JOINT[name]
        found, want = jax.jit(lambda x, f=fn: (bound.ibp(f)(bound.Box(x, x)), f(x)))(x)
        for end in found:
            for a, b in zip(jax.tree.leaves(end), jax.tree.leaves(want), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

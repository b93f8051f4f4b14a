"""Softmax and its logarithms are one operation: exact intervals, tight planes."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from jaxmethods import bound
from jaxmethods.bound._walk import walk

from .slopes import check_slopes

FUNCTIONS = {
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
    "logsumexp": lambda x: jax.nn.logsumexp(x, -1),
}
SIZE = 4


def points_of(lower, upper, n=300, seed=0):
    """Points of a box: all corners of the first entries, the rest anywhere."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(size=(n, *lower.shape))
    t[: n // 2] = np.round(t[: n // 2])
    t[0], t[1], t[2] = 0, 1, 0.5
    inside = lower + t.astype(lower.dtype) * (upper - lower)
    return np.clip(inside, lower, upper)


def bounds_and_planes(fn):
    def run(lower, upper):
        box = bound.Box(lower, upper)
        return bound.ibp(fn)(box), bound.crown(fn)(box), bound.linear_bounds(fn)(box)

    return jax.jit(run)


VALUES = {name: jax.jit(jax.vmap(fn)) for name, fn in FUNCTIONS.items()}
RUNS = {name: bounds_and_planes(fn) for name, fn in FUNCTIONS.items()}


def planes_at(planes, points):
    """The values of both planes in float64, and what adding them up may lose."""
    flat = np.asarray(points, np.float64).reshape(len(points), -1)
    out = np.shape(planes.lower_bias)
    ends = []
    for slope, bias in (planes[:2], planes[2:]):
        slope = np.asarray(slope, np.float64).reshape(*out, -1)
        ends.append(np.tensordot(flat, slope, (1, -1)) + np.asarray(bias, np.float64))
    return ends


def check_sound(name, lower, upper):
    ibp, crown, planes = RUNS[name](lower, upper)
    points = points_of(lower, upper)
    values = np.asarray(VALUES[name](points), np.float64)
    for bounds in (ibp, crown):
        low, high = (np.asarray(end, np.float64) for end in bounds)
        assert (low <= values.min(0)).all() and (values.max(0) <= high).all()
    low, high = planes_at(planes, points)
    assert np.isfinite(low).all() and np.isfinite(high).all()
    assert (low <= values).all() and (values <= high).all()


numbers = st.floats(-40, 40, width=32)
widths = st.sampled_from([0.0, 1e-3, 0.3, 2.0, 30.0, 300.0])


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(numbers, min_size=SIZE, max_size=SIZE),
    st.lists(widths, min_size=SIZE, max_size=SIZE),
    st.sampled_from([0.0, 500.0, -3000.0]),
)
def test_sound_in_float32(name, lower, width, shift):
    lower = np.asarray(lower, np.float32) + np.float32(shift)
    check_sound(name, lower, lower + np.asarray(width, np.float32))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sound_in_float64(name, x64):
    rng = np.random.default_rng(1)
    for width in (0.0, 0.1, 3.0, 50.0, 2000.0):
        lower = rng.normal(size=SIZE) * 5
        check_sound(name, lower, lower + width * rng.uniform(size=SIZE))


def test_sound_in_bfloat16():
    name = "softmax"
    lower = jnp.linspace(-2, 1, SIZE, dtype=jnp.bfloat16)
    upper = lower + jnp.array([0, 0.1, 1, 3], jnp.bfloat16)
    ibp, crown, _ = RUNS[name](lower, upper)
    points = points_of(np.asarray(lower), np.asarray(upper))
    values = np.asarray(VALUES[name](points), np.float64)
    for low, high in (ibp, crown):
        assert low.dtype == jnp.bfloat16
        assert (np.asarray(low, np.float64) <= values.min(0)).all()
        assert (values.max(0) <= np.asarray(high, np.float64)).all()


def extremes(name, lower, upper):
    """Each entry where it is least and greatest: at two corners of its own."""
    own = np.eye(SIZE, dtype=bool)
    low, high = np.where(own, lower, upper), np.where(own, upper, lower)
    return tuple(np.diagonal(VALUES[name](x)) for x in (low, high))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_intervals_are_exact(name, x64):
    rng = np.random.default_rng(2)
    for scale in (0.1, 3.0, 40.0):
        lower = rng.normal(size=SIZE) * scale
        upper = lower + rng.uniform(size=SIZE) * scale
        got = RUNS[name](lower, upper)[0]
        want = extremes(name, lower, upper)
        np.testing.assert_allclose(got.lower, want[0], rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(got.upper, want[1], rtol=1e-9, atol=1e-13)


def test_two_entries_are_as_tight_as_a_sigmoid(x64):
    # softmax((x, y))[0] = sigmoid(x - y): lines of one variable, not planes of two.
    lower, upper = jnp.array([0.5, -1.0]), jnp.array([1.0, -0.5])
    fn = lambda x: jax.nn.softmax(x)[:1]  # noqa: E731
    sigmoid = lambda x: jax.nn.sigmoid(x[:1] - x[1:])  # noqa: E731
    box = bound.Box(lower, upper)
    one, other = (jax.jit(bound.linear_bounds(f))(box) for f in (fn, sigmoid))
    middle = (lower + upper) / 2
    gaps = [
        ((p.upper_slope - p.lower_slope) @ middle + p.upper_bias - p.lower_bias)
        for p in (one, other)
    ]
    np.testing.assert_allclose(gaps[0], gaps[1], rtol=0.1)
    np.testing.assert_allclose(one.upper_slope.sum(), 0, atol=1e-9)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_width_zero_is_the_value(name, x64):
    for x in (np.array([0.3, -2.0, 1.0, 1.0]), np.zeros(SIZE), np.full(SIZE, 700.0)):
        value = FUNCTIONS[name](x)
        for low, high in RUNS[name](x, x)[:2]:
            np.testing.assert_allclose(low, value, rtol=1e-9, atol=1e-11)
            np.testing.assert_allclose(high, value, rtol=1e-9, atol=1e-11)


def test_a_single_entry_is_one():
    box = bound.Box(jnp.zeros((2, 1)), jnp.ones((2, 1)))
    for value, name in ((1, "softmax"), (0, "log_softmax")):
        got = bound.crown(FUNCTIONS[name])(box)
        np.testing.assert_allclose(got.lower, value, atol=1e-6)
        np.testing.assert_allclose(got.upper, value, atol=1e-6)


MASKS = {
    "where -inf": lambda x, keep: jnp.where(keep, x, -jnp.inf),
    "where least": lambda x, keep: jnp.where(keep, x, jnp.finfo(x.dtype).min),
    "plus -inf": lambda x, keep: x + jnp.where(keep, 0, -jnp.inf),
    "plus -1e9": lambda x, keep: x + jnp.where(keep, 0, -1e9),
}


KEEP = np.array([True, False, True, True])


def bounds_of_waves(method, mask=lambda x, keep: x):
    """Bounds of a softmax of sines, of which some are masked."""

    def run(lower, upper, keep):
        fn = lambda x: jax.nn.softmax(mask(jnp.sin(x), keep))  # noqa: E731
        return method(fn)(bound.Box(lower, upper))

    return jax.jit(run)


@pytest.mark.parametrize("mask", MASKS)
def test_masked_entries_are_zero_and_the_rest_is_unchanged(mask):
    lower, upper = np.float32([0, 5, -1, 2]), np.float32([0.5, 9, 1, 2])
    got = bounds_of_waves(bound.ibp, MASKS[mask])(lower, upper, KEEP)
    rest = bounds_of_waves(bound.ibp)(lower[KEEP], upper[KEEP], KEEP[KEEP])
    assert got.lower[1] == 0 and got.upper[1] == 0
    np.testing.assert_allclose(got.lower[KEEP], rest.lower, atol=1e-5)
    np.testing.assert_allclose(got.upper[KEEP], rest.upper, atol=1e-5)


def test_planes_do_not_depend_on_masked_entries():
    lower, upper = np.float32([0, 5, -1, 2]), np.float32([0.5, 9, 1, 2])
    masked = bounds_of_waves(bound.linear_bounds, MASKS["where -inf"])
    planes = masked(lower, upper, KEEP)
    alone = bounds_of_waves(bound.linear_bounds)
    rest = alone(lower[KEEP], upper[KEEP], KEEP[KEEP])
    for slope in (planes.lower_slope, planes.upper_slope):
        assert (slope[:, 1] == 0).all() and (slope[1] == 0).all()
    for got, want in zip(planes, rest, strict=True):
        got = got[KEEP] if got.ndim == 1 else got[KEEP][:, KEEP]
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_row_without_keys_is_between_zero_and_one():
    fn = lambda x: jax.nn.softmax(jnp.where(False, x, -jnp.inf))  # noqa: E731
    got = jax.jit(bound.crown(fn))(bound.Box(jnp.zeros(3), jnp.ones(3)))
    assert (got.lower >= 0).all() and (got.upper <= 1.001).all()


def crown_loss(fn):
    def loss(x, radius):
        weights = jnp.linspace(0.5, 2, SIZE, dtype=x.dtype)
        got = bound.crown(lambda v: fn(weights * v))(bound.Ball(x, radius))
        return jnp.sum(got.upper**2 - 0.3 * got.lower)

    return jax.jit(jax.value_and_grad(loss, (0, 1)))


LOSSES = {name: crown_loss(fn) for name, fn in FUNCTIONS.items()}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_finite_differences(name, x64):
    at = np.array([0.1, -0.4, 0.7, 0.2]), np.asarray(0.2)
    directions = (np.array([1.0, 0.5, -0.7, 0.3]), 0.0), (np.zeros(SIZE), 1.0)
    check_slopes(LOSSES[name], at, directions)


@pytest.mark.parametrize(
    "name, dtype",
    [("softmax", "float32"), *((name, "float64") for name in FUNCTIONS)],
)
def test_gradients_are_finite_where_entries_tie_or_underflow(name, dtype, x64):
    far = {"float32": 100.0, "float64": 1000.0}[dtype]  # exp(-far) underflows
    for x in (
        np.zeros(SIZE),
        np.array([0, 0, 3, 3.0]),
        np.array([0, -5, 0.9, 0]) * far,
    ):
        for radius in (0.0, 0.5, 4 * far):
            at = x.astype(dtype), np.asarray(radius, dtype)
            _, gradient = LOSSES[name](*at)
            assert all(bool(jnp.isfinite(g).all()) for g in gradient), at


def linen_attention(dim=6):
    module = nn.MultiHeadDotProductAttention(num_heads=2)
    params = jax.jit(module.init)(jax.random.key(0), jnp.ones((3, dim)))
    mask = nn.make_causal_mask(jnp.ones(3))
    return lambda x: module.apply(params, x, mask=mask)


def nnx_attention(dim=6):
    module = nnx.MultiHeadAttention(2, dim, decode=False, rngs=nnx.Rngs(0))
    mask = nn.make_causal_mask(jnp.ones(3))
    return lambda x: module(x, mask=mask)


def equinox_attention(dim=6):
    module = eqx.nn.MultiheadAttention(2, dim, key=jax.random.key(0))
    mask = jnp.tril(jnp.ones((3, 3), bool))
    return lambda x: module(x, x, x, mask=mask)


def jax_attention(x):
    heads = x.reshape(1, 3, 2, 3)
    out = jax.nn.dot_product_attention(heads, heads, 2 * heads, is_causal=True)
    return out.reshape(3, 6)


ATTENTION = {
    "linen": linen_attention,
    "nnx": nnx_attention,
    "equinox": equinox_attention,
    "jax": lambda: jax_attention,
}


@pytest.mark.parametrize("layer", ATTENTION)
def test_attention_layers_as_they_are(layer):
    fn = ATTENTION[layer]()
    x = jnp.sin(jnp.arange(18.0)).reshape(3, 6)
    points = points_of(np.asarray(x - 0.1), np.asarray(x + 0.1))
    run = jax.jit(lambda x, v: (bound.ibp(fn)(bound.Ball(x, 0.1)), jax.vmap(fn)(v)))
    ibp, values = run(x, points)
    assert (ibp.lower <= values.min(0)).all() and (values.max(0) <= ibp.upper).all()
    nodes = walk(fn, (bound.Ball(x, 0.1),), "a test").graph.nodes
    assert [node.name for node in nodes].count("softmax") == 1
    if layer in ("linen", "nnx"):  # their planes are those of a model's test
        return
    run = jax.jit(lambda x: (bound.crown(fn)(bound.Ball(x, 0.1)), jax.jacobian(fn)(x)))
    crown, slopes = run(x)
    assert (crown.lower <= values.min(0)).all() and (values.max(0) <= crown.upper).all()
    # The first token sees itself alone: nothing about it is nonlinear.
    width = (crown.upper - crown.lower)[0]
    assert (width >= np.ptp(values[:, 0], 0)).all() and (crown.upper <= ibp.upper).all()
    np.testing.assert_allclose(width, 0.2 * np.abs(slopes[0]).sum((-2, -1)), rtol=1e-3)


def test_composes():
    run = lambda x: bound.crown(jax.nn.softmax)(bound.Ball(x, 0.1))  # noqa: E731
    xs = jnp.sin(jnp.arange(8.0 * SIZE)).reshape(8, SIZE)
    want = {i: run(xs[i]) for i in (0, 5)}
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.vmap(run)
    sharded = jax.shard_map(
        mapped, mesh=mesh, in_specs=(P("batch"),), out_specs=P("batch")
    )
    for got in (jax.jit(mapped)(xs), jax.jit(sharded)(xs)):
        for i, bounds in want.items():
            np.testing.assert_allclose(got.lower[i], bounds.lower, atol=1e-5)
            np.testing.assert_allclose(got.upper[i], bounds.upper, atol=1e-5)

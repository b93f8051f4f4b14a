"""Norms are one operation: exact intervals of the box, planes, no finite lie at 0."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmethods import bound

from .slopes import check_slopes

SIZE = 4


def rms(x, eps=1e-3):
    return jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + eps)


def centered(x):
    return x - x.mean(-1, keepdims=True)


FUNCTIONS = {
    "rms": lambda x: x / rms(x),
    "layer": lambda x: centered(x) / rms(centered(x)),
    "unit": lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
}


def runs(fn):
    def run(lower, upper):
        box = bound.Box(lower, upper)
        return bound.ibp(fn)(box), bound.crown(fn)(box), bound.linear_bounds(fn)(box)

    return jax.jit(run)


VALUES = {name: jax.jit(jax.vmap(fn)) for name, fn in FUNCTIONS.items()}
RUNS = {name: runs(fn) for name, fn in FUNCTIONS.items()}


def points_of(lower, upper, n=300, seed=0):
    """Points of a box, half of them corners."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(size=(n, *lower.shape))
    t[: n // 2] = np.round(t[: n // 2])
    t[0], t[1], t[2] = 0, 1, 0.5
    inside = lower + t.astype(lower.dtype) * (upper - lower)
    return np.clip(inside, lower, upper)


def check_sound(name, lower, upper):
    ibp, crown, planes = RUNS[name](lower, upper)
    points = points_of(lower, upper)
    values = np.asarray(VALUES[name](points), np.float64)
    for bounds in (ibp, crown):
        low, high = (np.asarray(end, np.float64) for end in bounds)
        assert (low <= values.min(0)).all() and (values.max(0) <= high).all()
    flat = points.astype(np.float64)
    low, high = (
        flat @ np.asarray(slope, np.float64).T + np.asarray(bias, np.float64)
        for slope, bias in (planes[:2], planes[2:])
    )
    assert np.isfinite(low).all() and np.isfinite(high).all()
    assert (low <= values).all() and (values <= high).all()


numbers = st.floats(-9, 9, width=32)
widths = st.sampled_from([0.0, 1e-3, 0.3, 2.0, 30.0])


@pytest.mark.parametrize("name", ["rms", "layer"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(numbers, min_size=SIZE, max_size=SIZE),
    st.lists(widths, min_size=SIZE, max_size=SIZE),
)
def test_sound_in_float32(name, lower, width):
    lower = np.asarray(lower, np.float32)
    upper = lower + np.asarray(width, np.float32)
    check_sound(name, lower, upper)


def test_sound_where_numbers_underflow():
    """A coefficient times the smallest normal number: processors may give 0."""
    small = np.finfo(np.float32).tiny
    lower = np.float32([[small, -small, 0.5, 1e-30], [0, 1e-30, small, -1.9]])
    upper = np.float32([[small, 2.0, 0.501, 1e-30], [2.0, 1e-30, small, 0.1]])
    for low, high in zip(lower, upper, strict=True):
        check_sound("rms", low, high)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sound_in_float64(name, x64):
    rng = np.random.default_rng(1)
    for width in (0.0, 0.1, 1.0, 40.0):
        lower = rng.normal(size=SIZE) * 2
        lower[0] = 3
        upper = lower + width * rng.uniform(size=SIZE)
        if name != "layer" or width < 40:
            check_sound(name, lower, upper)


@pytest.mark.parametrize("name", ["rms", "unit"])
def test_intervals_are_the_range_over_the_box(name, x64):
    rng = np.random.default_rng(2)
    for scale in (0.1, 1.0, 5.0):
        lower = rng.normal(size=SIZE)
        lower[0] = 2
        upper = lower + scale * rng.uniform(size=SIZE)
        got = RUNS[name](lower, upper)[0]
        # Dense in the entries' nearest point to 0 as in their ends.
        grid = [
            np.unique([a, b, np.clip(0, a, b)])
            for a, b in zip(lower, upper, strict=True)
        ]
        points = np.stack(np.meshgrid(*grid, indexing="ij"), -1).reshape(-1, SIZE)
        values = VALUES[name](points)
        np.testing.assert_allclose(got.lower, values.min(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(got.upper, values.max(0), rtol=1e-9, atol=1e-12)


def test_never_beyond_the_root_of_the_size():
    got = RUNS["rms"](np.full(SIZE, -1e3, "f"), np.full(SIZE, 1e3, "f"))
    for bounds in got[:2]:
        assert (jnp.abs(jnp.stack(bounds)) <= SIZE**0.5 * 1.001).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_width_zero_is_the_value(name, x64):
    for x in (np.array([0.3, -2.0, 1.0, 1.0]), np.array([2.0, 0.0, 0.0, 0.0])):
        value = FUNCTIONS[name](x)
        for low, high in RUNS[name](x, x)[:2]:
            np.testing.assert_allclose(low, value, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(high, value, rtol=1e-9, atol=1e-9)


def test_planes_are_tighter_than_those_of_the_pieces(x64):
    lower = jnp.array([0.5, -1.0, 1.0, -0.2])
    upper = lower + 0.3

    def pieces(x):  # the same function, hidden from the matcher
        return x * jnp.exp(-0.5 * jnp.log(jnp.mean(x * x, keepdims=True) + 1e-3))

    width = {}
    for name, fn in (("one", FUNCTIONS["rms"]), ("many", pieces)):
        got = jax.jit(bound.crown(fn))(bound.Box(lower, upper))
        width[name] = (got.upper - got.lower).mean()
    assert width["one"] < 0.9 * width["many"]


@pytest.mark.parametrize("method", [bound.ibp, bound.crown])
def test_a_vector_that_may_be_zero_is_refused(method):
    box = bound.Box(-jnp.ones(3), jnp.ones(3))
    with pytest.raises(ValueError, match=r"test_normalization\.py.*use a smaller set"):
        method(FUNCTIONS["unit"])(box)

    got = jax.jit(lambda box: method(FUNCTIONS["unit"])(box))(box)
    assert (got.lower == -jnp.inf).all() and (got.upper == jnp.inf).all()


def test_a_root_of_what_may_be_negative_is_refused():
    box = bound.Box(-jnp.ones(3), jnp.ones(3))
    fn = lambda x: x / jnp.sqrt(jnp.sum(x * x) - 0.5)  # noqa: E731
    with pytest.raises(ValueError, match="at least 0 everywhere"):
        bound.ibp(fn)(box)


def image(fn):
    return fn, jnp.cos(jnp.arange(2 * 2 * 4.0)).reshape(1, 2, 2, 4)


def linen(module):
    _, x = image(None)
    params = module.init(jax.random.key(0), x)
    return image(lambda x: module.apply(params, x))


LAYERS = {
    "linen layer": lambda: linen(nn.LayerNorm()),
    "linen layer, slow": lambda: linen(nn.LayerNorm(use_fast_variance=False)),
    "linen group": lambda: linen(nn.GroupNorm(2)),
    "linen rms": lambda: linen(nn.RMSNorm()),
    "nnx layer": lambda: image(nnx.LayerNorm(4, rngs=nnx.Rngs(0))),
    "nnx group": lambda: image(nnx.GroupNorm(4, 2, rngs=nnx.Rngs(0))),
    "equinox layer": lambda: image(jax.vmap(jax.vmap(jax.vmap(eqx.nn.LayerNorm(4))))),
    "equinox group": lambda: image(jax.vmap(eqx.nn.GroupNorm(1, 2))),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_as_they_are(layer):
    fn, x = LAYERS[layer]()
    lower, upper = np.asarray(x) - np.float32(0.05), np.asarray(x) + np.float32(0.05)

    @jax.jit
    def run(lower, upper, points):
        box = bound.Box(lower, upper)
        return (bound.ibp(fn)(box), bound.crown(fn)(box)), jax.vmap(fn)(points)

    found, values = run(lower, upper, points_of(lower, upper))
    spread = np.ptp(values, 0)
    for low, high in found:
        assert (low <= values.min(0)).all() and (values.max(0) <= high).all()
    assert (np.asarray(high - low) <= 3 * spread).all()


def crown_loss(fn):
    def loss(x, radius):
        got = bound.crown(lambda v: fn(2 * v))(bound.Ball(x, radius))
        return jnp.sum(got.upper**2 - 0.3 * got.lower)

    return jax.jit(jax.value_and_grad(loss, (0, 1)))


LOSSES = {name: crown_loss(fn) for name, fn in FUNCTIONS.items()}


@pytest.mark.parametrize("name", ["rms", "layer"])
def test_gradients_are_those_of_finite_differences(name, x64):
    at = np.array([0.6, -0.4, 0.9, 0.3]), np.asarray(0.1)
    directions = (np.array([1.0, 0.5, -0.7, 0.3]), 0.0), (np.zeros(SIZE), 1.0)
    check_slopes(LOSSES[name], at, directions)


def test_gradients_are_finite_at_ties_and_zero(x64):
    for x in (np.zeros(SIZE), np.ones(SIZE), np.array([0, 1, 0, 0.0])):
        for radius in (0.0, 0.25, 0.5):
            _, gradient = LOSSES["layer"](x / 2, np.asarray(radius))
            assert all(bool(jnp.isfinite(g).all()) for g in gradient), (x, radius)


def test_bfloat16():
    lower = jnp.array([-1, 0.5, 2, 0], jnp.bfloat16)
    upper = lower + jnp.array([0, 0.1, 1, 3], jnp.bfloat16)
    got = RUNS["rms"](lower, upper)
    points = points_of(np.asarray(lower), np.asarray(upper))
    values = np.asarray(VALUES["rms"](points), np.float64)
    for low, high in got[:2]:
        assert low.dtype == jnp.bfloat16
        assert (np.asarray(low, np.float64) <= values.min(0)).all()
        assert (values.max(0) <= np.asarray(high, np.float64)).all()


def test_composes():
    run = lambda x: bound.crown(FUNCTIONS["rms"])(bound.Ball(x, 0.1))  # noqa: E731
    xs = jnp.sin(jnp.arange(3.0 * SIZE)).reshape(3, SIZE)
    got = jax.jit(jax.vmap(run))(xs)
    for i, x in enumerate(xs):
        bounds = run(x)
        np.testing.assert_allclose(got.lower[i], bounds.lower, atol=1e-5)
        np.testing.assert_allclose(got.upper[i], bounds.upper, atol=1e-5)

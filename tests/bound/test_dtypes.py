"""Bounds of functions that mix floating dtypes, and of values near their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmethods import bound

RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=(4, 4)), jnp.float32)
X = np.array([0.3, -0.6, 1.2, 0.1])
METHODS = (bound.ibp, bound.forward, bound.crown_ibp, bound.crown, bound.alpha_crown)


def layer_norm(x):
    return (x - x.mean()) / jnp.sqrt(x.var() + 1e-5)


MIXED = {
    "two layers of a wider dtype": lambda x: W @ (W @ x.astype(jnp.float32)) + 1,
    "a wider rectifier": lambda x: W @ jax.nn.relu(W @ x.astype(jnp.float32)),
    "a wider sum": lambda x: lax.dot(
        W.astype(x.dtype), x[:, None], preferred_element_type=jnp.float32
    ),
    "a wider product": lambda x: lax.dot(
        x[None], x[:, None], preferred_element_type=jnp.float32
    ),
    "there and back": lambda x: W @ layer_norm(x.astype(jnp.float32)).astype(x.dtype),
    "a narrower result": lambda x: jnp.tanh(W @ x.astype(jnp.float32)).astype(
        jnp.float16
    ),
}


@pytest.mark.parametrize(
    "name, dtype",
    [*((name, jnp.bfloat16) for name in MIXED), ("a wider sum", jnp.float16)],
)
def test_mixed_dtypes(name, dtype):
    fn, ball = MIXED[name], bound.Ball(jnp.asarray(X, dtype), jnp.asarray(0.05, dtype))
    ((low, high),) = ball.hull()
    points = jnp.asarray(RNG.uniform(X - 0.05, X + 0.05, (500, 4)), dtype)
    points = jnp.clip(points, low[None], high[None])
    methods = METHODS if name == "a narrower result" else METHODS[:4]
    run = jax.jit(lambda ball, x: ([m(fn)(ball) for m in methods], jax.vmap(fn)(x)))
    found, values = run(ball, points)
    for bounds in found:
        assert bounds.lower.dtype == bounds.upper.dtype == values.dtype
        assert (bounds.lower <= values.min(0)).all()
        assert (values.max(0) <= bounds.upper).all()


def test_a_function_of_a_wider_dtype_in_float64(x64):
    wide = W.astype(jnp.float64)
    x = jnp.asarray(X, jnp.float32)
    for fn in (
        lambda x: jax.nn.softmax(10 * x) @ jnp.arange(4.0),
        lambda x: wide @ jnp.nan_to_num(x),
        lambda x: wide @ jax.nn.relu(W @ x),
    ):
        found = jax.jit(bound.crown(fn))(bound.Ball(x, np.float32(0.01)))
        assert found.lower.dtype == jnp.float64
        assert (found.lower <= fn(x)).all()
        assert (fn(x) <= found.upper).all()


NORMS = {
    "layer norm": layer_norm,
    "rms norm": lambda x: x * lax.rsqrt(jnp.mean(x * x) + 1e-6),
    "unit norm": lambda x: x / jnp.linalg.norm(x),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_what_overflows_when_squared(name):
    fn = NORMS[name]

    @jax.jit
    def run(ball):
        return [method(fn)(ball) for method in METHODS[:4]], fn(ball.center)

    true = fn(jnp.asarray(X, jnp.float32))  # unlike what is computed near the limits
    for dtype, scale in [
        ("float16", 600),
        *(("float32", s) for s in (1e18, 1e19, 1e30)),
    ]:
        scale = np.asarray(scale, dtype)
        ball = bound.Ball(
            jnp.asarray(X, dtype) * scale, scale * np.asarray(0.03, dtype)
        )
        found, computed = run(ball)
        for bounds in found:
            for value in (computed, true.astype(dtype)):
                assert (bounds.lower <= value).all()
                assert (value <= bounds.upper).all()


def test_rounding_is_paid_for_once_a_sum():
    """Errors of sums of sums do not grow by what cancels in each, here 5**8."""
    layers = [jnp.asarray(np.linalg.qr(m)[0]) for m in RNG.normal(size=(8, 32, 32))]

    def rotated(x):
        for layer in layers:
            x = layer.astype(jnp.float32) @ x
        return x

    x = jnp.asarray(RNG.normal(size=32), jnp.float32)
    found = jax.jit(bound.crown(rotated))(bound.Ball(x, 0.0))
    width = found.upper - found.lower
    assert (width > 0).all()
    # Each of 9 sums of 32 terms of size 1 / sqrt(32) loses 1e-5 of sqrt(32), twice.
    assert (width < 2 * 9 * 1e-5 * 32**0.5).all()

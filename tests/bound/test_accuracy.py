"""Bounds in float32 hold what a function is in float64, at all magnitudes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmethods import bound

r = np.random.default_rng(0)
scales = [r.standard_normal(512) * scale for scale in (1e-3, 0.1, 1, 5, 30)]
powers = np.exp(r.uniform(-80, 80, 512))
LINE = np.concatenate([*scales, powers, -powers]).astype(np.float32)
HALF = np.abs(LINE)
NARROW = np.tanh(LINE)
FUNCTIONS = {
    "acos": (jnp.arccos, NARROW),
    "acosh": (jnp.arccosh, 1 + HALF),
    "asin": (jnp.arcsin, NARROW),
    "asinh": (jnp.arcsinh, LINE),
    "atan": (jnp.arctan, LINE),
    "atanh": (jnp.arctanh, NARROW * 0.9999),
    "bessel_i0e": (lax.bessel_i0e, LINE),
    "cbrt": (jnp.cbrt, LINE),
    "cos": (jnp.cos, np.clip(LINE, -1e4, 1e4)),
    "cosh": (jnp.cosh, LINE),
    "digamma": (lax.digamma, HALF),
    "elu": (jax.nn.elu, LINE),
    "erf": (lax.erf, LINE),
    "erf_inv": (lax.erf_inv, NARROW * np.float32(0.9999999)),
    "erfc": (lax.erfc, LINE),
    "exp": (jnp.exp, LINE),
    "exp2": (jnp.exp2, LINE),
    "expm1": (jnp.expm1, LINE),
    "gelu": (lambda x: jax.nn.gelu(x, approximate=False), LINE),
    "gelu_tanh": (jax.nn.gelu, LINE),
    "lgamma": (lax.lgamma, HALF),
    "log": (jnp.log, HALF),
    "log1p": (jnp.log1p, np.maximum(LINE, np.float32(-0.99999))),
    "logistic": (jax.nn.sigmoid, LINE),
    "power": (lambda x: x**1.7, HALF),
    "reciprocal": (lambda x: 1 / x, HALF),
    "rsqrt": (lax.rsqrt, HALF),
    "silu": (jax.nn.silu, LINE),
    "sin": (jnp.sin, np.clip(LINE, -1e4, 1e4)),
    "sinh": (jnp.sinh, LINE),
    "softplus": (jax.nn.softplus, LINE),
    "sqrt": (jnp.sqrt, HALF),
    "square": (jnp.square, LINE),
    "tan": (jnp.tan, np.clip(LINE, -1.5, 1.5)),
    "tanh": (jnp.tanh, LINE),
}


def in_float64(fn, x):
    with jax.enable_x64(True):
        return np.asarray(jax.jit(fn)(jnp.asarray(x, jnp.float64)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bounds_hold_the_true_values(name):
    fn, at = FUNCTIONS[name]
    above = np.nextafter(at, np.float32(np.inf))
    with np.errstate(over="ignore"):
        above = np.where(np.abs(at) >= 1, at, above)  # of width 0 as well
    set_ = bound.Box(jnp.asarray(at), jnp.asarray(above))
    truth = np.stack([in_float64(fn, at), in_float64(fn, above)])
    for method in (bound.ibp, bound.crown):
        found = jax.jit(method(fn))(set_)
        low, high = np.asarray(found.lower), np.asarray(found.upper)
        # Values below the normal numbers may count as zero.
        tiny = np.finfo(np.float32).tiny
        escaped = ((truth < low - tiny) | (truth > high + tiny)).any(0)
        assert not escaped.any(), (at[escaped], truth[:, escaped], low[escaped])

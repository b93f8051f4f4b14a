"""Convolutions put channels last: the same values, and what the CPU is given."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmethods.core import with_fast_convolutions


def layouts(fn, *args, platform="cpu"):
    """The layout of each convolution in the program that a platform compiles."""
    traced = jax.jit(fn).trace(*args)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    found = re.findall(r"dim_numbers = (.*?), window", program)
    return [layout.replace(", ", "") for layout in found]


def draw(*shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


CASES = {
    "NCHW": ((2, 4, 8, 6), (5, 4, 3, 3), ("NCHW", "OIHW", "NCHW"), {}),
    "NHWC": ((2, 8, 6, 4), (3, 3, 4, 5), ("NHWC", "HWIO", "NHWC"), {}),
    "mixed": ((8, 2, 6, 4), (4, 3, 5, 3), ("HNWC", "IHOW", "CWNH"), {}),
    "groups": ((2, 8, 6, 4), (3, 3, 2, 6), None, {"feature_group_count": 2}),
    "batch groups": ((4, 8, 6, 3), (3, 3, 3, 6), None, {"batch_group_count": 2}),
    "dilated": ((2, 8, 6, 4), (3, 3, 4, 5), None, {"rhs_dilation": (2, 1)}),
    "one axis": ((2, 4, 8), (5, 4, 3), ("NCH", "OIH", "NCH"), {}),
    "three axes": ((2, 4, 5, 5, 5), (3, 4, 3, 3, 3), ("NCDHW", "OIDHW", "NDHWC"), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_both_gradients_are_kept(name):
    lhs, rhs, numbers, options = CASES[name]
    numbers = numbers or ("NHWC", "HWIO", "NHWC")
    x, w = draw(lhs, rhs)

    def fn(x, w):
        stride = (2,) * (x.ndim - 2)
        out = lax.conv_general_dilated(
            x, w, stride, "SAME", dimension_numbers=numbers, **options
        )
        return jnp.sin(out)

    def everything(x, w):
        out, pull = jax.vjp(fn, x, w)
        return out, *pull(out)

    fast = with_fast_convolutions(everything)
    want = everything(x, w)
    for mine, theirs in zip(fast(x, w), want, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    places = "012"[: x.ndim - 2]
    plain = f"[b{places}f]x[{places}io]->[b{places}f]"
    assert layouts(fast, x, w) == [plain] * 3


def test_accelerators_keep_the_convolutions_as_they_are():
    x, w = draw((2, 8, 6, 4), (3, 3, 4, 5))

    def fn(x, w):
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    slope = jax.grad(lambda x, w: jnp.sin(fn(x, w)).sum(), (0, 1))
    for platform in ("tpu", "cuda"):
        kept = layouts(with_fast_convolutions(slope), x, w, platform=platform)
        assert kept == layouts(slope, x, w, platform=platform)
    assert kept != layouts(with_fast_convolutions(slope), x, w)


def test_nested_programs_are_rewritten_and_others_left_alone():
    x, w = draw((2, 3, 6, 6), (3, 3, 3, 3))

    def step(x):
        return jnp.tanh(lax.conv(x, w, (1, 1), "SAME"))

    def fn(x):
        x = lax.fori_loop(0, 3, lambda _, x: jax.jit(step)(x), x)
        return lax.cond(x.sum() > 0, step, lambda x: x, x)

    fast = with_fast_convolutions(fn)
    assert layouts(fast, x) == ["[b01f]x[01io]->[b01f]"] * 2
    np.testing.assert_allclose(fast(x), fn(x), rtol=1e-4, atol=1e-5)  # four layers deep
    loop = functools.partial(lax.fori_loop, 0, 3, lambda _, x: x @ x)
    dense = str(jax.make_jaxpr(loop)(w[0, 0]))
    assert str(jax.make_jaxpr(with_fast_convolutions(loop))(w[0, 0])) == dense

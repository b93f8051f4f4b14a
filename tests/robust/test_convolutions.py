import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core as jex

from jaxmethods.robust.convolutions import CONVOLUTION, canonical


def rewritten(fn, *args):
    closed = jax.make_jaxpr(fn)(*args)
    return jex.ClosedJaxpr(canonical(closed.jaxpr), closed.consts)


def layouts(jaxpr):
    """The dimension numbers of every convolution, nested ones included."""
    for eqn in jaxpr.eqns:
        if eqn.primitive is CONVOLUTION:
            yield eqn.params["dimension_numbers"]
        for inner in jex.jaxprs_in_params(eqn.params):
            yield from layouts(inner)


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

    closed = rewritten(everything, x, w)
    want = everything(x, w)
    for mine, theirs in zip(jex.jaxpr_as_fun(closed)(x, w), want, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    rank = len(lhs)
    last = (0, rank - 1, *range(1, rank - 1))
    plain = lax.ConvDimensionNumbers(last, (rank - 1, rank - 2, *range(rank - 2)), last)
    found = list(layouts(closed.jaxpr))
    assert len(found) == 3 and all(numbers == plain for numbers in found)


def test_nested_programs_are_rewritten_and_others_left_alone():
    x, w = draw((2, 3, 6, 6), (3, 3, 3, 3))

    def step(x):
        return jnp.tanh(lax.conv(x, w, (1, 1), "SAME"))

    def fn(x):
        x = lax.fori_loop(0, 3, lambda _, x: jax.jit(step)(x), x)
        return lax.cond(x.sum() > 0, step, lambda x: x, x)

    closed = rewritten(fn, x)
    assert [numbers.lhs_spec for numbers in layouts(closed.jaxpr)] == [(0, 3, 1, 2)] * 2
    got = jex.jaxpr_as_fun(closed)(x)[0]
    np.testing.assert_allclose(got, fn(x), rtol=1e-4, atol=1e-5)  # four layers deep
    loop = functools.partial(lax.fori_loop, 0, 3, lambda _, x: x @ x)
    dense = jax.make_jaxpr(loop)(w[0, 0])
    assert canonical(dense.jaxpr) is dense.jaxpr

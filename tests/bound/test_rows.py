"""Rows that are carried down a net, however they are stored, are its Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmethods import bound
from jaxmethods.bound._backward import backward
from jaxmethods.bound._convolution import transposed_convolution
from jaxmethods.bound._patches import Patches
from jaxmethods.bound._rows import Dense, Diagonal, add, both_signs
from jaxmethods.bound._walk import walk
from jaxmethods.core import flatten

RNG = np.random.default_rng(0)
K1, K2, K3 = (
    RNG.normal(size=s) / 4 for s in ((3, 4, 2, 3), (4, 3, 3, 5), (3, 3, 3, 3))
)


def nhwc(x, kernel, strides, padding):
    dims = ("NHWC", "HWIO", "NHWC")
    out = lax.conv_general_dilated(
        x[None], kernel, strides, padding, dimension_numbers=dims
    )
    return out[0]


def nchw(x, kernel, strides, padding):
    kernel = kernel.transpose(3, 2, 0, 1)
    return lax.conv_general_dilated(x[None], kernel, strides, padding)[0]


def two(x):
    x = nhwc(x, K1, (2, 1), ((1, 2), (0, 1))) * 2 - 1
    return nhwc(x, K2, (1, 2), ((2, 1), (1, 1))) + 3


def channels_first(x):
    x = nchw(x.transpose(2, 0, 1), K1, (2, 1), ((1, 2), (0, 1)))
    return nchw(x, K2, (1, 2), ((-1, 1), (1, -1)))


def residual(x):
    x = nhwc(x, K1, (1, 1), "SAME")
    return nhwc(x + nhwc(x, K3, (1, 1), "SAME") - 2 * x, K2, (2, 2), "SAME")


def pool(x, fold, window, strides, padding, dilation=None):
    start = {lax.add: 0.0, lax.max: -jnp.inf, lax.min: jnp.inf}[fold]
    options = {"window_dilation": dilation}
    return lax.reduce_window(x, start, fold, window, strides, padding, **options)


EDGES = ((1, 2), (0, 1), (0, 0))


def averaged(x):
    x = nhwc(x, K1, (1, 1), "SAME")
    x = pool(x, lax.add, (3, 2, 1), (2, 1, 1), EDGES, (1, 3, 1)) / 6
    return nhwc(x, K3, (1, 2), "SAME")


def averaged_last(x):
    x = nchw(x.transpose(2, 0, 1), K1, (2, 1), "SAME")
    return pool(x, lax.add, (1, 2, 2), (1, 1, 2), "VALID")


def one_channel(x):
    x = nhwc(x, K1[:, :, :, :1], (1, 2), "SAME")[:, :, 0]
    return pool(x, lax.add, (3, 2), (2, 1), EDGES[:2], (1, 2))


def other_axes_first(x):
    """The second convolution counts the axes of the first one's map the other way."""
    x = nhwc(x, K1, (2, 1), "SAME")[None]
    dims = ("NWHC", "HWIO", "NWHC")
    return lax.conv_general_dilated(x, K2, (1, 2), "SAME", dimension_numbers=dims)[0]


def branches_count_differently(x):
    x, y = x[None, :7, :7], nhwc(x[:7, :7], K3[:, :, :2], (1, 1), "SAME")
    dims = ("NHWC", "WHIO", "NHWC")
    other = lax.conv_general_dilated(
        x, K3[::-1, :, :2], (1, 1), "SAME", dimension_numbers=dims
    )
    return y + other[0]


NORMS = {1: jnp.inf, 2: 2, jnp.inf: 1}
LOCAL = [two, channels_first, residual, averaged, averaged_last, one_channel]


@pytest.mark.parametrize("fn", [*LOCAL, other_axes_first, branches_count_differently])
def test_patches_are_the_jacobian(fn, x64):
    @jax.jit
    def ours(x):
        flow = walk(fn, (bound.Ball(x, 0.1),), "a test", linear=True)
        state = backward(flow, flow.graph.outputs[0], "both")
        rows = state.rows[flow.graph.inputs[0]]
        if fn not in LOCAL:
            return [rows.dense()]
        assert isinstance(rows, Patches)
        doubled, products = (
            both_signs(rows).dense(),
            (rows.inner(x), rows.inner_shared(x)),
        )
        upper = [bound.crown(fn)(bound.Ball(x, 0.1, p)).upper - fn(x) for p in NORMS]
        return rows.dense(), doubled, products, upper

    @jax.jit
    def theirs(x):
        want = jax.jacobian(fn)(x)
        flat = want.reshape(-1, x.size)
        reach = [0.1 * jnp.linalg.norm(flat, q, axis=1) for q in NORMS.values()]
        rows = flat.reshape(-1, *x.shape)
        products = flat @ x.reshape(-1)
        upper = [r.reshape(want.shape[:-3]) for r in reach]
        if fn not in LOCAL:
            return [rows]
        return rows, jnp.concatenate([rows, -rows]), (products, products), upper

    x = jnp.asarray(RNG.normal(size=(11, 12, 2)))
    got, want = (jax.tree.leaves(f(x)) for f in (ours, theirs))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def pooled(x):
    """Windows that overlap, between a rectifier and a smooth function."""
    x = jax.nn.relu(nhwc(x, K1, (1, 1), "SAME"))
    x = jnp.tanh(pool(x, lax.max, (3, 2, 1), (2, 1, 1), EDGES, (1, 3, 1)))
    return pool(nhwc(x, K2, (1, 1), "SAME"), lax.min, *[(2, 2, 1)] * 2, "SAME")


def pooled_last(x):
    x = nchw(x.transpose(2, 0, 1), K1, (1, 1), "SAME")
    x = jax.nn.relu(pool(x, lax.max, *[(1, 2, 2)] * 2, "VALID"))
    return nchw(x, K3, (1, 1), "SAME")


def pooled_as_a_whole(x):
    x = jax.nn.relu(nhwc(x, K1, (1, 1), "SAME"))
    return pool(x, lax.max, (*x.shape[:2], 1), (1, 1, 1), "VALID")


@pytest.mark.parametrize("fn", [pooled, pooled_last, pooled_as_a_whole])
def test_pools_go_back_as_patches_of_the_same_bounds(fn, x64):
    ball = bound.Ball(jnp.asarray(RNG.uniform(size=(14, 13, 2))), 0.03)

    def rows(ball):
        flow = walk(fn, (ball,), "a test", linear=True)
        state = backward(flow, flow.graph.outputs[0], "both")
        return state.rows[flow.graph.inputs[0]]

    found = jax.jit(bound.crown(fn))(ball)
    kinds = []
    jax.jit(lambda ball: kinds.append(rows(ball)))(ball)
    assert isinstance(kinds[0], Dense if fn is pooled_as_a_whole else Patches)
    # Passes in steps carry dense rows.
    dense = jax.jit(bound.crown(fn, chunk=64))(ball)
    for a, b in zip(found, dense, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    noise = RNG.uniform(-0.03, 0.03, size=(500, *ball.center.shape))
    values = jax.vmap(fn)(ball.center[None] + noise)
    assert (values >= found.lower[None]).all() and (values <= found.upper[None]).all()
    assert float((found.upper - found.lower).min()) > 1e-3


def test_sums_of_rows_of_different_kinds():
    values = jnp.arange(1.0, 7).reshape(2, 3)
    diagonal, dense = Diagonal(values), Dense(jnp.ones((6, 2, 3)))
    total = add(diagonal, dense)
    want = jnp.diag(jnp.arange(1.0, 7)).reshape(6, 2, 3) + 1
    np.testing.assert_array_equal(total.dense(), want)
    np.testing.assert_array_equal(add(diagonal, diagonal).values, 2 * values)
    assert add(None, dense) is dense


CONVOLUTIONS = {
    "stride 2": ((1, 8, 7, 2), (3, 4, 2, 3), (2, 2), ((1, 1), (1, 2))),
    "stride 3, small kernel": ((1, 8, 7, 2), (2, 1, 2, 3), (3, 2), ((0, 0), (0, 0))),
    "uneven": ((1, 9, 6, 2), (3, 3, 2, 3), (2, 1), ((0, 1), (-1, 2))),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_transposed_convolution_and_its_derivatives(case, x64):
    image, kernel, strides, padding = CONVOLUTIONS[case]
    dims = ("NHWC", "HWIO", "NHWC")

    def convolve(x, k):
        return lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=dims)

    x, k = (jnp.asarray(RNG.normal(size=s)) for s in (image, kernel))
    cotangent = jnp.cos(jnp.arange(convolve(x, k).size, dtype=x.dtype))
    cotangent = cotangent.reshape(convolve(x, k).shape)

    def ours(k, cotangent):
        (node,) = flatten(lambda x: convolve(x, k), x).nodes
        return transposed_convolution(node)(cotangent)

    def theirs(k, cotangent):
        return jax.vjp(lambda x: convolve(x, k), x)[1](cotangent)[0]

    np.testing.assert_allclose(ours(k, cotangent), theirs(k, cotangent), rtol=1e-9)
    out = jnp.sin(x)
    for run in (jax.vjp, lambda f, *a: (None, lambda t: jax.jvp(f, a, a)[1])):
        got, want = (run(f, k, cotangent)[1](out) for f in (ours, theirs))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_derivatives_of_a_bound_of_a_convolutional_net(x64):
    """Forward mode equals reverse mode, over convolutions and patches too."""
    p = {"k1": jnp.asarray(K1[:3, :3, :1]), "k2": jnp.asarray(K3)}
    p["w"] = jnp.cos(jnp.arange(36.0)).reshape(12, 3)
    x = jnp.asarray(RNG.uniform(size=(8, 8, 1)))

    def net(p, x):
        x = jax.nn.relu(nhwc(x, p["k1"], (2, 2), "SAME"))
        x = jax.nn.relu(nhwc(x, p["k2"], (2, 2), "SAME"))
        return x.reshape(-1) @ p["w"]

    for method in (bound.crown_ibp, bound.crown):
        total = jax.jit(lambda p, m=method: m(net)(p, bound.Ball(x, 0.1)).lower.sum())
        tangent = jax.tree.map(jnp.cos, p)
        forward = jax.jit(lambda p, t, f=total: jax.jvp(f, (p,), (t,))[1])(p, tangent)
        gradient = jax.jit(jax.grad(total))(p)
        reverse = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, tangent)))
        np.testing.assert_allclose(forward, reverse, rtol=1e-9)
        assert abs(float(forward)) > 1e-3

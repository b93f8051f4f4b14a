"""Every affine primitive: transposed by JAX, bounded exactly by one pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmethods import bound, core
from jaxmethods.core import is_affine, is_bilinear, linear_part, offset

X = np.random.default_rng(0).normal(size=(3, 4))
C = np.random.default_rng(1).normal(size=(3, 4))
INDEX = np.array([2, 0, 2])

AFFINE = {
    "add": lambda x: x + C,
    "broadcast_in_dim": lambda x: jnp.broadcast_to(x[None], (2, 3, 4)),
    "concatenate": lambda x: jnp.concatenate([x, C, x[:1]]),
    "conv": lambda x: lax.conv_general_dilated(
        x[None, None], C[None, None], (2, 1), "SAME"
    ),
    "conv, dilated": lambda x: lax.conv_general_dilated(
        x[None, None], C[None, None, :2, :2], (1, 1), [(1, 2), (0, 1)], (2, 1), (1, 2)
    ),
    "conv, kernel": lambda x: lax.conv_general_dilated(
        jnp.ones((1, 1, 5, 6)) + C.sum(), x[None, None], (1, 2), "VALID"
    ),
    "cumsum": lambda x: jnp.cumsum(x, 1),
    "div": lambda x: x / C,
    "dot_general": lambda x: x @ C.T,
    "dot_general, left": lambda x: C @ x.T,
    "dynamic_slice": lambda x: lax.dynamic_slice(
        x, (jnp.int32(1), jnp.int32(2)), (2, 2)
    ),
    "dynamic_update_slice": lambda x: lax.dynamic_update_slice(x, -x[:1], (1, 0)),
    "gather": lambda x: x[INDEX],
    "mean": lambda x: x.mean(0),
    "mul": lambda x: C * x,
    "neg": lambda x: -x,
    "pad": lambda x: lax.pad(x, 2.0, [(1, 0, 1), (-1, 2, 0)]),
    "reduce_window_sum": lambda x: lax.reduce_window(
        x, 0.0, lax.add, (2, 2), (1, 2), "SAME"
    ),
    "rev": lambda x: x[::-1],
    "scatter": lambda x: jnp.asarray(C).at[INDEX[:2]].set(x[:2]),
    "scatter-add": lambda x: x.at[INDEX].add(2 * x),
    "select_n": lambda x: jnp.where(C > 0, x, 2 * C - x),
    "split": lambda x: jnp.split(x, 2, axis=1)[1] - jnp.split(x, 2, axis=1)[0],
    "squeeze": lambda x: x[:1].squeeze(0),
    "stack": lambda x: jnp.stack([x, -x, C], axis=1),
    "sub": lambda x: C - x,
    "tile": lambda x: jnp.tile(x, (2, 1)),
    "transpose": lambda x: x.T,
}


@pytest.mark.parametrize("name", AFFINE)
def test_crown_is_exact_and_ibp_contains(name, x64):
    fn, radius = AFFINE[name], np.abs(C) / 3

    @jax.jit
    def run(x, box):
        found = [m(fn)(box) for m in (bound.crown, bound.ibp, bound.linear_bounds)]
        return found, fn(x), jax.jacobian(fn)(x)

    (got, wide, planes), value, rows = run(X, bound.Box(X - radius, X + radius))
    reach = (np.abs(rows) * radius).sum((-1, -2))
    np.testing.assert_allclose(got.lower, value - reach, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got.upper, value + reach, rtol=1e-9, atol=1e-9)
    assert (got.lower <= value - reach + 1e-15).all()
    assert (wide.lower <= got.lower + 1e-12).all()
    assert (wide.upper >= got.upper - 1e-12).all()
    np.testing.assert_allclose(planes.lower_slope, rows, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(planes.upper_slope, rows, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", AFFINE)
def test_linear_part_and_offset_make_up_the_node(name, x64):
    # In double precision as above: jax keeps the dtype that a numpy constant had.
    x = jnp.asarray(X)
    for node in core.flatten(AFFINE[name], x).nodes:
        assert is_affine(node) and not is_bilinear(node)
        values = [
            jnp.cos(jnp.arange(v.aval.size, dtype=v.dtype)) for v in node.variables
        ]
        values = [
            u.reshape(v.shape) for u, v in zip(values, node.variables, strict=True)
        ]
        operands = iter(values)
        filled = [
            next(operands) if isinstance(a, core.Variable) else a for a in node.inputs
        ]
        total = linear_part(node)(*values)
        added = offset(node)
        if added is not None:
            total = [t + a for t, a in zip(total, added, strict=True)]
        for got, want in zip(total, node.evaluate(*filled), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_what_is_not_affine():
    graph = core.flatten(lambda x: jnp.sin(x) * x, jnp.ones(3))
    assert [is_affine(node) for node in graph.nodes] == [False, False]
    assert [is_bilinear(node) for node in graph.nodes] == [False, True]
    counts = core.flatten(lambda x: (x > 0).astype(jnp.int32) + 1, jnp.ones(3))
    assert not any(is_affine(node) for node in counts.nodes)

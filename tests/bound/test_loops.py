"""Scans are bounded as their steps one by one, branches as choices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmethods import bound, core
from jaxmethods.bound._walk import walk

KEYS = jax.random.split(jax.random.key(0), 3)
W = 0.6 * jax.random.normal(KEYS[0], (2, 6))
V = 0.6 * jax.random.normal(KEYS[1], (3, 6))
X = jax.random.normal(KEYS[2], (4, 2))


def cell(carry, x):
    state, count = carry
    gate, new = jnp.split(x @ W + state @ V, 2)
    state = jax.nn.sigmoid(gate) * state + jnp.tanh(new)
    return (state, count + 1), (state, count)


def looped(x, reverse=False):
    (state, count), (states, counts) = lax.scan(
        cell, (jnp.zeros(3), jnp.int32(0)), x, reverse=reverse
    )
    return state, states, count, counts


def step_by_step(x, reverse=False):
    carry, ys = (jnp.zeros(3), jnp.int32(0)), [None] * len(x)
    for i in reversed(range(len(x))) if reverse else range(len(x)):
        carry, ys[i] = cell(carry, x[i])
    states, counts = zip(*ys, strict=True)
    return carry[0], jnp.stack(states), carry[1], jnp.stack(counts)


def all_close(got, want, **options):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, **options)


@pytest.mark.parametrize("p, reverse", [(1, False), (2, True), (jnp.inf, False)])
def test_intervals_of_a_scan_are_those_of_its_steps(p, reverse):
    """Also where a ball meets a matrix in each step: by the dual norm of its rows."""
    ball = bound.Ball(X, 0.3, p)
    fns = [lambda x, fn=fn: fn(x, reverse) for fn in (looped, step_by_step)]
    got, want = jax.jit(lambda ball: [bound.ibp(fn)(ball) for fn in fns])(ball)
    all_close(got, want, rtol=1e-5, atol=1e-6)
    for side in got:
        assert int(side[2]) == 4 and side[3].dtype == jnp.int32


def test_linear_bounds_unroll_and_ibp_does_not():
    ball = bound.Ball(X, 0.1)
    names = [n.name for n in walk(looped, (ball,), "t").graph.nodes]
    assert names == ["scan"]
    names = [n.name for n in walk(looped, (ball,), "t", linear=True).graph.nodes]
    assert "scan" not in names and names.count("logistic") == 4
    loop = lambda x: looped(x)[0]  # noqa: E731
    short = bound.Ball(X[:2], 0.1)
    fns = loop, lambda x: step_by_step(x)[0]
    got, want = jax.jit(lambda b: [bound.crown_ibp(fn)(b) for fn in fns])(short)
    all_close(got, want, rtol=1e-4, atol=1e-5)
    planes = jax.eval_shape(bound.linear_bounds(loop, method="forward"), short)
    assert planes.lower_slope.shape == (3, 2, 2)


def test_what_no_set_reaches_in_a_loop_stays_what_it_is():
    """A counter may index, a key may be drawn from, a carry may be reached late."""

    def fn(x, table):
        def step(carry, _):
            count, key, late, later = carry
            noise = jax.random.uniform(jax.random.fold_in(key, count), (2,))
            row = lax.dynamic_index_in_dim(table, count, keepdims=False)
            return (count + 1, key, x * row + noise, later + late), row

        start = (0, jax.random.key(5), jnp.zeros(2), jnp.ones(2))
        (count, _, late, later), rows = lax.scan(step, start, length=3)
        return count, late, later, rows

    table = jnp.arange(6.0).reshape(3, 2)
    methods, ball = (bound.ibp, bound.crown), bound.Ball(jnp.ones(2), 0.5)
    for got in jax.jit(lambda b, table: [m(fn)(b, table) for m in methods])(
        ball, table
    ):
        assert int(got.lower[0]) == int(got.upper[0]) == 3
        np.testing.assert_array_equal(got.lower[3], table)
        np.testing.assert_allclose(
            got.upper[1] - got.lower[1], table[2], rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(
            got.upper[2] - got.lower[2], table[:2].sum(0), rtol=1e-4, atol=1e-5
        )


def nested(x):
    def outer(total, row):
        inner = lambda i, v: jnp.sin(v) + i * row  # noqa: E731
        return lax.fori_loop(0, 2, inner, total) * 0.5, total

    return lax.scan(outer, jnp.zeros(2), x)


WITH_CALLS = {
    "custom_jvp": jax.nn.relu,
    "jit": jax.jit(jnp.sin),
    "remat": jax.checkpoint(lambda v: jnp.sin(v) * v),
    "cond": lambda v: lax.cond(v[0] > 0.1, jnp.sin, lambda v: v - 1, v),
}


@pytest.mark.parametrize("name", [*WITH_CALLS, "nested"])
def test_bodies_hold_samples(name):
    fn = nested
    if name in WITH_CALLS:
        call, shift = WITH_CALLS[name], jnp.array([0.3, -0.2])
        fn = lambda x: lax.scan(lambda c, r: (call(c + r - shift), c), x[0], x)  # noqa: E731
    points = jax.random.uniform(jax.random.key(3), (200, 2, 2), minval=-0.4, maxval=0.4)
    methods = (bound.ibp, bound.crown_ibp) if name != "nested" else (bound.ibp,)
    run = jax.jit(lambda b, x: ([m(fn)(b) for m in methods], jax.vmap(fn)(x)))
    found, reached = run(bound.Ball(X[:2], 0.4), X[None, :2] + points)
    for got in found:
        for low, high, value in zip(
            *map(jax.tree.leaves, (*got, reached)), strict=True
        ):
            assert (low <= value.min(0)).all() and (value.max(0) <= high).all()


@pytest.mark.parametrize("method", [bound.ibp, bound.crown])
def test_a_missing_rule_in_a_body_names_its_line(method):
    def fn(x):
        return lax.scan(lambda c, r: (lax.bessel_i1e(c) + r, c), x[0], x)

    with pytest.raises(NotImplementedError, match=r"'bessel_i1e'.*test_loops\.py:\d+"):
        method(fn)(bound.Ball(X, 0.1))


def test_a_scan_too_long_to_unroll_is_refused_by_linear_methods():
    def fn(x):
        return lax.fori_loop(0, 30_000, lambda i, v: 0.5 * jnp.sin(v), x)

    ball = bound.Ball(jnp.ones(2), 0.1)
    with pytest.raises(
        NotImplementedError, match=r"length 30000 at .*test_loops\.py:\d+ .*interval"
    ):
        jax.eval_shape(bound.crown(fn), ball)
    assert np.isfinite(jax.jit(bound.ibp(fn))(ball).upper).all()


def test_gradients_and_batches_go_through_a_scan():
    def width(scale):
        fn = lambda x: looped(scale * x)[0]  # noqa: E731
        got = bound.ibp(fn)(bound.Ball(X, 0.2))
        return (got.upper - got.lower).sum()

    run, step = jax.jit(jax.value_and_grad(width)), 1e-2
    slope = run(1.0)[1]
    want = (run(1 + step)[0] - run(1 - step)[0]) / (2 * step)
    np.testing.assert_allclose(slope, want, rtol=1e-2)
    one = lambda x: bound.ibp(lambda x: looped(x)[0])(bound.Ball(x, 0.2)).upper  # noqa: E731
    batch, alone = jnp.stack([X, 2 * X]), jax.jit(one)
    want = jnp.stack([alone(X), alone(2 * X)])
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(batch), want, rtol=1e-5)


def test_a_known_predicate_takes_one_branch():
    """The other one may even leave its domain, or have no rule."""
    branches = [jnp.sin, lambda x: jnp.log(x - 9), lax.bessel_i1e]
    fn = lambda x, i: lax.switch(i, branches, x)  # noqa: E731
    ball = bound.Ball(jnp.ones(2), 0.1)
    for method in (bound.ibp, bound.crown):
        fns = jnp.sin, lambda x: fn(x, 0)
        want, got = jax.jit(lambda b, m=method: [m(fn)(b) for fn in fns])(ball)  # noqa: B023
        all_close(got, want, rtol=1e-6)
        with pytest.raises(ValueError, match="log"):
            method(fn)(ball, 1)


@pytest.mark.parametrize("method", [bound.ibp, bound.crown, bound.forward])
def test_a_predicate_that_no_set_reaches_chooses_exactly(method):
    fn = lambda x, p: lax.cond(p, lambda v: 2 * v, lambda v: v[::-1] - 1, x)  # noqa: E731
    ball = bound.Ball(jnp.array([1.0, -2.0]), 0.5)
    run = jax.jit(lambda p: method(lambda x: fn(x, p))(ball))
    np.testing.assert_allclose(run(True).upper, [3.0, -3.0], rtol=1e-5)
    np.testing.assert_allclose(run(False).upper, [-2.5, 0.5], rtol=1e-5)


def test_a_predicate_that_a_set_reaches_gives_the_union():
    fn = lambda x: lax.cond(x.sum() > 0, lambda v: v + 10, lambda v: v - 10, x)  # noqa: E731
    for method in (bound.ibp, bound.crown):
        run = jax.jit(method(fn))
        got = run(bound.Ball(jnp.zeros(2), 0.5))
        np.testing.assert_allclose(got.upper, [10.5, 10.5], rtol=1e-5)
        np.testing.assert_allclose(got.lower, [-10.5, -10.5], rtol=1e-5)
        sure = run(bound.Ball(jnp.ones(2), 0.5))
        np.testing.assert_allclose(sure.lower, [10.5, 10.5], rtol=1e-5)


def test_a_graph_of_branches_and_steps_computes_the_function():
    """`inline` changes the graph, not what it computes."""
    inline = {"scan": core.unroll_scan, "cond": core.inline_cond}

    def fn(x):
        state, states, *_ = looped(x, reverse=True)
        return lax.cond(state[0] > 0, lambda: states * 2, lambda: states - 1)

    graph = core.flatten(fn, X, inline=inline)
    assert not {"scan", "cond"} & {n.name for n in graph.nodes}
    got, want = jax.jit(lambda x: (graph.evaluate(x), fn(x)))(X)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert {"scan", "cond"} <= {n.name for n in core.flatten(fn, X).nodes}


def test_shard_map_inside_is_refused_by_name():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    spec = jax.sharding.PartitionSpec("d")
    fn = jax.shard_map(jnp.sin, mesh=mesh, in_specs=spec, out_specs=spec)
    with pytest.raises(NotImplementedError, match=r"'shard_map'.*the function inside"):
        bound.ibp(fn)(bound.Ball(jnp.ones(4), 0.1))

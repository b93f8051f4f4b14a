"""A ball cut off by a box: the least value of a linear function is exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from jaxmethods import bound
from jaxmethods.bound._patches import Patches
from jaxmethods.bound._rows import Dense

N = 6


@functools.cache
def least(p):
    def value(a, c, r, lower, upper):
        s = bound.Intersection(bound.Ball(c, r, p), bound.Box(lower, upper))
        return s.minimum([Dense(a)])

    return jax.jit(value)


def by_linear_program(a, c, r, lower, upper):
    """x = c + up - down, sum(up + down) <= r, lower <= x <= upper."""
    eye = np.eye(len(c))
    rows = np.concatenate([np.ones((1, 2 * len(c))), np.hstack([eye, -eye])])
    rows = np.concatenate([rows, -rows[1:]])
    right = np.concatenate([[r], upper - c, c - lower])
    found = linprog(np.concatenate([a, -a]), rows, right)
    return found.fun + a @ c


def by_bisection(a, c, r, lower, upper):
    """The step along -a, clipped to the box, that ends on the sphere."""
    low, high = 0.0, 1e9
    for _ in range(200):
        step = (low + high) / 2
        x = np.clip(c - step * a, lower, upper)
        low, high = (step, high) if np.linalg.norm(x - c) <= r else (low, step)
    return a @ np.clip(c - low * a, lower, upper)


def problem(seed, scale, outside):
    rng = np.random.default_rng(seed)
    lower = rng.normal(size=N)
    upper = lower + rng.uniform(0, 2, N) * rng.choice([0, 1, 1], N)
    c = np.clip(lower + rng.uniform(-0.2, 1.2, N) * (upper - lower), lower, upper)
    c = c + outside * rng.choice([-0.1, 0, 0, 0.1], N)
    a = rng.normal(size=(5, N)) * rng.choice([0.0, 1, 1, 1], (5, N))
    a[0], a[1] = 0, np.sign(a[1])  # no slope at all; ties
    return a, c, scale, lower, upper


@pytest.mark.parametrize("p, truth", [(1, by_linear_program), (2, by_bisection)])
@settings(max_examples=25, deadline=None)
@example(seed=481, radius=1e-6, outside=True)  # many entries, little room
@given(
    seed=st.integers(0, 10_000),
    radius=st.sampled_from([0.0, 1e-6, 0.3, 1.0, 3.0, 50.0]),
    outside=st.booleans(),
)
def test_least_value_is_that_of_a_solver(p, truth, seed, radius, outside):
    with jax.enable_x64(True):
        a, c, r, lower, upper = problem(seed, radius, outside)
        if outside:  # so that they meet, by a hair at radius 0
            r = r + np.linalg.norm(np.clip(c, lower, upper) - c, p) * (1 + 1e-9)
        got = least(p)(a, c, r, lower, upper)
        want = [truth(row, c, r, lower, upper) for row in a]
        assert (got <= np.array(want) + 1e-9).all()
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("p", [1, 2, jnp.inf])
def test_hull_is_the_least_and_the_largest_entry(p, x64):
    a = np.concatenate([np.eye(N), -np.eye(N)])
    for outside in (False, True):
        _, c, _, lower, upper = problem(3, 0.0, outside)
        r = 0.5 + np.linalg.norm(np.clip(c, lower, upper) - c, p)
        s = bound.Intersection(bound.Ball(c, r, p), bound.Box(lower, upper))
        (ends,) = s.hull()
        found = least(p)(a, c, r, lower, upper)
        np.testing.assert_allclose(ends.lower, found[:N], atol=1e-7)
        np.testing.assert_allclose(ends.upper, -found[N:], atol=1e-7)


@pytest.mark.parametrize("p", [1, 2, jnp.inf])
def test_is_inside_both_and_equals_the_ball_where_the_box_is_far(p):
    w = jax.random.normal(jax.random.key(0), (4, N))
    net = lambda x: jnp.tanh(w @ x) @ w[:, :2]  # noqa: E731
    ball = bound.Ball(jnp.linspace(0, 1, N), 0.7, p)
    cube = bound.Box(jnp.zeros(N), jnp.ones(N))
    far, both = (
        bound.Intersection(ball, bound.Box(*e)) for e in ((-9.0, 9.0), (0.0, 1.0))
    )
    run = jax.jit(
        lambda method, *sets: [method(net)(s) for s in sets], static_argnums=0
    )
    # The lines of other methods change with the intervals.
    inside, *wider = run(bound.ibp, both, far, ball, cube)
    for wide in wider:
        assert (inside.lower >= wide.lower - 1e-5).all()
        assert (inside.upper <= wide.upper + 1e-5).all()
    for got, want in (wider[:2], run(bound.crown, far, ball)):
        np.testing.assert_allclose(got.lower, want.lower, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [1, 2, jnp.inf])
def test_no_member_escapes(p):
    keys = jax.random.split(jax.random.key(1), 3)
    w = jax.random.normal(keys[0], (8, N)) / 2
    net = lambda x: jax.nn.relu(w @ x) @ w[:, :3] - x[:3]  # noqa: E731
    c, r = jnp.array([-0.1, 0.0, 0.2, 0.9, 1.0, 1.05]), 0.6
    points = c[None] + 0.4 * jax.random.laplace(keys[1], (4000, N))
    points = jnp.clip(points, 0.0, 1.0)
    points = points[jnp.linalg.norm(points - c[None], p, axis=1) <= r]
    assert len(points) > 20
    s = bound.Intersection(bound.Ball(c, r, p), bound.Box(0.0, 1.0))
    methods = bound.ibp, bound.forward, bound.crown
    run = jax.jit(lambda s, x: ([m(net)(s) for m in methods], jax.vmap(net)(x)))
    found, values = run(s, points)
    for got in found:
        assert (got.lower[None] <= values).all() and (values <= got.upper[None]).all()


@pytest.mark.parametrize("p", [1, 2])
def test_gradients_are_those_of_the_point_where_it_is_least(p, x64):
    for outside in (False, True):
        a, c, _, lower, upper = problem(11, 0.0, outside)
        r = 0.8 + np.linalg.norm(np.clip(c, lower, upper) - c, p)
        total = lambda *args: least(p)(*args)[2:].sum()  # noqa: E731
        args = tuple(map(jnp.asarray, (a, c, r, lower, upper)))
        gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
        grads = gradient(*args)
        point = np.asarray(grads[0])[2:]
        assert (np.linalg.norm(point - c, p, axis=1) <= r + 1e-6).all()
        step = 1e-6
        up, down = (
            total(args[0], args[1], args[2] + t, *args[3:]) for t in (step, -step)
        )
        np.testing.assert_allclose(grads[2], (up - down) / (2 * step), rtol=1e-3)
    at_zero = gradient(jnp.zeros_like(args[0]), *args[1:])
    assert all(np.isfinite(g).all() for g in at_zero)


def test_windows_have_the_least_values_of_their_dense_rows(x64):
    values = jax.random.normal(jax.random.key(2), (2, 3, 3, 3, 3, 1))
    rows = Patches(values, (2, 2), (1, 1), (6, 6, 1), (0, 1, 2), (0, 1, 2))
    c = jax.random.uniform(jax.random.key(3), (6, 6, 1), minval=-0.2, maxval=1.2)
    for p, r in ((1, 9.0), (2, 1.4)):
        s = bound.Intersection(bound.Ball(c, r, p), bound.Box(0.0, 1.0))
        s.check()
        run = jax.jit(lambda s: (s.minimum([rows]), s.minimum([Dense(rows.dense())])))
        np.testing.assert_allclose(*run(s), rtol=1e-6)


@pytest.mark.parametrize("p", [1, 2])
def test_one_radius_for_a_tree_of_arrays(p):
    w = jax.random.normal(jax.random.key(4), (3, N))
    x = jnp.linspace(0, 1, N)
    tree = {"a": x[:2], "b": x[2:].reshape(2, 2)}
    join = lambda t: w @ jnp.concatenate([t["a"], t["b"].ravel()])  # noqa: E731
    box = bound.Box(0.0, 1.0)
    got, want = (
        jax.jit(bound.crown(fn))(bound.Intersection(bound.Ball(at, 0.9, p), box))
        for fn, at in ((join, tree), (lambda x: w @ x, x))
    )
    np.testing.assert_allclose(got.lower, want.lower, rtol=1e-4, atol=1e-5)


def test_vmap_over_sets_equals_a_loop():
    w = jax.random.normal(jax.random.key(5), (3, N))
    xs = jax.random.uniform(jax.random.key(6), (4, N))

    def lower(x, r):
        s = bound.Intersection(bound.Ball(x, r, 2), bound.Box(0.0, 1.0))
        return bound.crown(lambda x: w @ x)(s).lower

    rs = jnp.array([0.0, 0.1, 1.0, 9.0])
    alone = jax.jit(lower)
    want = jnp.stack([alone(x, r) for x, r in zip(xs, rs, strict=True)])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(lower))(xs, rs), want, rtol=1e-5, atol=1e-6
    )


X = jnp.array([0.5, 2.0])


@pytest.mark.parametrize(
    "ball, box, hint",
    [
        (bound.Ball(X, 0.9, 2), bound.Box(0.0, 1.0), "no point in common.*0.1 beyond"),
        (bound.Ball(X, 0.9, 1), bound.Box(0.0, 1.0), "no point in common"),
        (bound.Ball(X, 0.9), bound.Box(0.0, 1.0), "no point in common"),
        (bound.Ball(X, -1.0, 2), bound.Box(0.0, 1.0), "radius of a Ball"),
        (bound.Ball(X, 9.0, 2), bound.Box(1.0, 0.0), "lower of a Box exceeds"),
        (
            bound.Ball(X, 9.0, 2),
            bound.Box(jnp.zeros(3), jnp.ones(3)),
            r"box .*\(3,\).*broadcast to .*\(2,\)",
        ),
        (
            bound.Ball({"a": X, "b": X}, 9.0, 2),
            bound.Box({"a": X, "c": X}, {"a": X, "c": X}),
            r"{'a': \*, 'c': \*}.*{'a': \*, 'b': \*}",
        ),
    ],
)
def test_what_is_no_set_is_refused(ball, box, hint):
    with pytest.raises(ValueError, match=hint):
        bound.crown(jnp.sum)(bound.Intersection(ball, box))

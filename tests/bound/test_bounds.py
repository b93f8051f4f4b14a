"""Bounds contain what is reached, at every dtype, and are as tight as they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from jaxmethods import bound

METHODS = {"ibp": bound.ibp, "crown_ibp": bound.crown_ibp, "crown": bound.crown}


def net(p, x, act=jax.nn.relu):
    return act(act(x @ p["w0"] + p["b0"]) @ p["w1"]) @ p["w2"]


def params(seed=0, dtype=jnp.float32, scale=1.0):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = {"w0": (5, 8), "w1": (8, 6), "w2": (6, 3), "b0": (8,)}
    return {
        name: scale * jax.random.normal(k, shape, dtype) / 2
        for (name, shape), k in zip(shapes.items(), keys, strict=True)
    }


X = jnp.linspace(-1, 1, 5)


def points_in(x, eps, n=400):
    """Points of a ball, half of them corners."""
    noise = np.random.default_rng(0).uniform(-1, 1, (n, *x.shape))
    noise[: n // 2] = np.sign(noise[: n // 2])
    x = np.asarray(x)
    return np.clip(x[None] + (eps * noise).astype(x.dtype), x - eps, x + eps)


def reached(fn, x, eps):
    return jax.jit(jax.vmap(fn))(points_in(x, eps))


def assert_contains(bounds, values):
    lower, upper, values = (np.asarray(v, np.float64) for v in (*bounds, values))
    assert (lower <= values.min(0)).all() and (values.max(0) <= upper).all()


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.2),
    "elu": jax.nn.elu,
    "relu6": jax.nn.relu6,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "abs": jnp.abs,
    "square": jnp.square,
}


@pytest.mark.parametrize(
    "name, dtype",
    [*((name, jnp.float32) for name in ACTIVATIONS), ("relu", jnp.float64)],
)
def test_no_sampled_value_escapes(name, dtype, x64):
    """No slack: what rounding loses is added by the bound itself."""
    p, x, act = params(dtype=dtype), X.astype(dtype), ACTIVATIONS[name]

    @jax.jit
    def run(x, eps, points):
        fn, ball = (lambda x: net(p, x, act)), bound.Ball(x, eps)
        return jax.vmap(fn)(points), [m(fn)(ball) for m in METHODS.values()]

    for eps in (1e-3, 0.3):
        values, found = run(x, np.asarray(eps, dtype), points_in(x, eps))
        for got in found:
            assert got.lower.dtype == dtype
            assert_contains(got, values)


@jax.jit
def all_methods(p, x, eps, points):
    ball = bound.Ball(x, eps)
    found = {name: method(net)(p, ball) for name, method in METHODS.items()}
    return found, jax.vmap(net, (None, 0))(p, points)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-4, 2.0), st.floats(0.1, 4.0))
def test_crown_is_inside_crown_ibp_is_inside_ibp(seed, eps, scale):
    p = params(seed, scale=scale)
    found, values = all_methods(p, X, np.float32(eps), points_in(X, np.float32(eps)))
    wide = found["ibp"]
    for tight in (found["crown_ibp"], found["crown"]):
        slack = 1e-5 * (1 + jnp.abs(wide.lower) + jnp.abs(wide.upper))
        assert (tight.lower >= wide.lower - slack).all()
        assert (tight.upper <= wide.upper + slack).all()
        assert_contains(tight, values)


@pytest.mark.parametrize("norm, dual", [(jnp.inf, 1), (2, 2), (1, np.inf)])
def test_affine_functions_are_exact_in_every_norm(norm, dual):
    w = jax.random.normal(jax.random.key(1), (3, 5))
    fn = lambda x: jnp.concatenate([(w @ x)[::-1], 2 * (w @ x)[:1]])[1:]  # noqa: E731
    rows = jnp.concatenate([w[::-1], 2 * w[:1]])[1:]
    radius = 0.3 * np.linalg.norm(np.asarray(rows), dual, axis=1)
    got = bound.crown(fn)(bound.Ball(X, 0.3, norm))
    # Exact but for the outward rounding of float32.
    np.testing.assert_allclose(got.upper, fn(X) + radius, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.lower, fn(X) - radius, rtol=1e-5, atol=1e-5)
    one_layer = bound.ibp(lambda x: w @ x)(bound.Ball(X, 0.3, norm))
    exact = 0.3 * np.linalg.norm(np.asarray(w), dual, axis=1)
    np.testing.assert_allclose(one_layer.upper - one_layer.lower, 2 * exact, rtol=1e-4)


def test_a_set_without_width_gives_the_value():
    p = params()
    found, values = all_methods(p, X, np.float32(0), points_in(X, np.float32(0)))
    for got in found.values():
        np.testing.assert_allclose(got.lower, values[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got.upper, values[0], rtol=1e-5, atol=1e-5)


def conv_net(p, x):
    dims = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(
        x[None], p["k"], (2, 2), "SAME", dimension_numbers=dims
    )[0]
    x = jax.lax.reduce_window(
        jax.nn.relu(x), -jnp.inf, jax.lax.max, (2, 2, 1), (1, 1, 1), "VALID"
    )
    return x.reshape(-1) @ p["w"]


def test_convolutions_pooling_and_sets_of_weights():
    keys = jax.random.split(jax.random.key(2), 3)
    p = {
        "k": jax.random.normal(keys[0], (3, 3, 1, 2)),
        "w": jax.random.normal(keys[1], (8, 3)) / 3,
    }
    x = jax.random.uniform(keys[2], (6, 6, 1))
    values = reached(lambda x: conv_net(p, x), x, 0.05)
    for method in METHODS.values():
        assert_contains(jax.jit(method(conv_net))(p, bound.Ball(x, 0.05)), values)
    sets = p | {"k": bound.Ball(p["k"], 0.02)}
    values = reached(lambda k: conv_net(p | {"k": k}, x), p["k"], 0.02)
    for name in ("ibp", "crown"):
        assert_contains(jax.jit(METHODS[name](conv_net))(sets, x), values)


def test_planes_enclose_the_function():
    p = params()
    run = jax.jit(
        lambda x: bound.linear_bounds(lambda x: net(p, x))(bound.Ball(x, 0.2))
    )
    planes, points = run(X), points_in(X, 0.2)
    values = reached(lambda x: net(p, x), X, 0.2)
    slack = 1e-5  # the planes are evaluated here in float32
    assert planes.lower_slope.shape == (3, 5)
    low = points @ planes.lower_slope.T + planes.lower_bias[None]
    high = points @ planes.upper_slope.T + planes.upper_bias[None]
    assert (low <= values + slack).all() and (values <= high + slack).all()


def test_margins_merge_into_the_last_layer():
    p = params()
    rows = bound.margins(lambda x: net(p, x), 1)
    np.testing.assert_allclose(rows(X), (net(p, X)[1] - net(p, X))[jnp.array([0, 2])])
    merged = {m: jax.jit(METHODS[m](rows))(bound.Ball(X, 0.1)).lower for m in METHODS}
    logits = jax.jit(bound.ibp(lambda x: net(p, x)))(bound.Ball(X, 0.1))
    apart = logits.lower[1] - logits.upper[jnp.array([0, 2])]
    assert (merged["ibp"] > apart).all()
    assert (merged["crown"] >= merged["ibp"]).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_no_tiny_value_escapes_in_half_precision(dtype):
    rng = np.random.default_rng(0)
    w, v = (jnp.asarray(0.1 * rng.normal(size=s), dtype) for s in ((6, 40), (40, 3)))
    for fn, scale in ((lambda x: jax.nn.relu(x @ w) @ v, 1e-7), (jax.nn.softmax, 8)):

        @jax.jit
        def run(box, points, fn=fn):
            found = [method(fn)(box) for method in (bound.ibp, bound.crown)]
            return found, jax.vmap(fn)(points)

        for _ in range(12):
            low, width = rng.normal(size=6) * scale, rng.uniform(size=6) * scale
            low, high = (np.asarray(end, dtype) for end in (low, low + width))
            share = np.round(rng.uniform(size=(200, 6)), 1)
            points = np.clip(np.asarray(low + share * (high - low), dtype), low, high)
            found, values = run(bound.Box(low, high), points)
            for bounds in found:
                assert (bounds.lower <= values.min(0)).all()
                assert (values.max(0) <= bounds.upper).all()


def test_composes_with_jit_vmap_grad_and_shard_map():
    p, xs = params(), jax.random.normal(jax.random.key(4), (8, 5))
    one = lambda x: bound.crown_ibp(lambda x: net(p, x))(bound.Ball(x, 0.1)).lower  # noqa: E731
    want = jnp.stack([jax.jit(one)(x) for x in xs])
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(xs), want, rtol=1e-5, atol=1e-5)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    spec = P("data")
    run = jax.shard_map(jax.vmap(one), mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_allclose(jax.jit(run)(xs), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_gradient_in_the_parameters(name, x64):
    p = params(dtype=jnp.float64)
    x = X.astype(jnp.float64)
    fn = jax.jit(lambda p: METHODS[name](net)(p, bound.Ball(x, 0.1)).lower.sum())
    direction = jax.tree.map(lambda w: jnp.cos(jnp.arange(w.size)).reshape(w.shape), p)
    got = sum(
        jnp.vdot(g, d)
        for g, d in zip(
            jax.tree.leaves(jax.grad(fn)(p)), jax.tree.leaves(direction), strict=True
        )
    )
    h = 1e-6
    up, down = (
        fn(jax.tree.map(lambda w, d, t=t: w + t * d, p, direction)) for t in (h, -h)
    )
    np.testing.assert_allclose((up - down) / (2 * h), got, rtol=1e-4)


def test_one_trace_for_all_values():
    traces = []

    def counted(p, x):
        traces.append(1)
        return net(p, x)

    run = jax.jit(lambda p, x, e: bound.crown(counted)(p, bound.Ball(x, e)))
    for eps in (0.1, 0.2):
        run(params(), X, eps)
    assert len(traces) == 1


def test_the_public_mlp_of_the_reference(shared, x64):
    with np.load(shared / "goldens" / "26-auto-lirpa-mlp.npz") as g:
        weights = [(g[f"mlp_relu.w{i}"], g[f"mlp_relu.b{i}"]) for i in range(3)]
        x, y = jnp.asarray(g["mlp_relu.x"], jnp.float64), jnp.asarray(g["mlp_relu.y"])
        want = {m: g[f"mlp_relu.linf_0.02.margin.{m}.lb"] for m in ("IBP", "CROWN")}

    def mlp(x):
        for i, (w, b) in enumerate(weights):
            x = x @ jnp.asarray(w, jnp.float64) + jnp.asarray(b, jnp.float64)
            x = jax.nn.relu(x) if i < 2 else x
        return x

    for name, reference in want.items():
        method = METHODS[name.lower()]
        run = jax.vmap(
            lambda x, y, m=method: m(bound.margins(mlp, y))(bound.Ball(x, 0.02)).lower
        )
        # Adaptive lines may differ where a bound is a tie: the mean decides.
        np.testing.assert_allclose(
            jax.jit(run)(x, y).mean(), reference.mean(), rtol=1e-4
        )


@pytest.mark.parametrize(
    "call, error, hint",
    [
        (lambda: bound.ibp(jnp.sin)(bound.Ball(X, -0.1)), ValueError, "radius"),
        (lambda: bound.ibp(jnp.abs)(bound.Box(X + 1, X)), ValueError, "lower"),
        (lambda: bound.ibp(jnp.abs)(bound.Ball(X, 0.1, 0.5)), ValueError, "inf"),
        (lambda: bound.crown(jnp.abs, side="left"), ValueError, "side is 'left'"),
        (lambda: bound.linear_bounds(jnp.abs, method="x"), ValueError, "method is 'x'"),
        (lambda: bound.ibp(jnp.abs)(bound.Ball(jnp.arange(3), 1)), TypeError, "int32"),
        (
            lambda: bound.ibp(jnp.log)(bound.Ball(X, 9.0)),
            ValueError,
            r"log at .*test_bounds\.py:\d+ \(<lambda>\)",
        ),
        (lambda: bound.margins(lambda x: x.sum(), 0)(X), ValueError, "shape \\(n,\\)"),
        (
            lambda: bound.crown(lambda x: jax.lax.bessel_i1e(x))(bound.Ball(X, 0.1)),
            NotImplementedError,
            "'bessel_i1e'.*test_bounds.py.*register_rule",
        ),
    ],
)
def test_errors_say_what_to_do(call, error, hint):
    with pytest.raises(error, match=hint):
        call()

"""Certified radii: exact where the bound is, never above an attack's, at any scale."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxmethods import bound

W = jax.random.normal(jax.random.key(0), (5, 3))
B = jax.random.normal(jax.random.key(1), (3,))
V = jax.random.normal(jax.random.key(2), (3, 3))
XS = jax.random.normal(jax.random.key(3), (8, 5))


def linear(x):
    return x @ W + B


def net(x):
    return jax.nn.relu(x @ W + B) @ V + x[:3]


def exact(x, y, dual):
    z = np.asarray(linear(x))
    gaps = [
        (z[y] - z[j]) / np.linalg.norm(np.asarray(W[:, y] - W[:, j]), dual)
        for j in range(3)
        if j != y
    ]
    return min(gaps)


@pytest.mark.parametrize("p, dual", [(jnp.inf, 1), (2, 2), (1, np.inf)])
def test_a_linear_classifier_has_its_exact_radius(p, dual):
    labels = jnp.argmax(jax.vmap(linear)(XS), 1)
    run = jax.jit(jax.vmap(functools.partial(bound.radius, linear, p=p)))
    want = np.array([exact(x, int(y), dual) for x, y in zip(XS, labels, strict=True)])
    got = np.asarray(run(XS, labels))
    assert (got <= want * (1 + 1e-6)).all() and (got >= want * (1 - 1e-3)).all()
    assert (np.asarray(run(XS, (labels + 1) % 3)) == 0).all()


@pytest.mark.parametrize("method", ["ibp", "forward", "crown_ibp", "crown"])
def test_the_margins_are_certified_at_the_radius_and_hardly_beyond(method):
    x, label = XS[0], int(jnp.argmax(net(XS[0])))
    got = bound.radius(net, x, label, method=method)
    rows = bound.margins(net, label)
    low = jax.jit(lambda e: getattr(bound, method)(rows)(bound.Ball(x, e)).lower.min())
    assert got > 0 and low(got) > 0 and low(got * 1.001) <= 0
    noise = jax.random.uniform(jax.random.key(4), (2000, 5), minval=-1)
    points = x[None] + got * jnp.concatenate([noise, jnp.sign(noise)])
    assert (jnp.argmax(jax.vmap(net)(points), 1) == label).all()


def test_optimised_bounds_certify_at_least_as_much():
    x, label = XS[0], int(jnp.argmax(net(XS[0])))
    plain, best = (
        jax.jit(functools.partial(bound.radius, net, method=m))(x, label)
        for m in ("crown", "alpha_crown")
    )
    assert best >= plain * (1 - 1e-3)


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1.0, 1e7, 1e18])
def test_any_scale(scale):
    """The classifier scales with the input, and so does the radius."""
    fn = lambda x: (x / scale) @ W + B  # noqa: E731
    x = XS[1] * scale
    label = int(jnp.argmax(fn(x)))
    got = float(bound.radius(fn, x, label, method="ibp")) / scale
    np.testing.assert_allclose(got, exact(XS[1], label, 1), rtol=1.5e-3)


def test_far_from_the_scale_of_the_input():
    fn = lambda x: jnp.stack([x[0] * 1e-9 + 1, -x[0] * 1e-9])  # noqa: E731
    got = bound.radius(fn, jnp.ones(1), 0, method="ibp")
    np.testing.assert_allclose(got, 5e8, rtol=2e-3)
    got = bound.radius(fn, jnp.zeros(1), 0, method="ibp")
    np.testing.assert_allclose(got, 5e8, rtol=2e-3)


def test_a_constant_classifier_ends_and_a_tie_has_radius_0():
    constant = lambda x: jnp.array([1.0, 0.0]) + 0 * x[:2]  # noqa: E731
    assert bound.radius(constant, XS[0], 0, method="ibp") > 1e6
    tied = lambda x: jnp.stack([x[0], x[0]])  # noqa: E731
    assert bound.radius(tied, XS[0], 0) == 0


def test_only_points_within_the_bounds_count():
    fn = lambda x: jnp.stack([x.sum(), jnp.full((), 0.5, x.dtype)])  # noqa: E731
    x = jnp.array([0.1, 0.9])
    # Down to a sum of 0.5: the first pixel ends at 0 after 0.1.
    np.testing.assert_allclose(bound.radius(fn, x, 0), 0.25, rtol=1e-3)
    got = bound.radius(fn, x, 0, bounds=(0.0, 1.0))
    np.testing.assert_allclose(got, 0.4, rtol=1e-3)
    got = bound.radius(fn, x, 0, p=2, bounds=(0.0, 1.0))
    np.testing.assert_allclose(got, np.hypot(0.1, 0.4), rtol=1e-3)
    assert bound.radius(fn, x, 0, p=2) < got
    outside = jax.jit(lambda x: bound.radius(fn, x, 0, bounds=(0.0, 1.0)))(2 * x)
    assert outside == 0


def test_a_tree_of_arrays_shares_one_ball():
    tree = {"a": XS[2][:2], "b": XS[2][2:]}
    fn = lambda t: linear(jnp.concatenate([t["a"], t["b"]]))  # noqa: E731
    label = int(jnp.argmax(linear(XS[2])))
    got = bound.radius(fn, tree, label, p=2)
    np.testing.assert_allclose(got, bound.radius(linear, XS[2], label, p=2), rtol=2e-3)


def test_one_trace_for_all_values_of_few_bounds():
    traces = []

    def counted(x):
        traces.append(1)
        return net(x)

    run = jax.jit(functools.partial(bound.radius, counted))
    run(XS[0], 0)
    first = len(traces)
    run(XS[1], 1)
    assert len(traces) == first <= 4


def test_eager_jit_vmap_and_shard_map_agree():
    labels = jnp.argmax(jax.vmap(net)(XS), 1)
    one = functools.partial(bound.radius, net, method="crown_ibp")
    want = jnp.stack([one(x, y) for x, y in zip(XS[:2], labels[:2], strict=True)])
    got = jax.jit(jax.vmap(one))(XS, labels)
    np.testing.assert_allclose(got[:2], want, rtol=1e-3)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    specs = dict(in_specs=(P("data"), P("data")), out_specs=P("data"))
    run = jax.jit(jax.shard_map(jax.vmap(one), mesh=mesh, **specs))
    np.testing.assert_allclose(run(XS, labels), got, rtol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_the_dtype_is_that_of_the_input(dtype, x64):
    fn = lambda x: jnp.stack([x.sum(), -x.sum()])  # noqa: E731
    got = bound.radius(fn, jnp.ones(4, dtype), 0, method="ibp")
    assert got.dtype == dtype and 0.9 < got <= 1


@pytest.mark.parametrize(
    "args, options, error, hint",
    [
        ((XS[0], 3), {}, ValueError, r"label is 3 .* wanted 0\.\.2"),
        ((XS[0], 1.5), {}, TypeError, "label .* one integer"),
        ((XS[0] / 0, 0), {}, ValueError, "NaN or infinity"),
        ((jnp.arange(5), 0), {}, TypeError, "int32"),
        ((XS[0], 0), {"p": 3}, ValueError, "p of a Ball is 3"),
        ((XS[0], 0), {"method": "magic"}, ValueError, "method is 'magic'.*crown"),
        ((XS[0], 0), {"bounds": (9, 10)}, ValueError, "outside of bounds"),
        ((XS[0], 0), {"bounds": 0.0}, ValueError, r"bounds is float 0\.0; .* \(0, 1\)"),
        (({}, 0), {}, ValueError, "x is dict {}, without an array"),
    ],
)
def test_bad_arguments_are_refused(args, options, error, hint):
    with pytest.raises(error, match=hint):
        bound.radius(linear, *args, **options)


def test_a_batch_is_refused():
    with pytest.raises(ValueError, match="one example a call"):
        bound.radius(lambda x: x @ W, XS, 0)

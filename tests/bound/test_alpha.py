"""alpha_crown and forward: sound, in their order of tightness, and composable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxmethods import bound

KEYS = jax.random.split(jax.random.key(0), 4)
W = [
    jax.random.normal(k, shape) * 0.8
    for k, shape in zip(KEYS, [(4, 8), (8, 8), (8, 3)], strict=False)
]
X = jnp.array([0.3, -0.5, 0.9, 0.1])
BALL = bound.Ball(X, 0.3)


def net(x, act=jax.nn.relu, last=jax.nn.relu):
    return last(act(x @ W[0]) @ W[1]) @ W[2]


def width(bounds):
    return np.asarray(bounds.upper - bounds.lower)


def reached(fn, radius=0.3, n=2000):
    noise = np.random.default_rng(0).uniform(-radius, radius, (n, 4))
    noise[::2] = radius * np.sign(noise[::2])
    return np.asarray(jax.vmap(fn)(X[None] + jnp.asarray(noise, jnp.float32)))


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "abs": jnp.abs,
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
    "product": lambda x: x * jax.nn.sigmoid(x[::-1]),
    "max": lambda x: jnp.maximum(x, x[::-1]),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_sound_and_no_looser_than_crown(name):
    act = ACTIVATIONS[name]
    # The lines of the costliest ones in the first layer alone: half as much to compile.
    last = jax.nn.relu if name in ("gelu", "product") else act
    fn = lambda x: net(x, act, last)  # noqa: E731
    values = reached(fn)
    methods = bound.crown(fn), bound.alpha_crown(fn, num_steps=6), bound.forward(fn)
    plain, got, ahead = jax.jit(lambda ball: [run(ball) for run in methods])(BALL)
    for bounds in (got, ahead):
        assert (bounds.lower <= values.min(0)).all()
        assert (values.max(0) <= bounds.upper).all()
    assert (got.lower >= plain.lower).all() and (got.upper <= plain.upper).all()
    assert width(got).mean() < width(plain).mean()


def test_no_step_is_crown():
    plain = jax.jit(bound.crown(net))(BALL)
    got = jax.jit(bound.alpha_crown(net, num_steps=0))(BALL)
    np.testing.assert_array_equal(got.lower, plain.lower)


def test_fewer_rows_are_looser_but_sound():
    values, plain = reached(net), jax.jit(bound.crown(net))(BALL)
    few = jax.jit(bound.alpha_crown(net, num_steps=8, num_rows=2))(BALL)
    all_rows = jax.jit(bound.alpha_crown(net, num_steps=8))(BALL)
    assert width(all_rows).mean() < width(few).mean() < width(plain).mean()
    assert (few.lower <= values.min(0)).all() and (values.max(0) <= few.upper).all()


def test_sides_are_optimised_alone():
    both = jax.jit(bound.alpha_crown(net, num_steps=5))(BALL)
    lower = jax.jit(bound.alpha_crown(net, num_steps=5, side="lower"))(BALL)
    np.testing.assert_allclose(lower.lower, both.lower, rtol=1e-4, atol=1e-4)


def test_batches_and_meshes_give_the_same():
    xs = X[None] + jnp.linspace(-0.2, 0.2, 4)[:, None]
    one = lambda x: bound.alpha_crown(net, num_steps=4)(bound.Ball(x, 0.1))  # noqa: E731
    want = np.stack([jax.jit(one)(x).lower for x in xs])
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    sharded = jax.shard_map(
        jax.vmap(one), mesh=mesh, in_specs=P("data"), out_specs=P("data")
    )
    for got in (jax.jit(jax.vmap(one))(xs), jax.jit(sharded)(xs)):
        np.testing.assert_allclose(got.lower, want, rtol=1e-4, atol=1e-4)


def test_a_step_along_the_derivative_in_the_weights_raises_the_bound():
    def lowest(weights):
        fn = lambda x: (jax.nn.relu(jax.nn.relu(x @ W[0]) @ weights) @ W[2])[0]  # noqa: E731
        return bound.alpha_crown(fn, num_steps=20, side="lower")(BALL).lower

    value, slope = jax.jit(jax.value_and_grad(lowest))(W[1])
    size = float(jnp.linalg.norm(slope))
    step = 0.02 * slope / size
    gain = jax.jit(lowest)(W[1] + step) - value
    assert 0.5 * 0.02 * size < float(gain) < 2 * 0.02 * size


def test_forward_is_exact_for_affine_functions():
    fn = lambda x: jnp.cumsum(x[::-1] @ W[0])[1:4] - 2.0  # noqa: E731
    exact = 0.3 * np.abs(np.asarray(jax.jacobian(fn)(X))).sum(1)
    got = bound.forward(fn)(BALL)
    np.testing.assert_allclose(got.upper, fn(X) + exact, rtol=1e-4)
    planes = bound.linear_bounds(fn, method="forward")(BALL)
    np.testing.assert_allclose(
        planes.lower_slope, jax.jacobian(fn)(X), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_forward_takes_every_ball_and_several_sets(p):
    fn = lambda x, y: jnp.tanh(x @ W[0]) * y  # noqa: E731
    ball, box = bound.Ball(X, 0.2, p), bound.Box(jnp.zeros(8), jnp.ones(8))
    got = bound.forward(fn)(ball, box)
    plain = bound.ibp(fn)(ball, box)
    assert (got.lower >= plain.lower).all() and (got.upper <= plain.upper).all()
    rng = np.random.default_rng(1)
    xs = X[None] + jnp.asarray(rng.uniform(-0.05, 0.05, (300, 4)), jnp.float32)
    values = jax.vmap(fn)(xs, jnp.asarray(rng.uniform(0, 1, (300, 8)), jnp.float32))
    assert (got.lower <= values.min(0)).all() and (values.max(0) <= got.upper).all()


@pytest.mark.parametrize(
    "options, error, hint",
    [
        ({"side": "left"}, ValueError, "side is 'left'"),
        ({"num_steps": -1}, ValueError, "num_steps is -1; wanted at least 0"),
        ({"num_steps": 2.5}, TypeError, "num_steps is"),
        ({"num_rows": 0}, ValueError, "num_rows is 0; wanted at least 1"),
    ],
)
def test_bad_options_are_refused(options, error, hint):
    with pytest.raises(error, match=hint):
        bound.alpha_crown(net, **options)

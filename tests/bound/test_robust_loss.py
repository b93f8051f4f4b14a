"""The certified loss: bounds every loss in the ball, natural at 0, trains on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmethods import bound


def apply(params, x):
    return jax.nn.relu(x @ params["w0"] + params["b0"]) @ params["w1"]


def init(seed=0):
    keys = jax.random.split(jax.random.key(seed))
    return {
        "w0": jax.random.normal(keys[0], (5, 12)) / 2,
        "b0": jnp.zeros(12),
        "w1": jax.random.normal(keys[1], (12, 3)) / 3,
    }


PARAMS = init()
XS = jax.random.uniform(jax.random.key(1), (8, 5))
YS = jnp.arange(8) % 3


def cross_entropy(params, x, y):
    return optax.losses.softmax_cross_entropy_with_integer_labels(apply(params, x), y)


LOSSES = jax.jit(jax.vmap(jax.vmap(cross_entropy, (None, 0, None)), (None, 0, 0)))


@functools.cache
def compiled(p=jnp.inf, bounds=None, fusion=False):
    loss = bound.robust_loss(apply, p=p, bounds=bounds, fusion=fusion)
    return jax.jit(jax.vmap(loss, (None, 0, 0, None, None)))


@pytest.mark.parametrize("fusion", [False, True])
def test_at_radius_0_it_is_the_cross_entropy(fusion):
    got = compiled(fusion=fusion)(PARAMS, XS, YS, 0.0, 1.0)
    want = LOSSES(PARAMS, XS[:, None], YS)[:, 0]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fusion", [False, True])
@pytest.mark.parametrize("p", [2, jnp.inf])
def test_no_point_of_the_ball_has_a_larger_loss(p, fusion):
    d = jax.random.normal(jax.random.key(2), (300, 5))
    d = jnp.sign(d) if p == jnp.inf else d / jnp.linalg.norm(d, axis=1, keepdims=True)
    points = XS[:, None] + 0.2 * d[None]
    reached = LOSSES(PARAMS, points, YS).max(1)
    previous = None
    for beta in (1.0, 0.5, 0.0):
        got = compiled(p, fusion=fusion)(PARAMS, XS, YS, 0.2, beta)
        assert (got >= reached).all()
        if previous is not None:  # linear bounds are never looser than intervals
            assert (got >= previous - 1e-5).all() and got.mean() > previous.mean()
        previous = got


def test_it_is_the_mix_of_two_bounds():
    y, beta = 1, 0.3

    def run(x):
        rows = bound.margins(lambda x: apply(PARAMS, x), y)
        ball = bound.Ball(x, 0.1)
        low = beta * bound.crown_ibp(rows)(ball).lower
        low = low + (1 - beta) * bound.ibp(rows)(ball).lower
        want = jnp.log1p(jnp.exp(-low).sum())
        return bound.robust_loss(apply)(PARAMS, x, y, 0.1, beta), want

    np.testing.assert_allclose(*jax.jit(run)(XS[0]), rtol=1e-5)


def test_one_row_is_looser_than_one_a_margin_and_survives_large_logits():
    apart = compiled()(PARAMS, XS, YS, 0.1, 1.0)
    fused = compiled(fusion=True)(PARAMS, XS, YS, 0.1, 1.0)
    assert (fused >= apart - 1e-5).all() and fused.mean() > apart.mean()
    large = jax.tree.map(lambda w: 30 * w, PARAMS)
    grads = jax.grad(lambda p: compiled(fusion=True)(p, XS, YS, 0.1, 1.0).mean())(large)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert np.isfinite(compiled(fusion=True)(large, XS, YS, 0.1, 1.0)).all()


def test_pixels_stay_within_their_bounds():
    free = compiled()(PARAMS, XS, YS, 0.3, 1.0)
    cut = compiled(bounds=(0, 1))(PARAMS, XS, YS, 0.3, 1.0)
    assert cut.mean() < free.mean()
    with pytest.raises(ValueError, match=r"x holds .* outside of bounds=.*clip it"):
        bound.robust_loss(apply, bounds=(5.0, 6.0))(PARAMS, XS[0], 0, 0.1)
    traced = compiled(bounds=(0, 1))(PARAMS, XS.at[0, 0].set(1.5), YS, 0.3, 1.0)
    np.testing.assert_array_equal(jnp.isnan(traced), jnp.arange(len(XS)) == 0)


def test_gradients_are_finite_differences(x64):
    params = jax.tree.map(lambda w: w.astype(jnp.float64), PARAMS)
    direction = jax.tree.map(
        lambda w: jnp.cos(jnp.arange(w.size)).reshape(w.shape), params
    )
    xs = XS.astype(jnp.float64)
    for fusion in (False, True):
        total = lambda p: compiled(fusion=fusion)(p, xs, YS, 0.05, 0.5).sum()  # noqa: B023, E731
        run = jax.jit(jax.value_and_grad(total))
        got = optax.tree.vdot(run(params)[1], direction)
        up, down = (
            run(jax.tree.map(lambda w, d, t=t: w + t * d, params, direction))[0]
            for t in (1e-6, -1e-6)
        )
        np.testing.assert_allclose(got, (up - down) / 2e-6, rtol=1e-4)


def mean_loss(params, xs, ys, eps, beta):
    loss = bound.robust_loss(apply, bounds=(0.0, 1.0))
    return jax.vmap(loss, (None, 0, 0, None, None))(params, xs, ys, eps, beta).mean()


def test_training_on_a_mesh_is_training_on_one_device():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    want = jax.jit(jax.grad(mean_loss))(PARAMS, XS, YS, 0.1, 0.5)
    xs, ys = jax.device_put((XS, YS), NamedSharding(mesh, P("data")))
    sharded = jax.jit(jax.grad(mean_loss))(PARAMS, xs, ys, 0.1, 0.5)

    def local(params, xs, ys, eps, beta):
        grads = jax.grad(
            lambda p: jax.lax.pmean(mean_loss(p, xs, ys, eps, beta), "data")
        )
        return grads(params)

    specs = (P(), P("data"), P("data"), P(), P())
    mapped = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P()))
    args = (PARAMS, XS, YS, jnp.float32(0.1), jnp.float32(0.5))
    for got in (sharded, mapped(*args)):
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-6)


def test_training_certifies_what_plain_training_does_not():
    """Two blobs a unit apart in one direction, with a strong but fragile feature."""
    keys = jax.random.split(jax.random.key(3), 2)
    ys = jnp.arange(64) % 2
    xs = 0.05 * jax.random.normal(keys[0], (64, 5)) + 0.5
    xs = xs.at[:, 0].add(0.6 * (ys - 0.5)).at[:, 1].add(0.05 * (ys - 0.5))
    eps = bound.eps_schedule(0.2, 20, 60)
    beta = bound.beta_schedule(eps, 0.2)
    optimizer = optax.adam(0.02)

    def train(robust):
        def step(i, carry):
            params, state = carry
            grads = jax.grad(mean_loss)(params, xs, ys, robust * eps(i), beta(i))
            updates, state = optimizer.update(grads, state)
            return optax.apply_updates(params, updates), state

        params = init(4)
        return jax.lax.fori_loop(0, 150, step, (params, optimizer.init(params)))[0]

    def certified(params, x, y):
        rows = bound.margins(lambda x: apply(params, x), y)
        return (bound.crown(rows)(bound.Ball(x, 0.2)).lower > 0).all()

    @jax.jit
    def share(robust):
        return jax.vmap(certified, (None, 0, 0))(train(robust), xs, ys).mean()

    shares = share(1.0), share(0.0)
    assert shares[0] > 0.9 > shares[1]


def test_the_radius_grows_smoothly_to_its_value():
    schedule = bound.eps_schedule(0.3, 10, 100, middle=0.4, power=3.0)
    counts = jnp.arange(0, 130)
    got = np.asarray(jax.vmap(schedule)(counts))
    assert (got[:11] == 0).all() and (np.diff(got) >= 0).all()
    np.testing.assert_allclose(got[110:], 0.3, rtol=1e-6)
    np.testing.assert_allclose(got[30] / got[20], 8, rtol=1e-4)  # t ** 3
    slopes = np.diff(got)
    np.testing.assert_allclose(slopes[55:105], slopes[60], rtol=1e-3)  # a line
    np.testing.assert_allclose(slopes[49], slopes[50], rtol=0.05)  # no corner


@pytest.mark.parametrize(
    "call, error, hint",
    [
        (lambda: bound.robust_loss(apply, p=3), ValueError, "p is 3"),
        (lambda: bound.robust_loss(apply)(PARAMS, XS[0], 3, 0.1), ValueError, "label"),
        (
            lambda: bound.robust_loss(apply)(PARAMS, XS[0], 0, -0.1),
            ValueError,
            r"eps is -0\.1",
        ),
        (
            lambda: bound.robust_loss(apply)(PARAMS, XS[0], 0, jnp.ones(3)),
            ValueError,
            r"eps is float32\[3\]; wanted one number",
        ),
        (
            lambda: bound.robust_loss(apply)(PARAMS, XS[0], 0, 0.1, 2.0),
            ValueError,
            r"beta is 2\.0; wanted a share, 0\.\.1",
        ),
        (
            lambda: bound.robust_loss(apply)(PARAMS, XS[0], 0, 0.1, -1.0),
            ValueError,
            r"beta is -1\.0; wanted 0 or more",
        ),
        (lambda: bound.robust_loss(apply, p=True), ValueError, "p is bool True"),
        (
            lambda: bound.robust_loss(lambda p, x: x)(PARAMS, XS, 0, 0.1),
            ValueError,
            "margins got",
        ),
        (lambda: bound.eps_schedule(-1.0, 0, 10), ValueError, "value >= 0"),
        (lambda: bound.eps_schedule(0.1, 0, 0), ValueError, "length"),
        (lambda: bound.eps_schedule(0.1, 0, 9, middle=0.0), ValueError, "middle"),
        (lambda: bound.eps_schedule(0.1, 0.5, 9), TypeError, "begin"),
        (lambda: bound.beta_schedule(abs, 0.0), ValueError, "last radius, above 0"),
        (lambda: bound.beta_schedule(abs, 1.0, first=2), ValueError, r"wanted 0\.\.1"),
    ],
)
def test_bad_arguments_are_refused(call, error, hint):
    with pytest.raises(error, match=hint):
        call()

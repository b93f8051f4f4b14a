"""Taylor models: sound, of third order on small boxes, never silent about a kink."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import bound

KEYS = jax.random.split(jax.random.key(0), 4)
W1 = jax.random.normal(KEYS[0], (2, 8))
W2 = jax.random.normal(KEYS[1], (8, 8)) / 3
W3 = jax.random.normal(KEYS[2], (8,)) / 3
PLACES = jax.random.uniform(KEYS[3], (2000, 2), minval=-1, maxval=1)
PLACES = jnp.concatenate([PLACES, jnp.array([[1, 1], [1, -1], [-1, 1], [-1, -1.0]])])
X = jnp.array([0.3, -0.4])

SMOOTH = {
    "tanh": lambda x: jnp.tanh(jnp.tanh(x @ W1) @ W2) @ W3,
    "sin exp": lambda x: jnp.sin(x @ W1) @ jnp.exp(x @ W1),
    "quotient": lambda x: (x[0] + x[1]) / (2 + x[0] * x[1]),
    "gelu": lambda x: jax.nn.gelu(x @ W1, approximate=False) @ W3,
    "softmax": lambda x: jax.nn.softmax(x @ W1[:, :3]),
    "logs": lambda x: jnp.log1p(x[0]) * jax.nn.logsumexp(x @ W1),
}
KINKED = {
    "relu": lambda x: jax.nn.relu(x @ W1) @ W3,
    "maximum": lambda x: jnp.maximum(x[0], x[1] ** 2) - jnp.abs(x[0] - 0.2),
    "clip": lambda x: jnp.clip(x @ W1, -0.5, 0.4) @ W3,
    "leaky": lambda x: jax.nn.leaky_relu(x @ W1, 0.2) @ W3,
    "root": lambda x: jnp.abs(x[0]) / jnp.sqrt(jnp.var(x @ W1) + 1e-2),  # near a pole
}
RADII = (1e-3, 0.02, 0.3, 0.6)


def _run(fn, degree, dtype, radii):
    """Bounds and the values of many points, at each radius."""
    x, places = X.astype(dtype), PLACES.astype(dtype)

    @jax.jit
    def at(radius):
        found = bound.taylor(fn, degree=degree)(bound.Ball(x, radius))
        return found, jax.vmap(lambda p: fn(x + radius * p))(places)

    return [at(jnp.asarray(r, dtype)) for r in radii]


def _holds(runs, dtype):
    return all(
        lower.dtype == upper.dtype == dtype
        and (lower[None] <= values).all()
        and (values <= upper[None]).all()
        for (lower, upper), values in runs
    )


@pytest.mark.parametrize("name", ["tanh", "quotient", "gelu", "softmax"])
def test_no_point_is_outside_in_single_precision(name):
    assert _holds(_run(SMOOTH[name], 2, jnp.float32, RADII), jnp.float32)


@pytest.mark.parametrize("name", SMOOTH)
def test_no_point_is_outside_and_the_excess_is_of_third_order(name, x64):
    runs = _run(SMOOTH[name], 2, jnp.float64, (*RADII, 0.004, 0.002))
    assert _holds(runs, jnp.float64)
    excess = [
        np.max(bounds.upper - bounds.lower - (values.max(0) - values.min(0)))
        for bounds, values in runs[-2:]
    ]
    assert 1e-13 < 6 * excess[1] < excess[0]


@pytest.mark.parametrize("name", KINKED)
def test_degree_one_holds_across_kinks(name):
    assert _holds(_run(KINKED[name], 1, jnp.float32, RADII), jnp.float32)


@pytest.mark.parametrize("name", KINKED)
def test_degree_two_refuses_kinks_by_name_and_line(name):
    with pytest.raises(NotImplementedError, match=r"test_taylor.py.*use degree=1 or"):
        bound.taylor(KINKED[name])(bound.Ball(X, 0.1))


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize(
    ("primitive", "fn"),
    [
        ("select_n|gt", lambda x: jnp.where(x > 0, x + 1, x)),
        ("floor", jnp.floor),
        ("sign", jnp.sign),
        ("round", jnp.round),
        ("sort", jnp.sort),
        ("gt|select_n", lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x)),
    ],
)
def test_jumps_are_refused(primitive, fn, degree):
    with pytest.raises(NotImplementedError, match=f"({primitive}).*bound.crown"):
        bound.taylor(fn, degree=degree)(bound.Ball(X, 0.1))


def test_a_custom_derivative_is_not_believed():
    @jax.custom_jvp
    def flat(x):
        return jnp.sin(x)

    flat.defjvp(lambda primals, tangents: (flat(*primals), 0 * tangents[0]))
    got = jax.jit(bound.taylor(flat))(bound.Ball(X, 0.1))
    assert (got.upper >= jnp.sin(X + 0.1)).all()
    assert (got.upper <= jnp.sin(X + 0.1) + 1e-4).all()


def test_narrower_than_crown_on_a_small_box(x64):
    fn, ball = SMOOTH["tanh"], bound.Ball(X.astype(float), 0.01)
    corners = jax.vmap(lambda p: fn(ball.center + 0.01 * p))(PLACES.astype(float))
    true = corners.max() - corners.min()
    excess = []
    for method in (bound.crown, bound.taylor):
        lower, upper = jax.jit(method(fn))(ball)
        excess.append(upper - lower - true)
    assert 10 * excess[1] < excess[0]


def test_a_quadratic_has_its_exact_range(x64):
    fn = lambda x: x[0] ** 2.0 + x[0] * x[1] - 3 * x[1]  # noqa: E731
    got = jax.jit(bound.taylor(fn))(bound.Box(jnp.array([-1.0, 0]), jnp.ones(2)))
    # Falls with x[1]; at 1 it is x[0]^2 + x[0] - 3, at 0 it is x[0]^2.
    np.testing.assert_allclose([got.lower, got.upper], [-3.25, 1.0], atol=1e-12)


def test_outside_of_a_domain_the_interval_is_left(x64):
    box = bound.Box(jnp.array([0.0, 1.0]), jnp.array([1.0, 1.02]))
    fn = lambda x: x - jnp.sqrt(x)  # noqa: E731
    got, plain = (jax.jit(m(fn))(box) for m in (bound.taylor, bound.ibp))
    assert got.lower[0] == plain.lower[0] and got.upper[0] == plain.upper[0]
    at_end = 1.02 - 1.02**0.5  # it rises from 0
    assert -1e-5 < got.lower[1] <= 0 and at_end <= got.upper[1] < at_end + 1e-5


def test_sets_in_trees_and_weights_are_inputs_as_well():
    def fn(params, x):
        return {"y": jnp.tanh(params["w"] * x) + params["b"], "n": params["b"] > 5}

    box = bound.Ball({"w": X[0], "b": X[1]}, 0.05)
    fn_of_both = lambda p, x: fn(p, x)["y"]  # noqa: E731
    got = jax.jit(bound.taylor(fn_of_both))(box, bound.Ball(X, 0.05, 2))
    ends = jnp.tanh(0.35 * 0.35) - 0.35, jnp.tanh(0.25 * 0.25) - 0.45
    assert got.upper[0] >= ends[0] and got.upper[0] <= ends[0] + 1e-3
    assert got.lower[0] <= ends[1] and got.lower[0] >= ends[1] - 1e-3
    with pytest.raises(NotImplementedError, match="'gt'"):
        bound.taylor(fn)(box, X)


def test_vmap_equals_a_loop_and_gradients_equal_differences(x64):
    fn = lambda x: jnp.tanh(x @ W1) @ W3  # noqa: E731

    def width(x, radius):
        lower, upper = bound.taylor(fn)(bound.Ball(x, radius))
        return upper - lower

    xs = jnp.stack([X, -X, X + 1]).astype(float)
    together = jax.jit(jax.vmap(width, (0, None)))(xs, 0.02)
    one = jax.jit(jax.value_and_grad(width, (0, 1)))
    alone = [one(x, 0.02) for x in xs]
    np.testing.assert_allclose(together, [v for v, _ in alone], rtol=1e-9)
    by_x, by_radius = alone[0][1]
    step = 1e-5
    rise = one(xs[0], 0.02 + step)[0] - one(xs[0], 0.02 - step)[0]
    np.testing.assert_allclose(by_radius, rise / (2 * step), rtol=1e-4)
    move = jnp.array([step, 0.0])
    rise = one(xs[0] + move, 0.02)[0] - one(xs[0] - move, 0.02)[0]
    np.testing.assert_allclose(by_x[0], rise / (2 * step), rtol=1e-4)


def test_too_many_inputs_and_other_degrees_are_errors():
    with pytest.raises(ValueError, match=r"17 entries.*at most 16.*bound.crown"):
        bound.taylor(jnp.sin)(bound.Ball(jnp.zeros(17), 0.1))
    with pytest.raises(ValueError, match=r"degree.*3"):
        bound.taylor(jnp.sin, degree=3)
    with pytest.raises(ValueError, match="no argument is a set"):
        bound.taylor(jnp.sin)(X)

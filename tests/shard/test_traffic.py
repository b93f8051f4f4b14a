"""What a gradient gathers and reduces, against the compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.shard import plan, splitbrain, wire
from jaxmethods.shard._traffic import traffic_of

from .test_splitbrain import grid

X = jnp.linspace(-1, 1, 32 * 16).reshape(32, 16)
FULL = {(): "full"}


def params(**shapes):
    rng = np.random.default_rng(0)
    made = {k: 0.1 * rng.standard_normal(shape) for k, shape in shapes.items()}
    return {k: jnp.asarray(v, jnp.float32) for k, v in made.items()}


MLP = params(a=(16, 256), b=(256, 256), c=(256, 256))


def mlp(p, x):
    return jnp.tanh(jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"])


def halved(p, x):
    p, x = jax.tree.map(lambda v: v.astype(jnp.float16), (p, x))
    return mlp(p, x).astype(jnp.float32).var()


def tied(p, x):
    return (jnp.tanh(x @ p["a"]) @ p["a"].T).var()


def scanned(p, x):
    h = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"])[0]
    return (h @ p["o"]).var()


@pytest.mark.optimized
@pytest.mark.parametrize(
    ("loss", "p", "members", "choices"),
    [
        (lambda p, x: jax.checkpoint(mlp)(p, x).var(), MLP, 1, FULL),
        (lambda p, x: jax.checkpoint(mlp)(p, x).var(), MLP, 4, None),
        (tied, params(a=(16, 256)), 1, {}),
        (halved, MLP, 1, {}),
        (halved, MLP, 4, None),
        (scanned, params(w=(3, 16, 16), o=(16, 256)), 1, FULL),
    ],
    ids=["remat full", "remat", "tied", "half", "half split", "scanned full"],
)
def test_what_travels_is_foreseen(loss, p, members, choices):
    made = plan(loss, p, X, mesh=grid(members), choices=choices)
    sent = wire(made.apply(jax.value_and_grad(loss)))(made.place(p), X).total
    np.testing.assert_allclose(made.wire_bytes, sent, rtol=0.05)


@pytest.mark.optimized
@pytest.mark.parametrize(
    "between",
    [jax.nn.softmax, lambda h: h[:, ::-1], lambda h: h * h.mean(1, keepdims=True)],
    ids=["softmax", "reversed", "gated"],
)
def test_columns_that_meet_between_two_layers(between):
    def loss(p, x):
        return (between(x @ p["a"]) @ p["b"]).mean() ** 2

    p = params(a=(16, 512), b=(512, 256))
    made = splitbrain(loss, p, X, mesh=grid(4))
    assert {row.choice for row in made.rows} == {"column"}
    sent = wire(made.apply(jax.value_and_grad(loss)))(made.place(p), X).total
    np.testing.assert_allclose(made.wire_bytes, sent, rtol=0.1)


@pytest.mark.optimized
def test_a_derivative_of_ones_own_may_transpose_the_kernel():
    @jax.custom_vjp
    def linear(x, w):
        return x @ w

    linear.defvjp(
        lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g)
    )

    def loss(p, x):
        h = jnp.tanh(linear(jnp.tanh(linear(x, p["a"])), p["b"]))
        return (linear(h, p["c"]) ** 2).mean()

    made = splitbrain(loss, MLP, X, mesh=grid(4))
    assert {row.choice for row in made.rows} == {"column", "row"}
    step = made.apply(jax.value_and_grad(loss))
    sent = wire(step)(made.place(MLP), X).total
    np.testing.assert_allclose(made.wire_bytes, sent, rtol=0.05)
    got, want = step(made.place(MLP), X)[1], jax.grad(loss)(MLP, X)
    for k in MLP:
        np.testing.assert_allclose(got[k], want[k], rtol=1e-4, atol=1e-7)


def test_a_sum_of_several_counts_for_one():
    p = params(w=(16, 32), l=(16, 2), r=(2, 32))
    loss = lambda p, x: (x @ (p["w"] + p["l"] @ p["r"])).var()  # noqa: E731
    assert traffic_of(loss, p, X).reduced == {0: p["w"].nbytes}


@pytest.mark.optimized
def test_heads_that_divide_are_no_examples():
    def loss(p, x):
        heads = jnp.stack([jnp.tanh(x @ p["a"])] * 8)
        window = (1, 1, 2)
        pooled = jax.lax.reduce_window(
            heads, -jnp.inf, jax.lax.max, window, window, "VALID"
        )
        return pooled.mean() + (heads[0] @ p["b"]).mean()

    p = params(a=(16, 512), b=(512, 256))
    made = splitbrain(loss, p, X, mesh=grid(4))
    sent = wire(made.apply(jax.value_and_grad(loss)))(made.place(p), X).total
    assert sent < 1.3 * made.wire_bytes


def test_windows_that_reach_other_examples_are_left():
    def loss(w, x):
        h = x @ w
        spread = jax.lax.reduce_window(
            jax.lax.stop_gradient(h), -jnp.inf, jax.lax.max, (1, 2), (1, 1), "VALID",
            base_dilation=(2, 1),
        )  # fmt: skip
        scalar = jax.lax.reduce_window(
            jax.lax.stop_gradient(h.mean()), -jnp.inf, jax.lax.max, (), (), "VALID"
        )
        return h.mean() + jnp.exp(spread).mean() + scalar

    w = jnp.ones((16, 4))
    made = plan(loss, w, X, mesh=grid(1))
    np.testing.assert_allclose(made.apply(loss)(made.place(w), X), loss(w, X), 1e-5)

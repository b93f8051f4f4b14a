"""Gradients that a loop adds up are reduced once, after it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods.shard import (
    hybrid_training,
    local_gradients,
    mean_exchange,
    plan,
    splitbrain,
    wire,
)

from .test_splitbrain import grid

ROWS, WIDTH = 16, 32


def normal(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(0.3 * rng.standard_normal(shape))


def recurrent(p, x):
    """Kernels used twice, in parts and scaled; a bias; rounds computed again."""

    def cell(h, x):
        both = jnp.concatenate([x, h], 1) @ jnp.concatenate([p["i"], p["w"]])
        return jnp.tanh(both + h @ (p["w"].T * p["scale"]) + p["b"][None]), None

    h = jax.lax.scan(jax.checkpoint(cell), x[:, 0, :1] * p["b"][None], x.swapaxes(0, 1))
    return (h[0] @ p["o"]).var()


def recurrent_params():
    return {
        "i": normal(8, WIDTH),
        "w": normal(WIDTH, WIDTH, seed=1),
        "b": normal(WIDTH, seed=2),
        "scale": normal(),
        "o": normal(WIDTH, 256, seed=3),
    }


def sent_and_checked(fn, made, p, x):
    """Bytes of `fn` under a plan; its result is that of one device."""
    step = made.apply(fn)
    got, want = step(made.place(p), x), jax.jit(fn)(p, x)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    return wire(step)(made.place(p), x).total


@pytest.mark.optimized
@pytest.mark.parametrize(
    ("members", "choices", "bound"),
    [(1, {}, 0.001), (2, {("o",): "column"}, 0.1), (1, {(): "full"}, 0.1)],
)
def test_a_recurrent_layer_reduces_once(members, choices, bound, x64):
    p, fn = recurrent_params(), jax.value_and_grad(recurrent)
    for length in (2, 9):
        x = normal(ROWS, length, 8, seed=4)
        made = plan(recurrent, p, x, mesh=grid(members), choices=choices)
        sent = sent_and_checked(fn, made, p, x)
        np.testing.assert_allclose(made.wire_bytes, sent, rtol=bound)


@pytest.mark.optimized
def test_a_convolution_in_a_loop(x64):
    def loss(p, x):
        def cell(h, x):
            h = jax.lax.conv_general_dilated(
                h, p, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return jnp.tanh(h + x), None

        return (jax.lax.scan(cell, 0 * x[:, 0], x.swapaxes(0, 1))[0] ** 2).mean()

    p, x = normal(3, 3, 4, 4), normal(8, 5, 3, 3, 4, seed=1)
    made = plan(loss, p, x, mesh=grid(1))
    sent = sent_and_checked(jax.value_and_grad(loss), made, p, x)
    np.testing.assert_allclose(made.wire_bytes, sent, atol=16)


@pytest.mark.optimized
@pytest.mark.parametrize("choice", ["replicate", "full", "column"])
def test_gradient_accumulation_reduces_once(choice, x64):
    p, x = normal(8, 64), normal(32, 8, seed=1)

    def loss(p, x):
        return (jnp.tanh(x @ p) ** 2).mean()

    def accumulated(p, x):
        def body(carry, part):
            value, grad = jax.value_and_grad(loss)(p, part)
            return (carry[0] + value / 4, carry[1] + 0.25 * grad), None

        parts = x.reshape(8, 4, 8).swapaxes(0, 1)
        return jax.lax.scan(body, (jnp.zeros(()), jnp.zeros_like(p)), parts)[0]

    members = 2 if choice == "column" else 1
    made = plan(loss, p, x, mesh=grid(members), choices={(): choice})
    sent = sent_and_checked(accumulated, made, p, x)
    # A round gathers its rows for a split layer; a scalar is the loss.
    assert sent < 1.4 * made.wire_bytes + 64


@pytest.mark.optimized
def test_hybrid_training_reduces_once_in_a_group():
    p = jax.tree.map(lambda v: v.astype(jnp.float32), recurrent_params())
    sent = []
    for length in (2, 9):
        x = normal(ROWS, length, 8).astype(jnp.float32)
        made = splitbrain(recurrent, p, x, mesh=grid(2))
        optimizer = optax.chain(mean_exchange("data"), optax.sgd(0.1))
        init, step = hybrid_training(made, recurrent, optimizer)
        state = jax.eval_shape(init, p)
        sent.append(wire(step)(made.place(p), state, x).total)
    values, grads = jax.jit(local_gradients(made, recurrent))(made.place(p), x)
    for group in range(4):
        own = slice(4 * group, 4 * group + 4)
        want, wanted = jax.value_and_grad(recurrent)(p, x[own])
        np.testing.assert_allclose(values[group], want, rtol=1e-5)
        for k in p:
            np.testing.assert_allclose(grads[k][group], wanted[k], rtol=1e-4, atol=1e-5)
    assert sent[1] == sent[0]


def test_a_loop_within_a_loop():
    p, x = normal(8, 8), normal(8, 3, 2, 8, seed=1)

    def loss(p, x):
        def outer(h, xs):
            def inner(h, x):
                return jnp.tanh(h @ p + x), None

            return jax.lax.scan(inner, h, xs)[0], None

        return (jax.lax.scan(outer, 0 * x[:, 0, 0], x.transpose(1, 2, 0, 3))[0]).var()

    made = plan(loss, p, x, mesh=grid(1))
    fn = jax.value_and_grad(loss)
    got, want = made.apply(fn)(made.place(p), x), fn(p, x)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5, atol=1e-6)

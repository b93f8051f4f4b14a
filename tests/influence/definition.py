"""The scores by their definition, and losses that use their parameters in many ways."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LOSSES = {}


def member(shapes, example):
    """Adds a loss to LOSSES: its parameters' shapes and its example's shape."""

    def add(loss):
        LOSSES[loss.__name__] = (loss, shapes, example)
        return loss

    return add


def draw(seed, shape, scale=1.0):
    # In numpy, as every operation outside of a test's own programs is compiled too.
    value = np.random.default_rng(seed).normal(size=shape) * scale
    return jnp.asarray(value, jnp.float32)


def build(name, count=2, n=5, m=3):
    """(loss, checkpoints, rates, train, test) of a member of LOSSES."""
    loss, shapes, example = LOSSES[name]
    checkpoints = {
        k: draw(i, (count, *shape), max(1, np.prod(shape[:-1], dtype=int)) ** -0.5)
        for i, (k, shape) in enumerate(shapes.items())
    }
    rates = jnp.asarray([0.5, 0.25, 1.0])[:count]
    return loss, checkpoints, rates, draw(10, (n, *example)), draw(11, (m, *example))


@functools.cache
def per_example(loss):
    """The gradients of each example, compiled once for a loss."""
    return jax.jit(jax.vmap(jax.grad(loss), (None, 0)))


def gradients(loss, params, *sets):
    """Per-example gradients, (n, all parameters), of one set or of each of several.

    Sets of equal shapes are taken together: they cost one compilation.
    """
    sizes = [len(jax.tree.leaves(some)[0]) for some in sets]
    shapes = [[np.shape(x)[1:] for x in jax.tree.leaves(some)] for some in sets]
    if any(shape != shapes[0] for shape in shapes):
        return [gradients(loss, params, some) for some in sets]
    together = jax.tree.map(lambda *x: np.concatenate(x), *sets)
    grads = per_example(loss)(params, together)
    flat = [np.asarray(g, np.float64) for g in jax.tree.leaves(grads)]
    found = np.concatenate([g.reshape(len(g), -1) for g in flat], 1)
    found = np.split(found, np.cumsum(sizes)[:-1])
    return found if len(sets) > 1 else found[0]


def at(checkpoints, k):
    """One of listed or stacked checkpoints."""
    if isinstance(checkpoints, list):
        return checkpoints[k]
    return jax.tree.map(lambda x: np.asarray(x)[k], checkpoints)


def scores(loss, checkpoints, rates, train, test):
    """TracInCP, (n_test, n_train), from materialised gradients."""
    return scores_and_norms(loss, checkpoints, rates, train, test)[0]


def scores_and_norms(loss, checkpoints, rates, train, test):
    """The same and the self-influence of the training examples, (n_train,)."""
    pairs, norms = 0.0, 0.0
    for k, rate in enumerate(np.asarray(rates, float)):
        a, b = gradients(loss, at(checkpoints, k), train, test)
        pairs, norms = pairs + rate * b @ a.T, norms + rate * (a**2).sum(1)
    return pairs, norms


def assert_close(got, want, rtol=1e-4):
    """Asserts equality up to a fraction of the largest score: these are differences."""
    want = np.asarray(want, np.float64)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max())


def convolve(x, kernel, strides=(1, 1), padding="SAME", **how):
    numbers = ("NHWC", "HWIO", "NHWC")
    how = {"dimension_numbers": numbers, **how}
    return lax.conv_general_dilated(x, kernel, strides, padding, **how)


@member({"w": (6, 4), "b": (4,), "v": (4, 3)}, (6,))
def dense(p, x):
    return jnp.sum(jnp.sin(jnp.tanh(x @ p["w"] + p["b"]) @ p["v"]))


@member({"w": (4, 6), "v": (3, 4, 2)}, (5, 6))
def weight_on_the_left_of_rows(p, x):
    h = jnp.tanh(p["w"] @ x.T)
    return jnp.sum(jnp.sin(jnp.einsum("abc,bt->tca", p["v"], h)))


@member({"w": (6, 4), "v": (4, 4)}, (6,))
def used_again_and_transposed(p, x):
    h = jnp.tanh(jnp.tanh(x @ p["w"]) @ p["v"])
    return jnp.sum((jnp.tanh(h @ p["v"].T) @ p["w"].T - x) ** 2)


@member({"w": (24,), "v": (12,)}, (6,))
def reshaped(p, x):
    h = jnp.tanh(x @ p["w"].reshape(6, 4))
    v = p["v"]
    return jnp.sum(jnp.sin(h @ v.reshape(4, 3))) + jnp.sum(h[:3] @ v.reshape(3, 4))


@member({"w": (4, 4), "v": (4, 4)}, (4,))
def weights_times_weights(p, x):
    return jnp.sum(jnp.sin(x @ (p["w"] @ p["v"]))) + jnp.sum((p["w"] @ p["w"].T) @ x)


@member({"w": (3, 4, 2)}, (3, 5, 4))
def a_weight_for_each_head(p, x):
    return jnp.sum(jnp.sin(jnp.einsum("hti,hio->hto", x, p["w"])))


@member({"w": (6, 4), "scale": (4,), "unused": (3,)}, (6,))
def decayed(p, x):
    h = jnp.tanh(x @ p["w"]) * p["scale"]
    return jnp.sum(h**2) + 0.1 * jnp.sum(p["w"] ** 2)


@member({"k": (3, 2, 2, 3), "l": (2, 2, 3, 2), "w": (9, 3)}, (7, 6, 2))
def convolutions_and_pools(p, x):
    h = jnp.tanh(convolve(x[None], p["k"]))
    h = lax.reduce_window(h, -jnp.inf, lax.max, (1, 3, 2, 1), (1, 2, 2, 1), "SAME")
    h = jnp.tanh(convolve(h, p["l"], padding=((0, 1), (1, 0)), rhs_dilation=(2, 1)))
    return jnp.sum(jnp.sin(h.reshape(2, 9) @ p["w"]))


@member({"k": (3, 2, 3, 3), "l": (4, 3, 2, 2)}, (2, 6, 6))
def channels_first(p, x):
    numbers = ("NCHW", "OIHW", "NCHW")
    h = jnp.tanh(
        convolve(x[None], p["k"], (2, 1), ((1, 0), (-1, 2)), dimension_numbers=numbers)
    )
    up = convolve(
        h,
        p["l"],
        (1, 1),
        ((1, 1), (2, 1)),
        lhs_dilation=(2, 2),
        dimension_numbers=numbers,
    )
    return jnp.sum(jnp.sin(up))


@member({"k": (3, 2, 4), "l": (3, 3, 3)}, (8, 4))
def one_dimension_grouped_and_twice(p, x):
    numbers = ("NWC", "WIO", "NWC")
    how = {"strides": (1,), "dimension_numbers": numbers}
    h = jnp.tanh(convolve(x[None], p["k"], feature_group_count=2, **how))[..., :3]
    for _ in range(2):
        h = jnp.tanh(convolve(h, p["l"], **how))
    return jnp.sum(jnp.sin(h))


@member({"w": (4, 4), "e": (5, 4)}, (3, 4))
def loops_and_look_ups(p, x):
    h, _ = lax.scan(lambda h, row: (jnp.tanh(h @ p["w"] + row), None), x[0], x)
    return jnp.sum(jnp.sin(h + p["e"][jnp.argmax(x[0])] @ p["w"]))


@functools.partial(jax.custom_vjp)
def straight_through(x):
    return jnp.round(4 * x) / 4


straight_through.defvjp(lambda x: (straight_through(x), None), lambda _, g: (g,))


@member({"w": (6, 4), "v": (4, 3)}, (6,))
def custom_derivative(p, x):
    w = straight_through(p["w"])
    h = jax.checkpoint(lambda w, x: jax.nn.relu(x @ w))(w, x)
    return jnp.sum(jnp.sin(jax.jit(jnp.matmul)(h, p["v"])))

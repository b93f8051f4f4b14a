"""Messages between neighbours: the mean over a graph, what is sent, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods.shard import (
    Graph,
    adacomp,
    decentralized,
    dense,
    graph,
    graph_exchange,
    mixing_matrix,
    nbytes,
    wire,
)

from .test_exchange import WORKERS, few, over_workers, stacked

EXP2 = graph("exp2", WORKERS)


@pytest.mark.parametrize("codec", [dense(), adacomp(bin_size=20, slots=2)])
def test_the_mean_over_neighbours_of_decoded_messages(codec):
    tx = graph_exchange(codec, "i", EXP2)
    states = jax.vmap(tx.init)(stacked())
    messages, after = jax.jit(jax.vmap(codec.encode))(states, stacked())
    decoded = jax.jit(jax.vmap(codec.decode))(messages)
    runs = over_workers(tx.update), jax.jit(jax.vmap(tx.update, axis_name="i"))
    for run in runs:
        got, state = run(stacked(), states)
        for name, leaf in few(0).items():
            each = np.float64(decoded[name]).reshape(WORKERS, -1)
            want = (mixing_matrix(EXP2) @ each).reshape(WORKERS, *leaf.shape)
            np.testing.assert_allclose(got[name], want, rtol=4e-6, atol=1e-6)
        same = zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True)
        for one, other in same:
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.optimized
def test_a_message_leaves_for_each_neighbour():
    codec = adacomp(bin_size=20, slots=2)
    tx = graph_exchange(codec, "i", EXP2)
    sent = wire(over_workers(tx.update))(stacked(), jax.vmap(tx.init)(stacked())).total
    message, _ = jax.eval_shape(codec.encode, codec.init(few(0)), few(0))
    assert sent == EXP2.send.shape[1] * nbytes(message)


def test_training_with_averaged_parameters_reaches_a_common_model():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((WORKERS, 20, 6)).astype("f")
    targets = inputs @ rng.standard_normal((6, 2)).astype("f")
    gradient_step = optax.chain(
        graph_exchange(adacomp(bin_size=4, slots=2), "i", EXP2), optax.sgd(0.1)
    )
    optimizer = decentralized(gradient_step, EXP2, "i", every=2)

    def train(x, y):
        def step(carry, _):
            w, state = carry
            grad = jax.grad(lambda w: ((x @ w - y) ** 2).mean())(w)
            updates, state = optimizer.update(grad, state, w)
            return (optax.apply_updates(w, updates), state), None

        w = jnp.zeros((6, 2))
        (w, _), _ = jax.lax.scan(step, (w, optimizer.init(w)), length=150)
        return w, ((x @ w - y) ** 2).mean()

    w, loss = jax.jit(jax.vmap(train, axis_name="i"))(inputs, targets)
    assert loss.max() < 0.02 * (targets**2).mean()
    assert np.ptp(np.asarray(w), axis=0).max() < 0.05


def test_errors():
    with pytest.raises(ValueError, match=r"cycles; wanted one degree.*exp2"):
        graph_exchange(dense(), "i", graph("one_peer", 4))
    star = Graph([[1, 2], [0, -1], [0, -1]], weights="metropolis")
    with pytest.raises(ValueError, match="unequal degrees; wanted one degree"):
        graph_exchange(dense(), "i", star)
    tx = graph_exchange(dense(), "i", graph("ring", 3))
    states = jax.vmap(tx.init)(stacked())
    with pytest.raises(ValueError, match=r"is of 3 workers and the axis 'i' of 4"):
        jax.vmap(tx.update, axis_name="i")(stacked(), states)
    with pytest.raises(NameError, match="'i' is not bound here"):
        tx.update(few(0), tx.init(few(0)))

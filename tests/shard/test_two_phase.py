"""Two phases of messages: the mean, what is owed, what is sent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.shard import (
    adacomp,
    dense,
    int8,
    nbytes,
    sign,
    two_phase_exchange,
    wire,
)

from .test_exchange import WORKERS, few, over_workers, stacked

CODECS = {
    "dense": dense(),
    "int8": int8(),
    "sign": sign(),
    "adacomp": adacomp(bin_size=9),
}
ORDER = sorted(few(0))  # of the leaves


def owed(state):
    return state.residue if hasattr(state, "residue") else state.error


@pytest.mark.parametrize("name", CODECS)
def test_updates_and_what_is_owed_add_up_to_the_gradients(name):
    tx = two_phase_exchange(CODECS[name], "i", num_workers=WORKERS)
    state = jax.vmap(tx.init)(stacked())
    run = over_workers(tx.update)
    size = sum(x.size for x in few(0).values())
    sent = np.zeros(size)
    for _ in range(3):
        update, state = run(stacked(), state)
        rows = np.concatenate(
            [np.asarray(update[k]).reshape(WORKERS, -1) for k in ORDER], axis=1
        )
        assert (rows == rows[:1]).all(), "devices hold different bits"
        sent += WORKERS * np.float64(rows[0])
    given = np.concatenate([stacked()[k].reshape(WORKERS, -1) for k in ORDER], axis=1)
    if name != "dense":
        parts = np.float64(owed(state.parts)).sum(0).reshape(-1)[:size]
        mean = WORKERS * np.float64(owed(state.mean)).reshape(-1)[:size]
        sent += parts + mean
        assert np.abs(mean).max() > 0
    np.testing.assert_allclose(sent, 3 * np.float64(given).sum(0), rtol=1e-4, atol=1e-3)


def test_vmap_is_shard_map():
    tx = two_phase_exchange(int8(), "i", num_workers=WORKERS)
    state = jax.vmap(tx.init)(stacked())
    one, _ = over_workers(tx.update)(stacked(), state)
    other, _ = jax.jit(jax.vmap(tx.update, axis_name="i"))(stacked(), state)
    for name in ORDER:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-6, atol=1e-7)


@pytest.mark.optimized
def test_a_worker_sends_two_messages_less_its_own_parts():
    codec = int8()
    tx = two_phase_exchange(codec, "i", num_workers=WORKERS)
    state = jax.vmap(tx.init)(stacked())
    sent = wire(over_workers(tx.update))(stacked(), state).total
    part = jax.tree.map(lambda x: x[0, 0], state.parts).error
    one = nbytes(jax.eval_shape(codec.encode, codec.init(part), part)[0])
    assert sent == 2 * (WORKERS - 1) * one


def test_updates_keep_the_dtype_of_the_gradients():
    tx = two_phase_exchange(int8(), "i", num_workers=2)
    given = jnp.ones((2, 10), jnp.bfloat16)
    state = jax.vmap(tx.init)(given)
    run = jax.vmap(tx.update, axis_name="i")
    assert jax.eval_shape(run, given, state)[0].dtype == jnp.bfloat16


def test_errors():
    with pytest.raises(ValueError, match="num_workers is 0; wanted at least 1"):
        two_phase_exchange(int8(), "i", num_workers=0)
    tx = two_phase_exchange(int8(), "i", num_workers=3)
    state = jax.vmap(tx.init)(stacked())
    with pytest.raises(ValueError, match=r"is 3 and the axis 'i' has 4.*num_workers=4"):
        jax.vmap(tx.update, axis_name="i")(stacked(), state)
    with pytest.raises(NameError, match="'i' is not bound here"):
        tx.update(few(0), tx.init(few(0)))
    with pytest.raises(TypeError, match="wanted a floating dtype"):
        tx.init({"w": np.ones(3, np.int32)})

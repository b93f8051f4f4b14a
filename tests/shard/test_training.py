"""A data x model mesh: layers split within groups, messages between groups."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods.shard import (
    Codec,
    adacomp,
    exchange,
    hybrid_training,
    local_gradients,
    mean_exchange,
    nbytes,
    splitbrain,
    wire,
)

from .test_splitbrain import grid, loss, wide

# Sends everything, keeps nothing: the exchange is then a mean.
WHOLE = Codec(
    lambda tree: (), lambda state, grads: (grads, state), lambda message: message
)


def started(codec, optimizer=None):
    p, batch = wide()
    plan = splitbrain(loss, p, batch, mesh=grid(2))
    optimizer = optimizer or optax.sgd(0.05, momentum=0.9)
    init, step = hybrid_training(
        plan, loss, optax.chain(exchange(codec, "data"), optimizer)
    )
    placed = plan.place(p)
    return plan, jax.jit(step), placed, jax.jit(init)(placed), batch


def test_whole_messages_train_as_one_device_does(caplog):
    plan, step, p, state, batch = started(WHOLE)
    single, optimizer = wide()[0], optax.sgd(0.05, momentum=0.9)
    momentum = optimizer.init(single)
    for _ in range(3):
        with jax.log_compiles():
            p, state, value = step(p, state, batch)
        want, grads = jax.value_and_grad(loss)(single, batch)
        updates, momentum = optimizer.update(grads, momentum, single)
        single = optax.apply_updates(single, updates)
        np.testing.assert_allclose(value, want, rtol=1e-5)
    for k in single:
        np.testing.assert_allclose(p[k], single[k], rtol=1e-4, atol=1e-6)
        spread = plan.place(single)[k].sharding
        assert p[k].sharding.is_equivalent_to(spread, p[k].ndim)
    compiled = [r for r in caplog.messages if r.startswith("Compiling jit(step)")]
    assert len(compiled) <= 1


def test_messages_train_and_replicas_stay_equal():
    _, step, p, state, batch = started(adacomp(slots=8), optax.adam(3e-3))
    values = []
    for _ in range(30):
        p, state, value = step(p, state, batch)
        values.append(float(value))
    assert values[-1] < 0.2 * values[0]
    for x in p.values():
        copies: dict[str, list[np.ndarray]] = {}
        for shard in x.addressable_shards:
            copies.setdefault(str(shard.index), []).append(np.asarray(shard.data))
        for same in copies.values():
            assert all((copy == same[0]).all() for copy in same)
    residue = np.asarray(state[0].residue["fc1"])
    assert residue.shape == (4, 2, 128, 256)  # groups, members, this member's rows
    assert np.ptp(residue, 0).max() > 0, "each group owes something else"


@pytest.mark.optimized
def test_only_messages_cross_groups():
    sent = {}
    for name, codec in {"whole": WHOLE, "adacomp": adacomp(slots=8)}.items():
        plan, step, p, state, batch = started(codec)
        sent[name] = wire(step)(p, state, batch)
    own = {
        k: jnp.zeros(x.addressable_shards[0].data.shape)
        for k, x in plan.place(wide()[0]).items()
    }
    codec = adacomp(slots=8)
    message = nbytes(jax.eval_shape(codec.encode, codec.init(own), own)[0])
    whole = sum(x.nbytes for x in own.values())
    assert whole == plan.parameter_bytes
    saved = sent["whole"].total - sent["adacomp"].total
    # To the bytes of a few scalars, the difference is that of the messages.
    assert abs(saved - 3 * (whole - message)) < 64
    assert max(sent["adacomp"].collectives.values()) < whole / 4


def test_gradients_are_each_groups_own():
    p, (x, y) = wide()
    plan = splitbrain(loss, p, (x, y), mesh=grid(2))
    values, grads = jax.jit(local_gradients(plan, loss))(plan.place(p), (x, y))
    for group in range(4):
        mine = slice(4 * group, 4 * group + 4)
        want, wanted = jax.value_and_grad(loss)(p, (x[mine], y[mine]))
        np.testing.assert_allclose(values[group], want, rtol=1e-5)
        for k in p:
            np.testing.assert_allclose(grads[k][group], wanted[k], rtol=1e-4, atol=1e-5)


def test_a_key_in_the_batch_differs_from_group_to_group():
    p, (x, y) = wide()

    def noisy(p, batch):
        x, y, key = batch
        noise = jax.random.normal(key, (10,))
        return loss(p, (x, y)) + (noise * p["fb2"]).sum()

    plan = splitbrain(noisy, p, (x, y, jax.random.key(0)), mesh=grid(2))
    gradients = jax.jit(local_gradients(plan, noisy))
    _, grads = gradients(plan.place(p), (x, y, jax.random.key(1)))
    _, still = jax.jit(local_gradients(plan, lambda p, b: loss(p, b[:2])))(
        plan.place(p), (x, y, jax.random.key(1))
    )
    noise = np.asarray(grads["fb2"] - still["fb2"])
    assert np.unique(noise.round(4), axis=0).shape == (4, 10)


def test_a_key_an_example_stays_with_its_example():
    p, (x, _) = wide()
    batch = (x, jax.random.split(jax.random.key(3), 16))

    def noisy(p, batch):
        drawn = jax.vmap(lambda key: jax.random.normal(key, (10,)))(batch[1])
        return ((batch[0][:, 0, 0, :1] + p["fb2"][None]) * drawn).mean()

    plan = splitbrain(noisy, p, batch, mesh=grid(1))
    values, _ = jax.jit(local_gradients(plan, noisy))(plan.place(p), batch)
    with jax.debug_key_reuse(False):  # the same keys, for the same numbers
        want = noisy(p, batch)
    np.testing.assert_allclose(values.mean(), want, rtol=1e-5)


def test_an_optimizer_must_exchange_over_data():
    p, batch = wide()
    plan = splitbrain(loss, p, batch, mesh=grid(2))

    def start(*parts):
        return jax.eval_shape(hybrid_training(plan, loss, optax.chain(*parts)).init, p)

    for wrong in ([], [mean_exchange("model")]):
        with pytest.raises(ValueError, match=r"over 'data', and the 4 .*mean_exchange"):
            start(*wrong, optax.adam(1e-2))
    start(mean_exchange("data"), optax.adam(1e-2))
    start(optax.masked(exchange(adacomp(), "data"), True), optax.sgd(0.1))
    # A mesh of one group has nobody to exchange with.
    alone = splitbrain(loss, p, batch, mesh=grid(8))
    jax.eval_shape(hybrid_training(alone, loss, optax.adam(1e-2)).init, p)


def test_batches_must_divide():
    _, step, p, state, (x, y) = started(WHOLE)
    with pytest.raises(ValueError, match="12 examples for 8 devices"):
        step(p, state, (x[:12], y[:12]))

"""Another number of workers: what is owed to the parameters stays owed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods.shard import (
    AdaCompState,
    Codec,
    adacomp,
    dct,
    decentralized,
    exchange,
    graph,
    int8,
    resize,
    sign,
    two_phase_exchange,
)

SHAPES = {"w": (5, 7), "b": (6,)}  # 41 entries: no number of workers divides them
SIZE = 41


def zeros(*workers):
    return {name: jnp.zeros((*workers, *shape)) for name, shape in SHAPES.items()}


def rows(tree):
    """The entries of each worker in a row, float64."""
    leaves = [np.float64(tree[name]) for name in SHAPES]
    return np.concatenate([x.reshape(len(x), -1) for x in leaves], 1)


class Kept(NamedTuple):
    residue: Any
    steps: jax.Array


def send_half() -> Codec:
    """A codec of a user: sends one half of everything."""

    def encode(state, gradients):
        total = jax.tree.map(jnp.add, state.residue, gradients)
        half = jax.tree.map(lambda x: x / 2, total)
        return half, Kept(half, state.steps + 1)

    return Codec(
        lambda tree: Kept(jax.tree.map(jnp.zeros_like, tree), jnp.int32(0)),
        encode,
        lambda message: message,
    )


def one_message(codec):
    return lambda workers: exchange(codec, "i"), lambda state, n: owed_of(state).mean(0)


def owed_of(state):
    return rows(state.residue if hasattr(state, "residue") else state.error)


def in_two_phases(codec):
    def owed(state, workers):
        # Parts are in the order of a ravelled tree: b before w.
        left = [s.residue if hasattr(s, "residue") else s.error for s in state]
        parts, mean = (np.float64(x) for x in left)
        flat = parts.reshape(workers, -1).mean(0)[:SIZE] + mean.reshape(-1)[:SIZE]
        return np.concatenate([flat[6:], flat[:6]])

    return lambda workers: two_phase_exchange(codec, "i", num_workers=workers), owed


EXCHANGES = {
    "adacomp": one_message(adacomp(bin_size=8, slots=1)),
    "dct": one_message(dct(sparsity=0.9, life=3, capacity=4)),
    "sign": one_message(sign()),
    "a user's": one_message(send_half()),
    "int8 in two phases": in_two_phases(int8(block=8)),
}
WORKERS = [(4, 4), (4, 2), (4, 8), (4, 1), (4, 3), (3, 7), (1, 4)]


@pytest.mark.parametrize("name", EXCHANGES)
def test_updates_and_what_is_owed_add_up_across_resizes(name):
    """sum of updates + owed = sum of mean gradients, whatever the workers."""
    make, owed = EXCHANGES[name]
    rng = np.random.default_rng(0)
    given, sent = np.zeros(SIZE), np.zeros(SIZE)
    state = jax.vmap(make(4).init)(zeros(4))
    step = {n: jax.jit(jax.vmap(make(n).update, axis_name="i")) for n in (4, 2, 3)}
    # Thresholds take long to compile.
    for workers in (4, 2, 2) if name == "dct" else (4, 2, 3, 4):
        state = resize(state, workers, zeros())
        fresh = jax.eval_shape(jax.vmap(make(workers).init), zeros(workers))
        assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, fresh)
        gradients = {
            k: rng.standard_normal((workers, *s)).astype("f") for k, s in SHAPES.items()
        }
        update, state = step[workers](gradients, state)
        given += rows(gradients).mean(0)
        sent += rows(update)[0]
        np.testing.assert_allclose(sent + owed(state, workers), given, atol=3e-6)
    assert np.abs(sent - given).max() > 1e-3, "nothing was owed"


@pytest.mark.parametrize(("old", "new"), WORKERS)
def test_residues_are_means_of_the_workers_in_their_place(old, new):
    codec = adacomp(bin_size=8)
    state = jax.vmap(codec.init)(zeros(old))
    rng = np.random.default_rng(1)
    state = state._replace(
        residue={
            k: rng.standard_normal((old, *s)).astype("f") for k, s in SHAPES.items()
        },
        full_bins=jnp.full(old, 3),
    )
    after = resize(state, new)
    before, got = rows(state.residue), rows(after.residue)
    np.testing.assert_allclose(got.mean(0), before.mean(0), atol=1e-6)
    # Each old worker is split in `new` pieces, each new one takes `old` of them.
    wanted = np.repeat(before, new, 0).reshape(new, old, -1).mean(1)
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    if new % old == 0:
        np.testing.assert_array_equal(got, np.repeat(before, new // old, 0))
        np.testing.assert_allclose(rows(resize(after, old).residue), before, rtol=1e-6)
    assert (np.asarray(after.full_bins) == (3 if old == new else 0)).all()


def test_thresholds_are_renewed_in_the_next_step():
    codec = dct(sparsity=0.5, life=100)
    state = jax.vmap(codec.init)(jnp.zeros((4, 6)))
    gradients = jnp.arange(24.0).reshape(4, 6)
    encode = jax.jit(jax.vmap(codec.encode))
    _, state = encode(state, gradients)
    (memory,) = resize(state, 2).memory
    assert memory.step.tolist() == [0, 0]
    assert memory.threshold.tolist() == state.threshold[::2].tolist()
    _, after = encode(resize(state, 2), 100 + gradients[:2])
    assert (after.threshold > 100).all()
    assert resize(state, 4).memory[0].step.tolist() == [1] * 4


def test_a_chain_with_adam_goes_on_and_jit_changes_nothing():
    def optimizer(workers):
        inner = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
        return optax.chain(exchange(adacomp(bin_size=8, slots=1), "i"), inner)

    def step(workers, state):
        update = jax.jit(jax.vmap(optimizer(workers).update, axis_name="i"))
        gradients = jax.random.normal(jax.random.key(workers), (workers, 24))
        return update(gradients, state)

    _, state = step(4, jax.vmap(optimizer(4).init)(jnp.zeros((4, 24))))
    smaller = resize(state, 2, jnp.zeros(24))
    jitted = jax.jit(resize, static_argnums=1)(state, 2)
    leaves = map(jax.tree.leaves, (smaller, jitted, state))
    for one, other, old in zip(*leaves, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
        assert one.shape == (2, *old.shape[1:])
    moments = optax.tree.get(smaller, "mu")
    np.testing.assert_array_equal(moments, optax.tree.get(state, "mu")[:2])
    updates, _ = step(2, smaller)
    assert (np.asarray(updates[0]) == np.asarray(updates[1])).all()


def test_keys_and_empty_states():
    keys = jax.random.split(jax.random.key(0), 1)
    got = resize({"key": keys, "none": optax.EmptyState()}, 3)
    assert got["key"].shape == (3,) and got["none"] == optax.EmptyState()
    assert resize(optax.EmptyState(), 3) == optax.EmptyState()


def test_errors():
    state = jax.vmap(adacomp().init)(zeros(4))
    with pytest.raises(ValueError, match="num_workers is 0; wanted at least 1"):
        resize(state, 0)
    with pytest.raises(TypeError, match="num_workers is float"):
        resize(state, 2.0)
    with pytest.raises(
        ValueError, match=r"state.*full_bins is int32\[\]; wanted a lea"
    ):
        resize(adacomp().init(jnp.zeros(3)), 2)
    odd = state._replace(skipped=jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match=r"skipped is int32\[3\] and .* has 4 workers"):
        resize(odd, 2)
    with pytest.raises(
        ValueError, match=r"'w'\] is float32\[4,5,7\].*wanted \[4, 5, 8"
    ):
        resize(state, 2, {"w": jnp.zeros((5, 8)), "b": jnp.zeros(6)})
    with pytest.raises(ValueError, match=r"residues of the tree.*'b'.*params are"):
        resize((state,), 2, {"w": jnp.zeros((5, 7))})
    with pytest.raises(
        ValueError, match=r"state\['mu'\] is .* differs between workers"
    ):
        resize({"mu": jnp.arange(4.0)}, 2)
    own = decentralized(optax.sgd(0.1, momentum=0.9), graph("ring", 4), "i")
    _, state = jax.vmap(own.update, axis_name="i")(
        jnp.arange(4.0), jax.vmap(own.init)(jnp.zeros(4)), jnp.zeros(4)
    )
    with pytest.raises(ValueError, match=r"trace is float32\[4\] and differs"):
        resize(state, 2)


@pytest.mark.parametrize("inner", [optax.adam(0.1), optax.sgd(0.1, momentum=0.9)])
def test_a_state_of_which_one_part_is_stacked(inner):
    owed, moments = optax.chain(exchange(adacomp(), "i"), inner).init(jnp.zeros((2, 3)))
    stacked = jax.tree.map(lambda x: jnp.stack([x] * 4), owed)
    with pytest.raises(ValueError, match=r"call resize\(state\[0\], num_workers\)"):
        resize((stacked, moments), 2)
    assert resize(stacked, 2).residue.shape == (2, 2, 3)


def test_errors_of_two_phases():
    tx = two_phase_exchange(int8(), "i", num_workers=4)
    state = (jax.vmap(tx.init)(zeros(4)),)
    with pytest.raises(
        ValueError, match=r"state\[0\] is a TwoPhaseState and params is"
    ):
        resize(state, 2)
    with pytest.raises(ValueError, match=r"4,11\], params have 9 entries.*\[4, 4, 3\]"):
        resize(state, 2, jnp.zeros(9))
    odd = state[0]._replace(parts=jnp.zeros(4))
    with pytest.raises(ValueError, match=r"parts is a ArrayImpl; wanted a codec's"):
        resize(odd, 2, zeros())


def test_states_are_found_by_their_kind():
    tree = {"a": [jax.vmap(adacomp().init)(jnp.zeros((2, 3)))]}
    assert isinstance(resize(tree, 4)["a"][0], AdaCompState)

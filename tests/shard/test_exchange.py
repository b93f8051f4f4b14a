"""Workers that exchange messages: the mean, alike on all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods.shard import (
    adacomp,
    dct,
    exchange,
    graph,
    graph_exchange,
    int8,
    mean_exchange,
    nbytes,
    two_phase_exchange,
    wire,
)

from .test_codec import CODECS, gradients, stepper

WORKERS = 4
# One of each kind; `vmap` runs both branches of a threshold's renewal.
EXCHANGED = {
    "adacomp": (),
    "adacomp one slot": (),
    "dct with room for 7": ("vmap",),
    "int8": ("vmap", "pmap"),
    "bfloat16": (),
}
OWN = P("i")


def line():
    return Mesh(np.array(jax.devices()[:WORKERS]), ("i",))


def few(worker):
    """A worker's gradients, of two leaves."""
    return {name: gradients(worker)[name] for name in ("bias", "dense")}


def stacked():
    return jax.tree.map(lambda *x: np.stack(x), *map(few, range(WORKERS)))


def over_workers(fn, out_specs=OWN):
    """Runs fn(*own) on four devices, arguments stacked on axis 0."""

    def own(*args):
        out = fn(*jax.tree.map(lambda x: x[0], args))
        stack = out_specs == OWN
        return jax.tree.map(lambda x: x[None], out) if stack else out

    return jax.jit(jax.shard_map(own, mesh=line(), in_specs=OWN, out_specs=out_specs))


@pytest.mark.parametrize("name", EXCHANGED)
def test_mean_of_decoded_messages_and_their_bytes(name):
    codec = CODECS[name]
    update = exchange(codec, "i").update
    states = jax.vmap(codec.init)(stacked())
    sent = [stepper(codec)(codec.init(few(w)), few(w)) for w in range(WORKERS)]
    runs = {
        "vmap": jax.jit(jax.vmap(update, axis_name="i")),
        "pmap": jax.pmap(update, "i", devices=jax.devices()[:WORKERS]),
    }
    compiled = over_workers(update).lower(stacked(), states).compile()
    runs = {"shard_map": compiled} | {how: runs[how] for how in EXCHANGED[name]}
    assert wire(compiled).total == (WORKERS - 1) * nbytes(sent[0][1])
    for how, run in runs.items():
        mean, after = run(stacked(), states)
        assert jax.tree.structure(after) == jax.tree.structure(states)
        for leaf in few(0):
            want = np.mean([decoded[leaf] for decoded, _, _ in sent], 0)
            got = np.asarray(mean[leaf])
            np.testing.assert_allclose(got[0], want, 4e-6, 1e-6, err_msg=how)
            assert (got == got[:1]).all(), "devices hold different bits"


def test_shard_map_knows_that_the_mean_is_the_same_on_all():
    codec = adacomp(bin_size=20)
    states = jax.vmap(codec.init)(stacked())
    update = exchange(codec, "i").update
    mean = over_workers(lambda g, s: update(g, s)[0], P())(stacked(), states)
    assert mean["dense"].shape == gradients(0)["dense"].shape


def test_training_with_a_chain_keeps_replicas_equal():
    rng = np.random.default_rng(2)
    inputs = rng.standard_normal((WORKERS, 20, 12)).astype("f")
    targets = inputs @ rng.standard_normal((12, 3)).astype("f")
    optimizer = optax.chain(
        exchange(adacomp(bin_size=9, slots=3), "i"), optax.adam(0.1)
    )

    def loss(w, x, y):
        return ((x @ w - y) ** 2).mean()

    def step(w, state, x, y):
        value, grads = jax.value_and_grad(loss)(w, x, y)
        updates, state = optimizer.update(grads, state, w)
        return optax.apply_updates(w, updates), state, value

    w = jnp.zeros((WORKERS, 12, 3))
    state, run, values = jax.vmap(optimizer.init)(w), over_workers(step), []
    for _ in range(60):
        w, state, value = run(w, state, inputs, targets)
        values.append(float(value.mean()))
    assert values[-1] < 0.05 * values[0]
    assert (np.asarray(w) == np.asarray(w)[:1]).all()
    assert np.ptp(np.asarray(state[0].residue), 0).max() > 0, "residues are a worker's"


@pytest.mark.optimized
def test_parameters_cast_to_varying_send_no_dense_gradient():
    tx = exchange(adacomp(slots=4), "i")
    w, x = jnp.ones((100, 50)), jnp.ones((WORKERS, 8, 100))

    def own(cast, w, state, x):
        w = jax.lax.pcast(w, "i", to="varying") if cast else w
        grads = jax.grad(lambda w: jnp.tanh(x[0] @ w).mean())(w)
        return tx.update(grads, jax.tree.map(lambda s: s[0], state))[0]

    sent = {}
    for cast in (True, False):
        fn = jax.shard_map(
            lambda *args, cast=cast: own(cast, *args),
            mesh=line(),
            in_specs=(P(), P("i"), P("i")),
            # Without the cast the result varies for all that shard_map can tell.
            out_specs=P() if cast else P("i"),
        )
        states = jax.vmap(tx.init)(jnp.stack([w] * WORKERS))
        sent[cast] = wire(fn)(w, states, x).total
    dense = 2 * (WORKERS - 1) / WORKERS * w.nbytes
    assert sent[True] < dense / 20 < dense <= sent[False]


@pytest.mark.parametrize("check", [True, False])
def test_a_state_made_inside_is_carried_by_a_loop(check):
    transformations = [
        exchange(adacomp(bin_size=20), "i"),
        two_phase_exchange(int8(), "i", num_workers=WORKERS),
        graph_exchange(dct(sparsity=0.5, life=2), "i", graph("ring", WORKERS)),
    ]

    def own(given):
        given = jax.tree.map(lambda x: x[0], given)
        sums = []
        for tx in transformations:

            def step(state, _, tx=tx):
                update, state = tx.update(given, state)
                return state, update

            sums.append(jax.lax.scan(step, tx.init(given), length=3)[1])
        return jax.tree.map(lambda x: x.sum(0)[None], sums)

    run = jax.shard_map(own, mesh=line(), in_specs=OWN, out_specs=OWN, check_vma=check)
    for got in jax.jit(run)(stacked()):
        assert all(np.isfinite(x).all() and np.any(x) for x in got.values())


def test_updates_keep_the_dtype_of_the_gradients():
    tx = exchange(adacomp(bin_size=5), "i")
    grads = jnp.ones((2, 10), jnp.bfloat16)
    run = jax.vmap(tx.update, axis_name="i")
    updates, state = jax.eval_shape(run, grads, jax.vmap(tx.init)(grads))
    assert updates.dtype == jnp.bfloat16 and state.residue.dtype == jnp.float32


@pytest.mark.parametrize("given", [{}, {"left out": jnp.ones((WORKERS, 2))}])
def test_trees_without_leaves(given):
    exchanges = {
        "exchange": exchange(adacomp(), "i"),
        "two_phase": two_phase_exchange(int8(), "i", num_workers=WORKERS),
        "graph": graph_exchange(int8(), "i", graph("ring", WORKERS)),
        "mean": mean_exchange("i"),
    }
    tx = optax.chain(
        *(optax.masked(tx, {k: False for k in given}) for tx in exchanges.values())
    )

    def update(given):
        return tx.update(given, tx.init(given))[0]

    assert over_workers(update)(given).keys() == given.keys()
    run = jax.vmap(update, axis_name="i", axis_size=WORKERS)
    jax.tree.map(np.testing.assert_array_equal, run(given), given)


def test_errors_of_axis_names_and_dtypes():
    for make in (
        mean_exchange,
        lambda axis: exchange(int8(), axis),
        lambda axis: two_phase_exchange(int8(), axis, num_workers=2),
        lambda axis: graph_exchange(int8(), axis, graph("ring", 2)),
    ):
        with pytest.raises(TypeError, match=r"axis_name is \['a'\]; wanted a name"):
            make(["a"])
        with pytest.raises(ValueError, match=r"axis_name is \(\); wanted a name"):
            make(())
    tx = mean_exchange("i")
    with pytest.raises(TypeError, match=r"\('n',\) is int32\[\]; wanted a floating"):
        jax.vmap(lambda g: tx.update(g, ())[0], axis_name="i")({"n": jnp.arange(2)})


def test_a_codec_must_be_called():
    ring = graph("ring", 3)
    for make in (
        lambda codec: exchange(codec, "i"),
        lambda codec: two_phase_exchange(codec, "i", num_workers=3),
        lambda codec: graph_exchange(codec, "i", ring),
    ):
        with pytest.raises(TypeError, match=r"function adacomp; wanted .* adacomp\(\)"):
            make(adacomp)
        with pytest.raises(TypeError, match=r"codec is None; wanted a Codec, such as"):
            make(None)


def test_unbound_axis():
    tx = exchange(adacomp(), "nowhere")
    with pytest.raises(NameError, match=r"'nowhere' is not bound here; call update in"):
        tx.update(jnp.ones((2, 3)), tx.init(jnp.ones((2, 3))))

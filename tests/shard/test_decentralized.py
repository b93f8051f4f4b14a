"""Training with averages of neighbours: the recurrence itself, state, what is sent."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxmethods.shard import decentralized, graph, mixing_matrix, wire

from .test_stochastic_reduce import WORKERS, line, over_workers


def problem(seed=0, dtype="float32"):
    """Least squares: every worker has rows of its own."""
    r = np.random.default_rng(seed)
    a = r.standard_normal((WORKERS, 6, 3)).astype(dtype)
    return a, r.standard_normal((WORKERS, 6)).astype(dtype)


def gradient(x, a, b):
    return a.T @ (a @ x - b) / len(b)


def train(optimizer, steps, x, a, b):
    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(gradient(x, a, b), state, x)
        return (optax.apply_updates(x, updates), state), None

    return jax.lax.scan(step, (x, optimizer.init(x)), None, length=steps)[0]


def by_hand(g, steps, every, x, a, b, rate=0.1, decay=0.9):
    """Heavy ball on each worker in numpy; parameters alone are averaged."""
    trace, rounds = np.zeros_like(x), 0
    for step in range(1, steps + 1):
        grads = np.stack([gradient(*own) for own in zip(x, a, b, strict=True)])
        trace = decay * trace + grads
        x = x - rate * trace
        if step % every == 0:
            x, rounds = mixing_matrix(g, rounds) @ x, rounds + 1
    return x, trace


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", ["exp2", "one_peer"])
def test_the_recurrence(name, every, x64):
    g, (a, b) = graph(name, WORKERS), problem(dtype="float64")
    x = np.random.default_rng(1).standard_normal((WORKERS, 3))
    optimizer = decentralized(optax.sgd(0.1, momentum=0.9), g, "i", every=every)
    want, trace = by_hand(g, 7, every, x, a, b)
    for how in ("vmap", "shard_map", "pmap") if every == 3 else ("vmap",):
        run = over_workers(partial(train, optimizer, 7), how)
        got, state = run(x, a, b)
        np.testing.assert_allclose(got, want, rtol=1e-12)
        # The momentum is that of each worker's own gradients, never averaged.
        np.testing.assert_allclose(state.inner[0].trace, trace, rtol=1e-12)
        assert state.count.tolist() == [7] * WORKERS


def test_model_averaging_sgd_is_the_reference(shared, x64):
    golden = np.load(shared / "goldens/05-asap.npz")
    a, b = golden["masgd_A"], golden["masgd_b"]
    sgd = optax.sgd(float(golden["masgd_lr"]))
    optimizer = decentralized(sgd, graph("chord", len(a)), "i", every=1)
    run = jax.vmap(partial(train, optimizer, int(golden["masgd_steps"])), axis_name="i")
    got, _ = run(jnp.zeros((len(a), a.shape[-1])), a, b)
    np.testing.assert_allclose(got, golden["masgd_X"], rtol=1e-10)


def test_workers_agree_on_the_common_solution():
    a, b = problem()
    every = a.reshape(-1, 3), b.reshape(-1)
    want = np.linalg.lstsq(*every)[0]
    rate = optax.exponential_decay(0.3, 1, 0.995)
    optimizer = decentralized(optax.sgd(rate), graph("exp2", WORKERS), "i", every=2)
    run = over_workers(partial(train, optimizer, 1600), "vmap")
    got, _ = run(np.zeros((WORKERS, 3), "f"), a, b)
    alone = np.stack([np.linalg.lstsq(*own)[0] for own in zip(a, b, strict=True)])
    # What is left is in proportion to the rate, the last of which is 1e-4.
    apart, left = np.abs(alone - want[None]).max(), np.abs(got - want[None]).max()
    assert left < 0.01 * apart, f"{left} of {apart}"
    assert np.ptp(np.asarray(got), 0).max() < 1e-4


@pytest.mark.optimized
def test_nothing_is_sent_between_averagings():
    g, x = graph("exp2", WORKERS), jnp.ones((WORKERS, 100))
    optimizer = decentralized(optax.sgd(0.1), g, "i")
    state = jax.vmap(optimizer.init)(x)

    def own(x, state):
        x, state = jax.tree.map(lambda v: v[0], (x, state))
        return optimizer.update(x, state, x)[0][None]

    step = jax.shard_map(own, mesh=line(), in_specs=P("i"), out_specs=P("i"))
    text = jax.jit(step).lower(x, state).compile().as_text()
    branch = text.split("ENTRY")[1]
    assert "conditional(" in branch and "collective-permute" not in branch
    assert text.count(" collective-permute(") + text.count("permute-start(") == 2
    assert wire(step)(x, state).total == 2 * 400  # of a step that averages


def test_extra_arguments_pytrees_and_dtypes():
    seen = []

    def update(updates, state, params=None, *, value):
        seen.append(value)
        return jax.tree.map(lambda u: -u, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    optimizer = decentralized(inner, graph("complete", 2), "i", every=2)
    params = {"w": jnp.array([[0.0], [4.0]], jnp.bfloat16), "b": jnp.array([1.0, 3.0])}
    state = jax.vmap(optimizer.init)(params)
    step = jax.vmap(
        lambda u, s, p: optimizer.update(u, s, p, value="kept"), axis_name="i"
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    for wanted in (0.0, 2.0, 0.0, 2.0):
        updates, state = step(zero, state, params)
        assert updates["w"].dtype == jnp.bfloat16
        assert updates["w"].ravel().tolist() == [wanted, -wanted]
        assert updates["b"].tolist() == [wanted / 2, -wanted / 2]
    assert seen[0] == "kept"


def test_params_the_same_on_all_workers_are_refused_by_shard_map():
    optimizer = decentralized(optax.sgd(0.1), graph("ring", WORKERS), "i", every=1)

    def own(cast, x):
        x = {"w": jax.lax.pcast(x, "i", to="varying") if cast else x}
        # Nothing says that this gradient varies: update sees to it.
        updates, _ = optimizer.update({"w": jnp.ones(3)}, optimizer.init(x), x)
        return updates["w"]

    def run(cast):
        out = partial(own, cast)
        return jax.shard_map(out, mesh=line(), in_specs=P(), out_specs=P("i"))

    np.testing.assert_allclose(run(True)(jnp.zeros(3)), np.full(12, -0.1, "f"))
    with pytest.raises(
        ValueError, match=r"params\['w'\] is float32\[3\], the same on al"
    ):
        run(False)(jnp.zeros(3))


def test_errors():
    g, x = graph("ring", WORKERS), jnp.ones((WORKERS, 3))
    with pytest.raises(ValueError, match=r"every is 0; wanted at least 1"):
        decentralized(optax.sgd(0.1), g, "i", every=0)
    optimizer = decentralized(optax.sgd(0.1), g, "i")
    state = optimizer.init(x[0])
    with pytest.raises(
        ValueError, match=r"params is None; .*update\(updates, state, pa"
    ):
        optimizer.update(x[0], state)
    with pytest.raises(
        NameError, match=r"'i' is not bound here; call stochastic_reduce"
    ):
        optimizer.update(x[0], state, x[0])
    step = jax.vmap(lambda x: optimizer.update(x, state, x)[0], axis_name="i")
    with pytest.raises(
        ValueError, match=r"graph is of 4 workers and the axis 'i' of 2"
    ):
        step(x[:2])

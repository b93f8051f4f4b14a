"""Penalties: sandwiched, exact where that is known, silent where nothing moves."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxmethods import rl

from .agents import (
    EPS,
    PARAMS,
    SIGMA,
    STATES,
    apply,
    init,
    keys,
    mean,
    mesh,
    points,
    smooth_mean,
)


def ppo(fn, **options):
    penalty = rl.sa_ppo(fn, **options)
    return lambda key, state, eps, crown=1.0: penalty(key, state, eps, SIGMA, crown)


# The penalty, its search, and the change of one state that both estimate.
PENALTIES = {
    "sa_ppo": (ppo, "sgld", lambda a, b: jnp.sum(((a - b) / SIGMA) ** 2)),
    "sa_ddpg": (
        rl.sa_ddpg,
        "sgld",
        lambda a, b: jnp.mean((jnp.tanh(a) - jnp.tanh(b)) ** 2),
    ),
    "sa_dqn": (rl.sa_dqn, "pgd", lambda a, b: jnp.maximum(lead(a, b.argmax()), -1.0)),
}
SOLVED = [(n, s) for n, (_, search, _) in PENALTIES.items() for s in ("convex", search)]


def lead(values, best):
    """How far another action is ahead."""
    others = jnp.where(jnp.arange(values.size) == best, -jnp.inf, values)
    return others.max() - values[best]


@functools.cache
def batched(name, solver, fn=mean):
    """Compiled over a batch, with traced eps and share of CROWN-IBP."""
    penalty = PENALTIES[name][0](fn, solver=solver)
    return jax.jit(jax.vmap(penalty, (0, 0, None, None)))


# ------------------------------------------------------------------------------- laws


@pytest.mark.parametrize(
    ("name", "fn"),
    [("sa_ppo", smooth_mean), ("sa_ppo", mean), ("sa_ddpg", mean), ("sa_dqn", mean)],
)
def test_sandwich_at_every_state(name, fn):
    _, search, change = PENALTIES[name]
    found = batched(name, search, fn)(keys(), STATES, EPS, 1.0)
    near = jnp.stack([points(s, EPS) for s in STATES])
    here = jax.vmap(fn)(STATES)
    moved = jax.vmap(jax.vmap(change, (0, None)))(jax.vmap(jax.vmap(fn))(near), here)
    moved, still = moved.max(1), jax.vmap(change)(here, here)
    last = np.inf
    for crown in (0.0, 0.5, 1.0):
        convex = batched(name, "convex", fn)(keys(), STATES, EPS, crown)
        assert np.all(convex >= found) and np.all(convex >= moved)
        assert np.all(convex <= last)  # more of the tighter bound
        last = convex
    assert np.mean(found - still) >= 0.5 * np.mean(moved - still)


def test_linear_policies_are_bounded_exactly():
    weight = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    state = STATES[0]
    fn, spread = lambda s: s @ weight, np.abs(weight).T @ EPS
    for crown in (0.0, 0.3, 1.0):
        got = rl.sa_ppo(fn)(None, state, EPS, SIGMA, crown)
        np.testing.assert_allclose(got, ((spread / SIGMA) ** 2).sum(), rtol=1e-4)
    z = np.asarray(fn(state))
    change = np.maximum(
        np.tanh(z + spread) - np.tanh(z), np.tanh(z) - np.tanh(z - spread)
    )
    got = rl.sa_ddpg(fn)(None, state, EPS)
    np.testing.assert_allclose(got, (change**2).mean(), rtol=1e-4)
    got = rl.sa_ddpg(fn, squash=None)(None, state, EPS)
    np.testing.assert_allclose(got, (spread**2).mean(), rtol=1e-4)
    best, values = int(z.argmax()), z + np.abs(weight - weight[:, [z.argmax()]]).T @ EPS
    want = np.delete(values, best).max() - z[best]
    for margin in (5.0, -want / 2):
        got = rl.sa_dqn(fn, margin=margin)(None, state, EPS)
        np.testing.assert_allclose(got, max(want, -margin), rtol=1e-4, atol=1e-5)


def test_a_squash_may_have_a_scale_or_fall():
    fn, state = lambda s: s[:2], STATES[1]
    tanh = rl.sa_ddpg(fn, squash=jnp.tanh)(None, state, 0.3)
    scaled = rl.sa_ddpg(fn, squash=lambda v: -2 * jnp.tanh(v))(None, state, 0.3)
    np.testing.assert_allclose(scaled, 4 * tanh, rtol=1e-5)


def test_a_larger_sigma_lowers_the_penalty_unless_detached():
    def penalty(sigma, detach):
        sigma = jax.lax.stop_gradient(sigma) if detach else sigma
        return rl.sa_ppo(mean)(None, STATES[0], 0.1, sigma, 0.0)

    value, slope = jax.value_and_grad(penalty)(2.0, False)
    np.testing.assert_allclose(slope, -value, rtol=1e-5)  # d/ds c / s^2 = -2 c / s^3
    assert jax.grad(penalty)(2.0, True) == 0


def test_the_action_at_the_state_is_part_of_the_gradient(x64):
    # A shift of all actions changes no difference, so its slope is 0; with the action
    # at the state held fixed it is not.
    params = jax.tree.map(lambda v: v.astype("float64"), PARAMS)
    for name, solver in SOLVED:
        if name == "sa_ddpg":  # squashed: a shift counts
            continue

        def penalty(shift, name=name, solver=solver):
            moved = lambda s: apply(params, s) + shift  # noqa: E731
            single = PENALTIES[name][0](moved, solver=solver)
            return single(jax.random.key(0), STATES[0].astype("float64"), EPS, 0.0)

        value, slope = jax.jit(jax.value_and_grad(penalty))(0.0)
        assert value != 0
        np.testing.assert_allclose(slope, 0, atol=1e-7)


@pytest.mark.parametrize(("name", "solver"), SOLVED)
def test_eps_0_is_exactly_nothing(name, solver):
    assert np.all(batched(name, solver)(keys(), STATES, 0.0, 1.0) == 0)
    penalty = PENALTIES[name][0](mean, solver=solver)
    assert penalty(jax.random.key(0), STATES[0], np.zeros(4), 1.0) == 0


def test_mapped_radii_leave_the_others_alone():
    def total(params, radii):
        penalty = ppo(lambda s: apply(params, s))
        each = jax.vmap(lambda s, e: penalty(None, s, e * EPS, 0.0))(STATES[:2], radii)
        return each.sum(), each

    total = jax.jit(jax.value_and_grad(total, has_aux=True))
    runs = [total(PARAMS, jnp.array(r)) for r in ([0.0, 1.0], [1.0, 0.0], [1.0, 1.0])]
    (_, first), (_, second), (_, both) = (run[0] for run in runs)
    assert first[0] == second[1] == 0
    assert np.array_equal(first + second, both) and np.all(both > 0)
    for one, other, sum_of in zip(*(jax.tree.leaves(r[1]) for r in runs), strict=True):
        np.testing.assert_allclose(one + other, sum_of, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "solver"),
    [("sa_ppo", "convex"), ("sa_ddpg", "sgld"), ("sa_dqn", "convex")],
)
def test_kappa_0_leaves_a_loss_as_it_is_to_the_bit(name, solver):
    def loss(params, kappa, eps):
        plain = jnp.mean(jax.vmap(lambda s: apply(params, s))(STATES) ** 2)
        penalty = PENALTIES[name][0](lambda s: apply(params, s), solver=solver)
        each = jax.vmap(penalty, (0, 0, None, None))(keys(), STATES, eps, 0.0)
        return plain + kappa * each.mean()

    def plain(params):
        return jnp.mean(jax.vmap(lambda s: apply(params, s))(STATES) ** 2)

    want = jax.tree.leaves(jax.jit(jax.value_and_grad(plain))(PARAMS))
    penalized = jax.jit(jax.value_and_grad(loss))
    for kappa, eps in ((0.0, EPS), (1.0, 0 * EPS)):
        got = jax.tree.leaves(penalized(PARAMS, kappa, eps))
        for a, b in zip(got, want, strict=True):
            assert np.array_equal(a, b)


def test_the_box_is_clipped_to_the_bounds():
    weight = np.float32([[1.0], [2.0], [-1.0], [0.5]])
    state = jnp.array([0.0, 1.0, 0.95, 0.5])
    high = 0.1 + 0.0 + 0.1 + 0.05  # what each entry adds to the action inside [0, 1]
    low = 0.0 + 0.2 + 0.05 + 0.05
    want = max(high, low) ** 2
    got = rl.sa_ppo(lambda s: s @ weight, bounds=(0, 1))(None, state, 0.1, 1.0)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    ends = np.float32([0, -np.inf, 0, 0]), np.float32([1, 1, 1, np.inf])
    each = rl.sa_ppo(lambda s: s @ weight, bounds=ends)(None, state, 0.1, 1.0)
    np.testing.assert_allclose(each, want, rtol=1e-4)


# ---------------------------------------------------------------------------- goldens


def test_golden_intervals_of_a_mean(shared, x64):
    g = np.load(shared / "goldens" / "25-sa-mdp.npz")

    def penalty(mu, low, high):
        # From the state -1 to its end low, from 1 to high.
        def fn(s):
            return mu + jax.nn.relu(s) * (high - mu) - jax.nn.relu(-s) * (mu - low)

        return rl.sa_ppo(fn)(None, jnp.zeros(3), 1.0, g["kl_sd"], 0.0)

    got = jax.jit(jax.vmap(penalty))(g["kl_mu"], g["kl_lo"], g["kl_hi"])
    np.testing.assert_allclose(got, g["kl_bound_reference_scale"], rtol=1e-9)
    np.testing.assert_allclose(got / 2, g["kl_bound"], rtol=1e-9)


# -------------------------------------------------------------------------- gradients

MIXED = [("sa_ppo", "sgld"), ("sa_ddpg", "convex"), ("sa_dqn", "pgd")]


@pytest.mark.parametrize(("name", "solver"), MIXED)
def test_gradients_are_those_of_finite_differences(name, solver, x64):
    params = init([4, 5, 3], seed=4)
    params = jax.tree.map(lambda v: v.astype("float64"), params)
    towards = jax.tree.map(
        lambda v: jnp.cos(jnp.arange(v.size) ** 2).reshape(v.shape), params
    )

    def penalty(t):
        moved = jax.tree.map(lambda a, b: a + t * b, params, towards)
        single = PENALTIES[name][0](lambda s: apply(moved, s, jnp.tanh), solver=solver)
        return single(jax.random.key(5), STATES[0].astype("float64"), EPS, 0.5)

    # Of the search: the state found is held fixed, and does not change with t.
    penalty = jax.jit(jax.value_and_grad(penalty))
    step = 1e-6
    want = (penalty(step)[0] - penalty(-step)[0]) / (2 * step)
    np.testing.assert_allclose(penalty(0.0)[1], want, rtol=1e-4)


# ------------------------------------------------------------------------ composition


@pytest.mark.parametrize(("name", "solver"), MIXED)
def test_shard_map_over_states(name, solver):
    penalty = jax.vmap(PENALTIES[name][0](mean, solver=solver), (0, 0, None, None))
    spec = P("data")
    sharded = jax.shard_map(
        penalty, mesh=mesh(), in_specs=(spec, spec, P(), P()), out_specs=spec
    )
    got = jax.jit(sharded)(keys(), STATES, EPS, 0.0)
    want = batched(name, solver)(keys(), STATES, EPS, 0.0)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_one_trace_for_all_radii_and_shares():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def penalty(state, eps, crown):
        return ppo(mean)(None, state, eps, crown)

    values = [penalty(STATES[0], e, c) for e in (0.0, 0.1, 0.3) for c in (0.0, 1.0)]
    assert values[0] == values[1] == 0 < values[3] < values[2] < values[4]


def test_eager_is_jit():
    got = ppo(mean, solver="sgld")(keys()[0], STATES[0], EPS)
    want = batched("sa_ppo", "sgld")(keys(), STATES, EPS, 1.0)[0]
    np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_states_of_any_shape_and_their_dtype(shape):
    state = jnp.full(shape, 0.5, jnp.bfloat16)
    fn = lambda s: jnp.stack([s.sum(), -s.sum()])  # noqa: E731
    got = jax.jit(rl.sa_dqn(fn, bounds=(0, 1)))(None, state, 0.25)
    assert got.dtype == jnp.bfloat16
    # What bfloat16 may have lost is added to the bounds.
    want = max(-1, -2 * state.size * 0.25)
    assert want <= got <= 0.9 * want


# ----------------------------------------------------------------------------- errors

S = np.zeros(4, np.float32)
ERRORS = {
    "solver": (lambda: rl.sa_ppo(mean, solver="sgdl"), "'sgdl'.*convex.*sgld"),
    "dqn's solver": (lambda: rl.sa_dqn(mean, solver="sgld"), "'sgld'.*convex.*pgd"),
    "steps": (lambda: rl.sa_ddpg(mean, num_steps=0), "num_steps is 0"),
    "margin": (lambda: rl.sa_dqn(mean, margin=-1.0), "margin is -1"),
    "eps": (lambda: ppo(mean)(None, S, -0.1), "eps is -0.1; wanted 0 or more"),
    "NaN": (lambda: ppo(mean)(None, S, np.nan), "eps is nan; wanted 0 or more"),
    "infinite": (lambda: ppo(mean)(None, S, np.inf), "eps holds infinity"),
    "shape of eps": (
        lambda: ppo(mean)(None, S, np.ones(3)),
        r"eps has shape \(3,\) for a state of shape \(4,\)",
    ),
    "key": (lambda: ppo(mean, solver="sgld")(None, S, 0.1), "key is None.*key\\(0\\)"),
    "key of ddpg": (
        lambda: rl.sa_ddpg(mean, solver="sgld")(None, S, 0.1),
        "key is None",
    ),
    "state": (lambda: ppo(mean)(None, S * np.nan, 0.1), "state holds NaN"),
    "empty": (lambda: ppo(mean)(None, S[:0], 0.1), "state is .*without entries"),
    "batch": (lambda: ppo(lambda s: s)(None, S[None], 0.1), r"mean\(state\) is .*vmap"),
    "crown": (lambda: ppo(mean)(None, S, 0.1, 1.5), "crown is 1.5; wanted a share"),
    "crowns": (lambda: ppo(mean)(None, S, 0.1, S), "crown is .*wanted one number"),
    "sigma": (lambda: rl.sa_ppo(mean)(None, S, 0.1, 0.0), "sigma holds 0"),
    "negative sigma": (lambda: rl.sa_ppo(mean)(None, S, 0.1, -1.0), "sigma is -1"),
    "shape of sigma": (
        lambda: rl.sa_ppo(mean)(None, S, 0.1, S + 1),
        r"sigma has shape \(4,\) for actions of shape \(3,\)",
    ),
    "outside": (
        lambda: rl.sa_dqn(mean, bounds=(1.0, 2.0))(None, S, 0.1),
        r"state holds 0, outside of bounds \(1.0, 2.0\)",
    ),
    "bounds": (lambda: rl.sa_dqn(mean, bounds=3.0)(None, S, 0.1), "bounds is float 3"),
    "order": (lambda: rl.sa_dqn(mean, bounds=(1, 0))(None, S, 0.1), "low <= high"),
    "shape of bounds": (
        lambda: rl.sa_dqn(mean, bounds=(np.zeros(3), 1))(None, S, 0.1),
        r"bounds holds shape \(3,\)",
    ),
    "one action": (lambda: rl.sa_dqn(lambda s: s[:1])(None, S, 0.1), "two classes"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, hint = ERRORS[name]
    with pytest.raises(ValueError, match=hint):
        call()


def test_wrong_kinds():
    with pytest.raises(TypeError, match=r"state is int.*floating"):
        ppo(mean)(None, np.zeros(4, int), 0.1)
    with pytest.raises(TypeError, match=r"wanted a typed key: jax.random.key\(0\)"):
        ppo(mean, solver="sgld")(np.zeros(2, np.uint32), S, 0.1)

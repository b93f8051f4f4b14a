"""Finite processes: against all adversaries, closed forms, the theorem."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from jaxmethods import rl


def process(seed, states, actions):
    r = np.random.default_rng(seed)
    move = r.dirichlet(np.ones(states), size=(states, actions))
    reward = r.normal(size=(states, actions, states))
    policy = r.dirichlet(np.ones(actions), size=states)
    near = np.eye(states, dtype=bool) | (r.random((states, states)) < 0.5)
    return move, reward, policy, near


# ------------------------------------------------------------------------------- laws


def test_value_is_the_limit_of_its_own_recursion(x64):
    move, reward, policy, _ = process(0, 5, 3)
    value = np.zeros(5)
    for _ in range(300):
        value = np.einsum("sa,sat,sat->s", policy, move, reward + 0.8 * value)
    got = rl.state_value(move, reward, policy, gamma=0.8)
    np.testing.assert_allclose(got, value, rtol=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_worst_value_is_the_least_over_all_adversaries(x64, seed):
    move, reward, policy, near = process(seed, 4, 3)
    shown = itertools.product(*(np.flatnonzero(row) for row in near))
    shown = jnp.asarray(list(shown))
    value = lambda nu: rl.state_value(  # noqa: E731
        move, reward, jnp.asarray(policy)[nu], gamma=0.9
    )
    values = np.asarray(jax.vmap(value)(shown))
    worst = rl.worst_case_value(move, reward, policy, near, gamma=0.9)
    np.testing.assert_allclose(worst.value, values.min(0), rtol=1e-9)
    best = int(np.argmin(values.sum(1)))
    assert np.array_equal(worst.adversary, shown[best])


def test_adversary_process_is_solved_by_the_worst_adversary(x64):
    move, reward, policy, near = process(3, 6, 2)
    worst = rl.worst_case_value(move, reward, policy, near, gamma=0.7)
    shown, gain = rl.adversary_process(move, reward, policy)
    np.testing.assert_allclose(shown.sum(2), 1, rtol=1e-12)
    chosen = jax.nn.one_hot(worst.adversary, 6)
    own = rl.state_value(shown, gain, chosen, gamma=0.7)
    np.testing.assert_allclose(own, -worst.value, rtol=1e-9)


def test_impossible_steps_of_the_adversary_earn_nothing():
    stay = jnp.eye(2)[:, None]
    shown, gain = rl.adversary_process(stay, 3 * jnp.ones((2, 1, 2)), jnp.ones((2, 1)))
    assert np.array_equal(gain, np.where(shown > 0, -3, 0))
    assert np.array_equal(shown[:, 0], jnp.eye(2))


def test_without_choice_the_adversary_shows_the_truth(x64):
    move, reward, policy, near = process(4, 6, 3)
    value = rl.state_value(move, reward, policy, gamma=0.9)
    alone = rl.worst_case_value(move, reward, policy, np.eye(6, dtype=bool), gamma=0.9)
    assert np.array_equal(alone.adversary, np.arange(6))
    np.testing.assert_allclose(alone.value, value, rtol=1e-12)
    # A policy that looks at nothing is not deceived, and ties go to the truth.
    blind = np.repeat(policy[:1], 6, 0)
    worst = rl.worst_case_value(move, reward, blind, near, gamma=0.9)
    assert np.array_equal(worst.adversary, np.arange(6))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_solved_in_single(dtype):
    *arrays, near = process(9, 12, 4)
    half = [jnp.asarray(a, dtype) for a in arrays]
    # Rounding moves the sums of rows by more than single precision would.
    sums = np.asarray(half[0], np.float64).sum(2)
    assert np.abs(sums - 1).max() > 1e-5
    wide = [np.asarray(a, np.float64) for a in half]
    move, policy = (a / a.sum(-1, keepdims=True) for a in (wide[0], wide[2]))
    want = rl.worst_case_value(
        *(jnp.asarray(a, "float32") for a in (move, wide[1], policy)), near, gamma=0.99
    )
    got = rl.worst_case_value(*half, near, gamma=0.99)
    assert got.value.dtype == jnp.float32
    np.testing.assert_allclose(got.value, want.value, rtol=1e-4)
    assert np.array_equal(got.adversary, want.adversary)
    assert rl.value_gap_bound(*half[1:], near, gamma=0.5).dtype == jnp.float32


@pytest.mark.parametrize("gamma", [0.0, 0.9999])
def test_float32_ends_at_the_adversary_of_float64(gamma):
    arrays = process(5, 12, 4)
    single = [jnp.asarray(a, bool if a.dtype == bool else "float32") for a in arrays]
    got = rl.worst_case_value(*single, gamma=gamma)
    with jax.enable_x64(True):
        want = rl.worst_case_value(*arrays, gamma=gamma)
    assert got.value.dtype == jnp.float32
    # The solve loses 1 / (1 - gamma) of the digits.
    tolerance = 1e-5 + 1e-6 / (1 - gamma)
    np.testing.assert_allclose(got.value, want.value, rtol=tolerance, atol=tolerance)


def test_the_theorem_and_its_constant(x64):
    reward = np.zeros((2, 2, 2))
    reward[1, 0, 1] = -3.0
    policy, near = np.array([[0.5, 0.5], [0.8, 0.2]]), np.ones((2, 2), bool)
    bound = rl.value_gap_bound(reward, policy, near, gamma=0.5)
    np.testing.assert_allclose(bound, 2 * (1 + 0.5 / 0.25) * 3 * 0.3, rtol=1e-12)
    assert rl.value_gap_bound(reward, policy, np.eye(2, dtype=bool), gamma=0.5) == 0
    for seed in range(3):
        move, reward, policy, near = process(seed, 5, 3)
        value = rl.state_value(move, reward, policy, gamma=0.6)
        worst = rl.worst_case_value(move, reward, policy, near, gamma=0.6).value
        gap = np.max(value - worst)
        assert 0 <= gap <= rl.value_gap_bound(reward, policy, near, gamma=0.6)


# ---------------------------------------------------------------------------- goldens


def test_golden(shared, x64):
    g = np.load(shared / "goldens" / "25-sa-mdp.npz")
    arrays, gamma = [g[n] for n in ("P", "R", "pi", "neighbours")], float(g["gamma"])
    value = rl.state_value(*arrays[:3], gamma=gamma)
    np.testing.assert_allclose(value, g["V"], rtol=1e-9)
    worst = rl.worst_case_value(*arrays, gamma=gamma)
    np.testing.assert_allclose(worst.value, g["V_worst"], rtol=1e-6)
    assert np.array_equal(worst.adversary, g["nu"])
    bound = rl.value_gap_bound(*arrays[1:], gamma=gamma)
    np.testing.assert_allclose(bound, g["theorem_rhs"], rtol=1e-9)
    np.testing.assert_allclose(np.max(value - worst.value), g["gap"], rtol=1e-6)
    shown, gain = rl.adversary_process(*arrays[:3])
    np.testing.assert_allclose(shown, g["adversary_P"], rtol=1e-9)
    np.testing.assert_allclose(gain, g["adversary_R"], rtol=1e-9)


# -------------------------------------------------------------------------- gradients


def test_gradients_in_the_policy(x64):
    move, reward, policy, near = map(jnp.asarray, process(6, 4, 3))
    towards = jax.random.normal(jax.random.key(0), (4, 3))
    towards -= towards.mean(1, keepdims=True)
    for function in (
        lambda t: rl.state_value(move, reward, policy + t * towards, gamma=0.9),
        lambda t: (
            rl.worst_case_value(
                move, reward, policy + t * towards, near, gamma=0.9
            ).value
        ),
        lambda t: rl.value_gap_bound(reward, policy + t * towards, near, gamma=0.9),
    ):
        check_grads(jax.jit(function), (0.0,), 1, ["rev"], eps=1e-6, rtol=1e-5)


# ------------------------------------------------------------------------ composition


def test_jit_vmap_and_shard_map_are_the_calls_one_by_one(x64):
    move, reward, _, near = map(jnp.asarray, process(7, 4, 3))
    policies = jax.random.dirichlet(jax.random.key(1), jnp.ones(3), (8, 4))
    gammas = jnp.linspace(0, 0.95, 8)

    def solve(policy, gamma):
        worst = rl.worst_case_value(move, reward, policy, near, gamma=gamma)
        return rl.state_value(move, reward, policy, gamma=gamma), worst

    want = [solve(p, float(g)) for p, g in zip(policies, gammas, strict=True)]
    want = jax.tree.map(lambda *rows: np.stack(rows), *want)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = P("data")
    sharded = jax.shard_map(
        jax.vmap(solve), mesh=mesh, in_specs=(spec, spec), out_specs=spec
    )
    for batched in (jax.vmap(solve), sharded):
        got = jax.jit(batched)(policies, gammas)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), got, want
        )


# ----------------------------------------------------------------------------- errors


def changed(**arrays):
    move, reward, policy, near = process(8, 3, 2)
    names = dict(P=move, R=reward, policy=policy, neighbours=near, gamma=0.5)
    return names | arrays


HOLE = np.ones((3, 3), bool)
HOLE[2, 2] = False
WRONG = {
    "rows of P": (dict(P=process(8, 3, 2)[0] * 2), r"P\[\d, \d\] has sum 2"),
    "rows of policy": (dict(policy=np.full((3, 2), 0.4)), r"policy\[0\] has sum 0.8"),
    "negative": (dict(policy=np.array([[1.5, -0.5]] * 3)), "policy holds -0.5"),
    "shape of P": (dict(P=np.ones((3, 3, 2))), r"P is .*here \(3, 2, 3\)"),
    "shape of R": (dict(R=np.ones((3, 2))), r"R is .*here \(3, 2, 3\)"),
    "NaN reward": (dict(R=np.full((3, 2, 3), np.nan)), "R holds NaN or infinity"),
    "policy": (dict(policy=np.ones(3)), r"policy is .*wanted probabilities \(S, A\)"),
    "gamma 1": (dict(gamma=1.0), "gamma is 1.0; wanted a discount"),
    "gamma below 0": (dict(gamma=-0.1), "gamma is -0.1; wanted 0 or more"),
    "gammas": (dict(gamma=np.zeros(2)), "gamma is .*wanted one number"),
    "diagonal": (dict(neighbours=HOLE), "False on its diagonal at state 2"),
    "neighbours": (dict(neighbours=HOLE[:2]), r"neighbours is .*here \(3, 3\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name):
    arguments, hint = WRONG[name]
    with pytest.raises(ValueError, match=hint):
        rl.worst_case_value(**changed(**arguments))


def test_infinite_rewards_have_no_gap():
    _, reward, policy, near = process(8, 3, 2)
    with pytest.raises(ValueError, match="R holds NaN or infinity"):
        rl.value_gap_bound(reward * np.inf, policy, near, gamma=0.5)


def test_wrong_kinds():
    with pytest.raises(TypeError, match=r"neighbours is int.*wanted bool"):
        rl.worst_case_value(**changed(neighbours=np.eye(3, dtype=int)))
    with pytest.raises(TypeError, match=r"R is int.*wanted a floating dtype"):
        rl.worst_case_value(**changed(R=np.ones((3, 2, 3), int)))

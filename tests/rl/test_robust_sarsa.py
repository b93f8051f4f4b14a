"""Robust Sarsa: its two terms, exact for a linear critic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxmethods import rl

from .agents import CRITIC, EPS, STATES, apply, critic, mean, mesh, points

ACTION_EPS = np.float32([0.05, 0.0, 0.2])
ACTIONS = jax.vmap(mean)(STATES)


def transitions(done=False):
    rewards = jnp.linspace(-2, 2, 8)
    ends = jnp.full(8, done)
    return STATES, ACTIONS, rewards, STATES[::-1], ACTIONS[::-1], ends


def transition(done=False, reward=0.5):
    return STATES[0], ACTIONS[0], reward, STATES[1], ACTIONS[1], done


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("reward", [0.5, 50.0])
def test_temporal_difference(done, reward):
    move = transition(done, reward)
    target = reward + 0.9 * (not done) * critic(*move[3:5])
    want = optax.losses.huber_loss(critic(*move[:2]), target)
    for loss, eps in (
        (rl.robust_sarsa(critic, gamma=0.9), 0.0),
        (rl.robust_sarsa(critic, gamma=0.9, reg=0.0), 0.1),
    ):
        np.testing.assert_allclose(loss(move, eps, eps, 0.0), want, rtol=1e-6)


def test_what_follows_the_end_does_not_count():
    move, loss = transition(done=True), rl.robust_sarsa(critic, gamma=0.9)
    unknown = (*move[:3], move[3] * jnp.nan, move[4], True)
    assert loss(unknown, 0.0, 0.0) == loss(move, 0.0, 0.0)


@pytest.mark.parametrize("crown", [0.0, 1.0])
def test_a_linear_critic_moves_by_the_sum_of_its_slopes(crown):
    u, v = np.float32([1, -2, 3, 0.5]), np.float32([0.5, 1, -1])
    loss = rl.robust_sarsa(lambda s, a: s @ u + a @ v, gamma=0.9, reg=2.0)
    got = loss(transition(), EPS, ACTION_EPS, crown) - loss(transition(), 0.0, 0.0)
    spread = np.abs(u) @ EPS + np.abs(v) @ ACTION_EPS
    np.testing.assert_allclose(got, 2 * spread**2, rtol=1e-3)
    alone = loss(transition(), 0.0, ACTION_EPS, crown) - loss(transition(), 0.0, 0.0)
    np.testing.assert_allclose(alone, 2 * (np.abs(v) @ ACTION_EPS) ** 2, rtol=1e-3)


def test_the_second_term_bounds_what_is_reached():
    move = transition()
    loss = rl.robust_sarsa(critic, gamma=0.9)
    near = points(STATES[0], EPS), points(ACTIONS[0], ACTION_EPS, seed=1)
    moved = (jax.vmap(critic)(*near) - critic(*move[:2])) ** 2
    plain = loss(move, 0.0, 0.0)
    loss = jax.jit(loss)
    wide, tight = (loss(move, EPS, ACTION_EPS, crown) - plain for crown in (0.0, 1.0))
    assert moved.max() <= tight <= wide


def test_the_target_is_held_fixed(x64):
    params = jax.tree.map(lambda v: v.astype("float64"), CRITIC)

    def q(params, s, a):
        return apply(params, jnp.concatenate([s, a]))[0]

    def loss(params):
        critic = lambda s, a: q(params, s, a)  # noqa: E731
        return rl.robust_sarsa(critic, gamma=0.9, reg=0.0)(transition(), 0.0, 0.0)

    fixed = 0.5 + 0.9 * q(params, STATES[1], ACTIONS[1])
    td = q(params, STATES[0], ACTIONS[0]) - fixed
    slope = jax.jit(jax.grad(lambda p: q(p, STATES[0], ACTIONS[0])))(params)
    want = jax.tree.map(lambda v: jnp.clip(td, -1, 1) * v, slope)
    jax.tree.map(np.testing.assert_allclose, jax.jit(jax.grad(loss))(params), want)


def test_shard_map_over_transitions():
    loss = jax.vmap(rl.robust_sarsa(critic, gamma=0.9), (0, None, None, None))
    arguments = (transitions(), EPS, ACTION_EPS, 0.0)
    spec = P("data")
    sharded = jax.shard_map(
        loss, mesh=mesh(), in_specs=(spec, P(), P(), P()), out_specs=spec
    )
    got, want = jax.jit(sharded)(*arguments), jax.jit(loss)(*arguments)
    np.testing.assert_allclose(got, want, rtol=1e-4)


ERRORS = {
    "gamma": (
        lambda: rl.robust_sarsa(critic, gamma=1.0),
        "gamma is 1.0; wanted a disc",
    ),
    "reg": (lambda: rl.robust_sarsa(critic, gamma=0.9, reg=-1.0), "reg is -1"),
    "state_eps": (
        lambda: rl.robust_sarsa(critic, gamma=0.9)(transition(), -0.1, 0.0),
        "state_eps is -0.1",
    ),
    "action_eps": (
        lambda: rl.robust_sarsa(critic, gamma=0.9)(transition(), 0.0, np.ones(2)),
        r"action_eps has shape \(2,\) for a action of shape \(3,\)",
    ),
    "done": (
        lambda: rl.robust_sarsa(critic, gamma=0.9)(
            transition(done=np.zeros(3)), 0.0, 0.0
        ),
        r"done is float\d+\[3\]; wanted one number",
    ),
    "transition": (
        lambda: rl.robust_sarsa(critic, gamma=0.9)(transition()[:5], 0.0, 0.0),
        "transition is tuple of 5; wanted",
    ),
    "critic": (
        lambda: rl.robust_sarsa(lambda s, a: a, gamma=0.9)(transition(), 0.0, 0.0),
        r"critic\(state, action\) is .*scalar",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, hint = ERRORS[name]
    with pytest.raises(ValueError, match=hint):
        call()

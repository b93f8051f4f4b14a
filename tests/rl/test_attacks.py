"""Attacks: inside the box, closed forms, stronger than chance, in any transform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxmethods import rl

from .agents import EPS, SIGMA, STATES, critic, keys, mean, mesh, points, smooth_mean

ATTACKS = {
    "random": rl.random_attack,
    "critic": functools.partial(rl.critic_attack, lambda s: smooth_mean(s)[0]),
    "greedy": functools.partial(rl.greedy_attack, mean),
    "mad": functools.partial(rl.mad_attack, mean),
    "sarsa": functools.partial(rl.sarsa_attack, mean, critic),
    "mixture": functools.partial(rl.sarsa_attack, mean, critic, mad=0.5),
}


@functools.cache
def batched(name):
    return jax.jit(jax.vmap(ATTACKS[name](), (0, 0, None)))


# ------------------------------------------------------------------------------- laws


@pytest.mark.optimized
@pytest.mark.parametrize("name", ["random", "critic", "mad", "mixture"])
def test_inside_the_box_however_large_the_state(name):
    for scale in (1.0, 1e4):
        states = scale * STATES
        for eps in (0 * EPS, EPS, 30 * EPS):
            seen = batched(name)(keys(), states, eps)
            move = np.asarray(seen, np.float64) - np.asarray(states, np.float64)
            assert np.all(np.abs(move) <= eps * (1 + 1e-6))
            # From large states on, the spacing of floats is above the radius.
            moves = np.abs(move).max() > 0.5 * eps.max() * (scale == 1)
            assert moves or not eps.any()


@pytest.mark.parametrize("name", ATTACKS)
def test_bounds_are_kept(name):
    state = jnp.array([0.0, 1.0, 0.5, 0.05])
    attack = ATTACKS[name](bounds=(0.0, 1.0))
    seen = attack(jax.random.key(0), state, 0.3)
    assert np.all((seen >= 0) & (seen <= 1) & (abs(seen - state) <= 0.300001))
    assert np.any(seen != state)


def test_entries_whose_slope_is_nan_stay_and_the_others_move():
    def value(state):  # the slope of the norm is NaN at 0
        return state[2] - jnp.linalg.norm(state[:2])

    def q(state):
        return jnp.stack([value(state), -state[2] - 0.05])

    state, radius = jnp.zeros(3), jnp.array([0.0, 0.0, 0.1])
    for attack in (rl.critic_attack(value), rl.greedy_attack(q)):
        for key in (None, jax.random.key(0)):
            seen = attack(key, state, radius)
            np.testing.assert_allclose(seen, [0, 0, -0.1], atol=1e-7)
    assert rl.sa_dqn(q, solver="pgd")(None, state, 0.1) == pytest.approx(0.15)


def test_random_states_are_uniform_and_follow_the_key():
    state, num = STATES[0], 4000
    seen = jax.vmap(rl.random_attack(), (0, None, None))(keys(num), state, EPS)
    assert np.array_equal(seen[:, 2], np.full(num, state[2]))
    u = np.sort((np.asarray(seen - state[None])[:, 1] + EPS[1]) / (2 * EPS[1]))
    gap = np.abs(u - (np.arange(num) + 0.5) / num).max() * np.sqrt(num)
    assert gap < 2  # Kolmogorov-Smirnov: beyond it once in 1500 times
    again = rl.random_attack()(keys(num)[0], state, EPS)
    assert np.array_equal(again, seen[0])


@pytest.mark.parametrize("num_steps", [1, 10])
def test_linear_functions_are_led_to_a_corner(num_steps):
    r = np.random.default_rng(1)
    w, weight, v = (r.normal(size=s).astype("float32") for s in (4, (4, 2), 2))
    w[3] = 0
    state, options = STATES[0], dict(num_steps=num_steps)
    seen = rl.critic_attack(lambda s: s @ w, **options)(None, state, EPS)
    np.testing.assert_allclose(seen - state, -EPS * np.sign(w), atol=1e-6)
    best = int(np.argmax(state @ weight))
    away = weight[:, 1 - best] - weight[:, best]
    seen = rl.greedy_attack(lambda s: s @ weight, **options)(None, state, EPS)
    np.testing.assert_allclose(seen - state, EPS * np.sign(away), atol=1e-6)
    # The critic sees the true state: what it makes of another one does not count.
    far = lambda s, a: 1e3 * s.sum() + a @ v  # noqa: E731
    seen = rl.sarsa_attack(lambda s: s @ weight, far, **options)(None, state, EPS)
    np.testing.assert_allclose(seen - state, -EPS * np.sign(weight @ v), atol=1e-6)


def test_mad_beats_random_states_and_reaches_most_of_the_largest_change():
    def change(seen):
        moved = jax.vmap(smooth_mean)(seen) - jax.vmap(smooth_mean)(STATES)
        return jnp.sum((moved / SIGMA[None]) ** 2, axis=1)

    attack = jax.vmap(rl.mad_attack(smooth_mean), (0, 0, None, None))
    found = change(attack(keys(), STATES, EPS, SIGMA))
    chance = change(batched("random")(keys(seed=4), STATES, EPS))
    assert found.mean() > 2 * chance.mean()
    near = jnp.stack([points(s, EPS) for s in STATES])
    largest = jax.vmap(change, 1, 1)(near).max(1)
    assert found.mean() > 0.8 * largest.mean()


@pytest.mark.parametrize("scale", [2.0**-10, 2.0**10])
def test_mad_at_temperature_0_does_not_depend_on_the_size_of_actions(scale):
    def attacked(mean, temperature):
        attack = rl.mad_attack(mean, temperature=jnp.float32(temperature))
        seen = jax.vmap(attack, (0, 0, None))(keys(seed=6), STATES, EPS)
        return seen, jnp.sum((jax.vmap(mean)(seen) - actions) ** 2)

    def scaled(state):
        return scale * smooth_mean(state)

    actions = jax.vmap(scaled)(STATES)
    seen, change = attacked(scaled, 0.0)
    _, noisy = attacked(scaled, 1.0)
    actions = jax.vmap(smooth_mean)(STATES)
    assert np.array_equal(seen, attacked(smooth_mean, 0.0)[0])
    assert scale > 1 or change > 3 * noisy


def test_without_noise_mad_stays_at_the_state():
    for attack in (rl.mad_attack(mean), rl.sarsa_attack(mean, critic, mad=1.0)):
        assert np.array_equal(attack(None, STATES[0], EPS), STATES[0])
        assert not np.array_equal(attack(keys()[0], STATES[0], EPS), STATES[0])


def test_sigma_counts_by_its_shape_not_by_its_size():
    for attack in (rl.mad_attack(mean), rl.sarsa_attack(mean, critic, mad=0.7)):
        one = attack(keys()[0], STATES[0], EPS, SIGMA)
        assert np.array_equal(one, attack(keys()[0], STATES[0], EPS, 4 * SIGMA))


def test_the_mixture_trades_the_critic_for_the_change():
    state = STATES[1]
    low = np.float32([1, 2, -1, 1])
    fn = lambda s: (s @ low)[None]  # noqa: E731
    steep = rl.sarsa_attack(fn, lambda s, a: 1e3 * a[0], mad=0.5)
    flat = rl.sarsa_attack(fn, lambda s, a: 1e-6 * a[0], mad=0.5)
    for key in keys(4):
        down = (steep(key, state, EPS) - state) @ low
        # A start on the wrong side of the state may cost one step of ten.
        assert -1.0001 <= down / (np.abs(low) @ EPS) <= -0.9
    moves = [(flat(key, state, EPS) - state) @ low for key in keys(8)]
    assert min(moves) < -0.4 and max(moves) > 0.4  # either way, far


def test_greedy_takes_the_steps_of_the_cross_entropy(x64):
    def cross_entropy(state, best):
        return -jax.nn.log_softmax(mean(state))[best]

    state, eps = STATES[3].astype("float64"), 0.5
    seen, best = state, int(mean(state).argmax())
    for _ in range(10):
        slope = jax.grad(cross_entropy)(seen, best)
        seen = jnp.clip(seen + eps / 10 * jnp.sign(slope), state - eps, state + eps)
    np.testing.assert_allclose(
        rl.greedy_attack(mean)(None, state, eps), seen, atol=1e-9
    )


def test_greedy_does_not_stall_where_one_action_leads_by_far():
    values = lambda s: 300 * jnp.stack([s[0], 1 - s[0], -s[1]])  # noqa: E731
    seen = rl.greedy_attack(values)(None, jnp.array([1.0, 0.0]), 0.6)
    np.testing.assert_allclose(seen[0], 0.4, rtol=1e-5)
    assert values(seen).argmax() == 1


# ------------------------------------------------------------------------ composition


def test_an_episode_under_attack():
    """A pendulum that a linear policy holds up; only what it observes is attacked."""
    gain = jnp.array([[-12.0], [-3.0]])
    policy = lambda s: jnp.tanh(s @ gain)  # noqa: E731
    value = lambda s: -jnp.sum((s * jnp.array([3.0, 1.0])) ** 2)  # noqa: E731

    def mean_return(attack, eps):
        def step(carry, keys):
            angle, speed = carry
            seen = jax.vmap(attack, (0, 0, None))(keys, jnp.stack(carry, 1), eps)
            speed = speed + 0.05 * (5 * jnp.sin(angle) + 10 * policy(seen)[:, 0])
            return (angle + 0.05 * speed, speed), -(angle**2).mean()

        start = jnp.linspace(-0.1, 0.1, 16), jnp.zeros(16)
        each = keys(40 * 16).reshape(40, 16)
        return float(jax.jit(lambda k: jax.lax.scan(step, start, k)[1].sum())(each))

    natural = mean_return(rl.random_attack(), 0.0)
    assert natural > -0.2
    for attack in (rl.mad_attack(policy), rl.critic_attack(value)):
        assert mean_return(attack, 0.0) == pytest.approx(natural, rel=1e-5)
        assert mean_return(attack, 0.15) < 1.3 * natural < 0


@pytest.mark.parametrize("name", ["greedy", "mixture"])
def test_shard_map_and_eager_are_the_batch(name):
    want = batched(name)(keys(), STATES, EPS)
    spec = P("data")
    sharded = jax.shard_map(
        jax.vmap(ATTACKS[name](), (0, 0, None)),
        mesh=mesh(),
        in_specs=(spec, spec, P()),
        out_specs=spec,
    )
    got = jax.jit(sharded)(keys(), STATES, EPS)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    alone = ATTACKS[name]()(keys()[0], STATES[0], EPS)
    np.testing.assert_allclose(alone, want[0], rtol=1e-5, atol=1e-6)


def test_each_device_may_attack_its_own_agent():
    def attack(weight):
        return rl.critic_attack(lambda s: s @ weight[0])(None, STATES[0], EPS)[None]

    sharded = jax.shard_map(
        attack, mesh=mesh(), in_specs=P("data"), out_specs=P("data")
    )
    weights = jax.random.normal(jax.random.key(6), (8, 4))
    got = jax.jit(sharded)(weights) - STATES[:1]
    np.testing.assert_allclose(got, -EPS[None] * jnp.sign(weights), atol=1e-6)


def test_no_gradient_passes_through_an_attack():
    def moved(scale):
        return rl.critic_attack(lambda s: scale * s.sum())(None, STATES[0], EPS).sum()

    assert jax.grad(moved)(1.0) == 0


# ----------------------------------------------------------------------------- errors

S = np.zeros(4, np.float32)
ERRORS = {
    "key": (lambda: rl.random_attack()(None, S, 0.1), "key is None.*key\\(0\\)"),
    "eps": (lambda: rl.mad_attack(mean)(None, S, -0.1), "eps is -0.1"),
    "shape of eps": (
        lambda: rl.critic_attack(jnp.sum)(None, S, np.ones(5)),
        r"eps has shape \(5,\) for a state of shape \(4,\)",
    ),
    "steps": (lambda: rl.greedy_attack(mean, num_steps=0), "num_steps is 0"),
    "value": (
        lambda: rl.critic_attack(mean)(None, S, 0.1),
        r"value\(state\) is .*\[0\]",
    ),
    "critic": (
        lambda: rl.sarsa_attack(mean, lambda s, a: a)(None, S, 0.1),
        r"critic\(state, action\) is .*scalar",
    ),
    "mean": (
        lambda: rl.mad_attack(jnp.sum)(None, S, 0.1),
        r"mean\(state\) is .*\(A,\)",
    ),
    "one action": (
        lambda: rl.greedy_attack(lambda s: s[:1])(None, S, 0.1),
        "two classes or more",
    ),
    "temperature": (
        lambda: rl.mad_attack(mean, temperature=-1.0),
        "temperature is -1.0; wanted 0 or more",
    ),
    "mad": (
        lambda: rl.sarsa_attack(mean, critic, mad=2.0),
        "mad is 2.0; wanted a share",
    ),
    "state": (lambda: rl.random_attack()(keys()[0], S / 0, 0.1), "state holds NaN"),
    "outside": (
        lambda: rl.random_attack(bounds=(1, 2))(keys()[0], S, 0.1),
        r"state holds 0, outside of bounds \(1, 2\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_errors(name):
    call, hint = ERRORS[name]
    with pytest.raises(ValueError, match=hint):
        call()

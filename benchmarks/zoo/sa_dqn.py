"""DQN on a gymnax environment, plain or with the penalty of SA-DQN, all under jit."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods import bound, rl

from . import dense
from .episodes import Attack, mean_return, unperturbed, with_radius


class Setting(NamedTuple):
    """How an agent is trained.

    Attributes:
        env: A gymnax environment with discrete actions.
        practice: None, or the environment to train in; None for `env`.
        scales: What the entries of a state are divided by, each or all.
        eps: The radius of the adversary, an entry of the state each, or of all.
        validated: None, or the radius of the attacks of a validation; None for `eps`.
        bounds: None, or the least and the largest value of an entry of a state.
        iterations: One step of every environment and one update each.
        begin: The share of the iterations before eps grows.
        length: The share over which it does.
        crown: The share of CROWN-IBP in the bounds, the rest is IBP.
        margin: The lead over other actions from which on none is asked for.
        environments: That run side by side.
        batch: Transitions of an update.
        ahead: Rewards that a target sums before it trusts the net.
        gamma: The discount.
        reward_scale: What rewards are multiplied by.
        failure: What a terminal state costs.
        learning_rate: The first one; it falls to 0 as a cosine.
        follow: The share by which the target net follows after each update.
        explore: The shares of random actions once they have fallen from 1: of the
            first environment and of the last, the others geometrically between.
        width: Of the two hidden layers.
        validate: Iterations from one validation to the next.
        episodes: Of a validation.
    """

    env: Any
    scales: tuple[float, ...] | float
    eps: tuple[float, ...] | float
    iterations: int
    practice: Any = None
    validated: tuple[float, ...] | float | None = None
    bounds: tuple[float, float] | None = None
    begin: float = 0.4
    length: float = 0.3
    crown: float = 0.0
    margin: float = 0.2
    environments: int = 16
    batch: int = 256
    ahead: int = 5
    gamma: float = 0.98
    reward_scale: float = 0.0
    failure: float = 1.0
    learning_rate: float = 5e-4
    follow: float = 0.005
    explore: tuple[float, float] = (0.05, 0.05)
    validate: int = 500
    episodes: int = 10
    width: int = 64


class Run(NamedTuple):
    """What changes from one iteration to the next."""

    params: Any
    target: Any
    optimizer: Any
    states: jax.Array
    inner: Any
    replay: Any


def values(setting: Setting, params: Any, state: jax.Array) -> jax.Array:
    """Q of all actions in one state."""
    return dense.logits(params, state / jnp.array(setting.scales))


def greedy(setting: Setting, params: Any, state: jax.Array) -> jax.Array:
    """The action with the largest Q."""
    return values(setting, params, state).argmax()


def loss(
    setting: Setting, params: Any, target: Any, batch: Any, eps: jax.Array, kappa: Any
) -> jax.Array:
    """Huber loss of double DQN plus kappa times the penalty."""
    q = partial(values, setting, params)
    penalty = rl.sa_dqn(q, margin=setting.margin, bounds=setting.bounds)

    def of_one(transition: Any) -> tuple[jax.Array, jax.Array]:
        state, action, reward, discount, after = transition
        later = values(setting, target, after)[q(after).argmax()]
        aim = jax.lax.stop_gradient(reward + discount * later)
        error = optax.losses.huber_loss(q(state)[action], aim)
        return error, penalty(None, state, eps, setting.crown)

    errors, penalties = jax.vmap(of_one)(batch)
    return errors.mean() + kappa * penalties.mean()


def optimizer_of(setting: Setting) -> optax.GradientTransformation:
    rate = optax.cosine_decay_schedule(setting.learning_rate, setting.iterations)
    return optax.chain(optax.clip_by_global_norm(10.0), optax.adam(rate))


def start(setting: Setting, key: jax.Array) -> Run:
    """New weights, environments after a reset, no transitions."""
    env = setting.practice or setting.env
    own, others = jax.random.split(key)
    states, inner = jax.vmap(env.reset)(jax.random.split(others, setting.environments))
    width = states.shape[-1]
    params = dense.init(own, (width, setting.width, setting.width, env.num_actions))
    rows = setting.iterations, setting.environments
    replay = (
        jnp.zeros((*rows, width)),
        jnp.zeros(rows, jnp.int32),
        jnp.zeros(rows),
        jnp.zeros((*rows, width)),
        jnp.zeros(rows, bool),
        jnp.zeros(rows, bool),
    )
    optimizer = optimizer_of(setting).init(params)
    return Run(params, params, optimizer, states, inner, replay)


def act(setting: Setting, run: Run, count: jax.Array, key: jax.Array) -> Run:
    """One step of every environment, kept in the replay memory."""
    size = setting.environments
    keys = jax.random.split(key, 3)
    share = 1 - count / (0.2 * setting.iterations)
    share = jnp.maximum(jnp.geomspace(*setting.explore, size), share)
    best = jax.vmap(partial(greedy, setting, run.params))(run.states)
    other = jax.random.randint(keys[0], (size,), 0, setting.env.num_actions)
    action = jnp.where(jax.random.uniform(keys[1], (size,)) < share, other, best)
    env = setting.practice or setting.env
    stepped = jax.vmap(env.step)(jax.random.split(keys[2], size), run.inner, action)
    states, inner, reward, ended, cut, info = stepped
    last = info["final_observation"]
    reward = setting.reward_scale * reward - setting.failure * ended
    new = run.states, action, reward, last, ended, ended | cut
    replay = jax.tree.map(lambda kept, x: kept.at[count].set(x), run.replay, new)
    return run._replace(states=states, inner=inner, replay=replay)


def drawn(setting: Setting, replay: Any, count: jax.Array, key: jax.Array) -> Any:
    """Transitions over some steps, from anywhere in the first `count` + 1 iterations.

    Returns:
        State, action, discounted rewards up to the end of the episode or for so many
        steps, the discount of what follows, 0 after a terminal state, and the state
        there, each with a leading axis of a batch.
    """
    states, actions, rewards, after, ended, done = replay
    size = (setting.batch,)
    times, places = jax.random.split(key)
    most = jnp.maximum(count + 2 - setting.ahead, 1)
    first = jax.random.randint(times, size, 0, most)
    place = jax.random.randint(places, size, 0, setting.environments)
    steps = first[:, None] + jnp.arange(setting.ahead)[None]
    where = steps, place[:, None]
    # An episode that is cut off goes on as far as Q is concerned: from its last state.
    over = jnp.cumsum(done[where], 1)
    going = jnp.pad(over[:, :-1], ((0, 0), (1, 0))) == 0
    powers = setting.gamma ** jnp.arange(setting.ahead)
    total = jnp.sum(rewards[where] * going * powers[None], 1)
    last = going.sum(1) - 1
    end = first + last, place
    discount = setting.gamma ** (last + 1) * ~ended[end]
    return states[first, place], actions[first, place], total, discount, after[end]


def iterate(setting: Setting, kappa: Any, run: Run, count: Any, key: Any) -> Run:
    """A step of every environment, then an update on a batch of the replay memory."""
    steps = setting.iterations
    own, others = jax.random.split(key)
    run = act(setting, run, count, own)
    batch = drawn(setting, run.replay, count, others)
    ramp = bound.eps_schedule(
        1.0, int(setting.begin * steps), max(int(setting.length * steps), 1), middle=0.1
    )
    share = ramp(count)
    eps = share * jnp.array(setting.eps)
    slope = jax.grad(partial(loss, setting))(run.params, run.target, batch, eps, kappa)
    updates, state = optimizer_of(setting).update(slope, run.optimizer)
    params = optax.apply_updates(run.params, updates)
    target = optax.incremental_update(params, run.target, setting.follow)
    return run._replace(params=params, target=target, optimizer=state)


def attacks(setting: Setting, params: Any) -> dict[str, Attack]:
    """Attacks on an agent, by name."""
    q, eps = partial(values, setting, params), jnp.array(setting.eps)
    bounds = setting.bounds
    found = {
        "random": rl.random_attack(bounds=bounds),
        "critic": rl.critic_attack(lambda state: q(state).max(), bounds=bounds),
        "greedy": rl.greedy_attack(q, bounds=bounds),
    }
    # Towards one action all the time: a cart drifts off.
    for action in range(setting.env.num_actions):
        others = jnp.arange(setting.env.num_actions) != action

        def lead(state: jax.Array, action: int = action, others: Any = others) -> Any:
            return jnp.max(q(state), where=others, initial=-jnp.inf) - q(state)[action]

        found[f"always {action}"] = rl.critic_attack(lead, bounds=bounds)
    return {name: with_radius(attack, eps) for name, attack in found.items()}


def score(setting: Setting, params: Any, key: jax.Array) -> jax.Array:
    """Mean returns of validation episodes: unperturbed, under the worst attack."""
    policy = partial(greedy, setting, params)

    def of(attack: Attack) -> jax.Array:
        return mean_return(setting.env, policy, attack, key, setting.episodes)

    eps = setting.eps if setting.validated is None else setting.validated
    found = attacks(setting._replace(eps=eps), params)
    worst = [of(attack) for name, attack in found.items() if name != "random"]
    return jnp.stack([of(unperturbed), jnp.min(jnp.stack(worst))])


def train(setting: Setting, key: jax.Array, kappa: jax.Array) -> tuple[Any, jax.Array]:
    """Trains one agent; the weights with the best validation since eps is full.

    Args:
        setting: How.
        key: Typed; validation episodes come from it too.
        kappa: The weight of the penalty; 0 trains plain double DQN.

    Returns:
        The weights, and the validations (number, 2): unperturbed, attacked.
    """
    first, steps, checks = jax.random.split(key, 3)
    run = start(setting, first)

    def block(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
        run, best, most = carry

        def one(run: Run, count: jax.Array) -> tuple[Run, None]:
            key = jax.random.fold_in(steps, count)
            return iterate(setting, kappa, run, count, key), None

        counts = number * setting.validate + jnp.arange(setting.validate)
        run, _ = jax.lax.scan(one, run, counts)
        found = score(setting, run.params, jax.random.fold_in(checks, number))
        full = counts[-1] >= (setting.begin + setting.length) * setting.iterations - 1
        better = full & (found.sum() >= most)
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), run.params, best)
        return (run, best, jnp.where(better, found.sum(), most)), found

    begin = run, run.params, -jnp.inf
    blocks = jnp.arange(setting.iterations // setting.validate)
    (_, best, _), history = jax.lax.scan(block, begin, blocks)
    return best, history

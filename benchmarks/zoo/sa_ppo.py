"""PPO on a gymnax environment, plain or with the penalty of SA-PPO, all under jit."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmethods import rl

from .episodes import Attack, mean_return, unperturbed, with_radius


class Setting(NamedTuple):
    """How an agent is trained.

    Attributes:
        env: A gymnax environment with continuous actions, one entry or more.
        limit: The environment clips actions there, above and below 0.
        eps: The radius of the adversary, of states divided by their deviation.
        updates: Rollouts, each followed by `epochs` over it.
        begin: The share of the updates before eps grows.
        length: The share over which it does.
        solver: Of the penalty, "convex" or "sgld".
        crown: The share of CROWN-IBP in the bounds of "convex", the rest is IBP.
        environments: That run side by side.
        steps: Of a rollout, in every environment.
        epochs: Over a rollout.
        minibatch: Transitions of a step of the optimizer.
        gamma: The discount.
        trace: The lambda of advantages.
        clip: Of the ratio of probabilities.
        entropy: The weight of the entropy.
        reward_scale: What rewards are multiplied by.
        learning_rate: The first one; it falls to 0 linearly.
        validate: Updates from one validation to the next.
        episodes: Of a validation.
        width: Of the two hidden layers.
    """

    env: Any
    limit: float
    eps: float
    updates: int
    begin: float = 0.2
    length: float = 0.5
    solver: str = "convex"
    crown: float = 0.0
    environments: int = 16
    steps: int = 128
    epochs: int = 10
    minibatch: int = 256
    gamma: float = 0.95
    trace: float = 0.95
    clip: float = 0.2
    entropy: float = 0.0
    reward_scale: float = 0.1
    learning_rate: float = 1e-3
    validate: int = 5
    episodes: int = 10
    width: int = 64


class Moments(NamedTuple):
    """How many states were seen, their mean and their variance."""

    count: jax.Array
    mean: jax.Array
    variance: jax.Array


class Agent(NamedTuple):
    """Weights of the mean action and of the value, log deviations, moments of states.

    The moments take no gradient.
    """

    actor: Any
    critic: Any
    log_sigma: jax.Array
    moments: Moments


class Run(NamedTuple):
    """What changes from one update to the next."""

    agent: Agent
    optimizer: Any
    states: jax.Array
    inner: Any


def init(key: jax.Array, widths: tuple[int, ...], last: float = 1.0) -> Any:
    """Orthogonal weights, those of the last layer `last` times as large; no biases."""
    keys = jax.random.split(key, len(widths) - 1)
    gains = [*[np.sqrt(2)] * (len(widths) - 2), last]
    return tuple(
        (jax.nn.initializers.orthogonal(gain)(k, (m, n)), jnp.zeros(n))
        for k, gain, m, n in zip(keys, gains, widths[:-1], widths[1:], strict=True)
    )


def net(params: Any, x: jax.Array) -> jax.Array:
    """Dense layers with tanh between them."""
    for weight, bias in params[:-1]:
        x = jnp.tanh(x @ weight + bias)
    return x @ params[-1][0] + params[-1][1]


def updated(moments: Moments, states: jax.Array) -> Moments:
    """The moments of all states so far."""
    number = len(states)
    count = moments.count + number
    step = states.mean(0) - moments.mean
    squares = moments.variance * moments.count + states.var(0) * number
    squares = squares + step**2 * moments.count * number / count
    return Moments(count, moments.mean + step * number / count, squares / count)


def deviation(moments: Moments) -> jax.Array:
    return jnp.sqrt(moments.variance + 1e-8)


def normalized(moments: Moments, state: jax.Array) -> jax.Array:
    return (state - moments.mean) / deviation(moments)


def mean_action(agent: Agent, state: jax.Array) -> jax.Array:
    """The mean action in a state, before the environment clips it."""
    return net(agent.actor, normalized(agent.moments, state))


def value(agent: Agent, state: jax.Array) -> jax.Array:
    """The critic's value of a state, of scaled rewards."""
    return net(agent.critic, normalized(agent.moments, state))[0]


def radius(setting: Setting, agent: Agent) -> jax.Array:
    """The radius of the adversary, in units of the state."""
    return setting.eps * deviation(agent.moments)


def log_density(agent: Agent, state: jax.Array, action: jax.Array) -> jax.Array:
    """Of an action, up to a constant."""
    off = (action - mean_action(agent, state)) / jnp.exp(agent.log_sigma)
    return -jnp.sum(off**2 / 2 + agent.log_sigma)


def optimizer_of(setting: Setting) -> optax.GradientTransformation:
    each = setting.environments * setting.steps // setting.minibatch
    steps = setting.updates * setting.epochs * each
    rate = optax.linear_schedule(setting.learning_rate, 0.0, steps)
    return optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate, eps=1e-5))


def start(setting: Setting, key: jax.Array) -> Run:
    """New weights, environments after a reset."""
    env = setting.env
    actor, critic, others = jax.random.split(key, 3)
    states, inner = jax.vmap(env.reset)(jax.random.split(others, setting.environments))
    width, hidden = states.shape[-1], (setting.width, setting.width)
    moments = Moments(jnp.array(1e-4), jnp.zeros(width), jnp.ones(width))
    agent = Agent(
        init(actor, (width, *hidden, env.num_actions), 0.01),
        init(critic, (width, *hidden, 1)),
        jnp.zeros(env.num_actions),
        moments,
    )
    return Run(agent, optimizer_of(setting).init(agent[:3]), states, inner)


def rollout(
    setting: Setting, agent: Agent, states: jax.Array, inner: Any, key: jax.Array
) -> tuple[jax.Array, Any, Any]:
    """Steps of every environment by the stochastic policy.

    Returns:
        States and environments after it, and the transitions (steps, environments,
        ...): state, action, reward, next state before a reset, terminated, done.
    """

    def step(carry: Any, key: jax.Array) -> tuple[Any, Any]:
        states, inner = carry
        own, others = jax.random.split(key)
        mean = jax.vmap(partial(mean_action, agent))(states)
        noise = jax.random.normal(own, mean.shape)
        action = mean + jnp.exp(agent.log_sigma)[None] * noise
        keys = jax.random.split(others, len(states))
        after, inner, reward, ended, cut, info = jax.vmap(setting.env.step)(
            keys, inner, action
        )
        reward = setting.reward_scale * reward
        last = info["final_observation"]
        kept = states, action, reward, last, ended, ended | cut
        return (after, inner), kept

    keys = jax.random.split(key, setting.steps)
    (states, inner), transitions = jax.lax.scan(step, (states, inner), keys)
    return states, inner, transitions


def advantages(setting: Setting, agent: Agent, transitions: Any) -> jax.Array:
    """Generalized advantages, (steps, environments)."""
    states, _, rewards, after, ended, done = transitions
    worth = jax.vmap(jax.vmap(partial(value, agent)))
    later = setting.gamma * (1 - ended) * worth(after)
    errors = rewards + later - worth(states)

    def back(ahead: jax.Array, row: Any) -> tuple[jax.Array, jax.Array]:
        error, done = row
        found = error + setting.gamma * setting.trace * (1 - done) * ahead
        return found, found

    rows = errors, done.astype(errors.dtype)
    return jax.lax.scan(back, jnp.zeros_like(errors[0]), rows, reverse=True)[1]


def loss(
    setting: Setting, agent: Agent, batch: Any, key: jax.Array, eps: Any, kappa: Any
) -> jax.Array:
    """PPO's loss of policy and value plus kappa times the mean penalty."""
    states, actions, before, gains, aims = batch
    ratio = jnp.exp(jax.vmap(partial(log_density, agent))(states, actions) - before)
    gains = (gains - gains.mean()) / (gains.std() + 1e-8)
    clipped = jnp.clip(ratio, 1 - setting.clip, 1 + setting.clip)
    surrogate = -jnp.minimum(ratio * gains, clipped * gains).mean()
    surrogate = surrogate - setting.entropy * agent.log_sigma.sum()
    errors = (jax.vmap(partial(value, agent))(states) - aims) ** 2
    penalty = rl.sa_ppo(partial(net, agent.actor), solver=setting.solver)
    # The penalty is not to be lowered by acting more at random.
    sigma = jax.lax.stop_gradient(jnp.exp(agent.log_sigma))
    drawn = setting.solver == "sgld"
    keys = jax.random.split(key, len(states)) if drawn else None
    near = jax.vmap(partial(normalized, agent.moments))(states)
    change = jax.vmap(
        lambda key, state: penalty(key, state, eps, sigma, setting.crown),
        (0 if drawn else None, 0),
    )(keys, near)
    return surrogate + 0.5 * errors.mean() + kappa * change.mean()


def update(setting: Setting, kappa: Any, run: Run, count: Any, key: Any) -> Run:
    """A rollout, then the epochs over it."""
    own, others = jax.random.split(key)
    states, inner, transitions = rollout(setting, run.agent, run.states, run.inner, own)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), transitions)
    agent = run.agent._replace(moments=updated(run.agent.moments, flat[0]))
    gains = advantages(setting, agent, transitions).reshape(-1)
    aims = gains + jax.vmap(partial(value, agent))(flat[0])
    # Of the policy that acted, but with the new moments: the ratio starts at 1.
    before = jax.vmap(partial(log_density, agent))(*flat[:2])
    data = *flat[:2], before, gains, aims
    first = int(setting.begin * setting.updates)
    share = (count - first) / max(setting.length * setting.updates, 1)
    eps = setting.eps * jnp.clip(share, 0, 1)

    def step(carry: Any, drawn: Any) -> tuple[Any, None]:
        weights, state = carry
        rows, key = drawn
        batch = jax.tree.map(lambda x: x[rows], data)
        slope = jax.grad(
            lambda w: loss(setting, Agent(*w, agent.moments), batch, key, eps, kappa)
        )(weights)
        updates, state = optimizer_of(setting).update(slope, state)
        return (optax.apply_updates(weights, updates), state), None

    orders, noise = jax.random.split(others)
    number = len(gains)
    order = jax.vmap(lambda key: jax.random.permutation(key, number))(
        jax.random.split(orders, setting.epochs)
    ).reshape(-1, setting.minibatch)
    keys = jax.random.split(noise, len(order))
    (weights, state), _ = jax.lax.scan(step, (agent[:3], run.optimizer), (order, keys))
    return Run(Agent(*weights, agent.moments), state, states, inner)


def attacks(
    setting: Setting, agent: Agent, critics: dict[float, Any]
) -> dict[str, Attack]:
    """Attacks on an agent, by name; those of robust Sarsa by the weight of its term."""
    policy, eps = partial(mean_action, agent), radius(setting, agent)
    sigma = jnp.exp(agent.log_sigma)
    found = {
        "random": with_radius(rl.random_attack(), eps),
        "critic": with_radius(rl.critic_attack(partial(value, agent)), eps),
        "MAD": with_radius(rl.mad_attack(policy), eps, sigma),
        "MAD, no noise": with_radius(rl.mad_attack(policy, temperature=0), eps, sigma),
    }
    for reg, params in critics.items():

        def q(state: jax.Array, action: jax.Array, params: Any = params) -> jax.Array:
            return critic_value(params, normalized(agent.moments, state), action)

        for mad in (0.0, 0.5):
            name = f"RS {reg:g}" + " + MAD" * bool(mad)
            attack = rl.sarsa_attack(policy, q, mad=mad)
            found[name] = with_radius(attack, eps, sigma)
    return found


def score(setting: Setting, agent: Agent, key: jax.Array) -> jax.Array:
    """Mean returns of validation episodes: unperturbed, under MAD."""
    policy, attack = partial(mean_action, agent), attacks(setting, agent, {})["MAD"]

    def of(attack: Attack) -> jax.Array:
        return mean_return(setting.env, policy, attack, key, setting.episodes)

    return jnp.stack([of(unperturbed), of(attack)])


def train(
    setting: Setting, key: jax.Array, kappa: jax.Array
) -> tuple[Agent, jax.Array]:
    """Trains one agent; the last weights.

    Args:
        setting: How.
        key: Typed; validation episodes come from it too.
        kappa: The weight of the penalty; 0 trains plain PPO.

    Returns:
        The agent, and the validations (number, 2): unperturbed, attacked.
    """
    first, steps, checks = jax.random.split(key, 3)

    def block(run: Run, number: jax.Array) -> tuple[Run, jax.Array]:
        def one(run: Run, count: jax.Array) -> tuple[Run, None]:
            key = jax.random.fold_in(steps, count)
            return update(setting, kappa, run, count, key), None

        counts = number * setting.validate + jnp.arange(setting.validate)
        run, _ = jax.lax.scan(one, run, counts)
        return run, score(setting, run.agent, jax.random.fold_in(checks, number))

    blocks = jnp.arange(setting.updates // setting.validate)
    run, history = jax.lax.scan(block, start(setting, first), blocks)
    return run.agent, history


def robust_critic(
    setting: Setting, agent: Agent, key: jax.Array, reg: float, steps: int
) -> Any:
    """The weights of a robust Sarsa critic of the frozen policy.

    Args:
        setting: As the agent was trained.
        agent: It acts at random, as in training.
        key: Typed.
        reg: The weight of the critic's change over the ball.
        steps: Of its optimizer.
    """
    first, own, others, draws = jax.random.split(key, 4)
    rows = 2 * setting.environments
    states, inner = jax.vmap(setting.env.reset)(jax.random.split(first, rows))
    long = setting._replace(steps=1000)
    _, _, data = rollout(long, agent, states, inner, own)
    state, action, reward, _, _, done = data
    # The action after the last one is unknown; after a reset the next state is of
    # another episode, which `done` cuts off. Pendulums never end: a cut loses little.
    pairs = state[:-1], action[:-1], reward[:-1], state[1:], action[1:], done[:-1]
    pairs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pairs)
    width = state.shape[-1] + action.shape[-1]
    params = init(others, (width, setting.width, setting.width, 1))
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps))

    def batch_loss(params: Any, batch: Any, eps: jax.Array) -> jax.Array:
        state, action, reward, after, then, done = batch
        near = jax.vmap(partial(normalized, agent.moments))
        one = rl.robust_sarsa(
            partial(critic_value, params), gamma=setting.gamma, reg=reg
        )
        rows = near(state), action, reward, near(after), then, done
        return jax.vmap(lambda *row: one(row, eps, eps, 0.0))(*rows).mean()

    def step(carry: Any, count: jax.Array) -> tuple[Any, None]:
        params, state = carry
        key = jax.random.fold_in(draws, count)
        rows = jax.random.randint(key, (setting.minibatch,), 0, len(pairs[2]))
        batch = jax.tree.map(lambda x: x[rows], pairs)
        eps = setting.eps * jnp.clip(2 * count / steps, 0, 1)
        slope = jax.grad(batch_loss)(params, batch, eps)
        updates, state = optimizer.update(slope, state)
        return (optax.apply_updates(params, updates), state), None

    begin = params, optimizer.init(params)
    return jax.lax.scan(step, begin, jnp.arange(steps))[0][0]


def critic_value(params: Any, state: jax.Array, action: jax.Array) -> jax.Array:
    """Q of a normalized state and an action."""
    return net(params, jnp.concatenate([state, action]))[0]

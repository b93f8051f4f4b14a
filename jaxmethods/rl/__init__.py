"""How does an agent act when what it observes is perturbed?

An adversary shows the policy another state, within eps of the true one; the environment
goes on from the true one. All functions take one state (batch with `vmap`) and plain
functions as policies and critics; environments and training loops are the user's.

Penalties make an agent robust in training: add `sa_ppo`, `sa_ddpg` or `sa_dqn` to the
loss that you have, with eps growing from 0 (`bound.eps_schedule`). The solver "convex"
trains on bounds, the other one on the worst state that it finds. Bounds that overflow
make the penalty infinite or NaN, and 0 times that is NaN: leave the term out where
kappa is 0, or pass eps = 0, which costs nothing.

A step of SA-DQN on a batch, with any network and optimizer:

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxmethods import bound, rl
    >>> q = lambda params, state: jnp.tanh(state @ params["w"]) @ params["v"]
    >>> params = {"w": 0.5 * jnp.ones((4, 8)), "v": 0.1 * jnp.ones((8, 2))}
    >>> ramp = bound.eps_schedule(0.05, 1000, 5000)  # eps over the steps
    >>> optimizer = optax.adam(1e-3)
    >>> def loss(params, batch, count, kappa=0.01):
    ...     states, actions, targets = batch
    ...     penalty = rl.sa_dqn(lambda state: q(params, state))
    ...     of_states = jax.vmap(penalty, (None, 0, None))  # the bounds need no key
    ...     values = jnp.take_along_axis(q(params, states), actions[:, None], 1)[:, 0]
    ...     error = optax.losses.huber_loss(values, targets).mean()
    ...     return error + kappa * of_states(None, states, ramp(count)).mean()
    >>> @jax.jit
    ... def step(params, state, batch, count):
    ...     slope = jax.grad(loss)(params, batch, count)
    ...     updates, state = optimizer.update(slope, state)
    ...     return optax.apply_updates(params, updates), state
    >>> batch = jnp.ones((16, 4)), jnp.zeros(16, int), jnp.zeros(16)
    >>> params, state = step(params, optimizer.init(params), batch, 3000)
    >>> margin = rl.action_margin(lambda state: q(params, state))
    >>> jax.vmap(margin, (0, None))(batch[0], 0.05).shape  # certified where above 0
    (16,)

Attacks show how bad it gets, from below: `random_attack`, `critic_attack`,
`greedy_attack`, `mad_attack`, and `sarsa_attack` with a critic learned by
`robust_sarsa`; report the worst of them. Certificates do from above: `action_margin`,
`action_change`.

Where states are few, all is exact: `state_value`, `worst_case_value`,
`adversary_process`, and `value_gap_bound`, the theorem behind the penalties.

eps is in units of the state. Where states are normalized by a running mean and
deviation, normalize inside the policy and pass eps times the deviation, or call with
normalized states; an entry with deviation 0 has radius 0.
"""

from ._attacks import critic_attack as critic_attack
from ._attacks import greedy_attack as greedy_attack
from ._attacks import mad_attack as mad_attack
from ._attacks import random_attack as random_attack
from ._attacks import sarsa_attack as sarsa_attack
from ._certificates import action_change as action_change
from ._certificates import action_margin as action_margin
from ._finite import WorstCase as WorstCase
from ._finite import adversary_process as adversary_process
from ._finite import state_value as state_value
from ._finite import value_gap_bound as value_gap_bound
from ._finite import worst_case_value as worst_case_value
from ._penalties import sa_ddpg as sa_ddpg
from ._penalties import sa_dqn as sa_dqn
from ._penalties import sa_ppo as sa_ppo
from ._robust_sarsa import robust_sarsa as robust_sarsa

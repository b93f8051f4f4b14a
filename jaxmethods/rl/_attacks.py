"""Perturbed observations that make an agent act badly: functions of one state.

All stay within eps of the true state, entry by entry, and inside the bounds. The true
state of the environment is not touched.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..bound import margins
from ..core import check_integer, check_nonnegative, is_concrete
from ._arguments import (
    check_drawn,
    check_scalar,
    check_share,
    check_sigma,
    check_vector,
)
from ._box import Ends, check_eps, check_state, onto_box
from ._search import search

Attack = Callable[..., jax.Array]


def random_attack(*, bounds: Ends = None) -> Attack:
    """Shows a state drawn uniformly from the box round the true one.

    Args:
        bounds: None, or the least and the largest value of an entry: what is drawn
            beyond is clipped.

    Returns:
        `attack(key, state, eps) -> state` of one state; batch with `vmap`. key: typed.
        state: floating, any shape. eps: the radius, at least 0, a number or like the
        state, in units of the state; may be traced.

    Raises:
        ValueError: At the call, no key, an eps of another shape, or, where values are
            concrete, eps below 0, or a state that is not finite or outside of `bounds`.
        TypeError: At the call, a state that is not floating, or a key not typed.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods import rl
        >>> seen = rl.random_attack()(jax.random.key(0), jnp.ones(3), 0.1)
        >>> bool(jnp.all(jnp.abs(seen - 1) <= 0.1))
        True
    """

    def attack(key: jax.Array, state: Any, eps: Any) -> jax.Array:
        state = check_state(state, bounds)
        radius = check_eps(eps, state)
        check_drawn(key, "a random state is drawn")
        move = jax.random.uniform(key, state.shape, radius.dtype, -1, 1)
        return onto_box(state, radius, bounds)(state + radius * move)

    return attack


def critic_attack(
    value: Callable[[jax.Array], jax.Array],
    *,
    num_steps: int = 10,
    bounds: Ends = None,
) -> Attack:
    """Shows a state that the critic takes for a bad one: descends V(s').

    A critic that is given the true state, such as Q(s, pi(s')) of DDPG, is attacked by
    `sarsa_attack(policy, critic)`.

    Args:
        value: From one state to its value, a scalar.
        num_steps: Steps of eps / num_steps along the sign of the gradient, at least 1.
        bounds: As for `random_attack`.

    Returns:
        `attack(key, state, eps) -> state`, as for `random_attack`; with a key it starts
        at random within one step, with None at the state. No gradient passes through.

    Raises:
        ValueError: As `random_attack`, but for the key; a value that is no scalar.
        TypeError: As `random_attack`.

    Complexity:
        num_steps gradients of `value`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import rl
        >>> value = lambda s: s @ jnp.array([1.0, -2.0, 0.0])
        >>> print(rl.critic_attack(value)(None, jnp.zeros(3), 0.1).round(3))
        [-0.1  0.1  0. ]

    References:
        Pattanaik et al. 2018, arXiv:1712.03632; Zhang et al. 2020, arXiv:2003.08938,
        appendix D.
    """

    def objective(state: jax.Array) -> Callable[[jax.Array], jax.Array]:
        return lambda point: -check_scalar(value(point), "value(state)")

    return _ascending(objective, num_steps, bounds)


def greedy_attack(
    q: Callable[[jax.Array], jax.Array],
    *,
    num_steps: int = 10,
    bounds: Ends = None,
) -> Attack:
    r"""Shows a state in which another action than the greedy one looks better.

    Ascends $\log \sum_{a \ne a^*} \exp(Q(s', a) - Q(s', a^*))$: the steps are those of
    the cross entropy against the greedy action $a^*$, of which this is a growing
    function, but its gradient does not vanish in float32 where one action leads by far.

    Args:
        q: From one state to the values (or logits) of all actions, (A,), two or more.
        num_steps: As for `critic_attack`.
        bounds: As for `random_attack`; (0, 1) for pixels.

    Returns:
        `attack(key, state, eps) -> state`, as for `critic_attack`. The authors' attack
        starts anywhere in the box, from where its steps need not reach the far side.

    Raises:
        ValueError: As `critic_attack`; fewer than two actions.
        TypeError: As `random_attack`.

    Complexity:
        num_steps gradients of `q`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import rl
        >>> q = lambda s: jnp.array([[2.0, 0.0], [0.0, 1.0]]) @ s
        >>> state = jnp.array([1.0, 1.8])
        >>> seen = rl.greedy_attack(q)(None, state, 0.1)
        >>> print((seen - state).round(3), q(state).argmax(), q(seen).argmax())
        [-0.1  0.1] 0 1

    References:
        Zhang et al. 2020, arXiv:2003.08938, section 4 (PGD on DQN).
    """

    def objective(state: jax.Array) -> Callable[[jax.Array], jax.Array]:
        leads = margins(q, jnp.argmax(check_vector(q(state), "q(state)")))
        return lambda point: jax.nn.logsumexp(-leads(point))

    return _ascending(objective, num_steps, bounds)


def _ascending(
    objective: Callable[[jax.Array], Callable[[jax.Array], jax.Array]],
    num_steps: int,
    bounds: Ends,
) -> Attack:
    """An attack that climbs what `objective(state)` says of the point that is shown."""
    check_integer(num_steps, "num_steps", 1)

    def attack(key: jax.Array | None, state: Any, eps: Any) -> jax.Array:
        state = check_state(state, bounds)
        return search(
            objective(state),
            key,
            state,
            check_eps(eps, state),
            num_steps=num_steps,
            bounds=bounds,
        )

    return attack


def mad_attack(
    mean: Callable[[jax.Array], jax.Array],
    *,
    num_steps: int = 10,
    temperature: Any = 1.0,
    bounds: Ends = None,
) -> Attack:
    r"""Shows a state with an action as different as can be: maximal action difference.

    Ascends $\sum_i ((\mu_i(s') - \mu_i(s)) / \sigma_i)^2$ by stochastic gradient
    Langevin dynamics, with sigma divided by its mean. It needs the policy alone.

    At the authors' temperature of 1 the noise drowns the gradients of actions that
    change by less than about 1 over the ball; a temperature of 0 leaves the random
    start alone and suits actions of any size. Report the worse of both.

    Args:
        mean: From one state to the mean action, (A,).
        num_steps: As for `critic_attack`.
        temperature: Of the noise, at least 0: its scale in step k = 0, 1, ... is
            $\sqrt{2 \eta T} / (k + 2)$, with eta the size of a step; may be traced.
        bounds: As for `random_attack`.

    Returns:
        `attack(key, state, eps, sigma=1.0) -> state`, as for `critic_attack`. sigma: a
        number or (A,), above 0. The gradient is 0 at the state: with a key the search
        starts at a random corner of what one step reaches; with None it returns the
        state itself.

    Raises:
        ValueError: As `critic_attack`; a sigma of another shape, or not above 0; a
            negative temperature.
        TypeError: As `random_attack`; a temperature that is no real number.

    Complexity:
        num_steps gradients of `mean`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods import rl
        >>> mean = lambda s: jnp.array([[200.0, -100.0]]) @ s
        >>> attack, state = rl.mad_attack(mean), jnp.array([1.0, 1.0])
        >>> change = mean(attack(jax.random.key(0), state, 0.1)) - mean(state)
        >>> bool(jnp.abs(change)[0] > 25)
        True

    References:
        Zhang et al. 2020, arXiv:2003.08938, appendix D.
    """
    check_integer(num_steps, "num_steps", 1)
    check_nonnegative(temperature, "temperature")

    def attack(
        key: jax.Array | None, state: Any, eps: Any, sigma: Any = 1.0
    ) -> jax.Array:
        state = check_state(state, bounds)
        radius = check_eps(eps, state)
        action = check_vector(mean(state), "mean(state)")
        scale = _normalized(check_sigma(sigma, action))
        if key is None:
            return state
        return search(
            lambda point: jnp.sum(((mean(point) - action) / scale) ** 2),
            key,
            state,
            radius,
            num_steps=num_steps,
            bounds=bounds,
            noise=lambda step, count: jnp.sqrt(2 * temperature * step) / (count + 2),
        )

    return attack


def sarsa_attack(
    mean: Callable[[jax.Array], jax.Array],
    critic: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    mad: float = 0.0,
    num_steps: int = 10,
    bounds: Ends = None,
) -> Attack:
    r"""Shows a state whose action is bad in the true one: robust Sarsa, mixtures.

    Descends $(1 - r) Q(s, \mu(s')) - r \frac{1}{A} \sum_i ((\mu_i(s') - \mu_i(s)) /
    \sigma_i)^2$ with r = `mad` and sigma divided by its mean. The critic sees the true
    state, the policy the perturbed one. Q is learned for the policy by `robust_sarsa`,
    or is the critic of DDPG itself.

    Args:
        mean: From one state to the mean action, (A,).
        critic: critic(state, action) -> scalar.
        mad: The share of the maximal action difference, in [0, 1]; may be traced.
        num_steps: As for `critic_attack`.
        bounds: As for `random_attack`.

    Returns:
        `attack(key, state, eps, sigma=1.0) -> state`, as for `mad_attack`; sigma counts
        where `mad` is above 0. With a key it starts at random within one step.

    Raises:
        ValueError: As `mad_attack`; a critic that returns no scalar, or a `mad` outside
            of [0, 1].
        TypeError: As `random_attack`.

    Complexity:
        num_steps gradients of `critic` and `mean`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import rl
        >>> mean = lambda s: s[:2] - s[2:]
        >>> critic = lambda s, a: a[0] - a[1] + 100 * s.sum()
        >>> print(rl.sarsa_attack(mean, critic)(None, jnp.zeros(4), 0.1).round(3))
        [-0.1  0.1  0.1 -0.1]

    References:
        Zhang et al. 2020, arXiv:2003.08938, appendix D.
    """
    check_integer(num_steps, "num_steps", 1)
    check_share(mad, "mad")

    def attack(
        key: jax.Array | None, state: Any, eps: Any, sigma: Any = 1.0
    ) -> jax.Array:
        state = check_state(state, bounds)
        radius = check_eps(eps, state)
        action = check_vector(mean(state), "mean(state)")
        scale = _normalized(check_sigma(sigma, action))
        if key is None and is_concrete(mad) and mad == 1:
            return state

        def objective(point: jax.Array) -> jax.Array:
            shown = mean(point)
            worth = check_scalar(critic(state, shown), "critic(state, action)")
            if is_concrete(mad) and mad == 0:
                return -worth
            change = jnp.mean(((shown - action) / scale) ** 2)
            return mad * change - (1 - mad) * worth

        return search(objective, key, state, radius, num_steps=num_steps, bounds=bounds)

    return attack


def _normalized(sigma: jax.Array) -> jax.Array:
    return sigma / jnp.mean(sigma)

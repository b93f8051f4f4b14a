"""How much a policy changes when its observation is perturbed: penalties to train with.

Each is a function of one state. The convex solver bounds the change from above, by
`jaxmethods.bound`; the other one searches and finds it from below. Where no entry may
move, a penalty is 0 and its gradient too, so that a loss without it stays as it is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..bound import margins
from ..core import check_choice, check_integer, check_nonnegative
from ._arguments import check_drawn, check_sigma, check_vector
from ._box import Ends, box_of, check_eps, check_state, where_moved
from ._reach import largest_change, mixed_bounds, squashed_bounds
from ._search import search


def sa_ppo(
    mean: Callable[[jax.Array], jax.Array],
    *,
    solver: str = "convex",
    num_steps: int = 10,
    bounds: Ends = None,
) -> Callable[..., jax.Array]:
    r"""The penalty of SA-PPO: how far a Gaussian policy moves when its state does.

    $\max_{s' \in B(s)} \sum_i ((\mu_i(s') - \mu_i(s)) / \sigma_i)^2$: twice the KL
    divergence of the two policies, as in the authors' code. The loss of a batch is
    PPO's plus kappa times the mean penalty; the authors' kappa is 0.003 to 1.

    Args:
        mean: From one state to the mean action, (A,).
        solver: "convex": never below the maximum, with $|\mu_i(s') - \mu_i(s)|$
            bounded action by action. "sgld": never above it, by `num_steps` noisy
            sign-gradient steps of eps / num_steps.
        num_steps: Gradients that "sgld" takes, at least 1.
        bounds: None, or the least and the largest value of an entry of the state: the
            box is clipped there.

    Returns:
        `penalty(key, state, eps, sigma, crown=1.0) -> scalar` of one state; batch with
        `vmap`. key: typed, for "sgld"; None for "convex". state: floating, any shape.
        eps: the radius, at least 0, a number or like the state, in units of the state:
        its share times the standard deviation of each entry; may be traced. sigma: a
        number or (A,), above 0; pass `jax.lax.stop_gradient(sigma)` where a larger
        sigma should not lower the loss. crown: the share of CROWN-IBP in the bounds,
        the rest is IBP: 1 - beta of the authors' PPO, whose beta grows to 1 with eps
        (their DDPG and DQN call the share itself beta); may be traced.

        Differentiable in what `mean` closes over, in sigma and in state. The action at
        the state itself takes part in the gradient; only the search holds it fixed.

    Raises:
        ValueError: An unknown solver; at the call, no key for "sgld", shapes that do
            not fit, or, where values are concrete, eps below 0, a state that is not
            finite or outside of the bounds, sigma not above 0, crown outside of [0, 1].
        TypeError: At the call, an array is not floating, or the key not typed.

    Complexity:
        "convex": some two evaluations of `mean` for IBP, and A more for CROWN-IBP;
        "sgld": `num_steps` gradients of `mean`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods import rl
        >>> mean = lambda s: jnp.array([[2.0, -1.0]]) @ s
        >>> penalty, state = rl.sa_ppo(mean), jnp.array([1.0, 1.0])
        >>> round(float(penalty(None, state, 0.1, 1.0)), 4)
        0.09
        >>> search = rl.sa_ppo(mean, solver="sgld")
        >>> bool(search(jax.random.key(0), state, 0.1, 1.0) <= 0.09001)
        True

    References:
        Zhang et al. 2020, arXiv:2003.08938, appendix F.
    """
    check_choice(solver, ("convex", "sgld"), "solver")
    check_integer(num_steps, "num_steps", 1)

    def penalty(
        key: jax.Array | None,
        state: Any,
        eps: Any,
        sigma: Any,
        crown: Any = 1.0,
    ) -> jax.Array:
        state = check_state(state, bounds)
        radius = check_eps(eps, state)
        action = check_vector(mean(state), "mean(state)")
        sigma = check_sigma(sigma, action)

        def size(change: jax.Array) -> jax.Array:
            return jnp.sum((change / sigma) ** 2)

        def convex() -> jax.Array:
            reach = mixed_bounds(mean, crown)(box_of(state, radius, bounds))
            return size(largest_change(action, reach))

        def searched() -> jax.Array:
            found = search(
                lambda point: size(mean(point) - lax.stop_gradient(action)),
                key,
                state,
                radius,
                num_steps=num_steps,
                bounds=bounds,
                noise=lambda step, count: jnp.sqrt(2e-5 * step) / (count + 2),
            )
            return size(mean(found) - action)

        if solver == "sgld":
            check_drawn(key, 'solver "sgld" starts at a random state')
        return where_moved(
            (eps,),
            convex if solver == "convex" else searched,
            action,
            key,
            state,
            sigma,
        )

    return penalty


def sa_ddpg(
    actor: Callable[[jax.Array], jax.Array],
    *,
    squash: Callable[[jax.Array], jax.Array] | None = jnp.tanh,
    solver: str = "convex",
    num_steps: int = 5,
    bounds: Ends = None,
) -> Callable[..., jax.Array]:
    r"""The penalty of SA-DDPG: how far a deterministic action moves with its state.

    $\max_{s' \in B(s)} \frac{1}{A} \sum_i (\pi_i(s') - \pi_i(s))^2$ with $\pi$ the
    squashed actor. The loss of a batch is minus the mean of Q(s, pi(s)) plus kappa
    times the mean penalty; the authors' kappa is 1 to 1000.

    Args:
        actor: From one state to the actions before squashing, (A,).
        squash: From numbers to actions, entry by entry, such as
            `lambda v: high * jnp.tanh(v)`; None for no squashing. The bounds of the
            actor pass through it as an interval, which is exact where it is monotone.
        solver: "convex" or "sgld", as for `sa_ppo`.
        num_steps: Gradients that "sgld" takes, at least 1.
        bounds: As for `sa_ppo`.

    Returns:
        `penalty(key, state, eps, crown=1.0) -> scalar` of one state, as for `sa_ppo`.
        crown is the beta of the authors' DDPG, which falls from 1 to 0 as eps grows.

    Raises:
        ValueError: As `sa_ppo`.
        TypeError: As `sa_ppo`.

    Complexity:
        As `sa_ppo`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import rl
        >>> actor = lambda s: jnp.array([[2.0, -1.0]]) @ s
        >>> state = jnp.array([1.0, 2.0])  # before squashing 0, at most 0.3 off
        >>> round(float(rl.sa_ddpg(actor)(None, state, 0.1)), 4), round(0.2913**2, 4)
        (0.0849, 0.0849)

    References:
        Zhang et al. 2020, arXiv:2003.08938, appendix G.
    """
    check_choice(solver, ("convex", "sgld"), "solver")
    check_integer(num_steps, "num_steps", 1)
    squashed = (lambda v: v) if squash is None else squash

    def penalty(
        key: jax.Array | None, state: Any, eps: Any, crown: Any = 1.0
    ) -> jax.Array:
        state = check_state(state, bounds)
        radius = check_eps(eps, state)
        action = squashed(check_vector(actor(state), "actor(state)"))

        def size(change: jax.Array) -> jax.Array:
            return jnp.mean(change**2)

        def convex() -> jax.Array:
            reach = mixed_bounds(actor, crown)(box_of(state, radius, bounds))
            return size(largest_change(action, squashed_bounds(squash, reach)))

        def searched() -> jax.Array:
            found = search(
                lambda point: size(squashed(actor(point)) - lax.stop_gradient(action)),
                key,
                state,
                radius,
                num_steps=num_steps,
                bounds=bounds,
                noise=lambda step, count: 1e-5 * jnp.sqrt(2 * step),
            )
            return size(squashed(actor(found)) - action)

        if solver == "sgld":
            check_drawn(key, 'solver "sgld" starts at a random state')
        return where_moved(
            (eps,), convex if solver == "convex" else searched, action, key, state
        )

    return penalty


def sa_dqn(
    q: Callable[[jax.Array], jax.Array],
    *,
    solver: str = "convex",
    margin: float = 1.0,
    num_steps: int = 10,
    bounds: Ends = None,
) -> Callable[..., jax.Array]:
    r"""The penalty of SA-DQN: how far another action gets ahead of the greedy one.

    $\max(\max_{s' \in B(s)} \max_{a \ne a^*} Q(s', a) - Q(s', a^*), -c)$ with $a^*$ the
    greedy action at s: below 0 where no perturbation changes the action. The loss of a
    batch is the one of DQN plus kappa times the mean penalty; weights of prioritized
    replay multiply both. The authors' kappa is 0.005 to 0.02.

    Args:
        q: From one state to the values of all actions, (A,), two actions or more.
        solver: "convex": never below the maximum. "pgd": never above it, by
            `num_steps` sign-gradient steps of eps / num_steps.
        margin: c, the lead from which on a larger one earns nothing, at least 0.
        num_steps: Gradients that "pgd" takes, at least 1.
        bounds: As for `sa_ppo`; (0, 1) for pixels.

    Returns:
        `penalty(key, state, eps, crown=1.0) -> scalar` of one state, as for `sa_ppo`.
        key: typed, for "pgd" a random start within a step; None starts at the state.
        crown is the beta of the authors' DQN, which falls from 1 to 0 as eps grows.
        Where eps is 0 it is 0, not the lead at the state itself: DQN trains that one.

    Raises:
        ValueError: As `sa_ppo`; fewer than two actions, or a margin below 0.
        TypeError: As `sa_ppo`.

    Complexity:
        As `sa_ppo`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import rl
        >>> q = lambda s: jnp.array([[2.0, 0.0], [0.0, 1.0]]) @ s
        >>> penalty, state = rl.sa_dqn(q), jnp.array([1.0, 1.6])
        >>> [round(float(penalty(None, state, eps)), 3) for eps in (0.0, 0.1, 0.2)]
        [0.0, -0.1, 0.2]

    References:
        Zhang et al. 2020, arXiv:2003.08938, appendix H.
    """
    check_choice(solver, ("convex", "pgd"), "solver")
    check_integer(num_steps, "num_steps", 1)
    check_nonnegative(margin, "margin")

    def penalty(
        key: jax.Array | None, state: Any, eps: Any, crown: Any = 1.0
    ) -> jax.Array:
        state = check_state(state, bounds)
        radius = check_eps(eps, state)
        values = check_vector(q(state), "q(state)")
        leads = margins(q, jnp.argmax(values))

        def hinge(lead: jax.Array) -> jax.Array:
            return jnp.maximum(-jnp.min(lead), -margin)

        def convex() -> jax.Array:
            least = mixed_bounds(leads, crown, side="lower")
            return hinge(least(box_of(state, radius, bounds)).lower)

        def searched() -> jax.Array:
            found = search(
                lambda point: -jnp.min(leads(point)),
                key,
                state,
                radius,
                num_steps=num_steps,
                bounds=bounds,
            )
            return hinge(leads(found))

        return where_moved(
            (eps,), convex if solver == "convex" else searched, values, key, state
        )

    return penalty

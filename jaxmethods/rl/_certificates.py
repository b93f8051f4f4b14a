"""What no perturbation of an observation can do: certificates of one state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..bound import Bounds, alpha_crown, crown, crown_ibp, forward, ibp, margins
from ..core import check_choice
from ._arguments import check_vector
from ._box import Ends, box_of, check_eps, check_state
from ._reach import largest_change, squashed_bounds

METHODS: dict[str, Callable[[Callable[..., Any], str], Callable[..., Bounds]]] = {
    "ibp": lambda fn, side: ibp(fn),
    "forward": lambda fn, side: forward(fn),
    "crown_ibp": lambda fn, side: crown_ibp(fn, side=side),
    "crown": lambda fn, side: crown(fn, side=side),
    "alpha_crown": lambda fn, side: alpha_crown(fn, side=side),
}


def action_margin(
    q: Callable[[jax.Array], jax.Array],
    *,
    method: str = "crown",
    bounds: Ends = None,
) -> Callable[..., jax.Array]:
    """By how much the greedy action stays ahead, whatever the perturbation.

    Above 0: no state in the box has another greedy action. The mean of that over the
    states of an episode is the action certification rate.

    Args:
        q: From one state to the values (or logits) of all actions, (A,), two or more.
        method: "ibp", "forward", "crown_ibp", "crown" or "alpha_crown".
        bounds: None, or the least and the largest value of an entry of the state.

    Returns:
        `margin(state, eps) -> scalar` of one state, a lower bound of the least lead of
        the greedy action over another one; batch with `vmap`. eps: the radius, at least
        0, a number or like the state, in units of the state; may be traced.

    Raises:
        ValueError: An unknown method; at the call, fewer than two actions, an eps of
            another shape, or, where values are concrete, eps below 0, or a state that
            is not finite or outside of `bounds`.
        TypeError: At the call, an array is not floating.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods import rl
        >>> margin = rl.action_margin(lambda s: jnp.stack([s[0], 2 * s[1], -s[0]]))
        >>> states = jnp.array([[1.0, 0.2], [1.0, 0.4], [0.0, 1.0]])
        >>> found = jax.vmap(margin, (0, None))(states, 0.1)
        >>> print(found.round(3), round(float((found > 0).mean()), 2))
        [ 0.3 -0.1  1.7] 0.67

    References:
        Zhang et al. 2020, arXiv:2003.08938, section 4 (action certification rate).
    """
    check_choice(method, tuple(METHODS), "method")

    def margin(state: Any, eps: Any) -> jax.Array:
        state = check_state(state, bounds)
        region = box_of(state, check_eps(eps, state), bounds)
        leads = margins(q, jnp.argmax(check_vector(q(state), "q(state)")))
        return jnp.min(METHODS[method](leads, "lower")(region).lower)

    return margin


def action_change(
    actor: Callable[[jax.Array], jax.Array],
    *,
    squash: Callable[[jax.Array], jax.Array] | None = None,
    method: str = "crown",
    bounds: Ends = None,
) -> Callable[..., jax.Array]:
    """How far each action of a continuous policy may move, at most.

    Its norm, averaged over the states of an episode, is the certified action range.

    Args:
        actor: From one state to the actions, (A,), before squashing if `squash` is.
        squash: None, or from numbers to actions, entry by entry, such as `jnp.tanh`.
        method: As for `action_margin`.
        bounds: As for `action_margin`.

    Returns:
        `change(state, eps) -> (A,)` of one state, an upper bound of |a_i(s') - a_i(s)|
        over all s' in the box; batch with `vmap`. eps: as for `action_margin`.

    Raises:
        ValueError: As `action_margin`.
        TypeError: As `action_margin`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import rl
        >>> actor = lambda s: jnp.array([[2.0, -1.0], [0.0, 1.0]]) @ s
        >>> print(rl.action_change(actor)(jnp.array([1.0, 1.0]), 0.1).round(3))
        [0.3 0.1]

    References:
        Zhang et al. 2020, arXiv:2003.08938, section 4.
    """
    check_choice(method, tuple(METHODS), "method")

    def change(state: Any, eps: Any) -> jax.Array:
        state = check_state(state, bounds)
        region = box_of(state, check_eps(eps, state), bounds)
        action = check_vector(actor(state), "actor(state)")
        reach = METHODS[method](actor, "both")(region)
        squashed = action if squash is None else squash(action)
        return largest_change(squashed, squashed_bounds(squash, reach))

    return change

"""A critic of a fixed policy that is smooth in the actions: robust Sarsa."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ..core import check_nonnegative, describe
from ._arguments import check_gamma, check_scalar
from ._box import box_of, check_eps, check_state, where_moved
from ._reach import largest_change, mixed_bounds


def robust_sarsa(
    critic: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    gamma: Any,
    reg: float = 1.0,
) -> Callable[..., jax.Array]:
    r"""The loss of a critic to attack a policy with, on one transition of it.

    $h(Q(s, a) - r - \gamma Q(s', a')) + reg \max_{(\hat s, \hat a)} (Q(\hat s, \hat a)
    - Q(s, a))^2$ with h the Huber loss, the target held fixed and $Q = 0$ after the
    end; the second term is bounded from above over the box round (s, a). Train on
    transitions of the frozen policy, then attack it by `sarsa_attack`.

    Args:
        critic: critic(state, action) -> scalar; it closes over its parameters.
        gamma: The discount, in [0, 1).
        reg: The weight of the second term, at least 0.

    Returns:
        `loss(transition, state_eps, action_eps, crown=1.0) -> scalar`, of one
        transition (state, action, reward, next_state, next_action, done); batch with
        `vmap`. done: 1 or True at the end of an episode. state_eps, action_eps: at
        least 0, a number or like the state or action; may be traced. The authors
        perturb both for PPO, the action alone for DDPG. crown: the share of CROWN-IBP
        in the bounds, the rest is IBP; may be traced.

    Raises:
        ValueError: gamma outside of [0, 1), reg below 0; at the call, a critic that
            returns no scalar, a transition that is not six parts, a reward or done that
            is no scalar, shapes that do not fit, or, where values are concrete, a
            negative eps, a state or action that is not finite, crown outside of [0, 1].
        TypeError: At the call, a state or an action is not floating.

    Complexity:
        Some five evaluations of `critic`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import rl
        >>> critic = lambda s, a: s.sum() + 2 * a.sum()
        >>> loss = rl.robust_sarsa(critic, gamma=0.9)
        >>> s, a = jnp.array([1.0, 0.0]), jnp.array([0.5])
        >>> transition = (s, a, 0.2, s, a, False)  # Q = 2, target 2
        >>> round(float(loss(transition, 0.0, 0.1)), 4)
        0.04

    References:
        Zhang et al. 2020, arXiv:2003.08938, appendix D.
    """
    check_gamma(gamma)
    check_nonnegative(reg, "reg")

    def loss(
        transition: tuple[Any, ...],
        state_eps: Any,
        action_eps: Any,
        crown: Any = 1.0,
    ) -> jax.Array:
        state, action, reward, next_state, next_action, done = _parts(transition)
        state = check_state(state, None)
        action = check_state(action, None, "action")
        radii = (
            check_eps(state_eps, state, "state_eps"),
            check_eps(action_eps, action, "action_eps", "action"),
        )
        name = "critic(state, action)"
        value = check_scalar(critic(state, action), name)
        later = check_scalar(critic(next_state, next_action), name)
        goes_on = 1 - jnp.asarray(done, value.dtype)
        # What follows the end may be anything, NaN too.
        later = jnp.where(goes_on == 0, 0, goes_on * later)
        target = lax.stop_gradient(reward + gamma * later)

        def spread() -> jax.Array:
            boxes = (box_of(state, radii[0], None), box_of(action, radii[1], None))
            return largest_change(value, mixed_bounds(critic, crown)(*boxes)) ** 2

        operands = (value, state, action)
        smooth = where_moved((state_eps, action_eps), spread, *operands)
        return optax.losses.huber_loss(value, target) + reg * smooth

    return loss


def _parts(transition: Any) -> tuple[Any, ...]:
    """The six parts of a transition, or an error."""
    if not isinstance(transition, tuple | list) or len(transition) != 6:
        size = f" of {len(transition)}" if hasattr(transition, "__len__") else ""
        raise ValueError(
            f"transition is {type(transition).__name__}{size}; wanted (state, action, "
            "reward, next_state, next_action, done)."
        )
    for name, part in zip(
        ("reward", "done"), (transition[2], transition[5]), strict=True
    ):
        if np.shape(part):
            raise ValueError(
                f"{name} is {describe(part)}; wanted one number: batch with vmap."
            )
    return tuple(transition)

"""Finite state-adversarial decision processes, solved exactly.

An adversary shows the policy another state than the true one, out of the neighbours of
the true one; the process itself goes on from the true state. For a fixed policy the
worst adversary solves a decision process of its own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import check_floating, describe, is_concrete
from ..robust.programs import run_detached
from ._arguments import check_gamma, vary_with

_EXACT = lax.Precision.HIGHEST
# How far a row of probabilities that was rounded to float32 may be from 1; float64 may
# hold such rows.
_ROW_ERROR = 1e-5


class WorstCase(NamedTuple):
    """The worst adversary of a policy.

    Attributes:
        value: (S,) the value of the policy under it, the least of all adversaries at
            every state.
        adversary: (S,) int, the state that it shows in place of each.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import rl
        >>> rl.WorstCase(value=jnp.zeros(2), adversary=jnp.array([0, 1])).value
        Array([0., 0.], dtype=float32)
    """

    value: jax.Array
    adversary: jax.Array


def state_value(P: Any, R: Any, policy: Any, *, gamma: Any) -> jax.Array:
    r"""The value of a policy in a finite decision process, by a linear solve.

    $V = (I - \gamma P_\pi)^{-1} r_\pi$ with $P_\pi = \sum_a \pi(a|s) P(s'|s, a)$.

    Args:
        P: (S, A, S) floating, P[s, a, s'] the probability of s' after a in s.
        R: (S, A, S) floating, the reward of that step.
        policy: (S, A) floating, the probability of each action in each state.
        gamma: The discount, in [0, 1); may be traced.

    Returns:
        (S,), differentiable in all four. Half precision is computed in float32 and
        gives float32, with each row of probabilities divided by its sum, which its
        rounding has moved from 1.

    Raises:
        ValueError: Shapes that do not fit; where values are concrete, a row of P or of
            the policy that holds no probabilities, rewards that are not finite, or a
            gamma outside of [0, 1).
        TypeError: An array is not floating.

    Complexity:
        O(S^3 + S^2 A) operations.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import rl
        >>> P = jnp.array([[[0.0, 1.0]], [[0.0, 1.0]]])  # to state 1, and stay
        >>> R = jnp.array([[[0.0, 3.0]], [[0.0, 1.0]]])
        >>> print(rl.state_value(P, R, jnp.ones((2, 1)), gamma=0.5).round(3))
        [4. 2.]
    """
    return _value(*_process(P, R, policy, gamma))


def worst_case_value(
    P: Any, R: Any, policy: Any, neighbours: Any, *, gamma: Any
) -> WorstCase:
    r"""The value of a policy whose observations the worst adversary chooses.

    The fixed point of $V(s) = \min_{q \in B(s)} \sum_a \pi(a|q) \sum_{s'} P(s'|s, a)
    [R(s, a, s') + \gamma V(s')]$, by policy iteration of the adversary: no adversary,
    also one that changes its mind, gives a smaller value at any state. Where several
    are as bad, the state itself is shown if it is one of them.

    Args:
        P: (S, A, S), as for `state_value`.
        R: (S, A, S).
        policy: (S, A); its row q is played where q is shown.
        neighbours: (S, S) bool, row s the states that may be shown in s, s among them.
        gamma: The discount, in [0, 1); may be traced.

    Returns:
        `WorstCase(value, adversary)`. The value is differentiable: with the adversary
        fixed, which is the derivative of the minimum wherever it has one.

    Raises:
        ValueError: As `state_value`; neighbours of another shape or, where concrete,
            with False on the diagonal.
        TypeError: As `state_value`; neighbours are not bool.

    Complexity:
        A few solves of O(S^3 + S^2 A) operations.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import rl
        >>> P = jnp.full((2, 2, 2), 0.5)
        >>> R = jnp.array([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]])
        >>> policy, anything = jnp.eye(2), jnp.ones((2, 2), bool)  # always right
        >>> worst = rl.worst_case_value(P, R, policy, anything, gamma=0.5)
        >>> print(rl.state_value(P, R, policy, gamma=0.5), *worst)
        [2. 2.] [0. 0.] [1 0]

    References:
        Zhang et al. 2020, arXiv:2003.08938, theorem 2.
    """
    process = _process(P, R, policy, gamma)
    neighbours = _check_neighbours(neighbours, process[2])
    adversary = run_detached(_worst_adversary, *process, neighbours)
    P, R, policy, gamma = process
    return WorstCase(_value(P, R, policy[adversary], gamma), adversary)


def value_gap_bound(R: Any, policy: Any, neighbours: Any, *, gamma: Any) -> jax.Array:
    r"""How much value an adversary can take from a policy at most (theorem 5).

    $\max_s V(s) - V_{worst}(s) \le \alpha \max_s \max_{q \in B(s)} D_{TV}(\pi(.|s),
    \pi(.|q))$ with $\alpha = 2 [1 + \gamma / (1 - \gamma)^2] \max |R|$: what the
    penalties `sa_ppo`, `sa_ddpg` and `sa_dqn` keep small.

    Args:
        R: (S, A, S), as for `state_value`.
        policy: (S, A).
        neighbours: (S, S) bool, as for `worst_case_value`.
        gamma: The discount, in [0, 1); may be traced.

    Returns:
        A scalar; 0 where the policy is the same on all neighbours.

    Raises:
        ValueError: As `worst_case_value`.
        TypeError: As `worst_case_value`.

    Complexity:
        O(S^2 A) operations.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import rl
        >>> R, near = jnp.ones((2, 2, 2)), jnp.ones((2, 2), bool)
        >>> policy = jnp.array([[0.5, 0.5], [0.4, 0.6]])
        >>> round(float(rl.value_gap_bound(R, policy, near, gamma=0.5)), 3)
        0.6

    References:
        Zhang et al. 2020, arXiv:2003.08938, theorem 5.
    """
    policy = _check_policy(policy)
    R = _check_tensor(R, policy, "R")
    neighbours = _check_neighbours(neighbours, policy)
    check_gamma(gamma)
    R, policy = _wide(R), _wide(policy)
    distance = jnp.sum(jnp.abs(policy[:, None] - policy[None]), axis=2) / 2
    largest = jnp.max(jnp.where(neighbours, distance, 0))
    alpha = 2 * (1 + gamma / (1 - gamma) ** 2) * jnp.max(jnp.abs(R))
    return alpha * largest


def adversary_process(P: Any, R: Any, policy: Any) -> tuple[jax.Array, jax.Array]:
    r"""The decision process of the adversary: its actions are the states it shows.

    Showing q in s leads to s' with probability $\sum_a \pi(a|q) P(s'|s, a)$ and earns
    the adversary minus the policy's mean reward of that step. Minus its best value,
    over the neighbours of each state, is the worst value of the policy.

    Args:
        P: (S, A, S), as for `state_value`.
        R: (S, A, S).
        policy: (S, A).

    Returns:
        The probabilities (S, S, S), [s, q, s'], and the rewards (S, S, S), 0 where a
        step has probability 0.

    Raises:
        ValueError: As `state_value`.
        TypeError: As `state_value`.

    Complexity:
        O(S^3 A) operations, and memory for two arrays of S^3 numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import rl
        >>> P, R = jnp.full((2, 2, 2), 0.5), jnp.ones((2, 2, 2))
        >>> shown, reward = rl.adversary_process(P, R, jnp.eye(2))
        >>> print(rl.state_value(shown, reward, jnp.eye(2), gamma=0.5))
        [-2. -2.]

    References:
        Zhang et al. 2020, arXiv:2003.08938, lemma 1.
    """
    P, R, policy, _ = _process(P, R, policy, 0.0)
    shown = jnp.einsum("qa,sat->sqt", policy, P, precision=_EXACT)
    reward = jnp.einsum("qa,sat->sqt", policy, P * R, precision=_EXACT)
    possible = shown > 0
    return shown, jnp.where(possible, -reward / jnp.where(possible, shown, 1), 0)


def _value(P: jax.Array, R: jax.Array, policy: jax.Array, gamma: Any) -> jax.Array:
    move = jnp.einsum("sa,sat->st", policy, P, precision=_EXACT)
    reward = jnp.einsum("sa,sat,sat->s", policy, P, R, precision=_EXACT)
    return jnp.linalg.solve(jnp.eye(len(P), dtype=P.dtype) - gamma * move, reward)


def _worst_adversary(P, R, policy, gamma, neighbours) -> jax.Array:
    """Policy iteration: show what is worst given the value, until nothing changes."""

    def evaluate(adversary: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = _value(P, R, policy[adversary], gamma)
        after = jnp.einsum(
            "sat,sat->sa", P, R + gamma * value[None, None], precision=_EXACT
        )
        shown = jnp.einsum("sa,qa->sq", after, policy, precision=_EXACT)
        shown = jnp.where(neighbours, shown, jnp.inf)
        now = jnp.take_along_axis(shown, adversary[:, None], axis=1)[:, 0]
        # Equals may differ by rounding; among them the choice stays.
        rounding = 4 * jnp.finfo(P.dtype).eps * jnp.max(jnp.abs(after))
        worst = jnp.argmin(shown, axis=1).astype(adversary.dtype)
        return value, jnp.where(
            now - jnp.min(shown, axis=1) > rounding, worst, adversary
        )

    def is_open(state: tuple[jax.Array, ...]) -> jax.Array:
        adversary, _, proposal, falls = state
        return falls & jnp.any(proposal != adversary)

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        adversary, value, proposal, _ = state
        new_value, new_proposal = evaluate(proposal)
        # Exact values fall at every round; where they do not, only rounding is left.
        falls = jnp.sum(new_value) < jnp.sum(value)
        return (
            jnp.where(falls, proposal, adversary),
            jnp.where(falls, new_value, value),
            jnp.where(falls, new_proposal, adversary),
            falls,
        )

    operands = (P, R, policy, gamma, neighbours)
    itself = vary_with(jnp.arange(len(P), dtype=jnp.int32), *operands)
    start = (itself, *evaluate(itself), vary_with(jnp.array(True), *operands))
    return lax.while_loop(is_open, step, start)[0]


def _process(P: Any, R: Any, policy: Any, gamma: Any) -> tuple:
    """The arrays of a decision process in one dtype, checked."""
    policy = _check_policy(policy)
    P = _check_tensor(P, policy, "P")
    _check_probabilities(P, "P")
    R = _check_tensor(R, policy, "R")
    check_gamma(gamma)
    P, policy = _summing_to_one(P), _summing_to_one(policy)
    dtype = jnp.result_type(P, _wide(R), policy)
    return P.astype(dtype), R.astype(dtype), policy.astype(dtype), gamma


def _wide(array: jax.Array) -> jax.Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _summing_to_one(rows: jax.Array) -> jax.Array:
    """Rows of half precision in float32 and divided by their sums; others as they are.

    Sums of such rows are off by up to some 1e-2, which times gamma can pass 1.
    """
    wide = _wide(rows)
    return rows if wide.dtype == rows.dtype else wide / wide.sum(-1, keepdims=True)


def _check_policy(policy: Any) -> Any:
    array = check_floating(policy, "policy")
    if array.ndim != 2 or not array.size:
        raise ValueError(
            f"policy is {describe(array)}; wanted probabilities (S, A) of actions in "
            "states: batch with vmap."
        )
    _check_probabilities(array, "policy")
    return array


def _check_tensor(array: Any, policy: jax.Array, name: str) -> jax.Array:
    array = check_floating(array, name)
    states, actions = policy.shape
    if array.shape != (states, actions, states):
        raise ValueError(
            f"{name} is {describe(array)} for a policy of shape {policy.shape}; wanted "
            f"(S, A, S), here {(states, actions, states)}."
        )
    if is_concrete(array) and not np.isfinite(np.asarray(array, np.float64)).all():
        raise ValueError(f"{name} holds NaN or infinity; wanted finite values.")
    return array


def _check_probabilities(rows: Any, name: str) -> None:
    """Raises unless the last axis of a concrete array holds probabilities."""
    if not is_concrete(rows):
        return
    # Each of n entries may be rounded, and the sum that they were divided by.
    rounding = rows.shape[-1] * float(jnp.finfo(rows.dtype).eps)
    rows = np.asarray(rows, np.float64)
    if not np.all(rows >= 0):
        raise ValueError(f"{name} holds {rows.min()}; wanted probabilities, 0..1.")
    off = np.abs(rows.sum(-1) - 1)
    if not np.all(off <= max(rounding, _ROW_ERROR)):
        place = tuple(map(int, np.unravel_index(np.argmax(off), off.shape)))
        raise ValueError(
            f"{name}{list(place)} has sum {rows.sum(-1)[place]:.6g}; wanted "
            "probabilities that sum to 1: divide each row by its sum."
        )


def _check_neighbours(neighbours: Any, policy: jax.Array) -> jax.Array:
    array = jnp.asarray(neighbours)
    if array.dtype != jnp.bool:
        raise TypeError(
            f"neighbours is {describe(array)}; wanted bool: row s says which states an "
            "adversary may show in s."
        )
    states = len(policy)
    if array.shape != (states, states):
        raise ValueError(
            f"neighbours is {describe(array)} for a policy of shape {policy.shape}; "
            f"wanted (S, S), here {(states, states)}."
        )
    if is_concrete(neighbours):
        missing = np.flatnonzero(~np.diagonal(np.asarray(neighbours)))
        if missing.size:
            raise ValueError(
                f"neighbours is False on its diagonal at state {missing[0]}; wanted "
                "True: the adversary must be allowed to show the state itself."
            )
    return array

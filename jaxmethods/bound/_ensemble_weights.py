"""RobBoost: the weights of an ensemble whose certified margins are the largest.

The objective, the mean over examples of the worst margin (or of its least with 1), is
concave in the weights but has kinks at its maximum, so that steps in one coordinate can
stall short of it. Sweeps over pairs of members, each an exact maximum along a line,
therefore take turns with exact maxima along lines towards the solutions of smoothed
problems, which Newton's method finds inside the simplex and which approach the maximum
as the smoothing fades.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import check_choice, power_of_two
from ._balls import safe_sqrt
from ._ensemble_margin import Members, checked_members, dual_norm, margin
from ._line_search import maximize_concave
from ._rounding import of_bound

OBJECTIVES = ("hinge", "mean")
_LINE_STEPS = 24
_LEVELS = 12  # each a third of the smoothing of the one before
_NEWTON_STEPS = 4


class Ensemble(NamedTuple):
    """Weights, and what they reach.

    Attributes:
        weights: (T,), not negative, of sum 1.
        value: Of the objective, a scalar.
        history: (n,), the value after each sweep; never falls.
    """

    weights: jax.Array
    value: jax.Array
    history: jax.Array


def fit_weights(
    slopes: Any,
    biases: Any,
    x: Any,
    eps: Any,
    *,
    p: float = jnp.inf,
    objective: str = "hinge",
) -> Ensemble:
    """Weights that maximize the certified margins of an ensemble on some examples.

    "mean" averages the worst `ensemble_margin` of each example; "hinge" the least of it
    and 1, so that the easy examples do not outweigh the hard ones. Logits count as they
    are: a member with larger ones needs a smaller weight. Fit on data that the ensemble
    is not judged by.

    Half precision is computed in float32 and gives float32. No gradient passes: to
    differentiate the value in the bounds, differentiate `ensemble_margin` at the
    weights found.

    Args:
        slopes: floating (E, C, T, *in), of lower bounds of C margins for T models that
            hold over the balls: of `member_lines` with the same x, eps and p. Lines of
            smaller balls prove nothing here, and nothing in them tells.
        biases: floating (E, C, T).
        x: floating (E, *in), the centers of the balls.
        eps: Their radius, a finite scalar >= 0.
        p: Their norm: 1, 2 or inf.
        objective: "hinge" or "mean".

    Returns:
        An `Ensemble`; `upper_bound` tells how much larger a value could be. What
        `ensemble_margin` takes off for rounding counts as lost: against linear
        programmes in exact terms, float32 fell short by up to 2e-5 on one example with
        margins of size 1, by 2e-4 on 24 examples of 64 inputs.

    Raises:
        TypeError: An array that is not floating.
        ValueError: Shapes that do not fit, an unknown norm or objective; where the
            values are concrete, a negative eps, bounds that are not finite, with the
            model and the example.

    Complexity:
        12 sweeps, each of some 10 passes over the slopes for each pair of models.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods.bound import ensemble
        >>> slopes = jnp.array([[[[1.0, 0.0], [-1.0, 0.5]]]])  # one margin, two models
        >>> biases, x = jnp.ones((1, 1, 2)), jnp.zeros((1, 2))
        >>> fit = ensemble.fit_weights(slopes, biases, x, 0.5, objective="mean")
        >>> print(fit.weights.round(3), f"{fit.value:.3f}")
        [0.5 0.5] 0.875

    References:
        Zhang, Cheng, Hsieh 2019, arXiv:1910.14655.
    """
    check_choice(objective, OBJECTIVES, "objective")
    members = checked_members(slopes, biases, x, eps, p)
    return _fit(jax.lax.stop_gradient(members), p, objective)


def upper_bound(
    slopes: Any,
    biases: Any,
    x: Any,
    eps: Any,
    *,
    p: float = jnp.inf,
    objective: str = "hinge",
) -> jax.Array:
    """A value of the objective that no weights' rounded value exceeds.

    It certifies the weights fitted: none gain more than it is above their `value`.

    The slopes of the norms, the classes that are worst and the examples that count are
    dual variables: fixed, they leave a linear function of the weights, and its largest
    entry bounds the objective. They are taken from the smoothed problems that
    `fit_weights` solves; the result is the least of these bounds, and may be loose: by
    per cents of the value where members differ much in scale, by more of one near 0.

    It bounds values as `ensemble_margin` computes them, which takes off what rounding
    may lose: in float32 it may lie below what exact arithmetic reaches by some
    3e-6 of the terms that a margin sums. Half precision is computed in float32. No
    gradient passes.

    Args:
        slopes: As for `fit_weights`, as the others.
        biases: As there.
        x: As there.
        eps: As there.
        p: As there.
        objective: As there.

    Returns:
        A scalar.

    Raises:
        TypeError: As `fit_weights`.
        ValueError: As `fit_weights`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods.bound import ensemble
        >>> slopes = jnp.array([[[[1.0, 0.0], [-1.0, 0.5]]]])
        >>> lines = slopes, jnp.ones((1, 1, 2)), jnp.zeros((1, 2))
        >>> fit = ensemble.fit_weights(*lines, 0.5, objective="mean")
        >>> gap = ensemble.upper_bound(*lines, 0.5, objective="mean") - fit.value
        >>> bool(0 <= gap < 0.01)
        True

    References:
        Zhang, Cheng, Hsieh 2019, arXiv:1910.14655, for the objective.
    """
    check_choice(objective, OBJECTIVES, "objective")
    members = checked_members(slopes, biases, x, eps, p)
    return _upper_bound(jax.lax.stop_gradient(members), p, objective)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _upper_bound(members: Members, p: float, objective: str) -> jax.Array:
    members, scale, cap = _scaled(members, objective)
    size, dtype = members.center.shape[2], members.center.dtype

    terms = jnp.abs(members.center) + dual_norm(members.slopes, p)
    rounding = of_bound(members.slopes.size // size + 8, dtype)

    def level(inside: jax.Array, smoothing: Any) -> Any:
        inside = _newton(inside, members, smoothing, p, cap)

        def smoothed(weights: Any, cap: Any, center: Any) -> Any:
            part = members._replace(center=center)
            return _smoothed(weights, part, smoothing, p, cap)

        # The least over dual variables of what is linear in the weights and in `cap`,
        # plus a term of theirs alone that is not negative: the coefficients are its
        # derivatives.
        derivatives = jax.grad(smoothed, (0, 1, 2))(inside, cap, members.center)
        slope, share, shares = derivatives
        # What the sums over examples, margins and inputs lose.
        slope += rounding * jnp.einsum("ec,ect->t", shares.sum(2), terms)
        capped = jnp.where(share > 0, (1 + rounding) * share * cap, 0)
        return inside, slope.max() + capped

    uniform = jnp.full(size, 1 / size, dtype)
    return scale * jax.lax.scan(level, uniform, _levels(members))[1].min()


@functools.partial(jax.jit, static_argnums=(1, 2))
def _fit(members: Members, p: float, objective: str) -> Ensemble:
    members, scale, cap = _scaled(members, objective)
    size, dtype = members.center.shape[2], members.center.dtype
    uniform = jnp.full(size, 1 / size, dtype)
    if size == 1:
        value = scale * _value(uniform, members, p, cap)
        return Ensemble(uniform, value, value[None])
    along = functools.partial(_along, members=members, p=p, cap=cap)
    pairs = list(itertools.combinations(range(size), 2))
    one = jnp.eye(size, dtype=dtype)
    between = jnp.stack([one[s] - one[t] for s, t in pairs])

    def level(carry: Any, smoothing: Any) -> Any:
        state, inside = carry
        inside = _newton(inside, members, smoothing, p, cap)
        lines = jnp.concatenate([(inside - state[0])[None], between])
        state, _ = jax.lax.scan(lambda *at: (along(*at), None), state, lines)
        return (state, inside), state[1]

    start = uniform, _value(uniform, members, p, cap)
    (state, _), history = jax.lax.scan(level, (start, uniform), _levels(members))
    return Ensemble(state[0], scale * state[1], scale * history)


def _scaled(members: Members, objective: str) -> tuple[Members, Any, jax.Array]:
    """The problem with a largest entry of 1 to 2, what divides it, and the hinge's cap.

    A power of two divides it, so that nothing is rounded; or 1, where all are 0.
    """
    largest = jnp.maximum(*(jnp.abs(part).max() for part in members))
    scale = power_of_two(largest)
    cap = 1 / scale if objective == "hinge" else jnp.full_like(scale, jnp.inf)
    return Members(*(part / scale for part in members)), scale, cap


def _value(weights: Any, members: Members, p: float, cap: Any) -> jax.Array:
    return jnp.minimum(margin(weights, members, p).min(1), cap).mean()


def _along(
    state: Any, towards: jax.Array, *, members: Members, p: float, cap: Any
) -> Any:
    """The best weights on the line through the current ones, if any is better."""
    weights, value = state
    low, high = _range(weights, towards)
    center = members.center @ weights, members.center @ towards
    slopes = [jnp.einsum("ectd,t->ecd", members.slopes, w) for w in (weights, towards)]

    def at(step: Any) -> jax.Array:
        # As of one model, with the slopes of that point.
        moved = Members(
            (center[0] + step * center[1])[:, :, None],
            (slopes[0] + step * slopes[1])[:, :, None],
        )
        return _value(jnp.ones(1, weights.dtype), moved, p, cap)

    step, _ = maximize_concave(
        at, low, high, tolerance=_precision(weights), max_steps=_LINE_STEPS
    )
    moved = jnp.maximum(weights + step * towards, 0)
    moved = moved / moved.sum()
    new = _value(moved, members, p, cap)
    better = new > value
    return jnp.where(better, moved, weights), jnp.where(better, new, value)


def _range(weights: jax.Array, towards: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How far backward and forward no weight is negative."""
    ratio = weights / jnp.where(towards == 0, 1, jnp.abs(towards))
    high = jnp.where(towards < 0, ratio, jnp.inf).min()
    low = -jnp.where(towards > 0, ratio, jnp.inf).min()
    moves = jnp.any(towards != 0)
    return jnp.where(moves, low, 0), jnp.where(moves, high, 0)


def _precision(x: jax.Array) -> float:
    return 8 * float(jnp.finfo(x.dtype).eps)


def _levels(members: Members) -> jax.Array:
    """Sizes of the smoothing, from a share of the margins' own size downward."""
    size = jnp.abs(members.center).mean() + jnp.abs(members.slopes).sum(-1).mean()
    size = jnp.where(size > 0, size, 1)
    # Not so small that the derivatives of the smoothed problem are rounding alone.
    smallest = float(jnp.finfo(size.dtype).eps) ** 0.8
    shares = jnp.maximum(0.1 * 3.0 ** -jnp.arange(_LEVELS, dtype=size.dtype), smallest)
    return size * shares


def _newton(
    inside: jax.Array, members: Members, smoothing: Any, p: float, cap: Any
) -> jax.Array:
    """Newton's steps to the maximum of a smoothed problem with a barrier."""

    def inner(weights: jax.Array) -> jax.Array:
        barrier = smoothing * jnp.log(weights).mean()
        return _smoothed(weights, members, smoothing, p, cap) + barrier

    def step(inside: jax.Array, _: Any) -> Any:
        size = len(inside)
        slope = jax.grad(inner)(inside)
        basis = jnp.eye(size, dtype=inside.dtype)
        curve = jax.lax.map(
            lambda e: jax.jvp(jax.grad(inner), (inside,), (e,))[1], basis
        )
        ones = jnp.ones((size, 1), inside.dtype)
        system = jnp.block([[curve, ones], [ones.T, jnp.zeros_like(ones[:1])]])
        towards = jnp.linalg.solve(system, -jnp.append(slope, 0))[:-1]
        towards = jnp.where(jnp.isfinite(towards).all(), towards, 0)
        _, high = _range(inside, towards)
        length, _ = maximize_concave(
            lambda t: inner(inside + t * towards),
            jnp.zeros_like(high),
            jnp.minimum(0.9 * high, 2),
            tolerance=_precision(inside),
            max_steps=8,
        )
        return inside + length * towards, None

    return jax.lax.scan(step, inside, length=_NEWTON_STEPS)[0]


def _smoothed(
    weights: jax.Array, members: Members, smoothing: Any, p: float, cap: Any
) -> jax.Array:
    """The objective with rounded kinks; concave too."""
    slopes = jnp.einsum("ectd,t->ecd", members.slopes, weights)
    margins = members.center @ weights - _smooth_norm(slopes, smoothing, p)
    spread = smoothing / math.log(margins.shape[1] + 1)
    worst = -spread * jax.nn.logsumexp(-margins / spread, axis=1)
    # Of the distance of the two, not of two large numbers: derivatives of those do not
    # sum to 1, nor is the small one exact, and bounds made of them are none.
    near = smoothing * jax.nn.softplus(-jnp.abs(worst - cap) / smoothing)
    return (jnp.minimum(worst, cap) - near).mean()


def _smooth_norm(rows: jax.Array, smoothing: Any, p: float) -> jax.Array:
    if p == 1:
        spread = smoothing / math.log(2 * rows.shape[-1])
        both = jnp.concatenate([rows, -rows], -1) / spread
        return spread * jax.nn.logsumexp(both, axis=-1)
    if p == 2:
        return safe_sqrt(jnp.square(rows).sum(-1) + jnp.square(smoothing))
    corner = smoothing / rows.shape[-1]
    return jnp.sqrt(jnp.square(rows) + jnp.square(corner)).sum(-1)

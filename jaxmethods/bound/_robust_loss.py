"""Certified training: the cross entropy of the worst case that a bound allows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core import check_integer, check_nonnegative, describe, is_concrete
from ._balls import check_norm
from ._intersection import is_within
from ._margins import margins
from ._methods import crown_ibp, ibp
from ._sets import Ball, Set, cut_off


def robust_loss(
    apply: Callable[..., Any],
    *,
    p: float = jnp.inf,
    bounds: tuple[Any, Any] | None = None,
    fusion: bool = False,
) -> Callable[..., jax.Array]:
    """The loss of CROWN-IBP training: no input in the ball has a larger one.

        loss = log(1 + sum_j exp(-lower_j)),  lower = beta crown_ibp + (1 - beta) ibp,

    with lower_j a bound of the margin of the label over class j. At eps 0 it is the
    cross entropy, and nothing else is computed; at beta 0 intervals alone are.

    Args:
        apply: apply(params, x) -> logits (n,) of one example.
        p: The norm of the ball: 1, 2 or inf.
        bounds: If given, the least and the largest value of an entry of x, such as
            (0, 1) for pixels: the ball is cut off there.
        fusion: Whether the linear bound is one of the loss, a single row, and not one
            of each margin, n - 1 rows: cheaper for many classes, and looser.

    Returns:
        `loss(params, x, y, eps, beta=1.0) -> scalar` of one example; batch with `vmap`
        and leave `eps` and `beta` unmapped. x is an array or a pytree, y an int in
        0..n-1, eps the radius, beta in [0, 1]; all may be traced.

    Raises:
        ValueError: An unknown norm; at the call, an eps or beta that is no scalar, or,
            where values are concrete, out of its range, a label that is no class, an x
            that is not finite or outside of `bounds`. A traced x outside of them makes
            the loss NaN.
        TypeError: At the call, as for `crown_ibp` and `margins`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> apply = lambda params, x: params @ x
        >>> loss = bound.robust_loss(apply)
        >>> params, x = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([1.0, 1.0])
        >>> [round(float(loss(params, x, 0, eps)), 3) for eps in (0.0, 0.1)]
        [0.313, 0.403]
        >>> batch = jax.vmap(loss, (None, 0, 0, None))
        >>> found = batch(params, jnp.stack([x, x]), jnp.array([0, 1]), 0.1)
        >>> [round(float(value), 3) for value in found]
        [0.403, 1.541]

    References:
        Zhang et al. 2020, arXiv:1906.06316; Xu et al. 2020, arXiv:2002.12920 (the
        fusion, section 3.4).
    """
    check_norm(p, "p")

    def loss(
        params: Any,
        x: Any,
        y: Any,
        eps: jax.Array | float,
        beta: jax.Array | float = 1.0,
    ) -> jax.Array:
        _check_scalar(eps, "eps")
        _check_scalar(beta, "beta")
        # A schedule may end at 1 but for rounding.
        if is_concrete(beta) and float(beta) > 1 + 1e-6:
            raise ValueError(f"beta is {beta}; wanted a share, 0..1.")
        rows = margins(lambda x: apply(params, x), y)
        region = cut_off(Ball(x, eps, p), bounds)
        within = is_within(x, bounds)
        region.check()

        def natural() -> jax.Array:
            return _cross_entropy(rows(x))

        def by_intervals() -> jax.Array:
            return _cross_entropy(ibp(rows)(region).lower)

        def by_both() -> jax.Array:
            low = ibp(rows)(region).lower
            if fusion:
                return _fused(rows, region, low, beta)
            tight = crown_ibp(rows, side="lower")(region).lower
            return _cross_entropy(beta * tight + (1 - beta) * low)

        def robust() -> jax.Array:
            return jax.lax.cond(jnp.asarray(beta) > 0, by_both, by_intervals)

        found = jax.lax.cond(jnp.asarray(eps) > 0, robust, natural)
        return found if bounds is None else jnp.where(within, found, jnp.nan)

    return loss


def _check_scalar(value: Any, name: str) -> None:
    check_nonnegative(value, name)
    if jnp.shape(value):
        raise ValueError(
            f"{name} is {describe(value)}; wanted one number: batch with vmap."
        )


def _cross_entropy(margins: jax.Array) -> jax.Array:
    """log(1 + sum_j exp(-margin_j))."""
    return jax.nn.logsumexp(jnp.pad(-margins, (0, 1)))


def _fused(
    rows: Callable[[Any], jax.Array], region: Set, low: jax.Array, beta: Any
) -> jax.Array:
    """The bound of the sum of exponentials itself, shifted by their largest."""
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(-low), 0))

    def terms(margins: jax.Array) -> jax.Array:
        return jnp.sum(jnp.exp(-margins - top))

    tight = crown_ibp(lambda x: terms(rows(x)), side="upper")(region).upper
    total = beta * tight + (1 - beta) * terms(low)
    return top + jnp.log(jnp.exp(-top) + total)


def eps_schedule(
    value: float, begin: int, length: int, *, middle: float = 0.25, power: float = 4.0
) -> Callable[[Any], jax.Array]:
    """A radius that grows slowly at first: as a power, then linearly.

    0 up to step `begin`; then proportional to t ** power until the share `middle` of
    `length`; from there on a straight line of the same slope, which reaches `value`
    after `length` steps and ends there.

    Args:
        value: The last radius, at least 0.
        begin: How many steps stay at 0.
        length: How many steps it grows, at least 1.
        middle: The share of the steps with a power, in (0, 1].
        power: The power, at least 1.

    Returns:
        `schedule(count) -> scalar`, as optax has them.

    Raises:
        ValueError: A number out of its range.
        TypeError: `begin` or `length` is no integer.

    Example:
        >>> from jaxmethods import bound
        >>> schedule = bound.eps_schedule(0.3, 10, 100)
        >>> [round(float(schedule(n)), 4) for n in (10, 35, 60, 110, 999)]
        [0.0, 0.0231, 0.1154, 0.3, 0.3]

    References:
        Xu et al. 2020, arXiv:2002.12920 (the schedule of its experiments).
    """
    check_integer(begin, "begin", 0)
    check_integer(length, "length", 1)
    if not (value >= 0 and 0 < middle <= 1 and power >= 1):
        raise ValueError(
            f"eps_schedule got value {value}, middle {middle}, power {power}; wanted "
            "value >= 0, 0 < middle <= 1, power >= 1."
        )
    bend = middle**power
    slope = power * middle ** (power - 1)
    scale = value / (bend + slope * (1 - middle))

    def schedule(count: Any) -> jax.Array:
        t = jnp.clip((count - begin) / length, 0, 1)
        line = bend + slope * (t - middle)
        return scale * jnp.where(t < middle, t**power, line)

    return schedule


def beta_schedule(
    eps: Callable[[Any], Any], value: float, *, first: float = 1.0, last: float = 0.0
) -> Callable[[Any], jax.Array]:
    """The share of the linear bound in `robust_loss`, falling as the radius grows.

    Args:
        eps: The schedule of the radius.
        value: Its last value, above 0.
        first: The share at radius 0.
        last: The share at radius `value`.

    Returns:
        `schedule(count) -> scalar`, as optax has them.

    Raises:
        ValueError: A value that is not positive, or a share that is not in [0, 1].

    Example:
        >>> from jaxmethods import bound
        >>> eps = bound.eps_schedule(0.3, 0, 100)
        >>> beta = bound.beta_schedule(eps, 0.3)
        >>> [round(float(beta(n)), 3) for n in (0, 25, 100)]
        [1.0, 0.923, 0.0]

    References:
        Zhang et al. 2020, arXiv:1906.06316, section 3.3.
    """
    if not value > 0:
        raise ValueError(f"value is {value}; wanted the last radius, above 0.")
    if not (0 <= first <= 1 and 0 <= last <= 1):
        raise ValueError(f"first and last are {first} and {last}; wanted 0..1.")

    def schedule(count: Any) -> jax.Array:
        return first + (last - first) * jnp.clip(eps(count) / value, 0, 1)

    return schedule

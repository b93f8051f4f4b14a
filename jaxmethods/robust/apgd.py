"""Projected gradient ascent that sets its own step size (Auto-PGD)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import (
    check_choice,
    check_integer,
    check_key,
    check_nonnegative,
    describe,
    is_concrete,
)
from .attack import Attack, ascent, where_input
from .balls import check_inputs, direction, per_input, projection, random_start
from .programs import run_detached

RHO = 0.75  # section 3.2


def apgd(
    logits: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    y: jax.Array,
    *,
    eps: jax.Array | float,
    num_steps: int,
    norm: str = "linf",
    objective: str = "ce",
    rho: float = RHO,
    key: jax.Array | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Attack:
    r"""Attacks a classifier with Auto-PGD: no step size to choose.

    Steps of $\eta = 2\epsilon$ with momentum .75 (Alg. 1); at checkpoints that come
    closer and closer, an input whose loss rose in at most a share `rho` of the steps,
    or whose best loss stalled at an unchanged step size, halves its step and restarts
    from its best point. The objective is the cross entropy ("ce") or the difference of
    logits ratio ("dlr", which rescaling the logits does not change):
    $-(z_y - \max_{c \ne y} z_c) / (z_{(1)} - z_{(3)} + 10^{-12})$.
    In float32 the cross entropy of an over-confident model has zero gradients; use
    "dlr" beside it.

    Two habits of the authors' code that the paper does not mention are kept, so that
    results agree with theirs: the first loss is compared with 0, not with the start's,
    and a rise counts if float32 sees it.

    Args:
      logits: x (B, ...) -> logits (B, C).
      x: Inputs, (B, ...) floating, inside `bounds`.
      y: Labels, (B,) integers in 0..C-1; may be traced.
      eps: Radius, scalar or (B,), 0 or more; may be traced.
      num_steps: Gradient steps, an int, 1 or more.
      norm: "linf" or "l2".
      objective: "ce" or "dlr"; "dlr" needs 3 classes or more.
      rho: Share of rising steps under which a step is halved, 0..1.
      key: Typed key for a start drawn uniformly from the ball; None starts at `x`.
      bounds: The least and the greatest value of an entry.

    Returns:
      `Attack(x, loss, robust)`: the iterate of highest objective (B, ...), its
      objective (B,), and whether the model was right at every iterate (B,) bool, the
      start included. An input may be misclassified at one iterate and right at a later
      one of higher cross entropy. No gradient passes through the result.

    Raises:
      TypeError: `x` is not floating; `y` is no integer; the key is not typed.
      ValueError: Unknown norm or objective; negative eps; eps, y or logits of a wrong
        shape; labels out of range; too few classes; inputs outside the bounds.

    Complexity:
      num_steps + 1 gradients of the objective.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxmethods.robust import apgd
      >>> logits = lambda x: x @ jnp.array([[1.0, -1.0], [0.0, 1.0]])
      >>> x, y = jnp.array([[0.9, 0.1], [0.5, 0.6]]), jnp.array([0, 0])
      >>> apgd(logits, x, y, eps=0.2, num_steps=5).robust
      Array([ True, False], dtype=bool)

    References:
      Croce, Hein, 2020, "Reliable evaluation of adversarial robustness with an ensemble
      of diverse parameter-free attacks", arXiv:2003.01690.
    """
    check_choice(objective, tuple(OBJECTIVES), "objective")
    x = check_inputs(x, norm, bounds)
    y = _labels(y, x)
    eps = per_input(eps, x, "eps")
    num_steps = check_integer(num_steps, "num_steps", 1)
    check_nonnegative(rho, "rho")
    if key is not None:
        check_key(key)

    loss_of, floor = OBJECTIVES[objective]

    def judge(x):
        z = _check_logits(logits(x), x, y, objective)
        return loss_of(z, y), _reads(z, y)

    def attack(x, eps, key):
        project = projection(x, eps, norm, bounds)
        start = project(x if key is None else random_start(key, x, eps, norm))
        step = _stepping(judge, norm, floor, project, rho)
        search = _begin(start, eps, *ascent(judge, start))
        search, _ = lax.scan(step, search, _schedule(num_steps, eps.dtype))
        return Attack(search.best.point, search.best.loss, search.robust)

    return run_detached(attack, x, eps, key)


def is_robust(
    logits: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    y: jax.Array,
    *,
    eps: jax.Array | float,
    num_steps: int,
    norm: str = "linf",
    objective: jax.Array | int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> jax.Array:
    """The field `robust` of `apgd` from `x`, no more steps than it takes to know it.

    The attack ends where every input of the batch was turned, and one program serves
    all objectives.

    Args:
      logits: x (B, ...) -> logits (B, C).
      x: Inputs, (B, ...) floating, inside `bounds`.
      y: Labels, (B,) integers in 0..C-1.
      eps: Radius, scalar or (B,), 0 or more; may be traced.
      num_steps: Gradient steps at most, an int, 1 or more.
      norm: "linf" or "l2".
      objective: 0 for "ce", 1 for "dlr"; may be traced. Of fewer than 3 classes, which
        "dlr" needs, it is "ce".
      bounds: The least and the greatest value of an entry.

    Returns:
      (B,) bool.

    Raises:
      TypeError, ValueError: As `apgd`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxmethods.robust.apgd import is_robust
      >>> logits = lambda x: x @ jnp.array([[1.0, -1.0], [0.0, 1.0]])
      >>> x, y = jnp.array([[0.9, 0.1], [0.5, 0.6]]), jnp.array([0, 0])
      >>> is_robust(logits, x, y, eps=0.2, num_steps=5)
      Array([ True, False], dtype=bool)
    """
    x = check_inputs(x, norm, bounds)
    y = _labels(y, x)
    eps = per_input(eps, x, "eps")
    num_steps = check_integer(num_steps, "num_steps", 1)

    def attack(x, eps, which):
        def judge(x):
            z = _check_logits(logits(x), x, y, "ce")
            known = [fn for fn, _ in OBJECTIVES.values()][: max(1, z.shape[1] - 1)]
            return lax.switch(which, known, z, y), _reads(z, y)

        project = projection(x, eps, norm, bounds)
        start = project(x)
        floors = np.array([floor for _, floor in OBJECTIVES.values()], eps.dtype)
        step = _stepping(judge, norm, jnp.asarray(floors)[which], project, RHO)
        schedule = jax.tree.map(jnp.asarray, _schedule(num_steps, eps.dtype))

        def goes_on(state):
            number, search = state
            return (number < num_steps) & search.robust.any()

        def once(state):
            number, search = state
            return number + 1, step(search, [part[number] for part in schedule])[0]

        search = _begin(start, eps, *ascent(judge, start))
        return lax.while_loop(goes_on, once, (0, search))[1].robust

    return run_detached(attack, x, eps, jnp.asarray(objective))


def checkpoints(num_steps: int) -> np.ndarray:
    """The steps after which the step size is reconsidered (section 3.2).

    Periods start at 22 % of the steps and shrink by 3 % down to 6 %.

    Args:
      num_steps: Steps of the attack, 1 or more.

    Returns:
      (num_steps,) int32: the length of the period that ends with a step, or 0.

    Example:
      >>> from jaxmethods.robust.apgd import checkpoints
      >>> print(checkpoints(10))
      [0 2 1 1 1 1 1 1 1 1]
    """
    period = max(int(0.22 * num_steps), 1)
    shorter, least = max(int(0.03 * num_steps), 1), max(int(0.06 * num_steps), 1)
    table = np.zeros(num_steps, np.int32)
    end = period
    while end <= num_steps:
        table[end - 1] = period
        period = max(period - shorter, least)
        end += period
    return table


def _cross_entropy(z: jax.Array, y: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1)[:, 0]


def _difference_of_logits_ratio(z: jax.Array, y: jax.Array) -> jax.Array:
    own = y[:, None] == jnp.arange(z.shape[1])[None]
    other = jnp.max(jnp.where(own, -jnp.inf, z), axis=1)
    top = lax.top_k(z, 3)[0]
    lead = jnp.take_along_axis(z, y[:, None], axis=1)[:, 0] - other
    return -lead / (top[:, 0] - top[:, 2] + 1e-12)


# With the length under which an l2 gradient is no direction. A cross entropy may be as
# faint as it likes; dlr has no scale, and where y ranks third it is a plateau at 1 on
# which the gradient is rounding noise.
OBJECTIVES = {"ce": (_cross_entropy, 0.0), "dlr": (_difference_of_logits_ratio, 1e-12)}


class _Best(NamedTuple):
    """The point of highest loss so far."""

    point: jax.Array
    gradient: jax.Array
    loss: jax.Array


class _Search(NamedTuple):
    """Where the search of every input stands."""

    point: jax.Array
    previous: jax.Array
    gradient: jax.Array
    loss: jax.Array
    best: _Best
    robust: jax.Array
    step_size: jax.Array
    rises: jax.Array  # steps since the last checkpoint that raised the loss
    halved: jax.Array  # whether the last checkpoint halved the step
    best_at_checkpoint: jax.Array


def _reads(z: jax.Array, y: jax.Array) -> jax.Array:
    # The argmax of NaNs is a class as well.
    return (z.argmax(-1) == y) & ~jnp.isnan(z).any(-1)


def _schedule(num_steps: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """The momentum of each step, and what `checkpoints` says of it."""
    momentum = np.full(num_steps, 0.75, dtype)
    momentum[0] = 1
    return momentum, checkpoints(num_steps)


def _stepping(judge, norm, floor, project, rho: float):
    """One step of a search, as `lax.scan` takes it, of an entry of the schedule."""

    def step(search: _Search, now) -> tuple[_Search, None]:
        momentum, period = now
        ahead = search.step_size * direction(search.gradient, norm, floor)
        search = _move(search, ahead, momentum, project)
        search = _record(search, *ascent(judge, search.point))
        return _checkpoint(search, period, rho), None

    return step


def _begin(start, eps, loss, correct, gradient) -> _Search:
    # From the loss, so that under shard_map it varies over the mesh as the loss does.
    nothing = jnp.zeros_like(loss, jnp.int32)
    return _Search(
        point=start,
        previous=start,
        gradient=gradient,
        loss=jnp.zeros_like(loss),
        best=_Best(start, gradient, loss),
        robust=correct,
        step_size=2 * eps + nothing.reshape(*loss.shape, *(1,) * (eps.ndim - 1)),
        rises=nothing,
        halved=jnp.ones_like(correct),
        best_at_checkpoint=loss,
    )


def _move(search: _Search, ahead, momentum, project) -> _Search:
    point, previous = search.point, search.previous
    target = project(point + ahead)
    moved = point + momentum * (target - point) + (1 - momentum) * (point - previous)
    return search._replace(point=project(moved), previous=point)


def _record(search: _Search, loss, correct, gradient) -> _Search:
    new = _Best(search.point, gradient, loss)
    rose = loss.astype(jnp.float32) > search.loss.astype(jnp.float32)
    higher = (loss > search.best.loss) | jnp.isnan(search.best.loss)
    return search._replace(
        gradient=gradient,
        loss=loss,
        best=where_input(higher, new, search.best),
        robust=search.robust & correct,
        rises=search.rises + rose,
    )


def _checkpoint(search: _Search, period, rho: float) -> _Search:
    """Halves steps and restarts from the best point, where `period` ends (not 0)."""
    best, now = search.best, period > 0
    stalled = ~search.halved & (best.loss <= search.best_at_checkpoint)
    halve = now & ((search.rises <= rho * period) | stalled)
    return search._replace(
        point=where_input(halve, best.point, search.point),
        gradient=where_input(halve, best.gradient, search.gradient),
        step_size=where_input(halve, search.step_size / 2, search.step_size),
        rises=jnp.where(now, 0, search.rises),
        halved=jnp.where(now, halve, search.halved),
        best_at_checkpoint=jnp.where(now, best.loss, search.best_at_checkpoint),
    )


def _labels(y: Any, x: jax.Array) -> jax.Array:
    y = jnp.asarray(y)
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(f"y is {describe(y)}; wanted integer class labels.")
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"y is {describe(y)} for x {describe(x)}; wanted one label an input, "
            f"shape ({len(x)},)."
        )
    return y


def _check_logits(z: Any, x: jax.Array, y: jax.Array, objective: str) -> jax.Array:
    if getattr(z, "ndim", None) != 2 or len(z) != len(x):
        raise ValueError(
            f"logits(x) is {describe(z)} for x {describe(x)}; wanted one row an input, "
            f"shape ({len(x)}, number of classes)."
        )
    classes = z.shape[1]
    if objective == "dlr" and classes < 3:
        raise ValueError(
            f"logits(x) is {describe(z)}: the dlr objective needs 3 classes or more; "
            'use objective="ce".'
        )
    if is_concrete(y) and y.size:
        least, most = np.asarray(y).min(), np.asarray(y).max()
        if least < 0 or most >= classes:
            raise ValueError(
                f"y holds labels {least}..{most} for logits {describe(z)}; wanted "
                f"class labels 0..{classes - 1}."
            )
    return z

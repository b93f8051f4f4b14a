"""Projected gradient ascent inside a ball (PGD)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ..core import check_integer, check_key, describe
from .attack import Attack, ascent, where_input
from .balls import check_inputs, direction, per_input, projection, random_start
from .programs import run_detached


def pgd(
    loss: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    *,
    eps: jax.Array | float,
    step_size: jax.Array | float,
    num_steps: int,
    norm: str = "linf",
    key: jax.Array | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    keep_best: bool = False,
) -> Attack:
    r"""Raises a loss inside a ball around each input by projected gradient steps.

    $x_{t+1} = \Pi(x_t + \alpha\, d(\nabla \sum_i \ell_i(x_t)))$, with d the sign (linf)
    or the gradient over its length (l2), and Pi the projection on the ball and then on
    the bounds. A targeted attack ascends minus the loss of the target. Inputs do not
    influence each other unless `loss` mixes them.

    The loop is one program: an eager call traces `loss` again and reuses the compiled
    program of an equal trace; in a `jit` there is nothing to reuse. Under `shard_map`
    pass each device its own key (`jax.random.fold_in` of the axis index).

    Args:
      loss: x (B, ...) -> losses (B,), to be raised.
      x: Inputs, (B, ...) floating, inside `bounds`.
      eps: Radius, scalar or (B,), 0 or more; may be traced.
      step_size: Length of a step in `norm`, scalar or (B,); may be traced. eps / 4 with
        20 steps or more is a common choice.
      num_steps: Gradient steps, an int, 0 or more.
      norm: "linf" or "l2".
      key: Typed key for a start drawn uniformly from the ball; None starts at `x`.
      bounds: The least and the greatest value of an entry.
      keep_best: Whether to return the point of highest loss met, the start included,
        instead of the last. Costs one more evaluation of the loss.

    Returns:
      `Attack(x, loss)`: points (B, ...) in the dtype of `x` and their losses (B,).
      |x' - x| <= eps up to rounding of its own length (1e-6 of eps in float32), also
      where the floats around `x` are coarser. No gradient passes through either.

    Raises:
      TypeError: `x` is not floating; `num_steps` is no int; the key is not typed.
      ValueError: Unknown norm; negative eps or step; eps, step or loss of a wrong
        shape; bounds out of order; concrete inputs outside the bounds.

    Complexity:
      num_steps gradients of `loss`, and memory for one.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxmethods.robust import pgd
      >>> loss = lambda x: x @ jnp.array([2.0, -1.0])
      >>> attack = pgd(
      ...     loss, jnp.full((1, 2), 0.5), eps=0.1, step_size=0.05, num_steps=4
      ... )
      >>> attack.x.round(3), attack.loss.round(3)
      (Array([[0.6, 0.4]], dtype=float32), Array([0.8], dtype=float32))

    References:
      Madry, Makelov, Schmidt, Tsipras, Vladu, 2018, arXiv:1706.06083.
    """
    x = check_inputs(x, norm, bounds)
    eps = per_input(eps, x, "eps")
    step_size = per_input(step_size, x, "step_size")
    num_steps = check_integer(num_steps, "num_steps", 0)
    if key is not None:
        check_key(key)

    def losses(x):
        value = loss(x)
        if getattr(value, "shape", None) != x.shape[:1]:
            raise ValueError(
                f"loss(x) is {describe(value)} for x {describe(x)}; wanted one loss "
                f"an input, shape ({len(x)},): do not reduce over the batch."
            )
        return value, None

    def attack(x, eps, step_size, key):
        project = projection(x, eps, norm, bounds)
        start = project(x if key is None else random_start(key, x, eps, norm))

        def step(_, state):
            point, best = state
            value, _, gradient = ascent(losses, point)
            if keep_best:
                best = _higher(best, Attack(point, value))
            return project(point + step_size * direction(gradient, norm)), best

        best = Attack(start, losses(start)[0]) if keep_best else None
        point, best = lax.fori_loop(0, num_steps, step, (start, best))
        last = Attack(point, losses(point)[0])
        return _higher(best, last) if keep_best else last

    return run_detached(attack, x, eps, step_size, key)


def _higher(old: Attack, new: Attack) -> Attack:
    """Input by input, the new point where its loss is higher, or the old one's NaN."""
    return where_input((new.loss > old.loss) | jnp.isnan(old.loss), new, old)

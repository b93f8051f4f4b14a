"""The result of an attack, and the best of several."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import describe


class Attack(NamedTuple):
    """What an attack found for each of B inputs.

    Attributes:
      x: The attacked inputs, (B, ...), dtype of the originals.
      loss: The loss at `x`, (B,).
      robust: Whether the model was right at every point tried, (B,) bool; None where
        the attack sees only a loss.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxmethods.robust import Attack
      >>> Attack(x=jnp.zeros((2, 3)), loss=jnp.ones(2)).robust is None
      True
    """

    x: jax.Array
    loss: jax.Array
    robust: jax.Array | None = None


def strongest(attacks: Attack) -> Attack:
    """The highest loss of every input over several attacks.

    Restarts are a `vmap` of an attack over keys, a sweep is one over `eps`; this takes
    the best of them, input by input. A NaN loss never wins over a number.

    Args:
      attacks: R attacks on the same B inputs, stacked on axis 0: x (R, B, ...), loss
        (R, B), robust (R, B) or None.

    Returns:
      One `Attack` of B inputs: x and loss of the run with the highest loss, the first
      of equals; robust where every run left the input robust.

    Raises:
      ValueError: The attacks are not stacked, or there are none.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxmethods.robust import pgd, strongest
      >>> loss = lambda x: -jnp.cos(20 * x).sum(1)  # many local maxima
      >>> restart = lambda key: pgd(
      ...     loss, jnp.ones((4, 2)), eps=0.3, step_size=0.01, num_steps=9, key=key
      ... )
      >>> runs = jax.vmap(restart)(jax.random.split(jax.random.key(0), 5))
      >>> bool((strongest(runs).loss == runs.loss.max(0)).all())
      True
    """
    x, loss, robust = attacks
    if jnp.ndim(loss) != 2 or x.shape[:2] != loss.shape or len(loss) == 0:
        raise ValueError(
            f"attacks hold x {describe(x)} and loss {describe(loss)}; wanted one or "
            "more attacks stacked on axis 0, x (R, B, ...) and loss (R, B): "
            "jax.vmap the attack over keys."
        )
    best = jnp.argmax(jnp.where(jnp.isnan(loss), -jnp.inf, loss), axis=0)
    inputs = jnp.arange(loss.shape[1])
    return Attack(
        x=x[best, inputs],
        loss=loss[best, inputs],
        robust=None if robust is None else robust.all(axis=0),
    )


def where_input(mask: jax.Array, yes: Any, no: Any) -> Any:
    """`jnp.where` with one decision an input, on all arrays of a pytree.

    Args:
      mask: (B,) bool.
      yes: Pytree of (B, ...), taken where `mask` holds.
      no: Pytree like `yes`, taken elsewhere.

    Returns:
      A pytree like `yes`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxmethods.robust.attack import where_input
      >>> where_input(jnp.array([True, False]), jnp.ones((2, 2)), jnp.zeros((2, 2)))
      Array([[1., 1.],
             [0., 0.]], dtype=float32)
    """

    def choose(yes, no):
        return jnp.where(mask.reshape(*mask.shape, *(1,) * (yes.ndim - 1)), yes, no)

    return jax.tree.map(choose, yes, no)


def ascent(fn: Callable, x: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
    """Per-input losses and the gradient of their sum.

    The sum, not the mean: an input is attacked alone as it is in a batch.

    Args:
      fn: x -> (losses (B,), anything).
      x: (B, ...) floating.

    Returns:
      The losses, the second output of `fn`, and the gradient, shaped like `x`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxmethods.robust.attack import ascent
      >>> ascent(lambda x: ((x**2).sum(1), None), jnp.ones((2, 1)))[2]
      Array([[2.],
             [2.]], dtype=float32)
    """

    def total(x):
        losses, aux = fn(x)
        return losses.sum(), (losses, aux)

    gradient, (losses, aux) = jax.grad(total, has_aux=True)(x)
    return losses, aux, gradient

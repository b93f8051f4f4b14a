"""Steps that an optimizer scales, coordinate by coordinate: a change of variables.

A step against `D grad` with a diagonal D is a plain gradient step in variables u of
which `w = sqrt(D) u`: there the gradient is `sqrt(D) grad`, and inner products are
`grad' . D grad`. So a preconditioned score is the plain one of a loss whose parameters
are stretched by `sqrt(D)`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ..core import check_nonnegative, is_concrete, leaf_paths
from ._checkpoints import Series, check_alike, one_by_one, stack_trees
from ._numbers import as_amounts
from ._task import Loss, Where, choose_parameters


def adam_preconditioner(state: Any, *, b2: float = 0.999, eps: float = 1e-8) -> Any:
    r"""The diagonal by which Adam scales its step, from its optax state.

    .. math:: D = 1 / (\sqrt{v / (1 - b_2^t)} + \epsilon)

    with v the mean of squared gradients after t steps. Pass one such tree a checkpoint
    as `precondition=` to score the steps that Adam took, its momentum aside. The step
    from a checkpoint is scaled by the state after it. A parameter that had no gradient
    yet has v = 0 and the entry 1 / eps, which lets examples that do move it lead.

    Args:
        state: A state of `optax.adam`, `adamw` or another that holds one
            `ScaleByAdamState` (that of `adamax`, which means another thing by it,
            looks the same and is not for this).
        b2: The decay of v that the optimizer was made with, 0 <= b2 < 1.
        eps: Its eps, outside of the root, 0 or more.

    Returns:
        A pytree like the parameters.

    Raises:
        ValueError: No state of Adam is in it, or several; no step was taken; `b2` or
            `eps` out of range.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> params, adam = {"w": jnp.ones(2)}, optax.adam(0.125)
        >>> gradient = {"w": jnp.asarray([0.5, 4.0])}
        >>> _, state = adam.update(gradient, adam.init(params))
        >>> [round(float(x), 3) for x in adam_preconditioner(state)["w"]]
        [2.0, 0.25]

        From training to scores: a step of Adam on the mean loss of two examples, and
        what each of them did to the loss of a third.

        >>> from jaxmethods.influence import tracin
        >>> loss = lambda params, example: (params["w"] @ example[0] - example[1]) ** 2
        >>> train = jnp.eye(2), jnp.asarray([1.5, -2.0])
        >>> test = jnp.ones((1, 2)), jnp.asarray([1.0])
        >>> def step(params, state):
        ...     mean = lambda p: jax.vmap(loss, (None, 0))(p, train).mean()
        ...     updates, state = adam.update(jax.grad(mean)(params), state)
        ...     return optax.apply_updates(params, updates), state
        >>> after, state = jax.jit(step)(params, adam.init(params))
        >>> diagonals = [adam_preconditioner(state)]
        >>> halves = jnp.full(2, 0.5)  # Each is half of the batch.
        >>> scores = tracin(loss)(
        ...     [params], [0.125], train, test, visits=halves, precondition=diagonals
        ... )
        >>> scores.round(3).tolist()
        [[-0.25, 0.25]]

    References:
        Kingma, Ba (2015), Adam: A Method for Stochastic Optimization, arXiv 1412.6980.
        Xia et al. (2024), LESS: Selecting Influential Data for Targeted Instruction
        Tuning, arXiv 2402.04333, whose form has eps inside the root and no correction.
    """
    check_nonnegative(eps, "eps")
    check_nonnegative(b2, "b2")
    if is_concrete(b2) and b2 >= 1:
        raise ValueError(f"b2 is {b2}; wanted 0 <= b2 < 1, as given to optax.adam.")

    def is_adam(node: Any) -> bool:
        return isinstance(node, optax.ScaleByAdamState)

    found = [x for x in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(x)]
    if len(found) != 1:
        raise ValueError(
            f"the state is a {type(state).__name__} with {len(found)} states of Adam "
            "in it; wanted one: pass the state of optax.adam or a part of yours."
        )
    count, squares = found[0].count, found[0].nu
    if is_concrete(count) and count < 1:
        raise ValueError("count is 0: Adam has taken no step; wanted 1 or more.")
    correction = 1 - b2**count
    return jax.tree.map(lambda v: 1 / (jnp.sqrt(v / correction) + eps), squares)


def stretch(loss: Loss) -> Loss:
    """The loss of `(params, scale)`: its gradients in params are scaled."""

    def stretched(params_and_scale: Any, example: Any) -> jax.Array:
        def leaf(x: jax.Array, scale: jax.Array) -> jax.Array:
            if not jnp.issubdtype(x.dtype, jnp.floating):
                return x
            still = lax.stop_gradient(x)
            return still + scale.astype(x.dtype) * (x - still)

        return loss(jax.tree.map(leaf, *params_and_scale), example)

    return stretched


def stretched_where(where: Where, params: Any) -> Where:
    """The choice of the same parameters in `(params, scale)`."""
    paths = leaf_paths(params)
    chosen = {paths[i] for i in choose_parameters(where, params)}
    return lambda path: path[0] == 0 and path[1:] in chosen


def stack_stretched(params: Any, precondition: Any) -> tuple[Any, Any]:
    """Stacked parameters and the scales that stretch them, stacked as well."""
    diagonal, _ = stack_trees(precondition)
    return params, _scale(diagonal, params)


def series_stretched(series: Series, precondition: Any) -> Series:
    """Parameters and the scales that stretch them, one checkpoint at a time."""
    diagonals = one_by_one(precondition)
    if diagonals.count != series.count:
        raise ValueError(
            f"precondition has {diagonals.count} trees for {series.count} checkpoints; "
            "wanted one a checkpoint."
        )

    def at(k: int) -> tuple[Any, Any]:
        params = series.at(k)
        return params, _scale(diagonals.at(k), params)

    return Series(series.count, at)


def _scale(diagonal: Any, params: Any) -> Any:
    check_alike(diagonal, params, "precondition", "the checkpoints")
    for path, x in zip(leaf_paths(diagonal), jax.tree.leaves(diagonal), strict=True):
        as_amounts(x, f"precondition {path}")
    return jax.tree.map(jnp.sqrt, diagonal)

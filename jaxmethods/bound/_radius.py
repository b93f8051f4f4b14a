"""The largest ball round an input on which a classifier provably keeps its label.

One loop brackets the radius and bisects it, so that the bound is traced once: steps of
2, 4, 16, ... up or down until one end is certified and the other is not, then halves of
the ratio between them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core import check_choice
from ._balls import check_arrays
from ._intersection import is_within
from ._margins import margins
from ._methods import alpha_crown, crown, crown_ibp, forward, ibp
from ._sets import Ball, Set, cut_off

METHODS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "ibp": ibp,
    "forward": forward,
    "crown_ibp": lambda fn: crown_ibp(fn, side="lower"),
    "crown": lambda fn: crown(fn, side="lower"),
    "alpha_crown": lambda fn: alpha_crown(fn, side="lower"),
}
_RELATIVE = 5e-4  # how far apart the two ends of the bracket may stay


def radius(
    fn: Callable[[Any], Any],
    x: Any,
    label: Any,
    *,
    p: float = jnp.inf,
    method: str = "crown",
    bounds: tuple[Any, Any] | None = None,
) -> jax.Array:
    """The radius up to which a classifier provably keeps its label.

    No point within it gets another label. Of the radii that the method certifies it is
    the largest, to within 0.1 % from below. Runs some 15 bounds, all of them one
    compiled loop; not differentiable.

    Args:
        fn: From one example to logits (n,).
        x: The example, an array or a pytree of arrays, floating; batch with `vmap`.
        label: int in 0..n-1; may be traced.
        p: The norm of the ball: 1, 2 or inf.
        method: "ibp", "forward", "crown_ibp", "crown" or "alpha_crown".
        bounds: If given, the least and the largest value of an entry, such as (0, 1):
            only points between them count.

    Returns:
        A scalar of the dtype of x; 0 where x itself gets another label.

    Raises:
        ValueError: An unknown method or norm, logits that are no vector of two classes
            or more, an x without arrays, `bounds` that are no pair; where the values
            are concrete, a label that is no class, an x that is not finite or outside
            of `bounds`.
        TypeError: x or the logits are not floating, or the label is no integer.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> fn = lambda x: jnp.array([[1.0, 0.0], [0.0, 1.0]]) @ x
        >>> x = jnp.array([3.0, 1.0])
        >>> [round(float(bound.radius(fn, x, 0, p=p)), 1) for p in (1, 2, jnp.inf)]
        [2.0, 1.4, 1.0]

    References:
        Weng et al. 2018, arXiv:1804.09699; Shi et al. 2020, arXiv:2002.06622.
    """
    check_choice(method, tuple(METHODS), "method")
    rows = margins(fn, label)
    lower = METHODS[method](rows)

    def region(eps: Any) -> Set:
        return cut_off(Ball(x, eps, p), bounds)

    check_arrays(x, "x")
    smallest = region(0.0)
    within = is_within(x, bounds)
    smallest.check()
    is_correct = within & jnp.all(rows(x) > 0)
    return largest_radius(
        lambda eps: jnp.all(lower(region(eps)).lower > 0), x, is_correct
    )


def largest_radius(
    certified: Callable[[jax.Array], jax.Array], x: Any, is_correct: jax.Array
) -> jax.Array:
    """The largest radius that is certified, up to 1 in 1000 and from below.

    Args:
        certified: From a radius, a scalar, to whether it is.
        x: The values that are perturbed: where to start, and of which dtype.
        is_correct: Whether radius 0 is certified; the result is 0 if not.
    """
    leaves = jax.tree.leaves(x)
    dtype = jnp.result_type(*leaves)
    scale = jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]).max()
    most = jnp.asarray(float(jnp.finfo(dtype).max) ** 0.25, dtype)
    start = jnp.where(scale > 0, scale / 8, 1).astype(dtype)

    def trial(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        low, high, factor = state
        up = jnp.where(low > 0, low * factor, start)
        between = jnp.where(low > 0, jnp.sqrt(low) * jnp.sqrt(high), high / factor)
        return jnp.where(jnp.isinf(high), up, between)

    def is_open(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        low, high, _ = state
        eps = trial(state)
        return (low < eps) & (eps < high) & (high > low * (1 + _RELATIVE))

    def step(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        low, high, factor = state
        eps = trial(state)
        holds = certified(eps)
        is_first = (low == 0) & jnp.isinf(high)
        grown = jnp.minimum(factor * factor, most)
        return (
            jnp.where(holds, eps, low),
            jnp.where(holds, high, eps),
            jnp.where(is_first, factor, grown),
        )

    # All are made from the operands, so that in shard_map they vary as those do.
    high = jnp.where(is_correct, jnp.inf, 0).astype(dtype) + 0 * start
    low = jnp.where(is_correct, jnp.zeros_like(high), 0)
    factor = jnp.where(is_correct, jnp.full_like(high, 2), 2)
    return jax.lax.while_loop(is_open, step, (low, high, factor))[0]

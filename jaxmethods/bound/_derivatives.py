"""Bounds of derivatives: how fast a function changes on a set, and in which direction.

The derivative of a function is a function, so a bound transform applies to it as well.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import check_choice, check_nonnegative, describe
from ._balls import check_norm
from ._bounds import Bounds
from ._methods import crown, crown_ibp, forward, ibp
from ._products import without_nan
from ._rounding import largest, unit
from ._sets import Box, Set, Substitutions, is_set, safe_sqrt

METHODS: dict[str, Callable[[Callable[..., Any]], Callable[..., Bounds]]] = {
    "ibp": ibp,
    "forward": forward,
    "crown_ibp": crown_ibp,
    "crown": crown,
}


class Monotonicity(NamedTuple):
    """In which direction each output depends on each input, on a set.

    Attributes:
        increasing: Whether the output never falls as the input grows, proven but for
            slopes within the tolerance; pytrees as fn's result, in each leaf one like
            the set's, of bool arrays out_shape + set_shape.
        decreasing: As `increasing`, whether it never grows. Both where it does not
            depend on the input; neither where the direction is unknown.
    """

    increasing: Any
    decreasing: Any


def lipschitz(
    fn: Callable[[Any], Any], *, p: float = jnp.inf, method: str = "ibp"
) -> Callable[[Set], Any]:
    """How fast each output can change on a set: a certified local Lipschitz constant.

        |fn(x)_i - fn(y)_i| <= L_i ||x - y||_p  for all x, y in the set,

    with L_i the largest dual norm of a row within the bounds of the Jacobian. The
    maximum over i is a constant of fn from the p to the inf norm.

    Args:
        fn: A function of one array or pytree of arrays, differentiable but for kinks.
        p: The norm in which inputs change: 1, 2 or inf, over all arrays of the set.
        method: How the Jacobian is bounded: "ibp", "forward", "crown_ibp" or "crown".

    Returns:
        `constants(region) -> L`, like fn's result, at least 0; inf where nothing is
        known. What lies between two sentences of `Substitutions` counts as well.

    Raises:
        ValueError: An unknown norm or method; at the call, no set.
        TypeError: At the call, a result is not floating.
        NotImplementedError: At the call, a derivative has an operation without a rule.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> fn = lambda x: jnp.stack([3 * x[0] - x[1], jnp.sin(x[0])])
        >>> constants = bound.lipschitz(fn)(bound.Ball(jnp.array([1.0, 0.0]), 0.1))
        >>> print(constants.round(2), bool(constants[1] >= jnp.cos(0.9)))
        [4.   0.62] True

    References:
        Shi, Wang, Zhang, Kolter, Hsieh. Efficiently computing local Lipschitz constants
        of neural networks via bound propagation. NeurIPS 2022, arXiv:2210.07394.
    """
    check_norm(p, "p")
    check_choice(method, tuple(METHODS), "method")

    @functools.wraps(fn)
    def constants(region: Set) -> Any:
        outputs, slopes = _slopes(fn, region, method)
        norms = [
            _dual_norm([largest(s) for s in row], leaf.ndim, p)
            for leaf, row in zip(jax.tree.leaves(outputs), slopes, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(outputs), norms)

    return constants


def monotonicity(
    fn: Callable[[Any], Any], *, method: str = "ibp", tolerance: float = 1e-5
) -> Callable[[Set], Monotonicity]:
    """Which outputs rise or fall with which inputs, on a set.

    Args:
        fn: A function of one array or pytree of arrays, differentiable but for kinks.
        method: How the Jacobian is bounded: "ibp", "forward", "crown_ibp" or "crown".
        tolerance: A slope that is smaller than this share of the output's largest one
            counts as none: bounds are rounded outward, so that a slope of 0 seldom gets
            0 exactly. 0 for a proof without exception.

    Returns:
        `directions(region) -> Monotonicity`.

    Raises:
        ValueError: An unknown method, a negative tolerance; at the call, no set.
        TypeError: The tolerance is no number; at the call, a result is not floating.
        NotImplementedError: At the call, a derivative has an operation without a rule.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> fn = lambda x: jax.nn.relu(x[:1]) - 2 * x[1:2] + x[2:] ** 2
        >>> found = bound.monotonicity(fn)(bound.Ball(jnp.zeros(3), 1.0))
        >>> print(found.increasing, found.decreasing)
        [[ True False False]] [[False  True False]]

    References:
        Liu, Han, Zhang, Liu. Certified monotonic neural networks. NeurIPS 2020,
        arXiv:2011.10219.
    """
    check_choice(method, tuple(METHODS), "method")
    check_nonnegative(tolerance, "tolerance")

    @functools.wraps(fn)
    def directions(region: Set) -> Monotonicity:
        outputs, slopes = _slopes(fn, region, method)
        inputs = jax.tree.structure(region.placeholder)
        signs = [
            _signs(row, leaf.ndim, tolerance)
            for leaf, row in zip(jax.tree.leaves(outputs), slopes, strict=True)
        ]
        treedef = jax.tree.structure(outputs)
        return Monotonicity(
            *(
                treedef.unflatten([inputs.unflatten(pair[side]) for pair in signs])
                for side in (0, 1)
            )
        )

    return directions


def _slopes(
    fn: Callable[[Any], Any], region: Set, method: str
) -> tuple[Any, list[list[Bounds]]]:
    """The shapes of fn's result and, by its leaves and those of x, its Jacobian.

    Each entry is an interval of shape out_shape + set_shape.
    """
    if not is_set(region):
        raise ValueError(
            f"got {describe(region)}; wanted one set such as Ball(center, radius)."
        )
    region.check()
    if isinstance(region, Substitutions):  # between its points there are others
        (ends,) = region.hull()
        region = Box(*ends)
    x = region.placeholder
    outputs = jax.eval_shape(fn, x)
    for leaf in jax.tree.leaves(outputs):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"got a function that returns {describe(leaf)}; wanted floating "
                "results: integers and truth values have no derivative."
            )
    num_out, num_in = (
        sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (outputs, x)
    )
    derivative = jax.jacrev if num_out <= num_in else jax.jacfwd
    found = METHODS[method](derivative(fn))(region)
    flat = [
        without_nan(Bounds(*ends))
        for ends in zip(*map(jax.tree.leaves, found), strict=True)
    ]
    num = len(jax.tree.leaves(x))
    return outputs, [flat[i : i + num] for i in range(0, len(flat), num)]


def _dual_norm(sizes: list[jax.Array], num_axes: int, p: float) -> jax.Array:
    """The norm dual to p of nonnegative rows over several arrays, rounded up."""
    flat = [x.reshape(*x.shape[:num_axes], -1) for x in sizes]
    row = jnp.concatenate(flat, axis=-1)
    if p == 1:
        return jnp.max(row, axis=-1)
    total = jnp.sum(row if p == jnp.inf else row * row, axis=-1)
    total = total * (1 + unit(row.shape[-1], row.dtype))
    return total if p == jnp.inf else safe_sqrt(total) * (1 + unit(4, row.dtype))


def _signs(
    row: list[Bounds], num_axes: int, tolerance: float
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Whether each slope of an output is at least 0, and whether at most 0."""
    slack = tolerance * _dual_norm([largest(s) for s in row], num_axes, 1)

    def spread(s: Bounds) -> jax.Array:
        return slack.reshape(*slack.shape, *[1] * (s.lower.ndim - num_axes))

    rising = [s.lower >= -spread(s) for s in row]
    return rising, [s.upper <= spread(s) for s in row]

"""The certified margin of a weighted ensemble, from the linear bounds of its members.

Where the members' lower bounds of a margin are `a_t . x + b_t`, that of their weighted
sum is `sum_t w_t (a_t . x + b_t)`, and over a ball its least value

    g(w) = sum_t w_t (a_t . x + b_t) - eps || sum_t w_t a_t ||,

with the dual norm: concave in w, and never below the weighted sum of the members' own
bounds, since slopes of different members cancel in part.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import (
    check_floating,
    check_nonnegative,
    describe,
    is_concrete,
)
from ._balls import check_norm, safe_sqrt
from ._margins import margins
from ._methods import linear_bounds
from ._rounding import unit
from ._sets import Ball


class Members(NamedTuple):
    """The members' bounds of E examples' C margins, in D inputs and T members.

    Attributes:
        center: (E, C, T), at the centers of the balls, less what rounding may lose.
        slopes: (E, C, T, D), times eps.
    """

    center: jax.Array
    slopes: jax.Array


def member_lines(
    fns: Sequence[Callable[[Any], Any]],
    x: Any,
    labels: Any,
    eps: Any,
    *,
    p: float = jnp.inf,
    method: str = "crown",
) -> tuple[jax.Array, jax.Array]:
    """Linear lower bounds of the margins of several classifiers over balls.

    The balls are whole ones: pixels may leave [0, 1], where no attack may.

    Args:
        fns: Classifiers, each from one example to logits (n,); their parameters are
            closed over, and their architectures may differ.
        x: (E, *in), floating: E examples.
        labels: int (E,).
        eps: The radius of the balls round the examples, a finite scalar >= 0.
        p: The norm of the balls: 1, 2 or inf.
        method: "crown", "crown_ibp" or "forward".

    Returns:
        Slopes (E, n - 1, T, *in) and biases (E, n - 1, T) of the T members, as
        `ensemble_margin` and `fit_weights` take them.

    Raises:
        ValueError: No classifiers, classifiers of different numbers of classes; where
            values are concrete, a label that is none of the classes, an x that is not
            finite; else as `linear_bounds` and `margins`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods.bound import ensemble
        >>> fns = [lambda x: x[:2], lambda x: x[:2] @ jnp.eye(2)[::-1]]
        >>> x, labels = jnp.ones((5, 2)), jnp.zeros(5, int)
        >>> slopes, biases = ensemble.member_lines(fns, x, labels, 0.1)
        >>> slopes.shape, biases.shape
        ((5, 1, 2, 2), (5, 1, 2))
    """
    fns = list(fns)
    if not fns:
        raise ValueError("fns are empty; wanted at least one classifier.")
    check_norm(p, "p")
    _check_radius(eps)
    x = check_floating(x, "x")
    if is_concrete(x) and not np.isfinite(np.asarray(x, np.float64)).all():
        raise ValueError("x holds NaN or infinity; wanted finite values.")
    labels = jnp.asarray(labels)
    if not x.ndim or labels.shape != x.shape[:1]:
        raise ValueError(
            f"labels are {describe(labels)} for x {describe(x)}; wanted one label for "
            "each example, x[i]."
        )
    lines = []
    for fn in fns:

        def of_one(example: Any, label: Any, fn: Any = fn) -> Any:
            planes = linear_bounds(margins(fn, label), method=method)
            return planes(Ball(example, eps, p))

        lines.append(jax.vmap(of_one)(x, labels))
    counts = [each.lower_bias.shape[1] + 1 for each in lines]
    if len(set(counts)) > 1:
        raise ValueError(
            f"fns have {counts} classes; wanted the same number for every member."
        )
    _check_labels(labels, counts[0])
    return (
        jnp.stack([each.lower_slope for each in lines], 2),
        jnp.stack([each.lower_bias for each in lines], 2),
    )


def _check_labels(labels: jax.Array, num_classes: int) -> None:
    if not is_concrete(labels):
        return
    values = np.asarray(labels)
    wrong = values[(values < 0) | (values >= num_classes)]
    if wrong.size:
        raise ValueError(
            f"labels hold {wrong[0]} for {num_classes} classes; wanted "
            f"0..{num_classes - 1}."
        )


def averaged(
    fns: Sequence[Callable[[Any], Any]], weights: Any
) -> Callable[[Any], jax.Array]:
    """The ensemble as one function, `sum_t w_t f_t(x)`.

    `crown(margins(averaged(fns, weights), label))` bounds it as one graph, for as much
    work as bounding every member anew. Of nets of rectifiers that finds what
    `ensemble_margin` does, but for roundings; `alpha_crown` chooses slopes for the
    weighted sum and can find more.

    Args:
        fns: T functions of the same argument, with outputs of the same shape.
        weights: floating (T,).

    Returns:
        A function like each of `fns`.

    Raises:
        ValueError: Not one weight for each function.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods.bound import ensemble
        >>> float(ensemble.averaged([jnp.sin, jnp.cos], jnp.array([0.5, 0.5]))(0.0))
        0.5
    """
    weights, fns = check_floating(weights, "weights"), list(fns)
    if not fns or weights.shape != (len(fns),):
        raise ValueError(
            f"weights are {describe(weights)} for {len(fns)} functions; wanted one for "
            "each function, at least one."
        )
    first, *others = zip(weights, fns, strict=True)

    def whole(x: Any) -> jax.Array:
        total = first[0] * first[1](x)
        for weight, fn in others:
            total += weight * fn(x)
        return total

    return whole


def ensemble_margin(
    weights: Any, slopes: Any, biases: Any, x: Any, eps: Any, *, p: float = jnp.inf
) -> jax.Array:
    """A lower bound of the margins of a weighted ensemble over balls.

    No point of the ball round x[e] gives the weighted sum of the members a margin over
    class c below the result [e, c]: it is rounded outward. It is concave in the
    weights, and scales with them. Works under `jit`, `vmap` and `grad`.

    Half precision is computed in float32, and the result rounded downward to the dtype
    of the arguments. Numbers below the normal ones of the dtype that is computed in
    (1e-38 in float32) count as 0.

    Args:
        weights: floating (T,), not negative; sums other than 1 scale the margin.
        slopes: floating (E, C, T, *in), of lower bounds `slopes . x + biases` that hold
            over the balls: of `member_lines` with the same x, eps and p.
        biases: floating (E, C, T).
        x: floating (E, *in), the centers of the balls.
        eps: Their radius, a finite scalar >= 0.
        p: Their norm: 1, 2 or inf.

    Returns:
        Margins (E, C).

    Raises:
        TypeError: An array that is not floating.
        ValueError: Shapes that do not fit, an unknown norm; where the values are
            concrete, a negative eps or weight, or bounds that are not finite, with the
            model and the example.

    Complexity:
        One pass over the slopes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods.bound import ensemble
        >>> slopes = jnp.array([[[[1.0, 0.0], [-1.0, 0.5]]]])  # one margin, two members
        >>> lines = slopes, jnp.ones((1, 1, 2)), jnp.zeros((1, 2))
        >>> for weights in jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]):
        ...     print(f"{ensemble.ensemble_margin(weights, *lines, 0.5)[0, 0]:.3f}")
        0.500
        0.250
        0.875

    References:
        Zhang, Cheng, Hsieh 2019, arXiv:1910.14655.
    """
    members = checked_members(slopes, biases, x, eps, p)
    weights = check_floating(weights, "weights")
    dtype = jnp.result_type(*map(jnp.asarray, (slopes, biases, x)), weights)
    size = members.center.shape[2]
    if weights.shape != (size,):
        raise ValueError(
            f"weights are {describe(weights)} for slopes of {size} models; wanted "
            f"({size},)."
        )
    if is_concrete(weights) and not bool(np.all(np.asarray(weights) >= 0)):
        raise ValueError(
            f"weights are {weights}; wanted none below 0: lower bounds of a model are "
            "no lower bounds of minus the model."
        )
    wide = jnp.promote_types(dtype, members.center.dtype)
    return _downward(margin(weights.astype(wide), members, p), dtype)


def _downward(value: jax.Array, dtype: Any) -> jax.Array:
    """A value in a dtype of no more digits, not above it."""
    if value.dtype == dtype:
        return value
    kind = jnp.finfo(dtype)
    # Twice what rounding to nearest loses; what is too large becomes the largest.
    lost = float(kind.eps) * jnp.abs(value) + float(kind.tiny)
    value = jnp.minimum(value - jax.lax.stop_gradient(lost), float(kind.max))
    return value.astype(dtype)


def margin(weights: jax.Array, members: Members, p: float) -> jax.Array:
    """`ensemble_margin` of what has been checked."""
    slopes = jnp.einsum("ectd,t->ecd", members.slopes, weights)
    return members.center @ weights - dual_norm(slopes, p)


def dual_norm(rows: jax.Array, p: float) -> jax.Array:
    """The norm dual to p of the last axis."""
    if p == 1:
        return jnp.abs(rows).max(-1)
    if p == 2:
        # The largest entry outside, so that no square overflows.
        size = jax.lax.stop_gradient(jnp.abs(rows).max(-1))
        size = jnp.where(size > 0, size, 1)
        return size * safe_sqrt(jnp.square(rows / size[..., None]).sum(-1))
    return jnp.abs(rows).sum(-1)


def checked_members(slopes: Any, biases: Any, x: Any, eps: Any, p: float) -> Members:
    """The members' bounds at the centers, or an error about an argument."""
    check_norm(p, "p")
    _check_radius(eps)
    slopes = check_floating(slopes, "slopes")
    biases = check_floating(biases, "biases")
    x = check_floating(x, "x")
    if slopes.ndim < 4 or 0 in slopes.shape:
        raise ValueError(
            f"slopes are {describe(slopes)}; wanted (examples, margins, models, "
            "*inputs), none of them 0."
        )
    if biases.shape != slopes.shape[:3]:
        raise ValueError(
            f"biases are {describe(biases)} for slopes {describe(slopes)}; wanted "
            f"{slopes.shape[:3]}."
        )
    if x.shape != (slopes.shape[0], *slopes.shape[3:]):
        raise ValueError(
            f"x is {describe(x)} for slopes {describe(slopes)}; wanted "
            f"{(slopes.shape[0], *slopes.shape[3:])}."
        )
    dtype = jnp.promote_types(jnp.result_type(slopes, biases, x), jnp.float32)
    slopes = slopes.reshape(*biases.shape, -1).astype(dtype)
    x = x.reshape(len(x), -1).astype(dtype)
    biases, eps = biases.astype(dtype), jnp.asarray(eps, dtype)
    members = _members(slopes, biases, x, eps, p)
    _check_finite(members)
    return members


def _check_radius(eps: Any) -> None:
    check_nonnegative(eps, "eps")
    if np.shape(eps):
        raise ValueError(
            f"eps is {describe(eps)}; wanted one number, the radius round all examples."
        )
    if is_concrete(eps) and not np.isfinite(np.asarray(eps, np.float64)):
        raise ValueError(f"eps is {eps}; wanted a finite number.")


def _check_finite(members: Members) -> None:
    for part in members:
        if not is_concrete(part):
            continue
        bad = np.argwhere(~np.isfinite(np.asarray(part)))
        if len(bad):
            example, _, model = bad[0][:3]
            raise ValueError(
                f"the bounds of model {model} on example {example} are not finite, or "
                f"x there is not; {len(bad)} such numbers in all: leave them out."
            )


def _members(
    slopes: jax.Array, biases: jax.Array, x: jax.Array, eps: jax.Array, p: float
) -> Members:
    center = jnp.einsum("ectd,ed->ect", slopes, x) + biases
    terms = jnp.einsum("ectd,ed->ect", jnp.abs(slopes), jnp.abs(x)) + jnp.abs(biases)
    scaled = eps * slopes
    num_terms = math.prod(slopes.shape[2:]) + 2
    # What sums over inputs and over models lose: linear in the weights.
    lost = unit(num_terms, slopes.dtype) * (terms + dual_norm(scaled, p))
    return Members(center - jax.lax.stop_gradient(lost), scaled)

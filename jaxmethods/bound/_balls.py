"""Balls and boxes: what may be said about them exactly."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import (
    check_choice,
    check_floating,
    check_nonnegative,
    describe,
    is_concrete,
)
from ._bounds import Bounds
from ._rows import Rows, extreme, folded

NORMS = (1, 2, np.inf)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Ball:
    """All points within a distance of a centre, in the l1, l2 or linf norm.

    {x : ||x - center||_p <= radius}. With p < inf the norm runs over all arrays of
    `center` together: give each array its own `Ball` for one ball an array.

    Args:
        center: An array or a pytree of arrays, floating.
        radius: At least 0. A scalar; for p = inf also one number an element: an array
            that broadcasts to `center`, or a pytree like it.
        p: 1, 2 or inf. Static: a number, not an array.

    Raises:
        ValueError: When bounds are asked for: p is no such norm; `center` holds no
            array; the radius does not fit it; the radius is negative or the center not
            finite, where the values are concrete.
        TypeError: When bounds are asked for: `center` is not floating, or the radius no
            real number.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> ball = bound.Ball(jnp.array([1.0, 2.0]), 0.5)
        >>> bounds = bound.ibp(lambda x: -x)(ball)
        >>> print(bounds.lower)
        [-1.5 -2.5]
    """

    center: Any
    radius: Any
    p: Any = field(default=jnp.inf, metadata=dict(static=True))

    def check(self) -> None:
        """Raises unless the ball is valid."""
        check_norm(self.p, "p of a Ball")
        check_arrays(self.center, "center of a Ball")
        own, wanted = map(jax.tree.structure, (self.radius, self.center))
        is_one = jax.tree_util.all_leaves((self.radius,))
        if not is_one and own != wanted:
            raise ValueError(
                f"radius and center of a Ball are built as {own} and {wanted}; wanted "
                "the same structure, or one radius for all."
            )
        for leaf in jax.tree.leaves(self.radius):
            check_nonnegative(leaf, "radius of a Ball")
        if self.p != jnp.inf and not (is_one and np.shape(self.radius) == ()):
            got = f"shape {np.shape(self.radius)}" if is_one else f"a structure {own}"
            raise ValueError(
                f"radius of a Ball with p = {self.p} has {got}; wanted a scalar: a "
                "radius per element needs p = inf."
            )
        for leaf, radius in self._pairs():
            shape, wanted = np.shape(radius), np.shape(leaf)
            if not broadcasts(shape, wanted):
                raise ValueError(
                    f"radius of a Ball has shape {shape}; wanted one that broadcasts "
                    f"to the center's {wanted}."
                )

    def _pairs(self) -> list[tuple[Any, Any]]:
        """Each array of the center with its radius."""
        centers, treedef = jax.tree.flatten(self.placeholder)
        radii = [self.radius] * len(centers)
        if jax.tree.structure(self.radius) == treedef:
            radii = jax.tree.leaves(self.radius)
        return list(zip(centers, radii, strict=True))

    @property
    def placeholder(self) -> Any:
        """A member of the ball, with the structure that the function expects."""
        return jax.tree.map(jnp.asarray, self.center)

    def hull(self) -> list[Bounds]:
        """The smallest interval round each array of the ball."""
        ends = []
        for center, radius in self._pairs():
            spread = jnp.broadcast_to(jnp.asarray(radius, center.dtype), center.shape)
            ends.append(Bounds(center - spread, center + spread))
        return ends

    def minimum(self, rows: Sequence[Rows | None]) -> jax.Array:
        """The least value over the ball of linear functions, by the dual norm.

        Args:
            rows: For each array of the ball its coefficients, or None for zero.

        Returns:
            One number a row.
        """
        if self.p == jnp.inf:
            return minimum_of_box(rows, self.hull())
        centers = jax.tree.leaves(self.placeholder)
        pairs = [(r, c) for r, c in zip(rows, centers, strict=True) if r is not None]
        middle = sum(r.inner(c) for r, c in pairs)
        return middle - self.radius * _dual_norm([r for r, _ in pairs], self.p)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Box:
    """All points between two ends, elementwise.

    Args:
        lower: An array or a pytree of arrays, floating.
        upper: The same structure and shapes, at least `lower`; ends may be equal.

    Raises:
        ValueError: When bounds are asked for: structures or shapes differ; there is no
            array; an end is not finite or `lower` exceeds `upper`, where the values are
            concrete.
        TypeError: When bounds are asked for: an end is not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> box = bound.Box(jnp.array([0.0, 1.0]), jnp.array([2.0, 1.0]))
        >>> round(float(bound.ibp(lambda x: x.sum())(box).upper), 3)
        3.0
    """

    lower: Any
    upper: Any

    def check(self) -> None:
        """Raises unless the box is valid."""
        own, other = map(jax.tree.structure, (self.lower, self.upper))
        if own != other:
            raise ValueError(
                f"lower and upper of a Box are built as {own} and {other}; wanted the "
                "same structure."
            )
        check_arrays(self.lower, "lower of a Box")
        check_arrays(self.upper, "upper of a Box")
        low, high = jax.tree.leaves(self.lower), jax.tree.leaves(self.upper)
        if [np.shape(a) for a in low] != [np.shape(a) for a in high]:
            raise ValueError(
                f"lower and upper of a Box have shapes {list(map(np.shape, low))} and "
                f"{list(map(np.shape, high))}; wanted the same."
            )
        for a, b in zip(low, high, strict=True):
            known = is_concrete(a) and is_concrete(b)
            if known and np.any(np.asarray(a) > np.asarray(b)):
                raise ValueError(
                    "lower of a Box exceeds upper by "
                    f"{np.max(np.asarray(a) - np.asarray(b)):.3g}; wanted lower <= "
                    "upper everywhere."
                )

    @property
    def placeholder(self) -> Any:
        """A member of the box, with the structure that the function expects."""
        return jax.tree.map(jnp.asarray, self.lower)

    def hull(self) -> list[Bounds]:
        """The box itself, array by array."""
        low, high = jax.tree.leaves(self.lower), jax.tree.leaves(self.upper)
        return [
            Bounds(jnp.asarray(a), jnp.asarray(b, jnp.asarray(a).dtype))
            for a, b in zip(low, high, strict=True)
        ]

    def minimum(self, rows: Sequence[Rows | None]) -> jax.Array:
        """The least value over the box of linear functions; see `Ball.minimum`."""
        return minimum_of_box(rows, self.hull())


def safe_sqrt(x: jax.Array) -> jax.Array:
    """The square root, with derivative 0 instead of infinity at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _dual_norm(rows: Sequence[Rows], p: float) -> jax.Array:
    """The norm dual to p = 1 or 2 of rows over several arrays: shape (R,)."""
    if p == 1:
        return functools.reduce(
            jnp.maximum, (folded(r, jnp.abs, _largest) for r in rows)
        )
    squares = [folded(r, jnp.square, jnp.sum) for r in rows]
    return safe_sqrt(functools.reduce(jnp.add, squares))


def _largest(x: jax.Array, axis: Any) -> jax.Array:
    return jnp.max(x, axis=axis, initial=0.0)


def minimum_of_box(rows: Sequence[Rows | None], ends: Sequence[Bounds]) -> Any:
    """The least value over a box of linear functions: one number a row."""
    pairs = zip(rows, ends, strict=True)
    return sum(extreme(r, b.lower, b.upper) for r, b in pairs if r is not None)


def broadcasts(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether an array of a shape broadcasts to another shape."""
    try:
        return np.broadcast_shapes(shape, wanted) == wanted
    except ValueError:
        return False


def check_norm(p: Any, name: str) -> None:
    """Raises ValueError unless `p` is a norm; an array could not be static."""
    if isinstance(p, bool) or not isinstance(p, int | float | np.number):
        raise ValueError(
            f"{name} is {describe(p)}; wanted a number, one of {list(NORMS)}."
        )
    check_choice(p, NORMS, name)


def check_arrays(tree: Any, name: str) -> None:
    """Raises unless a pytree holds arrays, and `check_finite` accepts them all."""
    leaves = jax.tree.leaves(tree)
    if not leaves:
        raise ValueError(
            f"{name} is {describe(tree)}, without an array; wanted at least one."
        )
    for leaf in leaves:
        check_finite(leaf, name)


def check_finite(x: Any, name: str) -> None:
    """Raises unless `x` is floating, not empty and, where concrete, finite."""
    array = check_floating(x, name)
    if not array.size:
        raise ValueError(
            f"{name} is {describe(array)}, without entries; wanted at least one: pass "
            "empty arrays as they are."
        )
    if is_concrete(array) and not bool(np.all(np.isfinite(np.asarray(array)))):
        raise ValueError(f"{name} holds NaN or infinity; wanted finite values.")

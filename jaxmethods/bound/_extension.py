"""Functions whose bounds their author knows: any function, monotone, S-shaped.

Each becomes one equation that behaves as the function in every transform of JAX and
that a bound takes as one operation.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from ..core import Node, annotated_call, describe, source_line
from . import _lines as lines
from . import _univariate as univariate
from ._planes import Lines, Planes, Relaxation, constant
from ._rounding import outward, unit
from ._sets import Bounds


class CustomBounds:
    """A function with bounds of its own; `custom_bounds` makes it."""

    def __init__(self, fn: Callable[..., Any]):
        """Wraps a function; until `defbounds` is called it is that function."""
        functools.update_wrapper(self, fn)
        self._fn = fn
        self._rules: tuple[Callable[..., Any], Callable[..., Any] | None] | None = None

    def __call__(self, *args: Any) -> Any:
        """The function's result."""
        if self._rules is None:
            return self._fn(*args)
        treedef = jax.tree.structure(args)
        return annotated_call(self._fn, _Custom(*self._rules, treedef), *args)

    def defbounds(
        self, interval: Callable[..., Any], relax: Callable[..., Any] | None = None
    ) -> Callable[..., Any]:
        """Says how to bound the function.

        Args:
            interval: `interval(*operands) -> Bounds`, with ends like the function's
                result. An operand is the argument, with `Bounds` in the place of each
                array that a set reaches.
            relax: `relax(*operands)` returns `Lines` (elementwise functions of one
                array) or `Planes`, whose maps take the arrays that sets reach in order.
                For a function that returns one array. None: the constant ends of the
                interval.

        Returns:
            `interval`, so that this may decorate it.

        Raises:
            TypeError: A rule is not callable.
        """
        for name, rule in (("interval", interval), ("relax", relax)):
            if not callable(rule) and not (rule is None and name == "relax"):
                raise TypeError(
                    f"{name} of the bounds of {self._fn} is {describe(rule)}; wanted a "
                    f"function {name}(*operands)."
                )
        self._rules = interval, relax
        return interval


def custom_bounds(fn: Callable[..., Any]) -> CustomBounds:
    """Lets a function say how it is bounded, as `jax.custom_jvp` lets it derivatives.

    Outside the bound transforms nothing changes: under `jit`, `grad`, `vmap`, `scan`
    and `shard_map` the result is that of `fn`. Mapped by `vmap` inside a function that
    is bounded, the rules are mapped as well; `Planes` then give way to the interval.

    Args:
        fn: A function of arrays, or pytrees of them, positional. It must not close over
            values that a set reaches; its rules must not close over values that the
            bounded function computes: pass both as arguments.

    Returns:
        The function, with a method `defbounds(interval, relax=None)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> @bound.custom_bounds
        ... def distance(x):
        ...     return jnp.sqrt(1 + x * x)
        >>> @distance.defbounds
        ... def _(x):
        ...     size = jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper))
        ...     return bound.Bounds(jnp.ones_like(size), distance(size))
        >>> print(bound.ibp(distance)(bound.Ball(jnp.zeros(1), 0.75)).upper.round(3))
        [1.25]
    """
    return CustomBounds(fn)


def monotone(
    fn: Callable[[jax.Array], jax.Array], *, increasing: bool = True
) -> Callable[[jax.Array], jax.Array]:
    """Marks an elementwise function as one monotone operation.

    Its interval is that of its values at the ends; its lines enclose the steps of its
    values at 17 points.

    Args:
        fn: From one floating array to one of the same shape, each entry of which
            depends on the same entry alone. That it is monotone is not checked.
        increasing: Whether it never falls; else it never rises.

    Returns:
        The function, for use inside functions that are bounded.

    Raises:
        ValueError: When called: the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> step = bound.monotone(lambda x: x * jnp.abs(x))
        >>> box = bound.Box(jnp.array([-1.0]), jnp.array([2.0]))
        >>> print(bound.ibp(step)(box).lower.round(3))
        [-1.]
    """
    return _elementwise(fn, _Elementwise(rises=increasing, is_s_shaped=False))


def s_shaped(fn: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Marks an elementwise function as one S-shaped operation, such as tanh.

    Its interval is that of its values at the ends; its lines are chords and tangents.

    Args:
        fn: As for `monotone`, differentiable; it never falls, is convex below 0 and
            concave above. That it is so is not checked.

    Returns:
        The function, for use inside functions that are bounded.

    Raises:
        ValueError: When called: the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> squash = bound.s_shaped(lambda x: x / jnp.sqrt(1 + x * x))
        >>> ball = bound.Ball(jnp.array([2.0]), 1.0)
        >>> planes = bound.linear_bounds(squash)(ball)
        >>> print(planes.upper_slope.round(3))
        [[0.089]]
    """
    return _elementwise(fn, _Elementwise(rises=True, is_s_shaped=True))


def _elementwise(
    fn: Callable[[jax.Array], jax.Array], annotation: "_Elementwise"
) -> Callable[[jax.Array], jax.Array]:
    @functools.wraps(fn)
    def marked(x: jax.Array) -> jax.Array:
        out = annotated_call(fn, annotation, x)
        if jnp.shape(out) != jnp.shape(x):
            raise ValueError(
                f"a function marked as elementwise made {describe(out)} of "
                f"{describe(x)}; wanted one array of the same shape."
            )
        return out

    return marked


def interval_of_annotated(node: Node, *operands: Any) -> list[Bounds]:
    """The interval of a node whose bounds its author knows."""
    num_consts = node.params["num_consts"]
    if any(isinstance(x, Bounds) for x in operands[:num_consts]):
        raise NotImplementedError(
            f"the function with bounds of its own at {source_line(node.equation)} "
            "closes over a value that a set reaches; wanted such values among its "
            "arguments."
        )
    found = node.params["annotation"].interval(node, *operands)
    for out, ends in zip(node.outputs, found, strict=True):
        for end in ends:
            if jnp.shape(end) != out.shape:
                raise ValueError(
                    f"the rule for the bounds of a function at "
                    f"{source_line(node.equation)} returned an end of shape "
                    f"{jnp.shape(end)}; wanted {out.shape}, as the function's result."
                )
    return found


def relax_annotated(node: Node, operands: Sequence[Any], bounds: Bounds) -> Relaxation:
    """Lines or planes round a node whose bounds its author knows."""
    return node.params["annotation"].relax(node, operands, bounds)


@dataclass(frozen=True)
class _Custom:
    """The rules of a user for one structure of the arguments.

    Attributes:
        interval_rule: The interval.
        relax_rule: Lines or planes; None for those of the interval.
        treedef: The structure of the arguments.
        mapped: For each `vmap` over the function, last one first, the axes of the
            operands and their length.
    """

    interval_rule: Callable[..., Any]
    relax_rule: Callable[..., Any] | None
    treedef: Any
    mapped: tuple[tuple[tuple[int | None, ...], int], ...] = ()

    def batched(self, in_axes: Sequence[int | None], axis_size: int) -> "_Custom":
        return replace(self, mapped=((tuple(in_axes), axis_size), *self.mapped))

    def interval(self, node: Node, *operands: Any) -> list[Bounds]:
        def rule(*leaves: Any) -> Bounds:
            found = self.interval_rule(*self.treedef.unflatten(leaves))
            _check_kind(node, found, (Bounds,), "Bounds")
            return found

        found = self._over_axes(node, rule)(*operands[node.params["num_consts"] :])
        sides = (jax.tree.leaves(side) for side in found)
        return [Bounds(a, b) for a, b in zip(*sides, strict=True)]

    def relax(self, node: Node, operands: Sequence[Any], bounds: Bounds) -> Relaxation:
        first = node.params["num_consts"]
        given = operands[first:]
        in_front = all(set(axes[first:]) <= {0, None} for axes, _ in self.mapped)
        if self.relax_rule is None or not in_front:
            return constant(bounds)

        def relaxed(*leaves: Any) -> Any:
            found = self.relax_rule(*self.treedef.unflatten(leaves))
            _check_kind(node, found, (Lines, Planes), "Lines or Planes")
            return found

        if not self.mapped:
            return relaxed(*given)

        def rule(*leaves: Any) -> Any:
            found = relaxed(*leaves)
            return found if isinstance(found, Lines) else None

        found = self._over_axes(node, rule)(*given)
        return constant(bounds) if found is None else found

    def _over_axes(self, node: Node, rule: Callable[..., Any]) -> Callable[..., Any]:
        first = node.params["num_consts"]
        for axes, size in reversed(self.mapped):
            rule = jax.vmap(rule, axes[first:], axis_size=size)
        return rule


def _check_kind(node: Node, found: Any, kinds: tuple[type, ...], wanted: str) -> None:
    if not isinstance(found, kinds):
        raise TypeError(
            f"the rule for the bounds of a function at {source_line(node.equation)} "
            f"returned a {type(found).__name__}; wanted {wanted}."
        )


@dataclass(frozen=True)
class _Elementwise:
    """A monotone or S-shaped function of each entry of one array."""

    rises: bool
    is_s_shaped: bool

    def batched(self, in_axes: Sequence[int | None], axis_size: int) -> "_Elementwise":
        del in_axes, axis_size
        return self

    def interval(self, node: Node, *operands: Any) -> list[Bounds]:
        *consts, x = operands
        a, b = (node.evaluate(*consts, end)[0] for end in x)
        return [Bounds(a, b) if self.rises else Bounds(b, a)]

    def relax(self, node: Node, operands: Sequence[Any], bounds: Bounds) -> Relaxation:
        *consts, x = operands
        if self.is_s_shaped:
            family = lines.sigmoidal(lambda v: node.evaluate(*consts, v)[0], x)
            return family.map(lambda found: univariate.usable(found, bounds))

        def value(x: Bounds) -> Bounds:
            (found,) = self.interval(node, *consts, x)
            return outward(found, unit(4, found.lower.dtype))

        function = univariate.Univariate(value, None, ())
        return univariate.family(univariate.wedges(function, x), bounds)

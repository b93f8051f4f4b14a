"""Makes values vary over the mesh axes of a `shard_map` together."""

from typing import Any, TypeVar

import jax

Tree = TypeVar("Tree")


def varying_axes(*values: Any) -> frozenset[str]:
    """The mesh axes of the enclosing `shard_map` over which one of the values differs.

    Example:
        >>> import jax.numpy as jnp
        >>> varying_axes(jnp.ones(3))
        frozenset()
    """
    axes: frozenset[str] = frozenset()
    return axes.union(*(varying_axes_of_type(jax.typeof(x)) for x in values))


def varying_axes_of_type(aval: Any) -> frozenset[str]:
    """The mesh axes over which values of a type may differ.

    Example:
        >>> import jax
        >>> varying_axes_of_type(jax.typeof(1.0))
        frozenset()
    """
    # jax has called it both ways.
    kind = getattr(aval, "manual_axis_type", None)
    return frozenset(getattr(aval, "vma", ()) if kind is None else kind.varying)


def vary_as(x: Any, aval: Any) -> Any:
    """Casts a value to vary over the mesh axes over which the type of another does.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.ones(3)
        >>> vary_as(x, jax.typeof(x)) is x
        True
    """
    missing = tuple(sorted(varying_axes_of_type(aval) - varying_axes(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def vary_together(tree: Tree) -> Tree:
    """Casts every leaf to vary over each mesh axis over which one of them does.

    The gradient of a parameter that is replicated over an axis is a sum over that
    axis; of one cast to varying it is each device's own.

    Example:
        >>> import jax.numpy as jnp
        >>> vary_together((jnp.ones(()), 2.0))[1]
        2.0
    """
    axes = varying_axes(*jax.tree.leaves(tree))

    def cast(x: Any) -> Any:
        missing = tuple(sorted(axes - varying_axes(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree) if axes else tree

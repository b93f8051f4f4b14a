"""Makes values vary over the mesh axes of a `shard_map` together."""

from typing import Any, TypeVar

import jax

Tree = TypeVar("Tree")


def varying_axes(x: Any) -> frozenset[str]:
    """The mesh axes of the enclosing `shard_map` over which `x` differs."""
    aval = jax.typeof(x)
    # jax has called it both ways.
    kind = getattr(aval, "manual_axis_type", None)
    return frozenset(getattr(aval, "vma", ()) if kind is None else kind.varying)


def vary_together(tree: Tree) -> Tree:
    """Casts every leaf to vary over each mesh axis over which one of them does.

    The gradient of a parameter that is replicated over an axis is a sum over that
    axis; of one cast to varying it is each device's own.
    """
    axes = frozenset().union(*map(varying_axes, jax.tree.leaves(tree)))

    def cast(x: Any) -> Any:
        missing = tuple(sorted(axes - varying_axes(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree) if axes else tree

"""What a Pallas kernel must be told of the transforms around it."""

from collections.abc import Callable
from typing import Any

import jax
from jax.custom_batching import custom_vmap


def mapped_in_front(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` whose batch axes `vmap` puts in front: no block of a kernel has others.

    Args:
        fn: A function of arrays that returns a pytree of arrays.
    """
    mappable = custom_vmap(fn)

    @mappable.def_vmap
    def rule(_: int, mapped: Any, *args: Any) -> Any:
        over = jax.vmap(fn, [0 if m else None for m in mapped])
        out = mapped_in_front(over)(*args)
        return out, jax.tree.map(lambda _: True, out)

    return mappable


def outputs_like(
    fn: Callable[..., Any], *args: jax.Array
) -> list[jax.ShapeDtypeStruct]:
    """The outputs of `fn`, with the mesh axes of a `shard_map` that they vary over."""
    return jax.tree.leaves(jax.eval_shape(fn, *args))

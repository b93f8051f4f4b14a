"""What a codec is: how gradients leave a worker as a small message.

A new codec is one file: a message dataclass for a leaf, with a method `dense()` (and,
where it is sparse, `add_to(total)`), and a factory that returns `Codec(init, encode,
decode)` with the `decode` of this module. Give the dataclass a static field, its shape
or its name: to jax the structures of two dataclasses with equal static fields, or
none, are equal, and all codecs share one `decode`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import describe, leaf_paths


class Codec(NamedTuple):
    """A way to compress gradients, with a memory of what was left out.

    Three pure functions, so they work under `jit`, `vmap` and `shard_map`. The message
    is a pytree of arrays whose shapes do not depend on the data. What a message leaves
    out stays in the state and is sent later: sent + left over = gradients + left over
    before.

    Attributes:
        init: `init(tree) -> state`, for gradients like `tree`, nothing left over.
        encode: `encode(state, gradients) -> (message, state)`.
        decode: `decode(message) -> tree` of dense float32 arrays, like the gradients.

    Example:
        >>> from jaxmethods.shard import adacomp
        >>> codec = adacomp(bin_size=4)
        >>> gradients = {"w": jnp.array([[1.0, 0.1, -2.0, 0.2]])}
        >>> message, state = codec.encode(codec.init(gradients), gradients)
        >>> codec.decode(message)["w"] + state.residue["w"]
        Array([[ 1. ,  0.1, -2. ,  0.2]], dtype=float32)
    """

    init: Callable[[Any], Any]
    encode: Callable[[Any, Any], tuple[Any, Any]]
    decode: Callable[[Any], Any]


def nbytes(message: Any) -> int:
    """The bytes that leave a worker with a message: those of all its arrays.

    Counts every array as it is sent, the capacity that this message leaves unused
    included.

    Args:
        message: What `Codec.encode` returned, or its shapes from `jax.eval_shape`.

    Returns:
        A number of bytes.

    Example:
        >>> from jaxmethods.shard import adacomp
        >>> codec = adacomp(bin_size=50, slots=4)
        >>> gradients = jnp.ones((100, 10))
        >>> nbytes(codec.encode(codec.init(gradients), gradients)[0])  # of 4000
        84
    """
    leaves = jax.tree.leaves(message)
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in leaves)


def check_codec(codec: Any) -> None:
    """Raises TypeError unless a codec has the three functions of a `Codec`."""
    if all(hasattr(codec, name) for name in Codec._fields):
        return
    name = getattr(codec, "__name__", None)
    if callable(codec) and name:
        raise TypeError(f"codec is the function {name}; wanted a Codec: call {name}().")
    raise TypeError(f"codec is {codec!r}; wanted a Codec, such as adacomp().")


def decode(message: Any) -> Any:
    """The dense tree of a message whose parts, one a leaf, have a method `dense`."""
    return jax.tree.map(
        lambda part: part.dense(), message, is_leaf=lambda part: hasattr(part, "dense")
    )


def add_decoded(total: Any, message: Any) -> Any:
    """`total + decode(message)`, a sparse part without making it dense."""

    def add(part: Any, leaf: jax.Array) -> jax.Array:
        return part.add_to(leaf) if hasattr(part, "add_to") else leaf + part.dense()

    return jax.tree.map(
        add, message, total, is_leaf=lambda part: hasattr(part, "dense")
    )


def zeros_like_gradients(tree: Any) -> Any:
    """A tree of float32 zeros: what is left over before the first step.

    Raises:
        TypeError: A leaf is not floating.
    """
    check_floating(tree)
    return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.float32), tree)


def check_gradients(gradients: Any, left_over: Any) -> None:
    """Raises unless the gradients are floating and shaped as the state was made for.

    Raises:
        TypeError: A gradient is not floating.
        ValueError: The tree or a shape differs from that of the state.
    """
    paths = check_floating(gradients)
    wanted, got = jax.tree.structure(left_over), jax.tree.structure(gradients)
    # Paths too: structures of different dataclasses may be equal to jax.
    if wanted != got or paths != leaf_paths(left_over):
        raise ValueError(
            f"gradients have the tree {got}, the state was made for {wanted}; "
            "call init on a tree like the gradients."
        )
    leaves = zip(
        paths, jax.tree.leaves(gradients), jax.tree.leaves(left_over), strict=True
    )
    for path, leaf, left in leaves:
        if jnp.shape(leaf) != jnp.shape(left) or left.dtype != jnp.float32:
            raise ValueError(
                f"the gradient at {path} is {describe(jnp.asarray(leaf))}, the state "
                f"holds {describe(left)} there; wanted float32 of the gradient's "
                "shape: call init on a tree like the gradients."
            )


def check_floating(gradients: Any) -> list[tuple[Any, ...]]:
    """Raises TypeError unless all leaves are floating; returns their paths."""
    paths = leaf_paths(gradients)
    for path, leaf in zip(paths, jax.tree.leaves(gradients), strict=True):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            shape = ",".join(map(str, jnp.shape(leaf)))
            raise TypeError(
                f"the gradient at {path} is {dtype}[{shape}]; wanted a floating dtype: "
                "take gradients of floating parameters only (optax.partition or "
                "optax.masked leave others out)."
            )
    return paths

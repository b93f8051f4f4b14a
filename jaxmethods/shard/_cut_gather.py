"""DCT for split layers: large activations are gathered, and their gradients."""

from typing import Any

import jax
import jax.numpy as jnp

from ..core import axis_size, check_floating, check_integer
from ._index_codes import Int32Places
from ._selectors import Selection


def cut_gather(
    x: jax.Array, threshold: Any, axis_name: str, *, capacity: int
) -> jax.Array:
    """Gathers activations over a mesh axis, those below a threshold as zeros.

    What `jax.lax.all_gather(threshold_cut(x, threshold), axis_name, tiled=True)`
    computes where no more than `capacity` entries pass; of more, the largest. A worker
    sends their values and places. On the way back it sends to each owner the gradients
    of that owner's entries, in the order in which they came, and so no places; the
    others' gradients are zero, and the owner adds up what arrives.

    The result is alike on all workers, but `shard_map` takes it for one that varies
    over the axis, as what comes from it must have gradients of each worker's own: name
    the axis in `out_specs`, or reduce over it first.

    Args:
        x: floating (b, ...), a worker's own rows.
        threshold: scalar, 0 or more; may be traced, and takes no gradient.
        axis_name: the mapped axis, K workers.
        capacity: entries that a worker sends, at least 1 (clipped to the size of x).

    Returns:
        (K b, ...), in the dtype of x.

    Raises:
        TypeError: x is not floating.
        ValueError: capacity is below 1.
        NameError: the axis is not bound.

    Complexity:
        Forward (K - 1) (4 + itemsize) capacity bytes leave a worker, backward
        (K - 1) itemsize capacity.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> rows = jnp.array([[0.5, -2.0], [0.1, 3.0]])  # of two workers
        >>> gather = lambda x: cut_gather(x, 0.4, "i", capacity=2)
        >>> jax.vmap(gather, axis_name="i")(rows)[0]
        Array([ 0.5, -2. ,  0. ,  3. ], dtype=float32)

    References:
        Gupta et al. 2020, arXiv:2010.08899, section 3.2.
    """
    x = check_floating(x, "x")
    axis_size(axis_name, "cut_gather")
    room = min(check_integer(capacity, "capacity", 1), x.size)
    flat = x.reshape(-1)
    size = jax.lax.stop_gradient(jnp.abs(flat))
    bar = jax.lax.stop_gradient(jnp.asarray(threshold)).astype(x.dtype)
    mask = (size >= bar) & (size != 0)
    selection = Selection(mask, lambda: size.astype(jnp.float32))
    places = Int32Places().encode(selection, room, flat.size)
    values = flat.at[places].get(mode="fill", fill_value=0)
    # The transpose of this gather is a reduce-scatter of as many values: the places
    # that came forward are at hand on the way back.
    places, values = jax.lax.all_gather((places, values), axis_name)

    def spread(places: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.zeros_like(flat).at[places].set(values, mode="drop")

    return jax.vmap(spread)(places, values).reshape(-1, *x.shape[1:])

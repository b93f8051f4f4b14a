"""Two phases of small messages: reduce a part each, then gather the parts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from ..core import axis_size, check_integer
from ._codec import Codec, check_codec, check_gradients, zeros_like_gradients
from ._exchange import (
    check_axis_name,
    decoded_mean,
    each_its_own,
    gather,
    in_dtypes_of,
)


class TwoPhaseState(NamedTuple):
    """The codec's states of both phases; one a worker, never replicated.

    Attributes:
        parts: the state of this worker's gradient, in N parts, stacked.
        mean: the state of the mean of this worker's own part.
    """

    parts: Any
    mean: Any


def two_phase_exchange(
    codec: Codec, axis_name: Any, *, num_workers: int
) -> optax.GradientTransformation:
    """The mean of all workers' gradients by small messages, each sent twice.

    The gradients of N workers are one long vector in N parts. Each worker encodes its
    parts and sends part j to worker j, which takes the mean of what it decodes, encodes
    that and sends it to all: `2 (N - 1) / N` messages of the whole leave a worker,
    `exchange` sends N - 1. Both roundings are fed back: the sum of all gradients is N
    times the updates, what all `parts` owe, and N times what all `mean` owe.

    A scale, threshold or bin is that of a part, whichever leaves it came from, so a
    codec that treats leaves by their shape, such as `adacomp()`, needs its options
    spelled out: `adacomp(bin_size=500)`.

    Args:
        codec: how to compress; `int8()`, `sign()`, or what sends more than an N-th.
        axis_name: the mapped axis, or a tuple of axes of a mesh, not of nested `vmap`.
        num_workers: N, the size of the axis.

    Returns:
        An `optax.GradientTransformation` with `TwoPhaseState`. The updates are the same
        on all workers bit for bit, and keep the dtype of the gradients.

    Raises:
        TypeError: codec is no `Codec`; axis_name is no name of an axis.
        ValueError: axis_name is an empty tuple; num_workers is not the size of the
            axis; gradients unlike the state.
        NameError: in `update`, the axis is not bound.

    Example:
        >>> from jaxmethods.shard import int8
        >>> tx = two_phase_exchange(int8(), "i", num_workers=2)
        >>> gradients = jnp.array([[127.0, 2.0], [127.0, 6.0]])  # of two workers
        >>> state = jax.vmap(tx.init)(gradients)
        >>> jax.vmap(tx.update, axis_name="i")(gradients, state)[0]
        Array([[127.,   4.],
               [127.,   4.]], dtype=float32)

    References:
        Tang et al. 2021, 1-bit Adam (arXiv 2102.02888), section 4 (the compressed
        all-reduce).
    """
    check_codec(codec)
    check_axis_name(axis_name)
    num_workers = check_integer(num_workers, "num_workers", 1)

    def init(params: Any) -> TwoPhaseState:
        parts = _parts(zeros_like_gradients(params), num_workers)
        state = TwoPhaseState(jax.vmap(codec.init)(parts), codec.init(parts[0]))
        return each_its_own(state, axis_name)

    def update(
        updates: Any, state: Any, params: Any = None
    ) -> tuple[Any, TwoPhaseState]:
        del params
        workers = axis_size(axis_name, "update")
        if workers != num_workers:
            raise ValueError(
                f"num_workers is {num_workers} and the axis {axis_name!r} has {workers}"
                f" workers; wanted the same: two_phase_exchange(codec, {axis_name!r}, "
                f"num_workers={workers})."
            )
        check_gradients(updates, jax.eval_shape(zeros_like_gradients, updates))
        if not jax.tree.leaves(updates):
            return updates, state
        given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), updates)
        messages, parts = jax.vmap(codec.encode)(state.parts, _parts(given, workers))
        messages = jax.tree.map(
            lambda x: jax.lax.all_to_all(x, axis_name, 0, 0, tiled=True), messages
        )
        own = decoded_mean(codec, messages, workers)
        message, mean = codec.encode(state.mean, own)
        rows = jax.lax.map(codec.decode, gather(message, axis_name))
        flat, unravel = ravel_pytree(given)
        whole = unravel(rows.reshape(-1)[: flat.size])
        state = each_its_own(TwoPhaseState(parts, mean), axis_name)
        return in_dtypes_of(whole, updates), state

    return optax.GradientTransformation(init, update)


def _parts(tree: Any, num_workers: int) -> jax.Array:
    """All leaves in a row, cut in equal parts, the last filled up with zeros."""
    flat, _ = ravel_pytree(tree)
    size = max(1, -(-flat.size // num_workers))
    return jnp.pad(flat, (0, num_workers * size - flat.size)).reshape(-1, size)

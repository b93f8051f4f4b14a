"""From rows spread over a group to layers spread over it, and back."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..core import axis_size, check_choice, describe


def modulo_layer(
    fn: Callable[[jax.Array], jax.Array],
    h: jax.Array,
    axis_name: str,
    *,
    scheme: str = "C",
) -> jax.Array:
    """Lets the members of a group apply split layers to all their rows.

    Inside `shard_map`: each of the K members holds B rows of its own, and every split
    layer must see all K B rows. Same values by three schemes: `"A"` gathers all rows
    at once. `"B"` takes K rounds; in round j member j broadcasts its rows. `"C"` takes
    K rounds; in each, every member contributes B / K rows, so a round holds B rows and
    the load is even.

    Args:
        fn: Maps gathered rows (n, d) to (n, e), row by row, alike on all members: with
            `column_dense` and `row_dense` inside, for instance.
        h: (B, d), the member's own rows; more axes may follow.
        axis_name: The mesh axis of the group, K members.
        scheme: `"A"`, `"B"` or `"C"`.

    Returns:
        (B, e), the member's own rows of the result.

    Raises:
        ValueError: Scheme unknown, or `"C"` and B not divisible by K.
        NameError: The axis is not bound.

    Complexity:
        Forward, a member sends (K - 1) B d numbers for A and C, twice that for B, and
        what `fn` sends; gathered rows take K B d numbers for A, B d a round for B, C.

    Example:
        >>> import jax.numpy as jnp
        >>> rows = jnp.arange(8.0).reshape(2, 4, 1)  # of two members
        >>> jax.vmap(lambda h: modulo_layer(lambda r: 2 * r, h, "model"),
        ...          axis_name="model")(rows)[1].ravel()
        Array([ 8., 10., 12., 14.], dtype=float32)

    References:
        Lai, Kadav, Kruus 2021, "SplitBrain: Hybrid Data and Model Parallel Deep
        Learning", arXiv:2112.15317; Krizhevsky 2014, arXiv:1404.5997 (schemes A to C).
    """
    check_choice(scheme, ("A", "B", "C"), "scheme")
    members = axis_size(axis_name, "modulo_layer")
    if scheme == "A":
        return _own(fn(jax.lax.all_gather(h, axis_name, tiled=True)), axis_name)
    if scheme == "B":
        return _broadcast_rounds(fn, h, axis_name, members)
    if len(h) % members:
        raise ValueError(
            f"h is {describe(h)}: {len(h)} rows do not divide over the {members} "
            f"members of {axis_name!r}; give each device a multiple of {members} rows, "
            'or use scheme="A".'
        )
    return _even_rounds(fn, h, axis_name, members)


def _own(rows: jax.Array, axis_name: str) -> jax.Array:
    """This member's part of gathered rows."""
    size = len(rows) // jax.lax.axis_size(axis_name)
    start = size * jax.lax.axis_index(axis_name)
    return jax.lax.dynamic_slice_in_dim(rows, start, size)


def _broadcast_rounds(
    fn: Callable[[jax.Array], jax.Array], h: jax.Array, axis_name: str, members: int
) -> jax.Array:
    me = jax.lax.axis_index(axis_name)

    # Gathered rows are made again on the way back, or all rounds' would be kept.
    @jax.checkpoint
    def sent_by(member: jax.Array) -> jax.Array:
        rows = jax.lax.psum(jnp.where(me == member, h, 0), axis_name)
        return fn(rows)

    results = jax.lax.map(sent_by, jnp.arange(members))
    return jax.lax.dynamic_index_in_dim(results, me, keepdims=False)


def _even_rounds(
    fn: Callable[[jax.Array], jax.Array], h: jax.Array, axis_name: str, members: int
) -> jax.Array:
    @jax.checkpoint
    def round_of(rows: jax.Array) -> jax.Array:
        return _own(fn(jax.lax.all_gather(rows, axis_name, tiled=True)), axis_name)

    rounds = h.reshape(members, len(h) // members, *h.shape[1:])
    results = jax.lax.map(round_of, rounds)
    return results.reshape(len(h), *results.shape[2:])

"""From rows spread over a group to layers spread over it, and back."""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from ..core import (
    CUSTOM_CALL,
    Site,
    axis_size,
    check_choice,
    describe,
    interpret,
    occurring,
    vary_as,
    varying_axes,
    varying_axes_of_type,
)


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
        Backward as much for the rows again, and once for the gradients of what `fn`
        closes over: a round adds to them on its device, the sum over other mesh axes
        follows the last. B and C trace `fn` twice.

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

    def sent_by(member: jax.Array) -> jax.Array:
        rows = jax.lax.psum(jnp.where(me == member, h, 0), axis_name)
        return fn(rows)

    axes = varying_axes(h) - {axis_name}
    results = _rounds(sent_by, jnp.arange(members), axes)
    return jax.lax.dynamic_index_in_dim(results, me, keepdims=False)


def _even_rounds(
    fn: Callable[[jax.Array], jax.Array], h: jax.Array, axis_name: str, members: int
) -> jax.Array:
    def round_of(rows: jax.Array) -> jax.Array:
        return _own(fn(jax.lax.all_gather(rows, axis_name, tiled=True)), axis_name)

    rounds = h.reshape(members, len(h) // members, *h.shape[1:])
    results = _rounds(round_of, rounds, varying_axes(h) - {axis_name})
    return results.reshape(len(h), *results.shape[2:])


def _rounds(
    body: Callable[[jax.Array], jax.Array], xs: jax.Array, axes: Collection[str]
) -> jax.Array:
    """Maps a body over rounds; gradients of what it closes over are summed once."""
    if axes:
        body = _with_varying_constants(body, xs[0], axes)
    # Gathered rows are made again on the way back, or all rounds' would be kept.
    return jax.lax.map(jax.checkpoint(body), xs)


class _Kept(Exception):
    """A constant is used where its type cannot be changed."""


def _with_varying_constants(
    body: Callable[[jax.Array], jax.Array], example: jax.Array, axes: Collection[str]
) -> Callable[[jax.Array], jax.Array]:
    """The same function, with what it closes over cast to vary over mesh axes.

    `shard_map` casts a kernel that is alike on all of "data" where rows meet it, and
    sums its gradient over "data" there: inside the loop, in each round. Where such a
    cast is inside a function with a derivative of its own, the body stays as it is.
    """
    closed = jax.make_jaxpr(body)(example)
    own = jax.typeof(_varying_zero(axes))
    constants = [vary_as(x, own) if _has_gradient(x) else x for x in closed.consts]

    def cast(site: Site, x: Any) -> list[Any]:
        return [vary_as(x, site.equation.outvars[0].aval)]

    def whole(site: Site, *operands: Any) -> Any:
        # What it casts inside are its own constants, if its operands are as traced.
        types = [v.aval for v in site.equation.invars]
        changed = [*map(varying_axes, operands)] != [*map(varying_axes_of_type, types)]
        bodies = jaxprs_in_params(site.equation.params)
        if changed and any(occurring(body, ("pvary",)) for body in bodies):
            raise _Kept
        return NotImplemented

    def keep(sentence: str) -> None:
        raise _Kept(sentence)

    def with_constants(x: jax.Array) -> jax.Array:
        varying = closed.replace(consts=constants)
        rules = {"pvary": cast} | dict.fromkeys(CUSTOM_CALL, whole)
        (result,) = interpret(varying, rules, [x], report=keep)
        return result

    try:
        jax.eval_shape(with_constants, example)
    except _Kept:
        return body
    return with_constants


def _varying_zero(axes: Collection[str]) -> jax.Array:
    return jax.lax.pcast(jnp.float32(0), tuple(sorted(axes)), to="varying")


def _has_gradient(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)

"""Workers exchange gradients as messages and take the mean, as an optax step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..core import axis_size, vary_as
from ._codec import Codec, add_decoded, check_codec, check_floating, decode


def exchange(codec: Codec, axis_name: Any) -> optax.GradientTransformation:
    """Replaces a worker's own gradients by the mean of all workers' messages.

    Each worker encodes its gradients, the messages are gathered over the axis, and each
    worker decodes all of them and takes the mean, in the order of the workers, so that
    replicas stay equal bit for bit. What leaves a worker is (workers - 1) times
    `nbytes(message)` bytes: with many workers and messages that are not small
    `two_phase_exchange` sends less. Works inside `shard_map`, `pmap` and
    `vmap(axis_name=...)`. State and gradients are the worker's own; the result is the
    same on all, and `shard_map` knows it (its out_specs may leave the axis out).

    Inside `shard_map`, gradients of replicated parameters come summed over the mesh,
    uncompressed, before any exchange: cast the parameters with
    `jax.lax.pcast(params, axis_name, to="varying")` before `jax.grad`. In a chain the
    exchange's part of the state is each worker's own, and is stacked outside; what
    follows it, such as Adam's moments, is alike on all, like the parameters.

    Args:
        codec: How to compress, such as `adacomp()`.
        axis_name: The mapped axis, or a tuple of axes of a mesh, not of nested `vmap`.

    Returns:
        An `optax.GradientTransformation`; `init` needs no bound axis, `update` raises
        NameError where the axis is not bound. Updates keep the dtype of the gradients.

    Raises:
        TypeError: `codec` is no `Codec`; `axis_name` is no name of an axis.
        ValueError: `axis_name` is an empty tuple.

    Example:
        Two workers on one device, everything stacked:

        >>> from jaxmethods.shard import adacomp
        >>> optimizer = optax.chain(exchange(adacomp(), "data"), optax.adam(1e-3))
        >>> params = jnp.ones((2, 30, 4))
        >>> state = jax.vmap(optimizer.init)(params)
        >>> updates, state = jax.vmap(optimizer.update, axis_name="data")(params, state)
        >>> bool((updates[0] == updates[1]).all())
        True

        A worker a device; of the state only the exchange's part is stacked:

        >>> from jax.sharding import PartitionSpec as P
        >>> def step(w, state, x):
        ...     own = jax.tree.map(lambda s: s[0], state[0]), state[1]
        ...     varying = jax.lax.pcast(w, "data", to="varying")
        ...     gradients = jax.grad(lambda w: ((x @ w) ** 2).mean())(varying)
        ...     updates, own = optimizer.update(gradients, own, w)
        ...     state = jax.tree.map(lambda s: s[None], own[0]), own[1]
        ...     return optax.apply_updates(w, updates), state
        >>> mesh = jax.sharding.Mesh(jax.devices(), ("data",))
        >>> lies = P(), (P("data"), P())  # parameters, state
        >>> step = jax.jit(jax.shard_map(
        ...     step, mesh=mesh, in_specs=(*lies, P("data")), out_specs=lies))
        >>> w, x = jnp.ones((30, 4)), jnp.ones((2 * mesh.size, 30))
        >>> owed, moments = optimizer.init(w)
        >>> stacked = jax.tree.map(lambda s: jnp.stack([s] * mesh.size), owed)
        >>> w, state = step(w, (stacked, moments), x)
        >>> w.shape, state[0].residue.shape == (mesh.size, 30, 4)
        ((30, 4), True)

    References:
        Chen et al. 2017, arXiv:1712.02679, section 3.
    """
    check_codec(codec)
    check_axis_name(axis_name)

    def init(params: Any) -> Any:
        return each_its_own(codec.init(params), axis_name)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        workers = axis_size(axis_name, "update")
        message, state = codec.encode(state, updates)
        mean = decoded_mean(codec, gather(message, axis_name), workers)
        return in_dtypes_of(mean, updates), each_its_own(state, axis_name)

    return optax.GradientTransformation(init, update)


def mean_exchange(axis_name: Any) -> optax.GradientTransformation:
    """Replaces a worker's own gradients by their mean over all workers, uncompressed.

    Args:
        axis_name: The mapped axis, or a tuple of them.

    Returns:
        An `optax.GradientTransformation` without state.

    Raises:
        TypeError: `axis_name` is no name of an axis; in `update`, a gradient is not
            floating.
        ValueError: `axis_name` is an empty tuple.
        NameError: In `update`, the axis is not bound.

    Complexity:
        2 (N - 1) / N times the bytes of the gradients leave each of N workers.

    Example:
        >>> tx = mean_exchange("i")
        >>> gradients = jnp.array([1.0, 3.0])  # of two workers
        >>> mean = lambda g: tx.update(g, tx.init(g))[0]
        >>> jax.vmap(mean, axis_name="i")(gradients).tolist()
        [2.0, 2.0]
    """
    check_axis_name(axis_name)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        axis_size(axis_name, "update")
        check_floating(updates)
        return jax.lax.pmean(updates, axis_name), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def check_axis_name(axis_name: Any) -> None:
    """Raises unless this may name an axis, or is a tuple of what may, not empty."""
    try:
        hash(axis_name)
    except TypeError:
        raise TypeError(
            f"axis_name is {axis_name!r}; wanted a name, such as 'data', or a tuple of "
            "names."
        ) from None
    if axis_name == ():
        raise ValueError(
            "axis_name is (); wanted a name, such as 'data', or a tuple of names."
        )


def each_its_own(state: Any, axis_name: Any) -> Any:
    """A new state that `shard_map` knows to be a worker's own, as updates make it."""
    try:
        worker = jax.typeof(jax.lax.axis_index(axis_name))
    except NameError:  # outside; the state comes in stacked
        return state
    return jax.tree.map(lambda x: vary_as(x, worker), state)


def gather(tree: Any, axis_name: Any) -> Any:
    """All workers' trees, stacked, alike on all of them; `shard_map` is told so."""
    names = set(axis_name) if isinstance(axis_name, tuple) else {axis_name}
    # Only shard_map with its checks on tracks what varies; vmap cannot be told.
    types = [jax.typeof(x).manual_axis_type for x in jax.tree.leaves(tree)]
    tracked = any(names & set(t.varying) for t in types)
    to = "invarying" if tracked else "varying"
    return jax.lax.all_gather(tree, axis_name, to=to)


def decoded_mean(codec: Codec, messages: Any, workers: int) -> Any:
    """The mean of stacked messages, one decoded after the other, in their order."""

    def add(total: Any, message: Any) -> tuple[Any, None]:
        if codec.decode is decode:
            return add_decoded(total, message), None
        return jax.tree.map(jnp.add, total, codec.decode(message)), None

    first = codec.decode(jax.tree.map(lambda x: x[0], messages))
    others = jax.tree.map(lambda x: x[1:], messages)
    # A tree without leaves has no length of its own.
    total, _ = jax.lax.scan(add, first, others, length=workers - 1)
    return jax.tree.map(lambda s: s / workers, total)


def in_dtypes_of(tree: Any, updates: Any) -> Any:
    """A float32 tree in the dtypes of the gradients."""
    return jax.tree.map(lambda x, g: x.astype(jnp.result_type(g)), tree, updates)

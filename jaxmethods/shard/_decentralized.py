"""Training without a common model: own steps, and now and then a mean of neighbours."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..core import check_integer, describe, vary_as, varying_axes
from ._graphs import Graph
from ._stochastic_reduce import stochastic_reduce


class DecentralizedState(NamedTuple):
    """State of `decentralized`.

    Attributes:
        count: int32 scalar: updates so far, the same on all workers.
        inner: The state of the worker's own optimizer.
    """

    count: jax.Array
    inner: Any


def decentralized(
    optimizer: optax.GradientTransformation,
    graph: Graph,
    axis_name: Any,
    *,
    every: int = 5,
) -> optax.GradientTransformationExtraArgs:
    """Steps of each worker's own optimizer, averaged with neighbours now and then.

    Every worker has its own parameters and gradients. Updates are those of `optimizer`;
    with each `every`-th of them the parameters also move to the mean of what the worker
    and its in-neighbours have after their steps (`stochastic_reduce`). Nothing
    is sent in between. Works inside `shard_map`, `pmap` and `vmap(axis_name=...)`.

    Only parameters are averaged, as in the paper: the optimizer's state (momentum,
    second moments) stays the worker's own, and so do batch statistics: average those
    that a model keeps with `stochastic_reduce` before it is used. With plain SGD the
    mean of all workers moves by the mean of their gradients, each taken at the worker's
    own parameters.

    Inside `shard_map` begin with parameters that vary over the axis, one set a worker:
    `jax.lax.pcast(params, axis_name, to="varying")`. Of parameters that are the same
    on all, gradients come summed over the workers, at the full cost of an all-reduce.

    Args:
        optimizer: The worker's own.
        graph: As many workers as the axis has. With one that cycles, the n-th
            averaging is its round n - 1.
        axis_name: The mapped axis, or a tuple of axes of a mesh, not of nested `vmap`.
        every: Updates from one averaging to the next, at least 1.

    Returns:
        An optax transformation. `update` needs `params`, and passes what else it is
        given to `optimizer`. Updates have the dtype of those of `optimizer`: parameters
        are at the mean to rounding once they are applied.

    Raises:
        ValueError: `every` below 1, another axis size; `update` without `params`, or
            with some that `shard_map` knows to be the same on all workers.
        NameError: `update` where the axis is not bound; `init` needs none.

    Complexity:
        k / every times the bytes of the parameters leave a worker in a step, k the
        degree of the graph.

    Example:
        >>> from jaxmethods.shard import graph
        >>> own = decentralized(optax.sgd(0.1), graph("ring", 4), "i", every=1)
        >>> params = jnp.array([0.0, 2.0, 4.0, 6.0])  # of four workers
        >>> state = jax.vmap(own.init)(params)
        >>> step = jax.vmap(own.update, axis_name="i")
        >>> updates, state = step(jnp.zeros(4), state, params)
        >>> (params + updates).tolist()
        [3.0, 1.0, 3.0, 5.0]

    References:
        Kadav and Kruus 2016, arXiv:1612.08608 (model averaging, every 5 batches).
        Lian et al. 2017, arXiv:1705.09056.
    """
    check_integer(every, "every", 1)
    own = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> DecentralizedState:
        return DecentralizedState(jnp.zeros((), jnp.int32), own.init(params))

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, DecentralizedState]:
        if params is None:
            raise ValueError(
                "params is None; decentralized averages parameters: call "
                "update(updates, state, params)."
            )
        updates, inner = own.update(updates, state.inner, params, **extra_args)
        # Both branches below must vary alike.
        updates = jax.tree.map(lambda u, p: vary_as(u, jax.typeof(p)), updates, params)
        count = state.count + 1

        def averaged(updates: Any) -> Any:
            moved = optax.apply_updates(params, updates)
            mean = stochastic_reduce(moved, axis_name, graph, count // every - 1)
            jax.tree_util.tree_map_with_path(
                lambda path, x: _check_own(path, x, axis_name), params
            )
            return jax.tree.map(
                lambda m, p, u: (m - p).astype(u.dtype), mean, params, updates
            )

        updates = jax.lax.cond(
            count % every == 0, averaged, lambda updates: updates, updates
        )
        return updates, DecentralizedState(count, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_own(path: Any, x: jax.Array, axis_name: Any) -> None:
    """Raises where `shard_map` knows that all workers have the same parameters."""
    tracked = varying_axes(jax.lax.axis_index(axis_name))
    if tracked - varying_axes(x):
        raise ValueError(
            f"params{jax.tree_util.keystr(path)} is {describe(x)}, the same on all of "
            f"{axis_name!r}, and its gradient a sum over all workers; wanted each "
            f"worker's own: jax.lax.pcast(params, {axis_name!r}, to='varying') before "
            "jax.grad."
        )

"""Hybrid training: layers split within groups, messages between groups."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import Jaxpr, jaxprs_in_params
from jax.sharding import PartitionSpec as P

from ._constrain import batch_spec, check_batch, constrained
from ._plan import DATA, MODEL, Plan


class Training(NamedTuple):
    """A training loop's two functions, to be jitted by the caller.

    Attributes:
        init: `init(params) -> state`, one optimizer state a device: each leaf has two
            leading axes, D and K, spread over the mesh.
        step: `step(params, state, batch) -> (params, state, loss)`.
    """

    init: Callable[[Any], Any]
    step: Callable[[Any, Any, Any], tuple[Any, Any, jax.Array]]


def hybrid_training(
    plan: Plan,
    loss: Callable[[Any, Any], jax.Array],
    optimizer: optax.GradientTransformation,
) -> Training:
    """Trains on a mesh with split layers and an optimizer that exchanges gradients.

    The D groups each take the gradient of their own examples, split layers spread over
    the K members of a group; nothing is summed over "data" there. Then every device
    runs the optimizer on the shard of parameters that it holds, and the exchange in the
    optimizer is all that crosses groups. A layer's scale, threshold and bins are those
    of a shard.

    Args:
        plan: From `splitbrain`.
        loss: `loss(params, batch)`, a mean over examples; it is traced for the
            examples of one group. A single key in the batch is folded with the group's
            index.
        optimizer: Must exchange all gradients over "data", or the replicas drift apart:
            `optax.chain(exchange(adacomp(), "data"), optax.adam(1e-3))`, with
            `mean_exchange("data")` for their plain mean. It sees one
            device's shards, leaf by leaf: what mixes leaves, such as clipping by a
            global norm, would differ between members of a group and pull their copies
            of replicated layers apart.

    Returns:
        `Training(init, step)`. The loss is the mean over the batch.

    Raises:
        ValueError: In `init`, the optimizer sends nothing over "data" to other groups;
            in `step`, the batch does not divide over the devices.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from jaxmethods.shard import adacomp, exchange, splitbrain
        >>> devices = np.array(jax.devices()[:1]).reshape(1, 1)
        >>> loss = lambda w, x: jnp.mean((jnp.tanh(x @ w[0]) @ w[1] - x) ** 2)
        >>> params, x = [jnp.ones((2, 4)), jnp.ones((4, 2))], jnp.ones((8, 2))
        >>> plan = splitbrain(
        ...     loss, params, x, mesh=jax.sharding.Mesh(devices, ("data", "model")))
        >>> optimizer = optax.chain(exchange(adacomp(), "data"), optax.sgd(0.1))
        >>> init, step = hybrid_training(plan, loss, optimizer)
        >>> params = plan.place(params)
        >>> params, state, value = jax.jit(step)(params, jax.jit(init)(params), x)
        >>> float(value) > float(loss(params, x))
        True

    References:
        Lai, Kadav, Kruus 2021, arXiv:2112.15317; Chen et al. 2017, arXiv:1712.02679.
    """
    mesh, own = plan.mesh, P(DATA, MODEL)

    def init_shard(params: Any) -> Any:
        state = optimizer.init(params)
        if mesh.shape[DATA] > 1:
            _check_exchanges(optimizer, params, state, mesh.shape[DATA])
        return _stack(state, 2)

    def update_shard(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        state, gradients = _unstack(state, 2), _unstack(gradients, 1)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), _stack(state, 2)

    def init(params: Any) -> Any:
        return jax.shard_map(
            init_shard,
            mesh=mesh,
            in_specs=(plan.specs,),
            out_specs=own,
            check_vma=False,
        )(params)

    def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        values, gradients = local_gradients(plan, loss)(params, batch)
        stacked = jax.tree.map(
            lambda spec: P(DATA, *spec),
            plan.specs,
            is_leaf=lambda spec: isinstance(spec, P),
        )
        # No varying types here: states of replicated layers lie on each device of a
        # group, alike but not known to be.
        params, state = jax.shard_map(
            update_shard,
            mesh=mesh,
            in_specs=(plan.specs, own, stacked),
            out_specs=(plan.specs, own),
            check_vma=False,
        )(params, state, gradients)
        return params, state, values.mean()

    return Training(init, step)


def _check_exchanges(
    optimizer: optax.GradientTransformation, params: Any, state: Any, groups: int
) -> None:
    """Raises where an update has no collective over "data"; gradients are like params.

    That each gradient takes part in it is not seen.
    """
    update = jax.make_jaxpr(lambda given: optimizer.update(given, state, params))
    if not _sends(update(params).jaxpr, DATA):
        raise ValueError(
            f"optimizer exchanges nothing over {DATA!r}, and the {groups} groups would "
            f"drift apart; wanted optax.chain(exchange(adacomp(), {DATA!r}), "
            f"optimizer), or mean_exchange({DATA!r}) as the first of the chain."
        )


def _sends(jaxpr: Jaxpr, axis_name: str) -> bool:
    """Whether an equation, nested ones included, is a collective over an axis."""
    for equation in jaxpr.eqns:
        axes = equation.params.get("axes", equation.params.get("axis_name", ()))
        over = axis_name in (axes if isinstance(axes, tuple) else (axes,))
        if over and equation.primitive.name not in ("axis_index", "pvary"):
            return True
        bodies = jaxprs_in_params(equation.params)
        if any(_sends(getattr(b, "jaxpr", b), axis_name) for b in bodies):
            return True
    return False


def local_gradients(
    plan: Plan, loss: Callable[[Any, Any], jax.Array]
) -> Callable[[Any, Any], tuple[jax.Array, Any]]:
    """Value and gradient of the examples of each group, nothing summed over "data".

    Args:
        plan: From `splitbrain`.
        loss: `loss(params, batch)`, a mean over examples; it is traced for the
            examples of one group. A single key in the batch is folded with the group's
            index.

    Returns:
        `gradients(params, batch) -> (values, gradients)`: values (D,), and a tree like
        the parameters with a leading axis D, spread over "data" and, where the plan
        splits a parameter, over "model".

    Example:
        >>> import numpy as np
        >>> from jaxmethods.shard import splitbrain
        >>> devices = np.array(jax.devices()[:1]).reshape(1, 1)
        >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)
        >>> w, x = jnp.ones((2, 3)), jnp.ones((4, 2))
        >>> mesh = jax.sharding.Mesh(devices, ("data", "model"))
        >>> plan = splitbrain(loss, w, x, mesh=mesh)
        >>> values, gradients = local_gradients(plan, loss)(plan.place(w), x)
        >>> values.shape, gradients.shape
        ((1,), (1, 2, 3))
    """
    layout = plan.layout(())

    def own_key(x: Any) -> Any:
        # Keys along an axis of examples are each group's own already.
        key = x.ndim == 0 and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.fold_in(x, jax.lax.axis_index(DATA)) if key else x

    def group(params: Any, batch: Any) -> tuple[jax.Array, Any]:
        # One key for all would draw the same numbers in each group.
        batch = jax.tree.map(own_key, batch)
        # Parameters alike in all groups would have their gradients summed over "data".
        params = jax.lax.pcast(params, DATA, to="varying")
        return _stack(constrained(jax.value_and_grad(loss), layout, params, batch), 1)

    def gradients(params: Any, batch: Any) -> tuple[jax.Array, Any]:
        check_batch(batch, plan.mesh.size)
        specs = jax.tree.map(lambda x: batch_spec(x, (DATA,)), batch)
        return jax.shard_map(
            group,
            mesh=plan.mesh,
            axis_names={DATA},
            in_specs=(P(), specs),
            out_specs=P(DATA),
        )(params, batch)

    return gradients


def _stack(tree: Any, axes: int) -> Any:
    return jax.tree.map(lambda x: x[(None,) * axes], tree)


def _unstack(tree: Any, axes: int) -> Any:
    return jax.tree.map(lambda x: x[(0,) * axes], tree)

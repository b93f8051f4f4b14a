"""What a device would hold and send if the model were trained on several."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType
from jax.typing import ArrayLike

from .. import shard
from ..core import check_integer
from .model import Apply, Model, example_loss, read_model
from .trained import is_trained, split_trained


class Layout(NamedTuple):
    """A way to spread a training step over devices; bytes are a device's.

    Attributes:
        name: Such as "data parallel" or "4 data x 2 model".
        parameter_bytes: Held of the parameters that are trained.
        memory_bytes: Held in all in a training step, estimated.
        wire_bytes: Sent in a training step.
        num_split: How many parameters lie in parts on several devices.
        table: The plan, parameter by parameter.
    """

    name: str
    parameter_bytes: int
    memory_bytes: float
    wire_bytes: float
    num_split: int
    table: str


class Memory(NamedTuple):
    """What a training step with Adam takes of each of several devices.

    Attributes:
        devices: How many.
        batch: Examples a step, over all devices.
        layouts: Data parallel; the plan of every other mesh; fully sharded, where the
            devices divide an axis of some parameter.
    """

    devices: int
    batch: int
    layouts: list[Layout]


def memory(
    apply: Apply,
    params: Any,
    inputs: ArrayLike,
    *,
    devices: int = 8,
    batch: int = 64,
    batched: bool | None = None,
) -> Memory:
    """Plans a training step on every mesh of so many devices, with `shard.plan`.

    Nothing is compiled and no device is needed but one: a plan is made from the trace
    of the loss, here the mean cross entropy, trained with Adam. Running statistics of
    flax and keys have no gradient and no state of Adam: each device holds them whole.

    Args:
        apply: `apply(params, x) -> logits`, of one input or of a batch.
        params: A pytree of arrays.
        inputs: (n, ...) floating; their shape counts.
        devices: How many; 1 or more.
        batch: Examples a step, a multiple of `devices`.
        batched: Whether `apply` takes a batch; None: found out.

    Returns:
        `Memory`.

    Raises:
        TypeError, ValueError: As `accuracy`; a batch that does not divide.

    Example:
        >>> x = jnp.ones((1, 512))
        >>> plans = memory(lambda w, x: x @ w, jnp.ones((512, 256)), x, devices=2)
        >>> [(plan.name, plan.parameter_bytes) for plan in plans.layouts]
        [('data parallel', 524288), ('1 data x 2 model', 262144),
         ('fully sharded', 262144)]

    References:
        Lai, Kadav, Kruus 2021, arXiv:2112.15317; Rajbhandari et al. 2020,
        arXiv:1910.02054.
    """
    model = read_model(apply, params, inputs, batched=batched)
    devices = check_integer(devices, "devices", 1)
    batch = check_integer(batch, "batch", 1)
    if batch % devices:
        more = devices * (batch // devices + 1)
        raise ValueError(
            f"batch is {batch} for {devices} devices; wanted a multiple of the number "
            f"of devices, such as batch={more} (--batch {more})."
        )
    trained, loss, beside = _training(model)
    shape, dtype = model.inputs.shape[1:], model.inputs.dtype
    examples = (
        jax.ShapeDtypeStruct((batch, *shape), dtype),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )

    def layout(name: str, groups: int, choices: Any = None) -> Layout:
        mesh: Any = AbstractMesh(
            (groups, devices // groups), ("data", "model"), axis_types=_AUTO
        )
        with warnings.catch_warnings():
            # That nothing is worth splitting is in the table.
            warnings.simplefilter("ignore")
            plan = shard.plan(
                loss,
                trained,
                examples,
                mesh=mesh,
                optimizer=optax.adam(1e-3),
                choices=choices,
            )
        return Layout(
            name,
            int(plan.parameter_bytes),
            float(plan.memory_bytes + beside),
            float(plan.wire_bytes),
            sum(row.choice != "replicate" for row in plan.rows),
            str(plan),
        )

    groups = [d for d in range(devices - 1, 0, -1) if devices % d == 0]
    layouts = [layout("data parallel", devices)]
    layouts += [layout(f"{d} data x {devices // d} model", d) for d in groups]
    shapes = [leaf.shape for leaf in jax.tree.leaves(trained)]
    divide = any(n and n % devices == 0 for shape in shapes for n in shape)
    if devices > 1 and divide:
        layouts.append(layout("fully sharded", devices, {(): "full"}))
    return Memory(devices, batch, layouts)


def _training(model: Model) -> tuple[Any, Callable[[Any, Any], jax.Array], int]:
    """What is trained, its loss of a batch, and the bytes of what is not trained."""
    trained, whole = split_trained(model.params)
    leaves = zip(jax.tree.leaves(model.params), is_trained(model.params), strict=True)

    def loss(params: Any, batch: Any) -> jax.Array:
        params = whole(params)
        each = jax.vmap(lambda *e: example_loss(model.apply, params, e))(*batch)
        return jnp.mean(each)

    return trained, loss, sum(leaf.nbytes for leaf, changes in leaves if not changes)


_AUTO = (AxisType.Auto, AxisType.Auto)

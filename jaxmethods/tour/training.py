"""The composed step, one jitted function: bound, quantize and shard inside optax.

On a mesh of data x model devices each group computes the 5-bit gradient of its own
rows, with the dense layers split over "model"; AdaComp sends it over "data"; SGD with
momentum takes the mean.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from .. import quantize, shard
from ..audit.model import Apply
from .objective import certified_loss, radius

# Of all layers; the sums that a bound adds up beside them stay exact.
POLICY = quantize.Policy(
    input_grad=quantize.bhq(5),
    weight_grad=quantize.psq(8, per="feature"),
    where=[("params",)],
)
# The paper's bins with few slots each: what overflows stays owed and is sent later.
CODEC = shard.adacomp(slots=8)


class TrainState(NamedTuple):
    """All that a step changes: what a checkpoint holds.

    Attributes:
        params: Laid out over "model" as the plan says.
        optimizer: The last gradients, what AdaComp owes, the momentum; one a device.
        loss: (num_steps,) the loss of each step so far, NaN after.
    """

    params: Any
    optimizer: Any
    loss: jax.Array


class Batch(NamedTuple):
    """What a step takes: rows for the groups; the rest is the same for all.

    Attributes:
        images: (batch, height, width, channels) in [0, 1].
        labels: (batch,) int.
        number: () int, the step, which decides the radius.
        key: For the noise; each group folds its index into it.
    """

    images: Any
    labels: Any
    number: Any
    key: jax.Array


class Trainer(NamedTuple):
    """The functions of a training on a mesh.

    Attributes:
        plan: Which layers are split, on which mesh.
        init: `init(params) -> TrainState`, placed on the mesh.
        step: `step(state, batch) -> TrainState`, jitted; consumes the state.
        drawn: `drawn(state)`: the mean over groups of the gradients that the last step
            drew, before the exchange.
        exact: `exact(params, batch)`: the gradient without quantization, on one device.
    """

    plan: shard.Plan
    init: Callable[[Any], TrainState]
    step: Any
    drawn: Callable[[TrainState], Any]
    exact: Any


def learning_rate(num_steps: int) -> optax.Schedule:
    """The learning rate over a training: a cosine from 1 to 0."""
    return optax.cosine_decay_schedule(1.0, num_steps)


def make_trainer(
    apply: Apply, plan: shard.Plan, *, num_steps: int, eps: float
) -> Trainer:
    """Builds the step of a training.

    Args:
        apply: `apply(params, image) -> logits` of one image.
        plan: Which layers are split, on which mesh.
        num_steps: The length of the training.
        eps: The radius to certify.
    """
    loss = partial(certified_loss, apply)
    low_bit = quantize.fqt(loss, POLICY)

    def exact(params: Any, batch: Batch) -> jax.Array:
        eps_now = radius(batch.number, num_steps, eps)
        return loss(params, batch.images, batch.labels, eps_now)

    def noisy(params: Any, batch: Batch) -> jax.Array:
        eps_now = radius(batch.number, num_steps, eps)
        return low_bit(batch.key, params, batch.images, batch.labels, eps_now)

    optimizer = optax.chain(
        _keep_gradients(),
        shard.exchange(CODEC, "data"),
        # What arrives at a step may have been owed for several: clipped, it cannot
        # throw the network; entry by entry, which needs no norm over "model". Neither
        # momentum, which delays more, nor Adam, which would scale the few large entries
        # of a step down to the size of all others.
        optax.clip(0.05),
        optax.sgd(learning_rate(num_steps)),
    )
    training = shard.hybrid_training(plan, noisy, optimizer)

    # A step's results lie where its arguments lay, or it would be compiled once more.
    specs = plan.specs, P("data", "model"), P()
    layout = TrainState(*jax.tree.map(partial(NamedSharding, plan.mesh), specs))

    def init(params: Any) -> TrainState:
        params = plan.place(params)
        loss = jax.device_put(jnp.full(num_steps, jnp.nan), layout.loss)
        return TrainState(params, jax.jit(training.init)(params), loss)

    def step(state: TrainState, batch: Batch) -> TrainState:
        params, optimizer, value = training.step(state.params, state.optimizer, batch)
        return TrainState(params, optimizer, state.loss.at[batch.number].set(value))

    def drawn(state: TrainState) -> Any:
        # Each device keeps its own shard, under leading data and model axes.
        kept = state.optimizer[0].gradients
        return jax.tree.map(_assemble, kept, plan.specs)

    jitted = jax.jit(step, donate_argnums=0, out_shardings=layout)
    # Optimising what runs once costs more than it saves.
    once = jax.jit(
        jax.grad(exact), compiler_options={"xla_backend_optimization_level": 0}
    )
    return Trainer(plan, init, jitted, drawn, once)


class _Kept(NamedTuple):
    gradients: Any


def _keep_gradients() -> optax.GradientTransformation:
    """Passes gradients on, and keeps the last ones in its state to look at."""
    return optax.GradientTransformation(
        lambda params: _Kept(jax.tree.map(jnp.zeros_like, params)),
        lambda updates, state, params=None: (updates, _Kept(updates)),
    )


def _assemble(kept: jax.Array, spec: P) -> np.ndarray:
    """The mean over "data" of a leaf's shards, put together along "model"."""
    mean = np.asarray(kept).mean(0)
    if "model" not in spec:
        return mean[0]
    return np.concatenate(list(mean), axis=spec.index("model"))

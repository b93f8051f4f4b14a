"""VGG nets for hybrid parallelism: the loss as it is, and split by hand.

A `Vgg` is convolutions of 3 x 3, poolings, and three dense layers. `by_hand` writes its
loss for the devices of a mesh with `shard.modulo_layer`; `training_step` makes a step
of either, `arguments` the shapes that it takes, `trainer` a training.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmethods import shard

DEVICES = 8
ROWS = P(("data", "model"))  # every device its own examples
VGG_11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)
VGG_16 = (64, 64, 0, 128, 128, 0, *(256,) * 3, 0, *(512,) * 3, 0, *(512,) * 3, 0)
POOL = (1, 2, 2, 1)


class Vgg(NamedTuple):
    """A VGG, its parameters a flat dict: conv0, conv0_bias, ..., dense2_bias.

    Attributes:
        name: For tables.
        side: Of its images, in pixels, of three channels.
        channels: Of its convolutions; 0 is a pooling.
        dense: The width that enters the first of three dense layers, and their own.
        smooth: Whether GELU and mean-pooling stand for ReLU and max-pooling.
    """

    name: str
    side: int
    channels: tuple[int, ...]
    dense: tuple[int, int, int, int]
    smooth: bool = False

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        found: dict[str, tuple[int, ...]] = {}
        widths = [3, *filter(None, self.channels)]
        for i, (before, after) in enumerate(pairwise(widths)):
            found[f"conv{i}"], found[f"conv{i}_bias"] = (3, 3, before, after), (after,)
        for i, (before, after) in enumerate(pairwise(self.dense)):
            found[f"dense{i}"], found[f"dense{i}_bias"] = (before, after), (after,)
        return found

    def count(self, *starts: str) -> int:
        """Parameters with names that start so; of all without."""
        shapes = self.parameters.items()
        return sum(int(np.prod(s)) for k, s in shapes if k.startswith(starts or ""))

    def init(self, rng: np.random.Generator, dtype: Any) -> dict[str, np.ndarray]:
        """Random weights of unit gain through rectifiers, a small head, biases of 0."""
        drawn = {}
        for name, shape in self.parameters.items():
            gain = 0.1 if name == "dense2" else 1.0
            scale = gain * np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 0
            drawn[name] = (scale * rng.standard_normal(shape)).astype(dtype)
        return drawn

    def rectify(self, x: jax.Array) -> jax.Array:
        """What follows every layer but the last."""
        return jax.nn.gelu(x) if self.smooth else jax.nn.relu(x)

    def features(self, params: Any, images: jax.Array) -> jax.Array:
        """What enters the dense layers."""
        x, number = images, 0
        for width in self.channels:
            if width == 0 and self.smooth:
                add = jax.lax.reduce_window(x, 0.0, jax.lax.add, POOL, POOL, "VALID")
                x = add / 4
            elif width == 0:
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, POOL, POOL, "VALID")
            else:
                layout = ("NHWC", "HWIO", "NHWC")
                x = jax.lax.conv_general_dilated(
                    x, params[f"conv{number}"], (1, 1), "SAME", dimension_numbers=layout
                )
                x, number = self.rectify(x + params[f"conv{number}_bias"]), number + 1
        return x.reshape(len(x), -1)

    def loss(self, params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Mean cross-entropy of images and labels."""
        x = self.features(params, batch[0])
        for name in ("dense0", "dense1"):
            x = self.rectify(x @ params[name] + params[f"{name}_bias"])
        return _mean(x @ params["dense2"] + params["dense2_bias"], batch[1])


def by_hand(net: Vgg, plan: shard.Plan, scheme: str) -> Callable[[Any, Any], jax.Array]:
    """The same loss inside `shard_map`, its first two dense layers split.

    Args:
        net: The net.
        plan: That splits the first dense layer by columns and the second by rows.
        scheme: Of `shard.modulo_layer`.
    """

    def own(params: Any, images: jax.Array) -> jax.Array:
        pair = "dense0", "dense0_bias", "dense1", "dense1_bias"
        k0, b0, k1, b1 = (params[name] for name in pair)

        def split(rows: jax.Array) -> jax.Array:
            hidden = net.rectify(shard.column_dense(rows, k0, b0))
            return shard.row_dense(hidden, k1, b1, "model")

        x = net.features(params, images)
        x = net.rectify(shard.modulo_layer(split, x, "model", scheme=scheme))
        return x @ params["dense2"] + params["dense2_bias"]

    logits = jax.shard_map(
        own, mesh=plan.mesh, in_specs=(plan.specs, ROWS), out_specs=ROWS
    )
    return lambda params, batch: _mean(logits(params, batch[0]), batch[1])


def training_step(
    net: Vgg,
    optimizer: optax.GradientTransformation,
    plan: shard.Plan | None = None,
    scheme: str = "",
) -> Any:
    """A jitted `step(params, state, batch) -> (params, state, loss)`.

    Args:
        net: The net.
        optimizer: Of the step.
        plan: How to spread it; on one device without.
        scheme: By hand, by this scheme; by `plan.apply` without.
    """
    loss = by_hand(net, plan, scheme) if plan is not None and scheme else net.loss

    def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    if plan is None:
        return jax.jit(step, donate_argnums=(0, 1))
    if not scheme:
        return plan.apply(step, batch_argument=2, donate_argnums=(0, 1))
    spread = jax.tree.map(lambda x: x.sharding, arguments(net, optimizer, plan)[:2])
    return jax.jit(step, donate_argnums=(0, 1), out_shardings=(*spread, None))


def arguments(
    net: Vgg, optimizer: optax.GradientTransformation, plan: shard.Plan, rows: int = 0
) -> tuple[Any, Any, Any]:
    """What a step takes, as shapes with shardings: nothing is allocated.

    Args:
        net: The net.
        optimizer: Of the step.
        plan: How it is spread.
        rows: Images, over all devices.
    """
    params, batch = abstract(net, rows)
    state = jax.eval_shape(optimizer.init, params)
    shaped = partial(_spread, plan.mesh)
    return (
        jax.tree.map(shaped, params, plan.specs),
        jax.tree.map(shaped, state, plan.optimizer_specs(state)),
        jax.tree.map(lambda x: shaped(x, ROWS), batch),
    )


def abstract(net: Vgg, rows: int) -> tuple[Any, Any]:
    """Parameters and a batch of so many images, as shapes."""
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, shape in net.parameters.items()
    }
    images = jax.ShapeDtypeStruct((rows, net.side, net.side, 3), jnp.float32)
    return params, (images, jax.ShapeDtypeStruct((rows,), jnp.int32))


def grid(members: int) -> Mesh:
    """All devices, in groups of so many members."""
    devices = np.array(jax.devices()[:DEVICES]).reshape(-1, members)
    return Mesh(devices, ("data", "model"))


def placed(
    net: Vgg,
    optimizer: optax.GradientTransformation,
    members: int,
    params: Any,
    batch: Any,
) -> tuple[shard.Plan | None, Any, Any, Any]:
    """A plan, parameters and state where it puts them, and where batches go.

    Without members: one device and no plan.
    """
    state = optimizer.init(params)
    if not members:
        one = jax.devices()[0]
        return None, *jax.device_put((params, state), one), one
    mesh = grid(members)
    plan = shard.splitbrain(net.loss, params, batch, mesh=mesh)
    target = NamedSharding(mesh, ROWS)
    return plan, plan.place(params), plan.place_optimizer(state), target


def trainer(
    net: Vgg,
    optimizer: optax.GradientTransformation,
    dtype: Any,
    batch: Any,
    members: int,
    scheme: str = "",
) -> Callable[[list[Any]], np.ndarray]:
    """From batches to the loss of each step, always from the same weights.

    Args:
        net: The net.
        optimizer: Of the steps.
        dtype: Of parameters.
        batch: Like those to come.
        members: Of a group; 0 for one device.
        scheme: As for `training_step`.
    """
    first = net.init(np.random.default_rng(1), dtype)
    plan, *_, target = placed(net, optimizer, members, first, batch)
    step = training_step(net, optimizer, plan, scheme)

    def trained(batches: list[Any]) -> np.ndarray:
        _, params, state, _ = placed(net, optimizer, members, first, batch)
        found = []
        for one in batches:
            params, state, loss = step(params, state, jax.device_put(one, target))
            found.append(loss)
        return np.array([float(loss) for loss in found])

    return trained


def _spread(mesh: Mesh, x: Any, spec: P) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _mean(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

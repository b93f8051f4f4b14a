"""What the composed step costs and how noisy it is, measured on the trained network."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from .. import shard


class LayerNoise(NamedTuple):
    """Noise and bias of a parameter's quantized gradient, over its squared norm.

    Attributes:
        noise: Variance of a draw, summed over the entries.
        bias: Squared distance of the mean of the draws from the exact gradient.
        bias_expected: What `bias` is on average for an unbiased gradient.
    """

    noise: float
    bias: float
    bias_expected: float


def gradient_noise(draws: Iterable[Any], exact: Any) -> dict[str, LayerNoise]:
    """Compares draws of a gradient with the exact one, parameter by parameter.

    Args:
        draws: At least two gradients under keys of their own, trees like `exact`.
        exact: The gradient without quantization.
    """
    exact = jax.device_get(exact)
    first = jax.tree.map(lambda e: np.zeros(e.shape), exact)
    second = jax.tree.map(lambda e: 0.0, exact)
    count = 0
    for draw in draws:
        off = jax.tree.map(lambda d, e: np.asarray(d, np.float64) - e, draw, exact)
        first = jax.tree.map(np.add, first, off)
        second = jax.tree.map(lambda s, o: s + np.sum(o**2), second, off)
        count += 1

    def of(total: Any, squares: float, e: Any) -> LayerNoise:
        bias = float(np.sum((total / count) ** 2))
        variance = float((squares - count * bias) / (count - 1))
        size = float(np.sum(np.asarray(e, np.float64) ** 2)) or 1.0
        return LayerNoise(variance / size, bias / size, variance / count / size)

    noise = jax.tree.map(of, first, second, exact)
    is_noise = {"is_leaf": lambda x: isinstance(x, LayerNoise)}
    flat = jax.tree_util.tree_flatten_with_path(noise, **is_noise)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="/"): n for p, n in flat}


class WireBytes(NamedTuple):
    """Bytes that a device sends in one exchange of gradients."""

    dense_bytes: float
    sent_bytes: float
    ratio: float


def exchange_bytes(plan: shard.Plan, codec: shard.Codec, params: Any) -> WireBytes:
    """Reads from compiled exchanges what a device sends: a mean, and a codec.

    Args:
        plan: Where parameters lie.
        codec: What the training exchanges with.
        params: The parameters, whose gradients are exchanged.
    """
    groups = plan.mesh.shape["data"]
    gradients = jax.tree.map(lambda p: jnp.zeros((groups, *p.shape)), params)
    send = shard.exchange(codec, "data")
    stacked = jax.tree.map(lambda spec: P("data", *spec), plan.specs)

    def on_mesh(exchange: Callable[[Any], Any]) -> float:
        def own(gradients: Any) -> Any:
            return exchange(jax.tree.map(lambda leaf: leaf[0], gradients))

        mapped = jax.shard_map(
            own, mesh=plan.mesh, in_specs=(stacked,), out_specs=plan.specs
        )
        return shard.wire(jax.jit(mapped))(gradients).total

    dense = on_mesh(lambda g: jax.lax.pmean(g, "data"))
    sent = on_mesh(lambda g: send.update(g, send.init(g))[0])
    return WireBytes(dense, sent, dense / sent if sent else 1.0)


def bytes_a_device(tree: Any) -> int:
    """The bytes that the first device holds of a tree of arrays."""
    device = jax.tree.leaves(tree)[0].addressable_shards[0].device
    return sum(
        part.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for part in leaf.addressable_shards
        if part.device == device
    )

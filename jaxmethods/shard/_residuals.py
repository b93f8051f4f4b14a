"""What the backward pass of a loss keeps of the forward pass, layer by layer."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core import Variable, flatten
from ._costs import Reader


def residual_bytes(
    loss: Callable[[Any, Any], jax.Array], params: Any, batch: Any
) -> Counter[int]:
    """Bytes of activations that a gradient keeps, by the layer that made them.

    They are what `jax.vjp` saves, parameters and the batch left out. XLA may keep less,
    where it computes again, or more, in buffers.

    Args:
        loss: Any function of parameters and a batch.
        params: A pytree; shapes and dtypes suffice.
        batch: A pytree of the whole batch; shapes and dtypes suffice.

    Returns:
        Bytes over all devices, by the leaf of the last layer before; -1 for what comes
        before any layer.

    Example:
        >>> w = [jnp.ones((3, 8)), jnp.ones((8, 2))]
        >>> net = lambda w, x: (jnp.tanh(x @ w[0]) @ w[1]).sum()
        >>> residual_bytes(net, w, jnp.ones((5, 3)))  # tanh and 1 - tanh
        Counter({0: 320})
    """

    def kept(params: Any, batch: Any) -> list[jax.Array]:
        pull = jax.vjp(lambda p: loss(p, batch), params)[1]
        return [x for x in jax.tree.leaves(pull) if isinstance(x, jax.Array)]

    graph = flatten(kept, params, batch)
    reader = Reader(graph, len(jax.tree.leaves(params)))
    order = {layer.leaf: number for number, layer in enumerate(reader.read())}
    inputs = set(graph.inputs)
    total: Counter[int] = Counter()
    for atom in dict.fromkeys(x for x in graph.outputs if isinstance(x, Variable)):
        fact = reader.facts[atom]
        if atom in inputs or not fact.data:
            continue
        leaf = max(fact.layers, key=order.__getitem__, default=-1)
        total[leaf] += math.prod(atom.shape) * _itemsize(atom.dtype)
    return total


def _itemsize(dtype: Any) -> int:
    return 0 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize

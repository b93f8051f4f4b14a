"""Draws with replacement by given scores: a tree of running sums, no Gumbel matrix.

One running sum over n scores in float32 loses the small ones: a million scores leave
5 of 24 bits for each. In a tree every node has its own sums of at most 256 children
and every level its own random number, so a draw is as precise as the scores are. The
sums run one after the other; summed in pairs they would not be equal where a score is
zero, and that row could be drawn.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from ..core import materialized
from ..kernels import random_bits

_CHILDREN = 256


@partial(jax.jit, static_argnames="shape")  # one program when called op by op
def draw_indices(
    key: jax.Array, scores: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Indices of scores, each drawn with probability scores / sum.

    Args:
        key: scalar typed key; uses its streams 0..7.
        scores: float32 or float64 (n,), finite, 0 or more, not all zero.
        shape: of the result.

    Returns:
        int32 of that shape, 0..n-1; none of an index whose score is zero. The i-th
        number in memory order does not depend on the shape.

    Complexity:
        Two passes over the scores, log2(n) steps a draw.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> draw_indices(jax.random.key(0), jnp.array([0.0, 1.0, 0.0]), (4,))
        Array([1, 1, 1, 1], dtype=int32)
    """
    scores = jax.lax.stop_gradient(scores)
    levels = _running_sums(scores / scores.max())
    counter = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    node = jnp.zeros(shape, jnp.int32)
    for depth, sums in enumerate(reversed(levels)):
        total = sums[-1, node]
        target = _uniform(key, counter, 2 * depth, total.dtype) * total
        # Rounding must not reach the total, or a child beyond the last were drawn.
        target = jnp.minimum(target, jnp.nextafter(total, jnp.zeros_like(total)))
        # Or XLA enciphers the words again at every comparison with the target.
        child = _first_above(sums, node, materialized(target))
        node = materialized(child * sums.shape[1] + node)
    return jnp.minimum(node, len(scores) - 1)


def _running_sums(scores: jax.Array) -> list[jax.Array]:
    """Per level, leaves first: (children, nodes), child j of node b is j nodes + b."""
    levels = []
    while True:
        children = min(_CHILDREN, 1 << (len(scores) - 1).bit_length())
        nodes = -(-len(scores) // children)
        padded = jnp.pad(scores, (0, children * nodes - len(scores)))
        rows = padded.reshape(children, nodes)
        start = jnp.zeros_like(rows[0])
        _, sums = jax.lax.scan(lambda sum, row: (sum + row,) * 2, start, rows)
        levels.append(sums)
        if nodes == 1:
            return levels
        scores = sums[-1]


def _first_above(sums: jax.Array, node: jax.Array, target: jax.Array) -> jax.Array:
    """The first child of each node whose running sum is above the target."""
    child, step = jnp.zeros_like(node), len(sums) // 2
    while step:
        child = jnp.where(sums[child + step - 1, node] > target, child, child + step)
        step //= 2
    return child


def _uniform(key: jax.Array, counter: jax.Array, stream: int, dtype) -> jax.Array:
    """Uniform in [0, 1), of all bits that the dtype holds."""
    high = random_bits(key, counter, stream)
    if dtype == jnp.float32:
        return (high >> 8).astype(dtype) * 2.0**-24
    low = random_bits(key, counter, stream + 1)
    return (high >> 5).astype(dtype) * 2.0**-27 + (low >> 6).astype(dtype) * 2.0**-53

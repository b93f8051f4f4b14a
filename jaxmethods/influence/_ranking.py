"""The strongest of many scores, found some at a time or on several devices.

Of equal scores the example of lower number is the stronger one, so that the order does
not depend on the parts; a score that is not finite is the strongest of all, to be seen.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# The number of an example that there is not.
NOBODY = jnp.iinfo(jnp.int32).max


class TopK(NamedTuple):
    """The strongest scores of each test example, strongest first.

    Attributes:
        scores: (n_test, k).
        indices: (n_test, k) int32, the numbers of the training examples.
    """

    scores: jax.Array
    indices: jax.Array


class Order(NamedTuple):
    """What strongest means, and how many of them are wanted.

    Attributes:
        k: How many.
        sign: 1 where large scores are strong, -1 where small ones are.
    """

    k: int
    sign: int

    def empty(self, num_rows: int, dtype: Any) -> TopK:
        """Of no examples."""
        shape = num_rows, self.k
        return TopK(jnp.zeros(shape, dtype), jnp.full(shape, NOBODY, jnp.int32))

    def merge(self, best: TopK, scores: jax.Array, indices: jax.Array) -> TopK:
        """The best with those of some more examples.

        Args:
            best: (n_test, k).
            scores: (n_test, width).
            indices: (width,) ascending, NOBODY where there is no example.
        """
        indices = jnp.broadcast_to(indices.astype(jnp.int32), scores.shape)
        # Of equal ones `top_k` takes the first, here that of the lower number.
        strength = self.strength(scores, indices)
        at = lax.top_k(strength, min(self.k, scores.shape[1]))[1]
        some = (jnp.take_along_axis(x, at, axis=1) for x in (scores, indices))
        return self.best_of(TopK(*map(_side_by_side, zip(best, some, strict=True))))

    def best_of(self, candidates: TopK) -> TopK:
        """The k strongest of more than k candidates, strongest first."""
        weakness = -self.strength(*candidates)
        keys = weakness, candidates.indices, candidates.scores
        _, indices, scores = lax.sort(keys, num_keys=2)
        return TopK(scores[:, : self.k], indices[:, : self.k])

    def strength(self, scores: jax.Array, indices: jax.Array) -> jax.Array:
        """What to sort by: no -0, which `top_k` tells from 0, and no NaN."""
        strength = jnp.where(jnp.isfinite(scores), self.sign * scores, jnp.inf)
        strength = jnp.where(strength == 0, 0, strength)
        return jnp.where(indices == NOBODY, -jnp.inf, strength)

    def over_axis(self, best: TopK, axis_name: str) -> TopK:
        """The best of all devices along a mesh axis, on each of them the same."""
        count, here = lax.axis_size(axis_name), lax.axis_index(axis_name)

        def gather(x: jax.Array) -> jax.Array:
            # A sum of parts, as unlike `all_gather` it is known to be the same.
            parts = jnp.zeros((count, *x.shape), x.dtype).at[here].set(x)
            rows = lax.psum(parts, axis_name).swapaxes(0, 1)
            return rows.reshape(x.shape[0], count * x.shape[1])

        return self.best_of(TopK(*map(gather, best)))


def check_count(k: int, num_train: int) -> None:
    """Raises ValueError unless there are k training examples."""
    if k > num_train:
        raise ValueError(f"k is {k}; wanted 1..{num_train}, the training examples.")


def _side_by_side(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    return jnp.concatenate(pair, axis=1)


# Compiled once for all calls: what it is given differs in values alone.
merge = jax.jit(Order.merge, static_argnums=0)

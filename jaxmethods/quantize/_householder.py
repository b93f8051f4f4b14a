"""Groups each large row with small ones and reflects it into an even spread.

The block Householder transform of a matrix of n rows: a diagonal scaling `S` and one
reflection `Q` per group, `T = Q S`. It spreads a row of wide range over many rows of
narrow range, so that rounding `T x` costs less than rounding `x`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ..kernels import reflect_rows

# Ranges below this part of the largest count as this part: a row of zeros has a scale.
_SMALLEST_RANGE = 1e-6


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Householder:
    """The transform `T = Q S` of n rows, in 13 bytes a row.

    `Q = I - w w^T` within a group of size k, where `w` is `1/sqrt(k) - [leader]` scaled
    to squared length 2: symmetric, orthogonal, the leader's column `1/sqrt(k)`.

    Attributes:
        group: int32 (n,), the group of each row, below n / 2.
        size: int32 (n,), how many rows that group has.
        leader: bool (n,), whether the row is its group's leader.
        scale: float32 (n,), the diagonal of `S`.
    """

    group: jax.Array
    size: jax.Array
    leader: jax.Array
    scale: jax.Array

    def apply(self, x: jax.Array, shift: jax.Array | None = None) -> jax.Array:
        """`T (x - shift)` for `x` (n, d) and `shift` (n, 1) or None, in O(n d)."""
        return self._reflect(x, shift, self._scale(x.dtype))

    def invert(self, y: jax.Array) -> jax.Array:
        """`T^-1 y` for `y` (n, d), in O(n d)."""
        scale = self._scale(y.dtype)
        return self._reflect(y, None, jnp.ones_like(scale)) / scale

    def gain(self, dtype: jnp.dtype) -> jax.Array:
        """(n, 1): summed variance of `T^-1 y` for unit variance in one row of `y`."""
        cost = 1 / self._scale(dtype) ** 2
        square = self._normal(dtype) ** 2
        sums = jax.ops.segment_sum(cost * square, self.group, self._num_groups)
        return cost * (1 - 2 * square) + square * sums[self.group]

    def _reflect(
        self, x: jax.Array, shift: jax.Array | None, scale: jax.Array
    ) -> jax.Array:
        shift = jnp.zeros_like(scale) if shift is None else shift
        normal, groups = self._normal(x.dtype), self._num_groups
        return reflect_rows(x, shift, scale, normal, self.group, num_groups=groups)

    @property
    def _num_groups(self) -> int:
        return (self.group.shape[0] + 1) // 2

    def _normal(self, dtype: jnp.dtype) -> jax.Array:
        even = 1 / jnp.sqrt(self.size.astype(dtype))
        # A group of one (rounding can make one) reflects nothing: its normal is zero.
        length = jnp.sqrt(jnp.where(self.size > 1, 1 - even, 1))
        return ((even - self.leader.astype(dtype)) / length)[:, None]

    def _scale(self, dtype: jnp.dtype) -> jax.Array:
        return self.scale.astype(dtype)[:, None]


def _most_groups(num_rows: int) -> int:
    return (num_rows - 1) // 2


def fit_householder(ranges: jax.Array) -> Householder:
    """Plans the transform from the range of each row, without a loop.

    In descending order of the ranges `v`: the leaders are the largest number G of rows
    such that even the smallest of them gets more than one follower when the others are
    dealt in proportion to the ranges, `(n - G) v_G > v_1 + ... + v_G`; leader i takes
    the followers up to `round((n - G) (v_1 + ... + v_i) / (v_1 + ... + v_G))`.

    Within a group of size k, leader's range a and largest follower's range b, the
    scales minimise the squared length of `S^-1` for a given range of the rows of
    `Q S x`. That makes them `(a / sqrt(k))^(-1/3)` and `(b c / (k - 1))^(-1/3)`, with c
    the largest entry of `Q`; here both are divided by the leader's.

    Args:
        ranges: float (n,), n at least 3, not negative.

    Returns:
        The transform. A NaN range makes the scales NaN.

    Complexity:
        One sort, a prefix sum and a binary search of n numbers.

    References:
        Chen, Gai, Yao, Mahoney, Gonzalez 2020 (arXiv 2010.14298).
    """
    n = ranges.shape[0]
    tiny = jnp.finfo(ranges.dtype).tiny
    ranges = jnp.maximum(ranges, jnp.maximum(_SMALLEST_RANGE * ranges.max(), tiny))
    rank = jnp.arange(n, dtype=jnp.int32)
    descending, order = jax.lax.sort((-ranges, rank), num_keys=1)
    ranges = -descending
    total = jnp.cumsum(ranges)

    enough = (n - 1 - rank) * ranges > total
    num_groups = jnp.max(jnp.where(enough, rank + 1, 1))
    # Equal ranges are a tie that rounding may decide either way.
    num_groups = jnp.minimum(num_groups, _most_groups(n))
    num_followers = n - num_groups
    leader = rank < num_groups
    share = total / jnp.max(jnp.where(leader, total, 0))
    end = jnp.floor(num_followers * share + 0.5).astype(jnp.int32)
    start = jnp.concatenate([jnp.zeros_like(end[:1]), end[:-1]])

    # The groups that end at or before each follower: they are counted in ranks, so a
    # histogram does, where a search is refused in a partly manual shard_map.
    ended = jnp.cumsum(jnp.zeros_like(rank).at[end + num_groups].add(1, mode="drop"))
    group = jnp.minimum(jnp.where(leader, rank, ended), num_groups - 1)
    largest_follower = ranges[jnp.minimum(num_groups + start, n - 1)]
    sizes = (end - start + 1).astype(ranges.dtype)
    leader_range, follower_range, size = jnp.stack([ranges, largest_follower, sizes])[
        :, group
    ]
    ratio = _follower_scale(leader_range, follower_range, size)
    scale = jnp.where(leader, 1, ratio).astype(jnp.float32)
    # Back to the order of the rows; a second sort would cost as much as all of this.
    place = jnp.zeros_like(rank).at[order].set(rank, unique_indices=True)
    found = (group, size.astype(jnp.int32), leader, scale)
    return Householder(*(x[place] for x in found))


def _follower_scale(
    leader: jax.Array, follower: jax.Array, size: jax.Array
) -> jax.Array:
    """The scale of followers where that of their leader is 1, from the two ranges."""
    size = jnp.maximum(size, 2)  # one row alone has no followers
    root = jnp.sqrt(size)
    # Entries of Q: 1 / root by the leader, 1 - other on the diagonal, -other elsewhere,
    # where a group of two has none.
    other = 1 / (size - root)
    largest = jnp.maximum(1 / root, jnp.abs(1 - other))
    largest = jnp.maximum(largest, jnp.where(size > 2, other, 0))
    return jnp.cbrt(leader / follower * (size - 1) / (root * largest))

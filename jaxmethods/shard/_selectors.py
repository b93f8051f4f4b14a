"""Which entries of a gradient to send: the first part of a codec.

A selector is a frozen dataclass with `init(size) -> memory` and
`select(memory, gradient, total) -> (Selection, memory)`, both for one leaf that was
flattened to n float32 numbers; `total` is the gradient and what was left over before.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ..core import check_fraction, check_integer, check_nonnegative
from ..kernels import bin_ranks, magnitude_of_rank
from ._finite_mean import finite_mean


class Selection(NamedTuple):
    """The entries of a leaf that may be sent.

    Attributes:
        mask: (n,) bool, which; None for all.
        rank: () -> (n,) float32, 0 or more: where room is short the larger go first,
            then those of smaller index. A function, since room rarely is. None where
            `mask` is.
        scale: Scalar that value codes of one size use, or None for their own.
    """

    mask: jax.Array | None
    rank: Callable[[], jax.Array] | None
    scale: jax.Array | None = None


class Selector(Protocol):
    """What a codec asks of a selector.

    Example:
        >>> from jaxmethods.shard import Everything
        >>> isinstance(Everything().capacity(5), int)
        True
    """

    def init(self, size: int) -> Any:
        """What is remembered of a leaf of so many entries, a pytree."""
        ...

    def select(
        self, memory: Any, gradient: jax.Array, total: jax.Array
    ) -> tuple[Selection, Any]:
        """The choice, and what is remembered next."""
        ...

    def capacity(self, size: int) -> int:
        """The room of a message for a leaf of so many entries."""
        ...


@dataclass(frozen=True)
class Everything:
    """Selects all entries: for value codes that make each of them small.

    Example:
        >>> Everything().select((), jnp.ones(2), jnp.ones(2))[0].mask is None
        True
    """

    def init(self, size: int) -> Any:
        """Nothing."""
        return ()

    def select(
        self, memory: Any, gradient: jax.Array, total: jax.Array
    ) -> tuple[Selection, Any]:
        """No mask."""
        return Selection(None, None), memory

    def capacity(self, size: int) -> int:
        """Room for all."""
        return size


@dataclass(frozen=True)
class Largest:
    """Selects the entries of largest magnitude: top-k.

    Attributes:
        sparsity: the share of entries that is left out, in [0, 1): of n entries
            `n - floor(sparsity n)` are sent, fewer where others are zero.

    Example:
        >>> total = jnp.array([3.0, -4.0, 1.0, 0.5])
        >>> Largest(0.5).capacity(4)
        2
    """

    sparsity: float

    def __post_init__(self):
        check_fraction(self.sparsity, "sparsity")

    def init(self, size: int) -> Any:
        """Nothing."""
        return ()

    def select(
        self, memory: Any, gradient: jax.Array, total: jax.Array
    ) -> tuple[Selection, Any]:
        """All that is not zero, by magnitude."""
        return Selection(total != 0, lambda: jnp.abs(total)), memory

    def capacity(self, size: int) -> int:
        """The number of entries sent."""
        return size - math.floor(self.sparsity * size)


class ThresholdMemory(NamedTuple):
    """What `AboveThreshold` remembers of a leaf.

    Attributes:
        threshold: () float32.
        step: () int32, steps so far.
    """

    threshold: jax.Array
    step: jax.Array


@dataclass(frozen=True)
class AboveThreshold:
    """Selects what reaches a threshold that is renewed every `life` steps.

    The threshold is the `floor(sparsity n)`-th smallest magnitude, counted from 0.

    Attributes:
        sparsity: the share of entries below the threshold when it is new, in [0, 1).
        life: steps between renewals, at least 1.
        room: entries a message holds, an int; or their share of the leaf, a float, of
            which a message holds one at least; None for all.

    Example:
        >>> selector, total = AboveThreshold(0.5), jnp.array([3.0, -4.0, 1.0, 0.5])
        >>> selection, memory = selector.select(selector.init(4), total, total)
        >>> selection.mask.tolist(), float(memory.threshold)
        ([True, True, False, False], 3.0)

    References:
        Gupta et al. 2020, arXiv:2010.08899.
    """

    sparsity: float
    life: int = 1
    room: int | float | None = None

    def __post_init__(self):
        check_fraction(self.sparsity, "sparsity")
        check_integer(self.life, "life", 1)
        if isinstance(self.room, float | np.floating):
            if not 0 < self.room <= 1:
                raise ValueError(
                    f"capacity is {self.room}; wanted a share, 0 < capacity <= 1, or a "
                    "number of entries, an int."
                )
        elif self.room is not None:
            check_integer(self.room, "capacity", 1)

    def init(self, size: int) -> ThresholdMemory:
        """A threshold of 0, due to be renewed."""
        return ThresholdMemory(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

    def select(
        self, memory: ThresholdMemory, gradient: jax.Array, total: jax.Array
    ) -> tuple[Selection, ThresholdMemory]:
        """All that reaches the threshold and is not zero."""
        size = total.size
        rank = size - 1 - math.floor(self.sparsity * size)
        threshold = jax.lax.cond(
            memory.step % self.life == 0,
            lambda: magnitude_of_rank(total, rank),
            # Tied to the total, with which it varies over a mesh.
            lambda: memory.threshold + 0 * total[0],
        )
        mask = (jnp.abs(total) >= threshold) & (total != 0)
        after = ThresholdMemory(threshold, memory.step + 1)
        return Selection(mask, lambda: jnp.abs(total)), after

    def capacity(self, size: int) -> int:
        """All, or the given room."""
        if self.room is None:
            return size
        if isinstance(self.room, float | np.floating):
            return min(size, max(1, round(self.room * size)))
        return min(self.room, size)


@dataclass(frozen=True)
class LocalBins:
    """AdaComp's choice: what is large in its own bin, new gradients counted more.

    With total G, gradient g, `H = G + (scale_factor - 1) g` and m the largest |G| of a
    bin, an entry is sent where |H| >= m and G is not zero; the scale is the mean of m.

    Attributes:
        bin_size: consecutive entries a bin, at least 1.
        slots: entries of a bin that a message has room for, at least 1; None: all.
        scale_factor: 0 or more.

    Example:
        >>> gradient = jnp.array([4.0, -1.0, 2.0, 0.0])
        >>> LocalBins(4).select((), gradient, gradient)[0].mask
        Array([ True, False,  True, False], dtype=bool)

    References:
        Chen et al. 2017, arXiv:1712.02679.
    """

    bin_size: int
    slots: int | None = None
    scale_factor: float = 2.0

    def __post_init__(self):
        check_integer(self.bin_size, "bin_size", 1)
        if self.slots is not None:
            check_integer(self.slots, "slots", 1, self.bin_size)
        check_nonnegative(self.scale_factor, "scale_factor")

    def init(self, size: int) -> Any:
        """Nothing."""
        return ()

    def select(
        self, memory: Any, gradient: jax.Array, total: jax.Array
    ) -> tuple[Selection, Any]:
        """All that is at least its bin's bar."""
        rank, tops = bin_ranks(
            total,
            gradient,
            bin_size=min(self.bin_size, total.size),
            scale_factor=self.scale_factor,
        )
        return Selection(rank > 0, lambda: rank, finite_mean(tops, tops.size)), memory

    def capacity(self, size: int) -> int:
        """The slots of all bins."""
        width = min(self.bin_size, size)
        return -(-size // width) * min(self.slots or width, width)

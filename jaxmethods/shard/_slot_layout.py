"""The bytes of a message: a round number, and behind it the leaves of a tree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import describe


class Slot(NamedTuple):
    """A message in place: views of its bytes, nothing is copied."""

    count: np.ndarray  # int64 (1,): the round of what it holds plus one; 0 for nothing
    leaves: list[np.ndarray]  # each flat

    @property
    def round(self) -> int:
        """The round of the message it holds, -1 where it holds none."""
        return int(self.count[0]) - 1


class SlotLayout:
    """Where in a slot the leaves of a tree lie.

    Args:
        like: Arrays, or what has their shapes and dtypes, floating or complex.

    Raises:
        TypeError: A leaf of another dtype.
    """

    def __init__(self, like: Any) -> None:
        leaves, self.treedef = jax.tree.flatten_with_path(like)
        self._paths = [path for path, _ in leaves]
        self.names = [f"tree{jax.tree_util.keystr(path)}" for path in self._paths]
        self.kinds = [_kind(leaf) for _, leaf in leaves]
        offset, self._starts = 8, []
        for name, kind in zip(self.names, self.kinds, strict=True):
            if not jnp.issubdtype(kind.dtype, jnp.inexact):
                raise TypeError(
                    f"the leaf at {name} is {describe(kind)}, which has no mean of its "
                    "dtype; wanted floating leaves: leave it out, or cast it."
                )
            self._starts.append(offset)
            offset += -(-kind.size * kind.dtype.itemsize // 8) * 8
        self.nbytes = offset

    @property
    def leaves(self) -> list[tuple[str, str]]:
        """Names, and shapes with dtypes: what must be the same at both ends."""
        return list(zip(self.names, map(describe, self.kinds), strict=True))

    def view(self, buffer: np.ndarray) -> Slot:
        """The slot in a buffer, uint8 (nbytes,)."""
        leaves = []
        for start, kind in zip(self._starts, self.kinds, strict=True):
            size = kind.size * kind.dtype.itemsize
            leaves.append(buffer[start : start + size].view(kind.dtype))
        return Slot(buffer[:8].view(np.int64), leaves)

    def write(self, tree: Any, slot: Slot, round: int) -> None:
        """Copies a tree into a slot; the number comes last, so it speaks of data."""
        for value, leaf in zip(self._leaves(tree), slot.leaves, strict=True):
            np.copyto(leaf.reshape(value.shape), value)
        slot.count[0] = round + 1

    def _leaves(self, tree: Any) -> list[np.ndarray]:
        found, treedef = jax.tree.flatten_with_path(tree)
        # Paths too: structures of different dataclasses may be equal to jax.
        if treedef != self.treedef or [path for path, _ in found] != self._paths:
            raise ValueError(
                f"the tree is {treedef}; wanted that of `like`, {self.treedef}."
            )
        leaves = [np.asarray(leaf) for _, leaf in found]
        for name, leaf, kind in zip(self.names, leaves, self.kinds, strict=True):
            if (leaf.shape, leaf.dtype) != (kind.shape, kind.dtype):
                raise ValueError(
                    f"the leaf at {name} is {describe(leaf)}; wanted that of `like`, "
                    f"{describe(kind)}: slots have a fixed size."
                )
        return leaves


def _kind(leaf: Any) -> jax.ShapeDtypeStruct:
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

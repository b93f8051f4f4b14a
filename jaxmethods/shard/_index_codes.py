"""How the places of selected entries travel: the third part of a codec.

An index code is a frozen dataclass with `encode(selection, room, size) -> wire`,
`places(wire, room, size) -> places` and `room(size, capacity) -> room`, all for one
leaf: of `size` entries at most `room` are sent. A place of `size` or above is none.
"""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp

from ..core import check_integer
from ..kernels import (
    by_pieces,
    count_bits,
    largest_of_rows,
    magnitude_of_rank,
    pack_bits,
    set_places,
    unpack_bits,
)
from ._selectors import Selection


class IndexCode(Protocol):
    """What a codec asks of an index code.

    Example:
        >>> selection = Selection(jnp.array([False, True]), lambda: jnp.ones(2))
        >>> Int32Places().encode(selection, 1, 2)
        Array([1], dtype=int32)
    """

    def room(self, size: int, capacity: int) -> int:
        """The entries of a message, for a selector of that capacity."""
        ...

    def encode(self, selection: Selection, room: int, size: int) -> jax.Array:
        """The array that travels."""
        ...

    def places(self, wire: jax.Array, room: int, size: int) -> jax.Array:
        """(room,) int32."""
        ...


@dataclass(frozen=True)
class Int32Places:
    """A place as its number in the leaf: 4 bytes an entry.

    Example:
        >>> selection = Selection(jnp.ones(2, bool), lambda: jnp.array([1.0, 2.0]))
        >>> Int32Places().encode(selection, 1, 2)
        Array([1], dtype=int32)
    """

    def room(self, size: int, capacity: int) -> int:
        """The selector's."""
        return capacity

    def encode(self, selection: Selection, room: int, size: int) -> jax.Array:
        """int32 (room,)."""
        return _first_places(selection, room)

    def places(self, wire: jax.Array, room: int, size: int) -> jax.Array:
        """The wire."""
        return wire


@dataclass(frozen=True)
class BitMask:
    """Places as a mask: an eighth of a byte an entry of the leaf, sent or not.

    Fewer bytes than `Int32Places` where more than one entry in 32 is sent.

    Example:
        >>> selection = Selection(jnp.ones(2, bool), lambda: jnp.array([1.0, 2.0]))
        >>> BitMask().encode(selection, 1, 2)
        Array([2], dtype=uint32)
    """

    def room(self, size: int, capacity: int) -> int:
        """The selector's."""
        return capacity

    def encode(self, selection: Selection, room: int, size: int) -> jax.Array:
        """uint32 (ceil(size / 32),)."""
        assert selection.mask is not None
        words = pack_bits(selection.mask)

        def fewer() -> jax.Array:
            places = _largest(words, selection, room)
            none = jnp.zeros(size, bool)
            return pack_bits(none.at[places].set(True, mode="drop"))

        return jax.lax.cond(count_bits(words) > room, fewer, lambda: words)

    def places(self, wire: jax.Array, room: int, size: int) -> jax.Array:
        """In ascending order."""
        return set_places(wire, room)


@dataclass(frozen=True)
class LocalPlaces:
    """A place as its number in a block, each block with slots of its own.

    One byte an entry for blocks of up to 255, two up to 65535. What finds no slot in
    its block waits, though others may be free.

    Attributes:
        block: consecutive entries, 1..65535.
        slots: entries of a block that are sent at most, 1..block.

    Example:
        >>> mask, rank = jnp.array([True, True, False]), jnp.array([1.0, 2.0, 0.0])
        >>> LocalPlaces(2, 1).encode(Selection(mask, lambda: rank), 2, 3)
        Array([[1],
               [2]], dtype=uint8)
    """

    block: int
    slots: int

    def __post_init__(self):
        check_integer(self.block, "block", 1, 2**16 - 1)
        check_integer(self.slots, "slots", 1, self.block)

    def room(self, size: int, capacity: int) -> int:
        """The slots of all blocks."""
        block, slots = self._sizes(size)
        return -(-size // block) * slots

    def encode(self, selection: Selection, room: int, size: int) -> jax.Array:
        """(blocks, slots) of uint8 or uint16; a free slot holds the block's length."""
        block, slots = self._sizes(size)
        assert selection.rank is not None and selection.mask is not None
        rank = jnp.where(selection.mask, selection.rank(), 0)
        kind = jnp.uint8 if block < 2**8 else jnp.uint16

        def fill(piece: jax.Array) -> jax.Array:
            rows = jnp.pad(piece, (0, -piece.size % block)).reshape(-1, block)
            height, place = largest_of_rows(rows, slots)
            return jnp.where(height > 0, place, block).astype(kind)

        return by_pieces(fill, rank, unit=block)

    def places(self, wire: jax.Array, room: int, size: int) -> jax.Array:
        """Block by block."""
        block, _ = self._sizes(size)
        start = block * jnp.arange(len(wire), dtype=jnp.int32)[:, None]
        place = wire.astype(jnp.int32)
        return jnp.where(place < block, start + place, size).reshape(-1)

    def _sizes(self, size: int) -> tuple[int, int]:
        block = min(self.block, size)
        return block, min(self.slots, block)


def _first_places(selection: Selection, room: int) -> jax.Array:
    """The places of what is selected, or of the largest where that is too much."""
    assert selection.mask is not None
    words = pack_bits(selection.mask)
    return jax.lax.cond(
        count_bits(words) > room,
        lambda: _largest(words, selection, room),
        lambda: set_places(words, room),
    )


def _largest(words: jax.Array, selection: Selection, room: int) -> jax.Array:
    """The places of the entries of largest rank, of equal ones the first.

    Takes the mask from its words: a branch that read the mask would have it written.
    """
    assert selection.rank is not None
    rank = selection.rank()
    rank = jnp.where(unpack_bits(words, rank.size), rank, 0)
    bar = magnitude_of_rank(rank, room - 1)
    above = pack_bits(rank > bar)
    equal = pack_bits((rank == bar) & (rank > 0))
    number, place = count_bits(above), jnp.arange(room)
    rest = set_places(equal, room)[jnp.maximum(place - number, 0)]
    return jnp.where(place < number, set_places(above, room), rest)

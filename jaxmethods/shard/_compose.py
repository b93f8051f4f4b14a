"""A codec from its parts: which entries, how their values travel, how their places."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..kernels import count_bits, finite_sum, pack_bits
from ._codec import Codec, check_gradients, decode, zeros_like_gradients
from ._flat_places import at_places
from ._index_codes import IndexCode
from ._selectors import Everything, Selector, ThresholdMemory
from ._value_codes import Float32, OneBit, ValueCode, decoded


class FeedbackState(NamedTuple):
    """What a worker has not sent yet; one a worker, never replicated.

    Attributes:
        error: a tree like the gradients, float32; None where nothing is fed back.
        memory: what the selector remembers, a tuple with one entry a leaf.
        held_back: () int32, entries of the last message that were selected and found
            no room.
        skipped: () int32, leaves of the last gradients that held NaN or infinity.
    """

    error: Any
    memory: tuple[Any, ...]
    held_back: jax.Array
    skipped: jax.Array

    @property
    def threshold(self) -> Any:
        """Where a threshold selects: a tree like the gradients of () float32."""
        if not all(isinstance(m, ThresholdMemory) for m in self.memory):
            raise AttributeError("this codec selects by no threshold.")
        return jax.tree.structure(self.error).unflatten(
            [memory.threshold for memory in self.memory]
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Part:
    """The message of one leaf.

    Attributes:
        values: the wire of the value code.
        places: the wire of the index code, or None where all entries travel.
        shape: the shape of the leaf.
        room: the entries of the message.
        value: the value code.
        index: the index code, or None.
    """

    values: Any
    places: Any
    shape: tuple[int, ...] = field(metadata=dict(static=True))
    room: int = field(metadata=dict(static=True))
    value: ValueCode = field(metadata=dict(static=True))
    index: IndexCode | None = field(metadata=dict(static=True))

    def dense(self) -> jax.Array:
        """The leaf, float32."""
        values = self.value.decode(self.values, self.room)
        if self.index is None:
            return values.reshape(self.shape)
        return self.add_to(jax.lax.full_like(values, 0, shape=self.shape))

    def add_to(self, total: jax.Array) -> jax.Array:
        """`total + self.dense()`."""
        if self.index is None:
            return total + self.dense()
        values = self.value.decode(self.values, self.room)
        places = self.index.places(self.places, self.room, total.size)
        entries = at_places(jnp.atleast_1d(total), places)
        return entries.add(values, mode="drop").reshape(self.shape)


def compose(
    selector: Selector,
    value: ValueCode,
    index: IndexCode | None = None,
    *,
    feedback: bool = True,
) -> Codec:
    """A codec from a selector, a value code and an index code.

    For each leaf, with gradient g and error e: the selector chooses entries of g + e,
    the index code says where as many are as the message has room for, the value code
    makes them small, and `e' = g + e - decoded`. A leaf whose g + e holds NaN or
    infinity sends zeros and keeps its error and memory, and is counted. Nothing is
    lost but what XLA takes for zero: numbers below 1.2e-38, of which the difference of
    two just above that may be one.

    Args:
        selector: `Everything()`, `Largest(sparsity)`, `AboveThreshold(sparsity, life)`,
            `LocalBins(bin_size, slots)`, or a frozen dataclass with their methods.
        value: `Float32()`, `BFloat16()`, `Int8Blocks()`, `OneBit()`, `Ternary()`, or
            your own.
        index: `Int32Places()`, `BitMask()`, `LocalPlaces(block, slots)`, or your own.
            None: all entries travel, those that are not selected as zeros.
        feedback: whether what was not sent is added to the next gradient. Without it
            entries that stay small are never sent.

    Returns:
        A `Codec` with `FeedbackState`. Gradients of any floating dtype; error and
        decoded values are float32.

    Raises:
        ValueError: entries that are not selected cannot be zeros: the value is
            `OneBit()` and no place travels, though the selector leaves entries out.

    Complexity:
        Reads gradient and error, writes the error, and what the parts take: see
        `jaxmethods.kernels.set_places` and `magnitude_of_rank`.

    Example:
        >>> from jaxmethods.shard import Float32, Int32Places, Largest
        >>> codec = compose(Largest(0.5), Float32(), Int32Places())
        >>> gradient = jnp.array([3.0, -4.0, 1.0, 0.5])
        >>> message, state = codec.encode(codec.init(gradient), gradient)
        >>> codec.decode(message)
        Array([ 3., -4.,  0.,  0.], dtype=float32)
        >>> state.error
        Array([0. , 0. , 1. , 0.5], dtype=float32)

    References:
        Stich, Cordonnier, Jaggi 2018, Sparsified SGD with memory (arXiv 1809.07599).
    """
    if index is None and isinstance(value, OneBit):
        if not isinstance(selector, Everything):
            raise ValueError(
                f"selector is {selector} and value OneBit(), which has no zero for "
                f"what is not selected; wanted an index code, such as BitMask(), or "
                f"Ternary()."
            )
    if isinstance(selector, Everything) and index is not None:
        raise ValueError(
            f"selector is Everything() and index {index}; wanted no index: all entries "
            f"travel."
        )

    def init(tree: Any) -> FeedbackState:
        error = zeros_like_gradients(tree)
        memory = tuple(selector.init(leaf.size) for leaf in jax.tree.leaves(error))
        none = jnp.zeros((), jnp.int32)
        return FeedbackState(error if feedback else None, memory, none, none)

    def encode(state: FeedbackState, gradients: Any) -> tuple[Any, FeedbackState]:
        leaves, treedef = jax.tree.flatten(gradients)
        errors: Sequence[Any] = [None] * len(leaves)
        if feedback:
            check_gradients(gradients, state.error)
            errors = jax.tree.leaves(state.error)
        else:
            check_gradients(gradients, jax.eval_shape(zeros_like_gradients, gradients))
        sent = [
            _send(selector, value, index, *each)
            for each in zip(state.memory, errors, leaves, strict=True)
        ]
        state = FeedbackState(
            treedef.unflatten([part.error for part in sent]) if feedback else None,
            tuple(part.memory for part in sent),
            sum((part.held_back for part in sent), jnp.int32(0)),
            sum((part.skipped for part in sent), jnp.int32(0)),
        )
        return treedef.unflatten([part.message for part in sent]), state

    return Codec(init, encode, decode)


class _Sent(NamedTuple):
    """What one leaf adds to the message and to the state."""

    message: Part
    error: Any
    memory: Any
    held_back: jax.Array
    skipped: jax.Array


def _send(
    selector: Selector,
    value: ValueCode,
    index: IndexCode | None,
    memory: Any,
    error: Any,
    leaf: Any,
) -> _Sent:
    shape = jnp.shape(leaf)
    gradient = jnp.asarray(leaf, jnp.float32)
    size = gradient.size
    if not size:
        message = Part(gradient.reshape(-1), None, shape, 0, Float32(), None)
        return _Sent(message, error, memory, jnp.int32(0), jnp.int32(0))
    given = [gradient] if error is None else [gradient, error]
    finite = finite_sum(*(x.reshape(-1) for x in given))
    old = jnp.zeros_like(gradient) if error is None else error
    # At least one axis, and no reshape on the way to the new error: on CPUs it is
    # written where the old one lies.
    total = jnp.atleast_1d(jnp.where(finite, sum(given[1:], gradient), old))
    flat = total.reshape(-1)
    selection, after = selector.select(memory, gradient.reshape(-1), flat)
    memory = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, memory)
    mask = None if selection.mask is None else selection.mask & finite
    held_back = jnp.int32(0)
    if index is None:
        room, wire = size, None
        chosen = jnp.where(finite if mask is None else mask, flat, 0)
        code = value.encode(chosen, selection.scale)
        left = total - decoded(value, code, chosen).reshape(total.shape)
    else:
        assert mask is not None
        selection = selection._replace(mask=mask)
        room = index.room(size, selector.capacity(size))
        wire = index.encode(selection, room, size)
        places = index.places(wire, room, size)
        entries = at_places(total, places)
        chosen = entries.get(mode="fill", fill_value=0)
        code = value.encode(chosen, selection.scale)
        left = entries.add(-value.decode(code, room), mode="drop")
        held_back = count_bits(pack_bits(mask)) - (places < size).sum(dtype=jnp.int32)
    if error is not None:
        error = left.reshape(shape)
    message = Part(code, wire, shape, room, value, index)
    return _Sent(message, error, memory, held_back, jnp.int32(~finite))

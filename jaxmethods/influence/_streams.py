"""Training examples that come in batches, from anything that can be iterated over."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from ..core import leaf_paths
from ._chunks import count_examples, length_of


class Batch(NamedTuple):
    """Some consecutive examples, filled up to the width that all batches share.

    Attributes:
        start: The number of the first.
        count: How many there are; what follows repeats the last one.
        examples: A pytree with a leading axis of at least `count` examples.
    """

    start: int
    count: int
    examples: Any

    @property
    def end(self) -> int:
        """The number after that of the last example."""
        return self.start + self.count

    def numbers(self, nobody: int) -> np.ndarray:
        """The numbers of the examples, int32, and `nobody` for what fills it up."""
        places = np.arange(length_of(self.examples), dtype=np.int32)
        return np.where(places < self.count, self.start + places, np.int32(nobody))


def is_stream(examples: Any) -> bool:
    """Whether these are batches to iterate over, and not a pytree of arrays.

    An iterator, a data loader or any other iterable that is no pytree is a stream; a
    list, a tuple or a dict is a pytree, so that a list of batches goes in as
    `iter(batches)`.
    """
    # To look whether it is a leaf by flattening it is an error in a jax to come.
    node = jax.tree_util.default_registry.flatten_one_level(examples) is not None
    array = hasattr(examples, "dtype") or isinstance(examples, str | bytes)
    return isinstance(examples, Iterable) and not node and not array


def read_batches(examples: Any, name: str) -> Iterator[Any]:
    """Iterates over batches that are not empty, checked against the first of them.

    Args:
        examples: A stream, or a pytree of arrays, which is one batch.
        name: What messages call it.

    Yields:
        Pytrees of arrays with a leading axis of examples.

    Raises:
        ValueError: No example comes; a batch has another structure, shape or dtype.
    """
    first = None
    for number, batch in enumerate(examples if is_stream(examples) else [examples]):
        batch = jax.tree.map(_as_array, batch)
        which = f"batch {number} of {name}" if is_stream(examples) else name
        if count_examples(batch, which, empty=True) == 0:
            continue
        form = jax.tree.structure(batch), shapes_of_one(batch)
        first = form if first is None else first
        if form != first:
            raise ValueError(
                f"{which} has {_describe(form)} and a batch before it "
                f"{_describe(first)}; wanted the same tree, shapes and dtypes in all."
            )
        yield batch
    if first is None:
        raise ValueError(f"{name} has no examples; wanted one or more.")


def cut_batches(batches: Iterable[Any], most: int) -> Iterator[Batch]:
    """Cuts batches into ones of equal width, `most` examples at most.

    A batch that is smaller than the first is filled, a larger one is cut: programs are
    compiled for one width.
    """
    width, start = 0, 0
    for batch in batches:
        length = length_of(batch)
        width = width or -(-length // -(-length // most))
        for low in range(0, length, width):
            count = min(width, length - low)
            yield Batch(start, count, _take(batch, low, count, width))
            start += count


def group_batches(batches: Iterable[Batch], most: int) -> Iterator[list[Batch]]:
    """Groups batches into blocks of `most` examples at most, or of one batch."""
    block: list[Batch] = []
    for batch in batches:
        if block and batch.end - block[0].start > most:
            yield block
            block = []
        block.append(batch)
    if block:
        yield block


def shapes_of_one(batch: Any) -> list[jax.ShapeDtypeStruct]:
    """The shapes and dtypes of one example, leaf by leaf."""
    leaves = jax.tree.leaves(batch)
    return [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in leaves]


def _as_array(leaf: Any) -> Any:
    # On a device only when it is used: a block of batches is held in host memory.
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _take(batch: Any, low: int, count: int, width: int) -> Any:
    if low == 0 and count == width == length_of(batch):
        return batch
    # A real example as padding: a made-up one could overflow in the user's loss.
    index = low + np.minimum(np.arange(width), count - 1)
    return jax.tree.map(lambda x: x[index], batch)


def _describe(form: tuple[Any, list[jax.ShapeDtypeStruct]]) -> str:
    treedef, shapes = form
    paths = leaf_paths(treedef.unflatten(shapes))
    pairs = zip(paths, shapes, strict=True)
    return str({path: f"{x.dtype}{list(x.shape)}" for path, x in pairs})

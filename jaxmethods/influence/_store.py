"""A store of embeddings that was built: scores of test examples against all of it."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import check_integer, describe, leaf_paths, with_fast_convolutions
from ..sketch import countsketch
from . import _chunks
from ._chunks import map_chunks
from ._contract import inner, squared_norm
from ._finite import check_finite
from ._projection import REST, Embedder, embedders
from ._ranking import NOBODY, Order, TopK, check_count, merge
from ._run import Course
from ._shards import Shards, checksum
from ._streams import Batch, cut_batches
from ._task import Point, as_examples, choose_parameters, first_of, read

# Compiled once for all stores: what it is given differs in values alone.
_products, _norms = jax.jit(inner), jax.jit(squared_norm)


class Store:
    """The embeddings of training examples in a folder; `datastore` makes it.

    Compiled programs stay with it: ask the same store again. Its methods work outside
    of jit.

    Attributes:
        num_examples: How many training examples there are.
        numbers: How many numbers there are for each.
    """

    def __init__(self, shards: Shards, course: Course, project: int | None) -> None:
        self.num_examples = shards.num_rows
        self.numbers = shards.about["layout"]["width"] * course.series.count
        self._shards, self._course, self._project = shards, course, project
        self._programs: dict[Any, Any] = {}

    def __repr__(self) -> str:
        """What there is, and where."""
        count = self._course.series.count
        return (
            f"Store({self.num_examples} examples, {self.numbers} numbers each, of "
            f"{count} checkpoints, in '{self._shards.folder}')"
        )

    def scores(self, test: Any) -> jax.Array:
        """Scores all pairs.

        Args:
            test: A pytree with a leading axis of examples.

        Returns:
            (n_test, n_train), as `tracin` gives them.

        Raises:
            ValueError: The checkpoints are not those of the store, a file is damaged,
                the loss uses the parameters in another way on such examples, or an
                example's gradient is not finite.
            FileNotFoundError: A file is missing.
        """
        parts = [
            np.asarray(scores)[:, : batch.count]
            for batch, scores in self._against(test)
        ]
        scores = jnp.asarray(np.concatenate(parts, axis=1))
        check_finite(scores)
        return scores

    def proponents(self, test: Any, k: int) -> TopK:
        """Finds the k training examples with the largest scores, as `proponents` does.

        Args:
            test: A pytree with a leading axis of examples.
            k: 1..n_train.
        """
        return self._strongest(test, Order(check_integer(k, "k", 1), 1))

    def opponents(self, test: Any, k: int) -> TopK:
        """Finds the k training examples with the smallest scores, as `opponents` does.

        Args:
            test: A pytree with a leading axis of examples.
            k: 1..n_train.
        """
        return self._strongest(test, Order(check_integer(k, "k", 1), -1))

    def self_influence(self) -> jax.Array:
        """Scores the training examples on themselves, as `self_influence` does.

        They are the squared norms of the embeddings. Sketches keep inner products on
        average, and an example is sketched alike on both sides: of sketched gradients
        the norms are unbiased over keys, as the scores are.

        Returns:
            (n_train,).

        Raises:
            ValueError: The store was built with visits, which its embeddings hold as
                factors: the norms would hold their squares. A file is damaged.
            FileNotFoundError: A file is missing.
        """
        if self._shards.about["visits"] is not None:
            raise ValueError(
                f"{self._shards.folder} was built with visits, whose squares would "
                "weigh the norms; wanted a store without: or call self_influence(loss) "
                "with the visits."
            )
        rows = map(self._shards.read, self._shards.shards)
        cut = cut_batches(rows, _chunks.examples_at_once(self.numbers))
        parts = [_norms(jnp.asarray(b.examples))[: b.count] for b in cut]
        return jnp.concatenate(parts)

    def _strongest(self, test: Any, order: Order) -> TopK:
        check_count(order.k, self.num_examples)
        best = None
        for batch, scores in self._against(test):
            if best is None:
                best = order.empty(len(scores), scores.dtype)
            best = merge(order, best, scores, batch.numbers(NOBODY))
        assert best is not None
        check_finite(best.scores, "train", best.indices)
        return best

    def _against(self, test: Any) -> Iterator[tuple[Batch, jax.Array]]:
        """The scores against some training examples at a time, (n_test, width)."""
        asked = self._embed(as_examples(test, "test"))
        rows = map(self._shards.read, self._shards.shards)
        numbers = max(asked.shape)  # A row's own, or those of its scores.
        for batch in cut_batches(rows, _chunks.examples_at_once(numbers)):
            yield batch, _products(asked, jnp.asarray(batch.examples))

    def _embed(self, test: Any) -> jax.Array:
        """The embeddings of test examples at all checkpoints, (n_test, numbers)."""
        rates = self._shards.about["learning_rates"]
        embed = self._program(test)
        parts = [
            embed(self._course.point(k), test) * rate**0.5
            for k, rate in enumerate(rates)
        ]
        return jnp.concatenate(parts, axis=1)

    def _program(self, test: Any) -> Callable[[Point, Any], jax.Array]:
        """Maps examples such as these to embeddings at a checkpoint, compiled."""
        one = jax.eval_shape(first_of, test)
        form = jax.tree.structure(one), *jax.tree.leaves(one)
        if form not in self._programs:
            course = self._course
            params = jax.eval_shape(lambda tree: tree, course.series.at(0))
            (embed,) = embedders(
                self._project, read(course.loss, course.where, params, one)
            )
            layout = describe_layout(embed, params, test)
            if layout != self._shards.about["layout"]:
                raise ValueError(
                    f"test examples {jax.tree.map(describe, one)} have gradients laid "
                    "out in another way than those of the training examples in "
                    f"{self._shards.folder}; wanted a loss that uses its parameters in "
                    "the same way on both."
                )
            self._programs[form] = jax.jit(with_fast_convolutions(in_chunks(embed)))
        return self._programs[form]


def in_chunks(embed: Embedder) -> Callable[[Point, Any], jax.Array]:
    """The embedder on a bounded number of examples at a time."""
    return lambda point, some: map_chunks(lambda few: embed(point, few), some)


def describe_layout(embed: Embedder, params: Any, examples: Any) -> dict[str, Any]:
    """How embeddings of such examples are laid out, as json can say it."""
    layout, blocks = embed.layout(params, examples), embed.recipe.factored
    forms = {REST: str([part for part in embed.parts if part not in blocks])}
    forms |= {part: str(block.region) for part, block in blocks.items()}
    slots = [
        {
            "form": forms[slot.part],
            "shape": [*slot.shape],
            "sides": [*slot.sides],
            "size": slot.size,
        }
        for slot in layout.slots
    ]
    return {"width": layout.width, "slots": slots}


def describe_model(course: Course, project: int | None) -> dict[str, Any]:
    """What embeddings depend on, beside the examples, as json can say it."""
    # Shapes, for the checkpoint itself is not to stay in memory.
    first = jax.eval_shape(lambda tree: tree, course.series.at(0))
    paths, leaves = leaf_paths(first), jax.tree.leaves(first)
    chosen = choose_parameters(course.where, first)
    return {
        "parameters": {
            str(name): describe(leaf) for name, leaf in zip(paths, leaves, strict=True)
        },
        "where": [str(paths[i]) for i in chosen],
        "project": project,
        "checkpoints": [
            fingerprint(course.series.at(k)) for k in range(course.series.count)
        ],
    }


def describe_sketch(key: jax.Array | None) -> int | None:
    """A checksum of the signs and places that sketches draw, as these may change."""
    if key is None:
        return None
    return fingerprint(countsketch(key, 8, 256).dense().astype(jnp.int8))


def fingerprint(tree: Any) -> int:
    """A checksum of all arrays of a tree."""
    found = 0
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            leaf = jax.random.key_data(leaf)
        found = checksum(np.asarray(leaf), found)
    return found

"""Influence through the words that two texts share: TracIn of an embedding table."""

import math
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import check_integer, describe
from ..kernels import gram_products
from ._blocks import Block, Region
from ._chunks import length_of, map_chunks
from ._contract import accumulator
from ._gradients import Recipe, per_example
from ._methods import Method
from ._run import Run
from ._task import Loss, Point, Reading, begin
from ._totals import totals
from ._uses import find_uses
from ._views import merge


def words(
    loss: Loss,
    table: tuple[Any, ...],
    *,
    exclude: Collection[int] = (),
    progress: bool | None = None,
) -> Callable[..., jax.Array]:
    r"""Scores pairs of texts by the words they share: TracIn-WE.

    The gradient of row v of an embedding table is the sum u_v of the gradients of the
    places that look v up, so that the influence through the table is

    .. math:: \sum_i \eta_i \sum_{v \in z \cap z'} u_v \cdot u'_v

    over words v that both texts hold, exactly 0 where there is none. It costs a
    backward pass to the looked-up rows of each text; no gradient of the table is
    formed.

    Words are what the loss looks up by integer index (`params["emb"][tokens]`,
    `jnp.take` along axis 0, `flax.linen.Embed`), at each of its places. Where the loss
    multiplies by the table as well (an output layer tied to it), that is no word and
    does not count here; `tracin` counts both.

    Args:
        loss: `loss(params, example) -> scalar`, as for `tracin`.
        table: The path of the embedding table in the parameters, such as `("emb",)`: a
            parameter with a row a word on axis 0.
        exclude: Words that do not count: ids of padding, start, separator.
        progress: Whether to show how far it is, as for `tracin`.

    Returns:
        `scores(checkpoints, learning_rates, train, test, *, visits=None) -> (n_test,
        n_train)`, in the dtype of `tracin`. A call traces anew: `jax.jit(scores)` to
        call it repeatedly.

    Arguments of the call:
        checkpoints, learning_rates, train, test, visits: As for `tracin`.

    Raises:
        ValueError, TypeError: As `tracin`; `table` names no parameter, or several, or
            one that the loss does not look up; `exclude` is no list of words, or holds
            what is no row of the table.
        NotImplementedError: The loss uses the table in a way that is neither a look-up
            of whole rows nor a product, such as `emb[tokens, :3]`, or a look-up inside
            a branch or a function with its own derivative.

    Complexity: 2 d flops a pair of places, d the size of a row.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda params, tokens: jnp.sum(params["emb"][tokens] ** 2)
        >>> scores = words(loss, ("emb",))
        >>> train, test = jnp.asarray([[0, 1], [1, 1]]), jnp.asarray([[1, 2], [0, 2]])
        >>> scores([{"emb": jnp.ones((3, 2))}], [0.5], train, test).tolist()
        [[4.0, 8.0], [4.0, 0.0]]

    References:
        Yeh, Taly, Sundararajan, Liu, Ravikumar (2022), First is Better Than Last for
        Language Data Influence, arXiv 2202.11844.
    """

    def scores(
        checkpoints: Any,
        learning_rates: jax.Array,
        train: Any,
        test: Any,
        *,
        visits: jax.Array | None = None,
    ) -> jax.Array:
        run = Run(
            *(loss, [table], checkpoints, learning_rates, train, test),
            visits=visits,
            progress=progress,
        )
        return totals(run, partial(_shared, table, exclude))

    return scores


def word_shares(
    loss: Loss, table: tuple[Any, ...], *, exclude: Collection[int] = ()
) -> Callable[..., jax.Array]:
    """Splits the score of `words` over the places of the test text.

    Args:
        loss: `loss(params, example) -> scalar`, as for `words`.
        table: The path of the embedding table, as for `words`.
        exclude: Words that do not count, as for `words`.

    Returns:
        `shares(checkpoints, learning_rates, train, test) -> (n_test, n_train, places)`,
        summing to the scores of `words`. The places are those of the look-ups, in the
        order in which the loss makes them: of `emb[tokens]` the places of `tokens`. A
        place whose word the training text does not hold has exactly 0. A call traces
        anew: `jax.jit(shares)` to call it repeatedly.

    Arguments of the call:
        checkpoints, learning_rates, train, test: As for `tracin`, without batches.

    Raises:
        ValueError, TypeError, NotImplementedError: As `words`.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda params, tokens: jnp.sum(params["emb"][tokens] ** 2)
        >>> shares = word_shares(loss, ("emb",))
        >>> train, test = jnp.asarray([[0, 1]]), jnp.asarray([[1, 2, 1]])
        >>> shares([{"emb": jnp.ones((3, 2))}], [0.5], train, test).tolist()
        [[[4.0, 0.0, 4.0]]]

    References:
        Yeh, Taly, Sundararajan, Liu, Ravikumar (2022), First is Better Than Last for
        Language Data Influence, arXiv 2202.11844.
    """

    def shares(
        checkpoints: Any, learning_rates: jax.Array, train: Any, test: Any
    ) -> jax.Array:
        task = begin(loss, [table], checkpoints, learning_rates, train=train, test=test)
        train, test = task.examples
        reader, test_reader = _readers(table, exclude, task.reading)

        def at_checkpoint(params: Any) -> jax.Array:
            def rows(some_test: Any) -> jax.Array:
                asked = test_reader.read(params, some_test)

                def columns(some: Any) -> jax.Array:
                    return _shares(reader.read(params, some), asked)

                return map_chunks(columns, train).swapaxes(0, 1)

            # Room for the products with one training text at least.
            numbers = test_reader.num_places * (reader.num_places + reader.width)
            return map_chunks(rows, test, numbers)

        shape = length_of(test), length_of(train), test_reader.num_places
        return task.sum_over_checkpoints(at_checkpoint, shape)

    return shares


def _shared(
    table: tuple[Any, ...], exclude: Collection[int], reading: Reading
) -> Method:
    """The inner products of the gradients of the looked-up rows, of shared words."""
    reader, test_reader = _readers(table, exclude, reading)

    def prepare(point: Point, test: Any) -> _Words:
        return test_reader.read(point.params, test)

    def score(point: Point, asked: _Words, train: Any) -> jax.Array:
        return gram_products(*reader.read(point.params, train), *asked)

    return Method(prepare, score, per_test=True)


class _Words(NamedTuple):
    """What texts look up.

    Attributes:
        ids: (n, places) int32.
        rows: (n, places, width), the gradient at each place, 0 where the word does not
            count.
    """

    ids: jax.Array
    rows: jax.Array


def _shares(train: _Words, test: _Words) -> jax.Array:
    """What each place of a test text gives, (n_train, n_test, places)."""
    products = jnp.einsum(
        "npd,mqd->npmq",
        train.rows,
        test.rows,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=accumulator(jnp.result_type(train.rows, test.rows)),
    )
    same = train.ids[:, :, None, None] == test.ids[None, None]
    return jnp.where(same, products, 0).sum(1)


class _Reader(NamedTuple):
    """Reads off texts of one shape what they look up.

    Attributes:
        recipe: Of the loss on such texts, for the gradients of looked-up rows alone.
        leaf: The number of the table.
        counts: Whether each word counts.
        width: The size of a row.
    """

    recipe: Recipe
    leaf: int
    counts: np.ndarray
    width: int

    @property
    def num_places(self) -> int:
        """How many rows a text looks up."""
        return self.recipe.rows(self.leaf).look_ups

    def read(self, params: Any, texts: Any) -> _Words:
        """The words of each text: one backward pass, to the looked-up rows."""
        found: Any = per_example(self.recipe, params, texts, {self.leaf})[self.leaf]
        ids = found.left.numbers
        count = jnp.asarray(self.counts)[ids]
        return _Words(ids, jnp.where(count[..., None], found.right, 0))


def _readers(
    table: tuple[Any, ...], exclude: Collection[int], reading: Reading
) -> list[_Reader]:
    """A reader for each set of texts."""
    if len(reading.chosen) != 1:
        raise ValueError(
            f"table {table} names {len(reading.chosen)} parameters; wanted the path of "
            "one, down to the table itself."
        )
    (leaf,) = reading.chosen
    shape = reading.recipes[0].jaxpr.in_avals[leaf].shape
    counts = np.ones(shape[:1], bool)
    if not isinstance(exclude, Iterable):
        raise TypeError(
            f"exclude is {describe(exclude)}; wanted a list of words: "
            f"exclude=({exclude},)."
        )
    for word in exclude:
        counts[check_integer(word, "exclude", 0, len(counts) - 1)] = False
    width = math.prod(shape[1:])
    return [
        _Reader(_look_ups_alone(recipe, leaf, table, width), leaf, counts, width)
        for recipe in reading.recipes
    ]


def _look_ups_alone(
    recipe: Recipe, leaf: int, table: tuple[Any, ...], width: int
) -> Recipe:
    """A recipe for the gradient of what is looked up in a parameter."""
    wanted = "wanted whole rows of it, words on axis 0: params['emb'][tokens]"
    uses = find_uses(recipe.jaxpr.jaxpr, [leaf])
    if leaf in uses.others:
        raise NotImplementedError(
            f"{table} is used by {uses.others[leaf]}, which is no look-up that is "
            f"followed; {wanted}, outside branches and custom derivatives."
        )
    found = [use for use in uses.products.get(leaf, []) if use.product.looks_up]
    if not found:
        raise ValueError(f"the loss does not look {table} up by index; {wanted}.")
    num_words = recipe.jaxpr.in_avals[leaf].shape[0]
    rows = Region(0, (), merge([(num_words, width)]), merge([(width, 1)]))
    if any(use.region != rows for use in found):
        raise NotImplementedError(f"a part of {table} is looked up; {wanted}.")
    block = Block(leaf, rows, tuple((use, False) for use in found))
    return Recipe(recipe.jaxpr, {leaf: block}, {})

"""What a score computes at one checkpoint: inner products and norms of gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._chunks import length_of, map_stages
from ._contract import (
    Gradients,
    inner,
    norm_stays_factored,
    pairs_stay_factored,
    squared_norm,
)
from ._gradients import Recipe, alike, per_example
from ._projection import embedders
from ._task import Point, Reading


class Method(NamedTuple):
    """A score at one checkpoint, in two steps.

    Attributes:
        prepare: `(point, test) -> kept`: all that is needed of the test examples.
        score: `(point, kept, some) -> rows`: a row an example of the first set.
        per_test: Whether rows have a score for each test example: then the test
            examples may be cut, and `kept` has them on axis 0 of its leaves.
    """

    prepare: Callable[[Point, Any], Any]
    score: Callable[[Point, Any, Any], jax.Array]
    per_test: bool


MethodOf = Callable[[Reading], Method]


def pairs(reading: Reading) -> Method:
    """The inner products of training and test gradients."""
    recipe, test_recipe = alike(*reading.recipes)
    stay = _factored_pairs(recipe, test_recipe)

    def prepare(point: Point, test: Any) -> tuple[dict[int, Gradients], jax.Array]:
        gradients = per_example(test_recipe, point.params, test, stay)
        return gradients, jnp.zeros(length_of(test), reading.dtype)

    def score(point: Point, kept: Any, train: Any) -> jax.Array:
        wanted, zeros = kept

        def gradients(some: Any) -> tuple[dict[int, Gradients], jax.Array]:
            found = per_example(recipe, point.params, some, stay)
            # The zeros are for where nothing is used on both sides.
            return found, jnp.zeros((length_of(some), 1), reading.dtype)

        def products(taken: tuple[dict[int, Gradients], jax.Array]) -> jax.Array:
            found, start = taken
            parts = [inner(found[i], wanted[i]) for i in found if i in wanted]
            return sum(parts, start + zeros[None])

        return map_stages(gradients, products, train)

    return Method(prepare, score, per_test=True)


def projected_pairs(project: int, reading: Reading) -> Method:
    """The inner products of sketched training and test gradients."""
    embed, embed_test = embedders(project, reading)

    def score(point: Point, wanted: jax.Array, train: Any) -> jax.Array:
        return inner(embed(point, train), wanted)

    return Method(embed_test, score, per_test=True)


def norms(reading: Reading) -> Method:
    """The squared norms of gradients."""
    (recipe,) = reading.recipes
    stay = {
        leaf
        for leaf in recipe.factored
        if norm_stays_factored(recipe.rows(leaf), recipe.widths(leaf))
    }

    def score(point: Point, _: Any, examples: Any) -> jax.Array:
        found = per_example(recipe, point.params, examples, stay)
        zero = jnp.zeros(jax.tree.leaves(examples)[0].shape[0], reading.dtype)
        return sum(map(squared_norm, found.values()), zero)

    return Method(lambda point, test: (), score, per_test=False)


def _factored_pairs(recipe: Recipe, other: Recipe) -> set[int]:
    """The parameters whose gradients are best multiplied from their factors."""
    return {
        leaf
        for leaf in recipe.factored.keys() & other.factored.keys()
        if pairs_stay_factored(recipe.rows(leaf), other.rows(leaf), recipe.widths(leaf))
    }

"""What every influence score starts from: checked arguments and a traced loss."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..core import (
    choose_paths,
    describe,
    leaf_paths,
    vary_together,
    with_fast_convolutions,
)
from ._checkpoints import stack_checkpoints
from ._chunks import ITERATE, count_examples
from ._contract import accumulator
from ._gradients import Recipe, read_loss

Loss = Callable[[Any, Any], jax.Array]
Where = Callable[[tuple[Any, ...]], bool] | Sequence[tuple[Any, ...]] | None


class Reading(NamedTuple):
    """A loss that was read.

    Attributes:
        chosen: The numbers of the parameters that count, in tree order.
        recipes: For each set of examples, how to take the gradients of the loss on it.
        dtype: Of the scores.
    """

    chosen: list[int]
    recipes: list[Recipe]
    dtype: jnp.dtype


class Point(NamedTuple):
    """Where on the path of the training a score is taken.

    Attributes:
        params: The parameters.
        key: What the projection of the gradients is drawn from, None without one.
    """

    params: Any
    key: jax.Array | None


class Task(NamedTuple):
    """A sum over checkpoints, ready to be taken.

    Attributes:
        params: The parameters, stacked over checkpoints on axis 0.
        rates: (K,) learning rates, in the dtype of the scores; or (K, n), one for each
            index of the last axis of the scores.
        chosen: The numbers of the parameters that count, in tree order.
        examples: The sets of examples.
        recipes: For each set, how to take the gradients of the loss on it.
    """

    params: Any
    rates: jax.Array
    chosen: list[int]
    examples: list[Any]
    recipes: list[Recipe]

    @property
    def reading(self) -> Reading:
        """What was read off the loss."""
        return Reading(self.chosen, self.recipes, self.rates.dtype)

    def sum_over_checkpoints(
        self, scores: Callable[[Any], jax.Array], shape: tuple[int, ...]
    ) -> jax.Array:
        """The sum of `rate * scores(params)`, compiled once for all checkpoints."""
        scores = with_fast_convolutions(scores)

        def step(total: jax.Array, checkpoint: Any) -> tuple[jax.Array, None]:
            params, rate = checkpoint
            rate = rate.reshape((1,) * (total.ndim - rate.ndim) + rate.shape)
            return total + rate * scores(params).astype(total.dtype), None

        zero = jnp.zeros(shape, self.rates.dtype)
        zero, rates = vary_together((zero, self.rates))
        return lax.scan(step, zero, (self.params, rates))[0]


def begin(
    loss: Loss, where: Where, checkpoints: Any, learning_rates: Any, **examples: Any
) -> Task:
    """Checks the arguments of a score and traces the loss on each set of examples.

    Args:
        loss: `loss(params, example) -> scalar`.
        where: Which parameters count.
        checkpoints: A stacked pytree, a list of pytrees or an orbax manager.
        learning_rates: (K,).
        **examples: Sets of examples by name; the one called test may be empty.

    Raises:
        ValueError, TypeError: As the public functions say.
    """
    params, rates = stack_checkpoints(checkpoints, learning_rates)
    return begin_stacked(loss, where, params, rates, **examples)


def begin_stacked(
    loss: Loss, where: Where, params: Any, rates: jax.Array, **examples: Any
) -> Task:
    """The same for parameters that are stacked and rates that were checked."""
    sets = [as_examples(some, name) for name, some in examples.items()]
    params, rates, sets = vary_together((params, rates, sets))
    firsts = [jax.eval_shape(first_of, tree) for tree in (params, *sets)]
    reading = read(loss, where, *firsts)
    rates = rates.astype(reading.dtype)
    return Task(params, rates, reading.chosen, sets, reading.recipes)


def as_examples(some: Any, name: str) -> Any:
    """Returns a set of examples as arrays, or raises unless they have one length."""
    some = jax.tree.map(jnp.asarray, some)
    count_examples(some, name, empty=name == "test")
    return some


def read(loss: Loss, where: Where, params: Any, *examples: Any) -> Reading:
    """Traces a loss on an example of each set, once where they have the same shapes.

    Args:
        loss: `loss(params, example) -> scalar`.
        where: Which parameters count.
        params: Shapes and dtypes of one checkpoint.
        *examples: Shapes and dtypes of one example of each set, train before test.

    Raises:
        ValueError: The loss is no floating scalar, or looks at other examples; the
            sets differ in structure.
    """
    chosen = choose_parameters(where, params)
    if len(examples) == 2:
        _check_one_structure(*examples)

    @functools.cache
    def trace(treedef: Any, *shapes: Any) -> Recipe:
        try:
            return read_loss(loss, params, treedef.unflatten(shapes), chosen)
        except NameError as error:
            if "axis name" not in str(error):
                raise
            raise ValueError(
                f"the loss of one example looks at others ({error}); wanted a loss of "
                "each example alone: let batch normalisation use its running averages."
            ) from error
        except Exception as error:
            example = treedef.unflatten(shapes)
            if isinstance(example, list):
                error.add_note(f"The examples are a list of {len(example)}: {ITERATE}.")
            raise

    recipes = []
    for example in examples:
        shapes, treedef = jax.tree.flatten(example)
        recipes.append(trace(treedef, *shapes))
    leaves = jax.tree.leaves(params)
    dtype = accumulator(jnp.result_type(*(leaves[i].dtype for i in chosen)))
    return Reading(chosen, recipes, dtype)


def choose_parameters(where: Where, params: Any) -> list[int]:
    """The numbers of the floating parameters that `where` chooses, in tree order."""
    paths = leaf_paths(params)
    kinds = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]
    chosen = [i for i, taken in enumerate(choose_paths(where, paths)) if taken]
    for i in chosen:
        if jnp.issubdtype(kinds[i], jnp.complexfloating):
            raise TypeError(
                f"parameter {paths[i]} is {kinds[i]}; wanted real parameters: choose "
                "others with where=, or keep real and imaginary parts apart."
            )
    floating = [i for i in chosen if jnp.issubdtype(kinds[i], jnp.floating)]
    if not floating:
        named = [f"{paths[i]}: {kinds[i]}" for i in chosen]
        raise ValueError(
            f"where chooses {named}, which have no gradient; wanted a floating one."
        )
    return floating


def first_of(tree: Any) -> Any:
    """The first of each leaf, or where there is none what it would be."""

    def first(x: jax.Array) -> jax.Array:
        if len(x):
            return x[0]
        return vary_together((jnp.zeros(x.shape[1:], x.dtype), x))[0]

    return jax.tree.map(first, tree)


def _check_one_structure(train: Any, test: Any) -> None:
    """Raises ValueError unless a training and a test example are the same tree."""
    paths = leaf_paths(train), leaf_paths(test)
    for pair in itertools.zip_longest(*paths):
        if pair[0] != pair[1]:
            found, wanted = (
                dict(zip(p[:6], map(describe, jax.tree.leaves(x)), strict=False))
                for p, x in zip(paths, (train, test), strict=True)
            )
            a, b = ("nothing" if path is None else path for path in pair)
            hint = f" ({ITERATE})" if isinstance(train, list) else ""
            raise ValueError(
                f"an example of train is {found} and one of test {wanted}, {a} in the "
                f"place of {b}; wanted the same tree in both{hint}."
            )

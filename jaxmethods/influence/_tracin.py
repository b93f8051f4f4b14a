"""TracIn: how much the steps on each training example moved the loss on another."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._chunks import map_chunks
from ._contract import (
    Gradients,
    inner,
    norm_stays_factored,
    pairs_stay_factored,
    squared_norm,
)
from ._gradients import Recipe, alike, per_example
from ._task import Loss, Where, begin


def tracin(loss: Loss, *, where: Where = None) -> Callable[..., jax.Array]:
    r"""Scores every pair of a training and a test example by TracInCP.

    The score of training example z on test example z' is

    .. math:: \sum_i \eta_i \nabla l(w_i, z) \cdot \nabla l(w_i, z')

    over checkpoints w_i with learning rates \eta_i: to first order, how much the
    steps taken on z lowered the loss on z'. Positive: z helped (a proponent of z');
    negative: it harmed (an opponent).

    The scores are exact for any loss, and gradients are held for a bounded number of
    examples only. A weight that enters through matrix products and convolutions alone
    needs no gradient at all where its factors are cheaper: its part of the score
    comes from the inputs of those products and the gradients of their outputs. Any
    other parameter (biases, scales, embedding tables, recurrent weights) has its
    per-example gradients taken, a chunk at a time; `forms` tells which is which.

    Args:
        loss: `loss(params, example) -> scalar`, on one example without its leading
            axis. A mean over a batch inside it would scale the scores.
        where: Which parameters count: a predicate on key paths (tuples of plain
            names), or a list of paths, each naming a leaf or a subtree. None: all
            floating ones. Scores of disjoint sets of parameters add up.

    Returns:
        `scores(checkpoints, learning_rates, train, test) -> (n_test, n_train)`, in the
        dtype of the parameters (float32 at least). `checkpoints` is a pytree stacked
        over K checkpoints on axis 0, a list of K pytrees, or an orbax
        `CheckpointManager` (outside jit); `learning_rates` is (K,); `train` and `test`
        are pytrees with a leading axis of examples. Under `shard_map` each device
        scores its own examples.

    Raises:
        ValueError: The loss is no floating scalar; learning rates wrong in number,
            negative or not finite; checkpoints that differ in structure or shapes; no
            training examples; `where` names no parameter, or none that is floating.
        TypeError: A chosen parameter is complex.

    Complexity: one forward and one backward pass an example and checkpoint, and for a
    (p, q) weight applied once 2 (p + q) flops a pair, in place of 2 p q.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda params, example: (params["w"] @ example[0] - example[1]) ** 2
        >>> examples = jnp.eye(2), jnp.ones(2)
        >>> scores = tracin(loss)([{"w": jnp.zeros(2)}], [0.5], examples, examples)
        >>> scores.tolist()
        [[2.0, 0.0], [0.0, 2.0]]

    References:
        Pruthi, Liu, Kale, Sundararajan (2020), Estimating Training Data Influence by
        Tracing Gradient Descent, arXiv 2002.08484, section 3.2.
    """

    def scores(
        checkpoints: Any, learning_rates: jax.Array, train: Any, test: Any
    ) -> jax.Array:
        task = begin(loss, where, checkpoints, learning_rates, train=train, test=test)
        train, test = task.examples
        recipe, test_recipe = alike(*task.recipes)
        stay = _factored_pairs(recipe, test_recipe)

        def at_checkpoint(params: Any) -> jax.Array:
            def asked(some_test: Any) -> dict[int, Gradients]:
                return per_example(test_recipe, params, some_test, stay)

            def rows(some_test: Any) -> jax.Array:
                wanted = map_chunks(asked, some_test)

                def columns(some_train: Any) -> jax.Array:
                    found = per_example(recipe, params, some_train, stay)
                    parts = [inner(found[i], wanted[i]) for i in found if i in wanted]
                    shape = _length(some_train), _length(some_test)
                    return sum(parts, jnp.zeros(shape, task.rates.dtype))

                return map_chunks(columns, train).T

            held = jax.tree.leaves(jax.eval_shape(asked, test))
            numbers = sum(x.size for x in held) // max(_length(test), 1)
            return map_chunks(rows, test, numbers)

        return task.sum_over_checkpoints(at_checkpoint, (_length(test), _length(train)))

    return scores


def self_influence(loss: Loss, *, where: Where = None) -> Callable[..., jax.Array]:
    r"""Scores examples by their influence on themselves.

    .. math:: S(z) = \sum_i \eta_i \| \nabla l(w_i, z) \|^2

    Ranked highest first, mislabelled, rare and memorised training examples lead.

    Args:
        loss: `loss(params, example) -> scalar`, as for `tracin`.
        where: Which parameters count, as for `tracin`.

    Returns:
        `scores(checkpoints, learning_rates, examples) -> (n,)`, nonnegative: the
        diagonal of `tracin` of the examples on themselves, without the rest.

    Raises:
        ValueError, TypeError: As `tracin`.

    Complexity: one forward and one backward pass an example and checkpoint, and for a
    (p, q) weight applied to T rows the lesser of 2 T^2 (p + q) and 2 T p q flops.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda params, example: (params["w"] @ example[0] - example[1]) ** 2
        >>> examples = jnp.eye(2), jnp.asarray([1.0, 3.0])
        >>> self_influence(loss)([{"w": jnp.zeros(2)}], [0.5], examples).tolist()
        [2.0, 18.0]

    References:
        Pruthi, Liu, Kale, Sundararajan (2020), Estimating Training Data Influence by
        Tracing Gradient Descent, arXiv 2002.08484, section 4.1.
    """

    def scores(checkpoints: Any, learning_rates: jax.Array, examples: Any) -> jax.Array:
        task = begin(loss, where, checkpoints, learning_rates, examples=examples)
        (examples,), (recipe,) = task.examples, task.recipes
        stay = {
            leaf
            for leaf in recipe.factored
            if norm_stays_factored(recipe.rows(leaf), recipe.widths(leaf))
        }

        def at_checkpoint(params: Any) -> jax.Array:
            def norms(some: Any) -> jax.Array:
                found = per_example(recipe, params, some, stay)
                zero = jnp.zeros(_length(some), task.rates.dtype)
                return sum(map(squared_norm, found.values()), zero)

            return map_chunks(norms, examples)

        return task.sum_over_checkpoints(at_checkpoint, (_length(examples),))

    return scores


def _factored_pairs(recipe: Recipe, other: Recipe) -> set[int]:
    """The parameters whose gradients are best multiplied from their factors."""
    return {
        leaf
        for leaf in recipe.factored.keys() & other.factored.keys()
        if pairs_stay_factored(recipe.rows(leaf), other.rows(leaf), recipe.widths(leaf))
    }


def _length(examples: Any) -> int:
    return jax.tree.leaves(examples)[0].shape[0]

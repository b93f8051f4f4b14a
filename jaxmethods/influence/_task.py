"""What every influence score starts from: checked arguments and a traced loss."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..core import choose_paths, leaf_paths, vary_together, with_fast_convolutions
from ._checkpoints import stack_checkpoints
from ._chunks import count_examples
from ._contract import accumulator
from ._gradients import Recipe, read_loss

Loss = Callable[[Any, Any], jax.Array]
Where = Callable[[tuple[Any, ...]], bool] | Sequence[tuple[Any, ...]] | None


class Task(NamedTuple):
    """A sum over checkpoints, ready to be taken.

    Attributes:
        params: The parameters, stacked over checkpoints on axis 0.
        rates: (K,) learning rates, in the dtype of the scores.
        chosen: The numbers of the parameters that count, in tree order.
        examples: The sets of examples.
        recipes: For each set, how to take the gradients of the loss on it.
    """

    params: Any
    rates: jax.Array
    chosen: list[int]
    examples: list[Any]
    recipes: list[Recipe]

    def sum_over_checkpoints(
        self, scores: Callable[[Any], jax.Array], shape: tuple[int, ...]
    ) -> jax.Array:
        """The sum of `rate * scores(params)`, compiled once for all checkpoints."""
        scores = with_fast_convolutions(scores)

        def step(total: jax.Array, checkpoint: Any) -> tuple[jax.Array, None]:
            params, rate = checkpoint
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
    examples = {k: jax.tree.map(jnp.asarray, v) for k, v in examples.items()}
    for name, leaves in examples.items():
        count_examples(leaves, name, empty=name == "test")
    chosen = choose_parameters(where, params)
    leaves = jax.tree.leaves(params)
    dtype = accumulator(jnp.result_type(*(leaves[i].dtype for i in chosen)))
    params, rates, sets = vary_together(
        (params, rates.astype(dtype), list(examples.values()))
    )
    one = jax.eval_shape(_first, params)

    @functools.cache
    def read(treedef: Any, *shapes: Any) -> Recipe:
        return read_loss(loss, one, treedef.unflatten(shapes), chosen)

    recipes = []
    for some in sets:
        shapes, treedef = jax.tree.flatten(jax.eval_shape(_first, some))
        recipes.append(read(treedef, *shapes))
    return Task(params, rates, chosen, sets, recipes)


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


def _first(tree: Any) -> Any:
    """The first of each leaf, or where there is none what it would be."""

    def first(x: jax.Array) -> jax.Array:
        if len(x):
            return x[0]
        return vary_together((jnp.zeros(x.shape[1:], x.dtype), x))[0]

    return jax.tree.map(first, tree)

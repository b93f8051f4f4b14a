"""Influence on a weighted sum of test losses: one directional derivative a model."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from ..core import describe, vary_together
from ._chunks import map_chunks, sum_chunks
from ._contract import inner
from ._gradients import Recipe
from ._task import Loss, Where, begin


def aggregate(loss: Loss, *, where: Where = None) -> Callable[..., jax.Array]:
    r"""Scores training examples on a weighted sum of test losses.

    .. math:: \sum_j c_j \sum_i \eta_i \nabla l(w_i, z) \cdot \nabla l(w_i, z'_j)

    For each checkpoint the gradient of the weighted test loss is one direction, and
    all scores are the derivatives of the training losses along it (forward mode): no
    gradient of a training example is taken. A loss with a `custom_vjp`, which forward
    mode cannot cross, has them taken a chunk at a time.

    Args:
        loss: `loss(params, example) -> scalar`, as for `tracin`.
        where: Which parameters count, as for `tracin`.

    Returns:
        `scores(checkpoints, learning_rates, train, test, weights=None) -> (n_train,)`,
        the rows of `tracin` summed with `weights` (n_test,), by default ones. Under
        `shard_map` the sum is over the device's own test examples.

    Raises:
        ValueError, TypeError: As `tracin`; ValueError where `weights` is not (n_test,).

    Complexity: three forward passes a training example and checkpoint, whatever the
    number of test examples.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda params, example: (params["w"] @ example[0] - example[1]) ** 2
        >>> examples = jnp.eye(2), jnp.asarray([1.0, 3.0])
        >>> scores = aggregate(loss)
        >>> scores([{"w": jnp.zeros(2)}], [0.5], examples, examples).tolist()
        [2.0, 18.0]

    References:
        Pruthi, Liu, Kale, Sundararajan (2020), Estimating Training Data Influence by
        Tracing Gradient Descent, arXiv 2002.08484.
    """

    def scores(
        checkpoints: Any,
        learning_rates: jax.Array,
        train: Any,
        test: Any,
        weights: jax.Array | None = None,
    ) -> jax.Array:
        task = begin(loss, where, checkpoints, learning_rates, train=train, test=test)
        train, test = task.examples
        num_train, num_test = (jax.tree.leaves(e)[0].shape[0] for e in (train, test))
        weights = jnp.ones(num_test) if weights is None else jnp.asarray(weights)
        if weights.shape != (num_test,):
            raise ValueError(
                f"weights is {describe(weights)} for {num_test} test examples; wanted "
                "one weight a test example."
            )
        weights = vary_together((weights.astype(task.rates.dtype), task.rates))[0]
        recipe, test_recipe = task.recipes
        forward = not _holds_custom_vjp(recipe.jaxpr.jaxpr)

        def at_checkpoint(params: Any) -> jax.Array:
            leaves = jax.tree.leaves(params)
            chosen = {i: leaves[i] for i in task.chosen}

            def one(some: dict[int, Any], example: Any, recipe: Recipe) -> jax.Array:
                merged = [some.get(i, leaf) for i, leaf in enumerate(leaves)]
                return recipe.evaluate(merged, example)

            def pull(examples: Any, some_weights: jax.Array) -> dict[int, Any]:
                losses = jax.vmap(partial(one, recipe=test_recipe), (None, 0))
                out, back = jax.vjp(lambda p: losses(p, examples), chosen)
                return back(some_weights.astype(out.dtype))[0]

            direction = sum_chunks(pull, test, weights)

            def slopes(examples: Any) -> Any:
                loss = partial(one, recipe=recipe)
                if forward:
                    losses = jax.vmap(loss, (None, 0))
                    along = (chosen,), (direction,)
                    return jax.jvp(lambda p: losses(p, examples), *along)[1]
                found = jax.vmap(jax.grad(loss), (None, 0))(chosen, examples)
                return sum(inner(found[i], direction[i][None])[:, 0] for i in chosen)

            return map_chunks(slopes, train)

        return task.sum_over_checkpoints(at_checkpoint, (num_train,))

    return scores


def _holds_custom_vjp(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        bodies = [getattr(b, "jaxpr", b) for b in jaxprs_in_params(equation.params)]
        if equation.primitive.name.startswith("custom_vjp") or any(
            map(_holds_custom_vjp, bodies)
        ):
            return True
    return False

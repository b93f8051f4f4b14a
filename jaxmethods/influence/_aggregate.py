"""Influence on a weighted sum of test losses: one directional derivative a model."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from ..core import describe, vary_together
from ._chunks import count_examples, sum_chunks
from ._contract import inner
from ._gradients import Recipe
from ._methods import Method
from ._numbers import as_real
from ._run import Run
from ._task import Loss, Point, Reading, Where
from ._totals import totals


def aggregate(
    loss: Loss, *, where: Where = None, progress: bool | None = None
) -> Callable[..., jax.Array]:
    r"""Scores training examples on a weighted sum of test losses.

    .. math:: \sum_j c_j \sum_i \eta_i \nabla l(w_i, z) \cdot \nabla l(w_i, z'_j)

    For each checkpoint the gradient of the weighted test loss is one direction, and
    all scores are the derivatives of the training losses along it (forward mode): no
    gradient of a training example is taken. A loss with a `custom_vjp`, which forward
    mode cannot cross, has them taken a chunk at a time.

    Args:
        loss: `loss(params, example) -> scalar`, as for `tracin`.
        where: Which parameters count, as for `tracin`.
        progress: Whether to show how far it is, as for `tracin`.

    Returns:
        `scores(checkpoints, learning_rates, train, test, weights=None, *, visits=None,
        precondition=None) -> (n_train,)`, the rows of `tracin` summed with weights. A
        call traces anew: `jax.jit(scores)` to call it repeatedly. Under `shard_map` the
        sum is over the device's own test examples.

    Arguments of the call:
        weights: (n_test,) of any sign; None: ones.
        checkpoints, learning_rates, train, test, visits, precondition: As for `tracin`.

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
        *,
        visits: jax.Array | None = None,
        precondition: Any = None,
    ) -> jax.Array:
        run = Run(
            *(loss, where, checkpoints, learning_rates, train, test),
            visits=visits,
            precondition=precondition,
            progress=progress,
        )
        num_test = count_examples(test, "test", empty=True)
        weights = jnp.ones(num_test) if weights is None else weights
        weights = as_real(weights, "weights")
        if weights.shape != (num_test,):
            raise ValueError(
                f"weights is {describe(weights)} for {num_test} test examples; wanted "
                "one weight a test example."
            )
        return totals(run, partial(slopes, weights))

    return scores


def slopes(weights: jax.Array, reading: Reading) -> Method:
    """The derivatives of losses along the gradient of a weighted sum of test losses."""
    recipe, test_recipe = reading.recipes
    forward = not _holds_custom_vjp(recipe.jaxpr.jaxpr)

    def choose(point: Point) -> dict[int, Any]:
        leaves = jax.tree.leaves(point.params)
        return {i: leaves[i] for i in reading.chosen}

    def loss_at(point: Point, recipe: Recipe) -> Callable[..., jax.Array]:
        """The loss of one example, as a function of the parameters that count."""
        leaves = jax.tree.leaves(point.params)

        def loss(chosen: dict[int, Any], example: Any) -> jax.Array:
            merged = [chosen.get(i, leaf) for i, leaf in enumerate(leaves)]
            return recipe.evaluate(merged, example)

        return loss

    def prepare(point: Point, test: Any) -> dict[int, Any]:
        chosen = choose(point)
        losses = jax.vmap(loss_at(point, test_recipe), (None, 0))

        def pull(examples: Any, some_weights: jax.Array) -> dict[int, Any]:
            out, back = jax.vjp(lambda p: losses(p, examples), chosen)
            return back(some_weights.astype(out.dtype))[0]

        varied, _ = vary_together((weights.astype(reading.dtype), chosen))
        return sum_chunks(pull, test, varied)

    def score(point: Point, direction: dict[int, Any], train: Any) -> jax.Array:
        chosen, loss = choose(point), loss_at(point, recipe)
        if forward:
            losses = jax.vmap(loss, (None, 0))
            along = (chosen,), (direction,)
            return jax.jvp(lambda p: losses(p, train), *along)[1]
        found = jax.vmap(jax.grad(loss), (None, 0))(chosen, train)
        parts = [inner(found[i], direction[i][None])[:, 0] for i in chosen]
        return jnp.stack(parts).sum(0)

    return Method(prepare, score, per_test=False)


def _holds_custom_vjp(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        bodies = [getattr(b, "jaxpr", b) for b in jaxprs_in_params(equation.params)]
        if equation.primitive.name.startswith("custom_vjp") or any(
            map(_holds_custom_vjp, bodies)
        ):
            return True
    return False

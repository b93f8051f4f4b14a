"""Influence by its definition: what each step of plain SGD did to each test loss."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import describe, is_concrete, vary_together, with_fast_convolutions
from ._aggregate import _holds_custom_vjp
from ._chunks import map_chunks
from ._contract import inner
from ._finite import check_finite
from ._gradients import Recipe
from ._numbers import as_amounts
from ._task import Loss, begin


class Trace(NamedTuple):
    """A run of SGD, one example a step, and what it did to test losses.

    Attributes:
        params: The parameters after the last step.
        influence: (n_test, n_train), by how much the steps on each training example
            lowered each test loss; rows sum to the whole fall of the loss.
        first_order: (n_test, n_train), the same to first order in the learning rates.
    """

    params: Any
    influence: jax.Array
    first_order: jax.Array


def trace_sgd(loss: Loss) -> Callable[..., Trace]:
    r"""Trains by SGD, one example a step, and credits each step to its example.

    With w_{t+1} = w_t - \eta_t \nabla l(w_t, z_t), the influence of training example z
    on test example z' is by definition

    .. math:: \sum_{t: z_t = z} l(w_t, z') - l(w_{t+1}, z')

    which telescopes: its sum over training examples is l(w_0, z') - l(w_T, z') to
    rounding. Beside it stands its first order, what `tracin` would return from a
    checkpoint before every step:

    .. math:: \sum_{t: z_t = z} \eta_t \nabla l(w_t, z) \cdot \nabla l(w_t, z')

    Args:
        loss: `loss(params, example) -> scalar`, as for `tracin`.

    Returns:
        `trace(params, learning_rate, train, order, test) -> Trace`. The matrices have
        the dtype of the parameters (float32 at least); the column of an example that is
        not in `order` is exactly 0. A call traces anew: `jax.jit(trace)` to call it
        repeatedly. Under `shard_map` each device follows its own test examples through
        the same run.

    Arguments of the call:
        params: A pytree, of which the floating leaves are trained.
        learning_rate: A scalar or (steps,), 0 or more.
        train: A pytree with a leading axis of n_train examples.
        order: (steps,), integers in 0..n_train - 1: the training example of each step.
            A traced one is not checked: a step on an example outside `train` makes all
            that follows NaN.
        test: A pytree with a leading axis of n_test examples, of the structure of
            `train`.

    Raises:
        ValueError: The loss is no floating scalar; no training examples; `order` has
            not one axis, or leaves `train`; learning rates wrong in number, negative
            or not finite; outside of jit, a step whose gradient is not finite.
        TypeError: `order` is not of integers; a parameter is complex.

    Complexity: a step takes a gradient and two forward passes a test example; memory
    holds the two matrices and nothing a step.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda params, example: (params["w"] @ example[0] - example[1]) ** 2
        >>> examples = jnp.eye(2), jnp.ones(2)
        >>> start, order = {"w": jnp.zeros(2)}, jnp.asarray([0, 0])
        >>> trace = trace_sgd(loss)(start, 0.25, examples, order, examples)
        >>> trace.params["w"].tolist()
        [0.75, 0.0]
        >>> trace.influence.tolist(), trace.first_order.tolist()
        ([[0.9375, 0.0], [0.0, 0.0]], [[1.25, 0.0], [0.0, 0.0]])

    References:
        Pruthi, Liu, Kale, Sundararajan (2020), Estimating Training Data Influence by
        Tracing Gradient Descent, arXiv 2002.08484, sections 3.1 and 3.2.
    """

    def trace(
        params: Any, learning_rate: jax.Array, train: Any, order: jax.Array, test: Any
    ) -> Trace:
        # The run is a task with one checkpoint: where it starts.
        task = begin(loss, None, [params], jnp.ones(1), train=train, test=test)
        train, test = task.examples
        num_train, num_test = (jax.tree.leaves(e)[0].shape[0] for e in (train, test))
        order = _check_order(order, num_train)
        rates = _check_rates(learning_rate, len(order)).astype(task.rates.dtype)
        rates, order, _ = vary_together((rates, order, task.rates))
        leaves, treedef = jax.tree.flatten(jax.tree.map(lambda x: x[0], task.params))
        train_loss, test_loss = (_Losses(recipe, leaves) for recipe in task.recipes)

        def step(
            state: _State, now: tuple[jax.Array, jax.Array]
        ) -> tuple[_State, jax.Array]:
            index, rate = now
            rate = jnp.where((0 <= index) & (index < num_train), rate, jnp.nan)
            example = jax.tree.map(lambda x: x[index], train)
            gradient = jax.grad(train_loss.of)(state.weights, example)
            along = test_loss.along(state.weights, gradient, test)
            losses, slopes = (x.astype(rates.dtype) for x in along)
            moved = jax.tree.map(
                lambda w, g: (w - rate * g).astype(w.dtype), state.weights, gradient
            )
            return _State(
                moved,
                index,
                losses,
                state.credited(losses),
                state.first_order.at[index].add(rate * slopes),
            ), jnp.stack([jnp.isfinite(g).all() for g in gradient.values()]).all()

        # What came before the first step belongs to no example, and is dropped.
        zeros = jnp.zeros((num_train, num_test), rates.dtype)
        nobody = jnp.int32(num_train)
        first = nobody, jnp.zeros(num_test, rates.dtype), zeros, zeros
        first, _ = vary_together((first, rates))
        state = _State({i: leaves[i] for i in task.chosen}, *first)
        state, finite = lax.scan(with_fast_convolutions(step), state, (order, rates))
        _check_steps(finite, order)
        losses = test_loss.each(state.weights, test).astype(rates.dtype)
        params = treedef.unflatten(train_loss.merged(state.weights))
        influence = state.credited(losses).T
        check_finite(influence)
        return Trace(params, influence, state.first_order.T)

    return trace


class _State(NamedTuple):
    """Where a run stands, and its credits: (n_train, n_test), a row an example.

    Attributes:
        weights: The trained parameters, by number.
        index: The example of the step before.
        losses: (n_test,) before that step.
        influence: Without that step.
        first_order: With it.
    """

    weights: dict[int, jax.Array]
    index: jax.Array
    losses: jax.Array
    influence: jax.Array
    first_order: jax.Array

    def credited(self, losses: jax.Array) -> jax.Array:
        """The influence with the step before, after which these are the losses."""
        return self.influence.at[self.index].add(self.losses - losses, mode="drop")


class _Losses(NamedTuple):
    """A loss as a function of the trained parameters."""

    recipe: Recipe
    leaves: list[Any]

    def merged(self, weights: Mapping[int, Any]) -> list[Any]:
        """The leaves of all parameters."""
        return [weights.get(i, leaf) for i, leaf in enumerate(self.leaves)]

    def of(self, weights: Mapping[int, Any], example: Any) -> jax.Array:
        """Of one example."""
        return self.recipe.evaluate(self.merged(weights), example)

    def each(self, weights: Mapping[int, Any], examples: Any) -> jax.Array:
        """Of each example."""
        return map_chunks(jax.vmap(lambda e: self.of(weights, e)), examples)

    def along(
        self, weights: Mapping[int, Any], direction: Mapping[int, Any], examples: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Of each example, and its derivative along a direction."""

        def ahead(example: Any) -> tuple[jax.Array, jax.Array]:
            return jax.jvp(lambda w: self.of(w, example), (weights,), (direction,))

        def back(example: Any) -> tuple[jax.Array, jax.Array]:
            value, gradient = jax.value_and_grad(self.of)(weights, example)
            parts = [inner(gradient[i][None], direction[i][None]) for i in weights]
            return value, jnp.stack(parts).sum()

        # Forward mode does not cross a `custom_vjp`.
        crosses = not _holds_custom_vjp(self.recipe.jaxpr.jaxpr)
        return map_chunks(jax.vmap(ahead if crosses else back), examples)


def _check_order(order: Any, num_train: int) -> jax.Array:
    order = jnp.asarray(order)
    if not jnp.issubdtype(order.dtype, jnp.integer):
        raise TypeError(
            f"order is {describe(order)}; wanted integers: the training example of "
            "each step."
        )
    if order.ndim != 1:
        raise ValueError(f"order is {describe(order)}; wanted one axis, the steps.")
    if is_concrete(order):
        outside = [i for i in np.asarray(order).tolist() if not 0 <= i < num_train]
        if outside:
            raise ValueError(
                f"order holds {outside[0]}; wanted training examples: "
                f"0..{num_train - 1}."
            )
    return order.astype(jnp.int32)


def _check_steps(finite: jax.Array, order: jax.Array) -> None:
    """Raises ValueError where the gradient of a step is seen not to be finite."""
    if is_concrete(finite) and not finite.all():
        step = int(finite.argmin())
        raise ValueError(
            f"the gradient of step {step}, on training example {int(order[step])}, is "
            "not finite; wanted finite ones: lower learning_rate, or look for NaN, "
            "infinity or overflow in the parameters and that example."
        )


def _check_rates(learning_rate: Any, steps: int) -> jax.Array:
    rates = as_amounts(learning_rate, "learning_rate")
    if rates.shape not in ((), (steps,)):
        raise ValueError(
            f"learning_rate is {describe(rates)} for {steps} steps; wanted a scalar, "
            "or one rate a step."
        )
    return jnp.broadcast_to(rates, (steps,))

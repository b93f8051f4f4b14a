"""The training examples with the strongest scores, without the matrix of all scores."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core import check_integer, vary_together, with_fast_convolutions
from ._chunks import (
    count_examples,
    fold_chunks,
    length_of,
    map_chunks,
    numbers_held,
    numbers_per_example,
)
from ._methods import MethodOf
from ._projecting import keyed, pairs_of
from ._ranking import NOBODY, Order, TopK, check_count, merge
from ._run import Run, check_visits, trace
from ._streams import is_stream
from ._task import Loss, Where
from ._totals import check_scores
from ._walk import walk


def proponents(
    loss: Loss,
    k: int,
    *,
    where: Where = None,
    project: int | None = None,
    axis_name: str | None = None,
    progress: bool | None = None,
) -> Callable[..., TopK]:
    """Finds the training examples that lowered each test loss the most.

    They have the k largest scores of `tracin`. The matrix of scores is never held: the
    best k are carried over chunks of training examples, which may be a stream.

    Args:
        loss: `loss(params, example) -> scalar`, as for `tracin`.
        k: How many examples to find, 1..n_train.
        where: Which parameters count, as for `tracin`.
        project: How many numbers are kept of an example's gradient, as for `tracin`:
            those found are the ends of scores that are unbiased, and the scores at the
            ends are then on average too far out.
        axis_name: Inside `shard_map` the mesh axis over which the training examples
            are split, in order; each device finds its own k, and all devices the k
            best of these. None: all training examples are here.
        progress: Whether to show how far it is, as for `tracin`.

    Returns:
        `top(checkpoints, learning_rates, train, test, *, visits=None,
        precondition=None) -> TopK(scores, indices)`, each (n_test, k), the largest
        score first, and of equal ones the example of lower number; with `project` it is
        `top(key, checkpoints, ...)`. A call traces anew: `jax.jit(top)` to call it
        repeatedly. With `axis_name` the indices are those of the whole training set,
        the same on each device.

    Arguments of the call:
        key, checkpoints, learning_rates, train, test, visits, precondition: As for
            `tracin`.

    Raises:
        ValueError, TypeError: As `tracin`; ValueError where k is outside 1..n_train.

    Complexity: that of `tracin`, with memory for the gradients of the test examples at
    all checkpoints, and for n_test k scores.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda params, example: (params["w"] @ example[0] - example[1]) ** 2
        >>> examples = jnp.eye(2), jnp.asarray([1.0, 3.0])
        >>> top = proponents(loss, 1)([{"w": jnp.zeros(2)}], [0.5], examples, examples)
        >>> top.scores.tolist(), top.indices.tolist()
        ([[2.0], [18.0]], [[0], [1]])

    References:
        Pruthi, Liu, Kale, Sundararajan (2020), Estimating Training Data Influence by
        Tracing Gradient Descent, arXiv 2002.08484, section 3.2.
    """
    order = Order(check_integer(k, "k", 1), 1)
    return _strongest(order, loss, where, project, axis_name, progress)


def opponents(
    loss: Loss,
    k: int,
    *,
    where: Where = None,
    project: int | None = None,
    axis_name: str | None = None,
    progress: bool | None = None,
) -> Callable[..., TopK]:
    """Finds the training examples that raised each test loss the most.

    They have the k smallest scores of `tracin`, the most negative first.

    Args:
        loss: `loss(params, example) -> scalar`, as for `tracin`.
        k: How many examples to find, 1..n_train.
        where: Which parameters count, as for `tracin`.
        project: How many numbers are kept of an example, as for `proponents`.
        axis_name: The mesh axis of the training examples, as for `proponents`.
        progress: Whether to show how far it is, as for `tracin`.

    Returns:
        `top(checkpoints, learning_rates, train, test, *, visits=None,
        precondition=None) -> TopK(scores, indices)`, as of `proponents`, but the
        smallest score first.

    Arguments of the call:
        key, checkpoints, learning_rates, train, test, visits, precondition: As for
            `tracin`.

    Raises:
        ValueError, TypeError: As `proponents`.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda params, example: (params["w"] @ example[0] - example[1]) ** 2
        >>> examples = jnp.ones((2, 2)), jnp.asarray([1.0, -3.0])
        >>> top = opponents(loss, 1)([{"w": jnp.zeros(2)}], [0.5], examples, examples)
        >>> top.scores.tolist(), top.indices.tolist()
        ([[-12.0], [-12.0]], [[1], [0]])

    References:
        Pruthi, Liu, Kale, Sundararajan (2020), Estimating Training Data Influence by
        Tracing Gradient Descent, arXiv 2002.08484, section 3.2.
    """
    order = Order(check_integer(k, "k", 1), -1)
    return _strongest(order, loss, where, project, axis_name, progress)


def _strongest(
    order: Order,
    loss: Loss,
    where: Where,
    project: int | None,
    axis_name: str | None,
    progress: bool | None,
) -> Callable[..., TopK]:
    method_of = pairs_of(project)

    def top(
        key: jax.Array | None,
        checkpoints: Any,
        learning_rates: jax.Array,
        train: Any,
        test: Any,
        *,
        visits: jax.Array | None = None,
        precondition: Any = None,
    ) -> TopK:
        count_examples(test, "test", empty=True)
        run = Run(
            *(loss, where, checkpoints, learning_rates, train, test),
            key=key,
            visits=visits,
            precondition=precondition,
            progress=progress,
        )
        if run.walks and axis_name is not None:
            raise ValueError(
                f"axis_name is {axis_name!r}, while batches or a manager are read "
                "outside of shard_map; wanted arrays, or axis_name=None."
            )
        if run.walks:
            best = _walked(run, order, method_of)
        else:
            best = _traced(run, order, method_of, axis_name)
        check_scores(run, best.scores, best.indices)
        return best

    return keyed(top, project)


def _traced(run: Run, order: Order, method_of: MethodOf, axis_name: str | None) -> TopK:
    # The visits go along with the examples, a column a checkpoint.
    task, visits = trace(run._replace(visits=None)), None
    method = method_of(task.reading)
    train, test = task.examples
    count, n = len(task.rates), length_of(train)
    if run.visits is not None:
        visits = jnp.broadcast_to(check_visits(run.visits, count, n), (count, n)).T
    first = 0 if axis_name is None else lax.axis_index(axis_name) * n
    check_count(order.k, n * (1 if axis_name is None else lax.axis_size(axis_name)))

    def prepare(some_test: Any) -> Any:
        return lax.map(lambda point: method.prepare(point, some_test), task.params)

    def rows(some_test: Any) -> TopK:
        kept = prepare(some_test)

        def scores(some_train: Any) -> jax.Array:
            examples, visited = some_train

            def add(total: jax.Array, at: Any) -> tuple[jax.Array, None]:
                point, kept, rate, visited = at
                credit = rate if visited is None else rate * visited[:, None]
                return total + credit * method.score(point, kept, examples), None

            zero = jnp.zeros(
                (length_of(examples), length_of(some_test)), task.rates.dtype
            )
            zero, _ = vary_together((zero, (task.rates, some_train)))
            each = None if visited is None else visited.T
            return lax.scan(add, zero, (task.params, kept, task.rates, each))[0]

        def step(best: TopK, some_train: Any, index: jax.Array) -> TopK:
            index = jnp.where(index < n, first + index, NOBODY)
            return order.merge(best, scores(some_train).T, index)

        best = order.empty(length_of(some_test), task.rates.dtype)
        best, _ = vary_together((best, (task.rates, first)))
        both = train, visits
        return fold_chunks(step, best, both, numbers_per_example(scores, both))

    best = map_chunks(with_fast_convolutions(rows), test, numbers_held(prepare, test))
    return best if axis_name is None else order.over_axis(best, axis_name)


def _walked(run: Run, order: Order, method_of: MethodOf) -> TopK:
    if not is_stream(run.train):
        check_count(order.k, length_of(run.train))
    best, seen = None, 0
    for step in walk(run, method_of):
        for batch, scores in zip(step.block, step.sums(), strict=True):
            if best is None:
                best = order.empty(scores.shape[1], scores.dtype)
            best = merge(order, best, scores.T, batch.numbers(NOBODY))
        seen = step.block[-1].end
    check_count(order.k, seen)
    assert best is not None
    return best

"""Sums the scores of a method over checkpoints, all at once or bit by bit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import is_concrete
from ._chunks import length_of, map_chunks, numbers_held
from ._finite import check_finite
from ._methods import MethodOf, norms
from ._run import Run, trace
from ._task import Point
from ._walk import walk


def totals(run: Run, method_of: MethodOf) -> jax.Array:
    """The scores of all examples, (n_test, n) or (n,).

    Args:
        run: The call.
        method_of: What is computed at a checkpoint.

    Raises:
        ValueError, TypeError: As the public functions say; an example whose gradient
            is not finite, where values are concrete.
    """
    scores = _walked(run, method_of) if run.walks else _traced(run, method_of)
    check_scores(run, scores)
    return scores


def check_scores(run: Run, scores: jax.Array, index: Any = None) -> None:
    """Raises ValueError where scores are seen not to be finite; says what spoils them.

    Args:
        run: The call.
        scores: (n_test, n) or (n,).
        index: The numbers of the examples, like `scores`, where these are not all.
    """
    if run.test is not None and _none_finite(scores):
        # One test example may have spoiled them all: its own score tells.
        own = run._replace(train=run.test, test=None, name="test", visits=None)
        totals(own, norms)
    check_finite(scores, run.name, index, run.checkpoints)


def _none_finite(scores: jax.Array) -> bool:
    return is_concrete(scores) and scores.size > 0 and not jnp.isfinite(scores).any()


def _traced(run: Run, method_of: MethodOf) -> jax.Array:
    task = trace(run)
    method = method_of(task.reading)
    train, test = task.examples if run.test is not None else (*task.examples, ())

    def at_checkpoint(point: Point) -> jax.Array:
        def rows(some_test: Any) -> jax.Array:
            kept = method.prepare(point, some_test)
            columns = map_chunks(lambda some: method.score(point, kept, some), train)
            return columns.T

        if not method.per_test:
            return rows(test)
        numbers = numbers_held(lambda some: method.prepare(point, some), test)
        return map_chunks(rows, test, numbers)

    shape = (length_of(train),)
    shape = (length_of(test), *shape) if method.per_test else shape
    return task.sum_over_checkpoints(at_checkpoint, shape)


def _walked(run: Run, method_of: MethodOf) -> jax.Array:
    found = []
    for step in walk(run, method_of):
        pairs = zip(step.block, step.sums(), strict=True)
        found += [np.asarray(rows)[: batch.count] for batch, rows in pairs]
    return jnp.asarray(np.concatenate(found).T)

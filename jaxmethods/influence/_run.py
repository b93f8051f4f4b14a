"""A call of a score: what was given, all at once or checkpoint by checkpoint."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import describe
from ._checkpoints import (
    Series,
    is_manager,
    one_by_one,
    stack_checkpoints,
)
from ._chunks import length_of
from ._numbers import as_amounts
from ._preconditioner import (
    series_stretched,
    stack_stretched,
    stretch,
    stretched_where,
)
from ._streams import is_stream
from ._task import Loss, Point, Task, Where, begin_stacked, first_of


class Run(NamedTuple):
    """A call of a score.

    Attributes:
        loss: `loss(params, example) -> scalar`.
        where: Which parameters count.
        checkpoints: A stacked pytree, a list of pytrees or an orbax manager.
        learning_rates: (K,).
        train: The scored examples: a pytree of arrays or an iterable of batches.
        test: A pytree of arrays; None where the method needs none.
        name: What messages call the scored examples.
        key: What projections are drawn from.
        visits: None, or what each scored example's part in a step is multiplied by:
            (n,) or (K, n).
        precondition: None, or what steps are multiplied by, given as checkpoints are.
        progress: Whether to show how far it is; None: where it takes long.
    """

    loss: Loss
    where: Where
    checkpoints: Any
    learning_rates: Any
    train: Any
    test: Any = None
    name: str = "train"
    key: jax.Array | None = None
    visits: Any = None
    precondition: Any = None
    progress: bool | None = None

    @property
    def walks(self) -> bool:
        """Whether it reads something bit by bit: then it looks at values."""
        managers = is_manager(self.checkpoints) or is_manager(self.precondition)
        return managers or is_stream(self.train)


def trace(run: Run) -> Task:
    """All checkpoints and examples of a run as one task, its parameters `Point`s."""
    loss, where = run.loss, run.where
    params, rates = stack_checkpoints(run.checkpoints, run.learning_rates)
    if run.precondition is not None:
        where = stretched_where(where, jax.eval_shape(first_of, params))
        loss, params = stretch(loss), stack_stretched(params, run.precondition)
    sets = {run.name: run.train}
    if run.test is not None:
        sets["test"] = run.test
    task = begin_stacked(loss, where, params, rates, **sets)
    count = len(rates)
    keys = None
    if run.key is not None:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(run.key, jnp.arange(count))
    credit = task.rates
    if run.visits is not None:
        n = length_of(task.examples[0])
        visits = check_visits(run.visits, count, n)
        credit = credit[:, None] * jnp.broadcast_to(visits, (count, n))
    return task._replace(params=Point(task.params, keys), rates=credit)


class Course(NamedTuple):
    """The checkpoints of a run, one after the other, and the loss to be read there.

    Attributes:
        loss: As given, or stretched.
        where: As given, or for the stretched parameters.
        series: The checkpoints.
        key: What the projections are drawn from, one key a checkpoint.
    """

    loss: Loss
    where: Where
    series: Series
    key: jax.Array | None

    def point(self, k: int) -> Point:
        """Checkpoint k."""
        key = None if self.key is None else jax.random.fold_in(self.key, k)
        return Point(self.series.at(k), key)


def follow(run: Run) -> Course:
    """The course of a run."""
    series = one_by_one(run.checkpoints)
    if run.precondition is None:
        return Course(run.loss, run.where, series, run.key)
    where = stretched_where(run.where, series.at(0))
    series = series_stretched(series, run.precondition)
    return Course(stretch(run.loss), where, series, run.key)


def check_visits(visits: Any, count: int, n: int | None) -> jax.Array:
    """Returns visits as an array, or raises unless (n,) or (count, n), 0 or more.

    Args:
        visits: What was given.
        count: The number of checkpoints.
        n: The number of examples, None where it is not known yet.
    """
    visits = as_amounts(visits, "visits")
    rows = visits.shape[:-1] in ((), (count,)) and visits.ndim > 0
    if not rows or n not in (None, visits.shape[-1]):
        known = "n" if n is None else n
        raise ValueError(
            f"visits is {describe(visits)}; wanted ({known},), one number a training "
            f"example, or ({count}, {known}), a row a checkpoint."
        )
    return visits

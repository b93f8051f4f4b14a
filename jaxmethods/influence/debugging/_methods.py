"""The ways to debug: what is fitted together with the debug set, and what is held."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ...core import vary_together
from ._danger import search, shuffled
from ._penalties import (
    diagonal_fisher,
    fisher_penalty,
    kl_penalty,
    l2_ball,
    l2_penalty,
    sample,
)
from ._sets import LabelledSet, Loss, Predict, join, right, take

Objective = Callable[[Any, jax.Array], jax.Array]


class Run(NamedTuple):
    """Where a fine-tuning ended.

    Attributes:
        params: The parameters.
        steps: () int, how many steps of the optimizer were taken.
        passes: How often the original set was read, in units of its size.
    """

    params: Any
    steps: jax.Array
    passes: Any = 0.0


class Task(NamedTuple):
    """A checked call of `debug`: its arguments.

    Attributes:
        already: () bool, whether the debug set is right to begin with: nothing is done.
    """

    loss: Loss
    predict: Predict
    logits: Callable[[Any, Any], jax.Array] | None
    params: Any
    bug: LabelledSet
    original: LabelledSet
    key: jax.Array
    optimizer: optax.GradientTransformation
    max_steps: int
    limit: int
    chunk: int
    batch_size: int
    radius: Any
    weight: Any
    already: jax.Array

    @property
    def size(self) -> int:
        """The number of original examples."""
        return self.original[1].shape[0]

    def fit(
        self,
        some: LabelledSet | None = None,
        valid: jax.Array | None = None,
        penalty: Objective | None = None,
        project: Callable[[Any], Any] | None = None,
        wanted: jax.Array | bool = True,
    ) -> Run:
        """Fine-tunes from the start until all of a set is right.

        Args:
            some: The set; None is the debug set.
            valid: Which of its rows count; all.
            penalty: Added to the mean loss: of the parameters and the step's number.
            project: Applied to the parameters after each step.
            wanted: Whether to take any step.
        """
        some = self.bug if some is None else some
        valid = jnp.ones(some[1].shape, bool) if valid is None else valid

        def objective(params: Any, step: jax.Array) -> jax.Array:
            fit = mean_loss(self.loss, params, some, valid)
            return fit if penalty is None else fit + penalty(params, step)

        def done(params: Any) -> jax.Array:
            return jnp.all(right(self.predict, params, some) | ~valid)

        return self.descend(objective, done, self.max_steps, project, wanted)

    def descend(
        self,
        objective: Objective,
        done: Callable[[Any], Any],
        max_steps: int,
        project: Callable[[Any], Any] | None = None,
        wanted: jax.Array | bool = True,
    ) -> Run:
        """Minimises until done, or a parameter is not finite, at most `max_steps`."""

        def unfinished(state: _State) -> jax.Array:
            return ~state.stop & (state.steps < max_steps)

        def step(state: _State) -> _State:
            gradient = jax.grad(objective)(state.params, state.steps)
            updates, memory = self.optimizer.update(
                gradient, state.memory, state.params
            )
            params = optax.apply_updates(state.params, updates)
            params = params if project is None else project(params)
            stop = done(params) | ~all_finite(params)
            return _State(params, memory, state.steps + 1, stop)

        stop = self.already | ~jnp.asarray(wanted) | ~all_finite(self.params)
        state = _State(
            self.params, self.optimizer.init(self.params), jnp.int32(0), stop
        )
        state, *_ = vary_together((state, self.bug, self.original, self.key))
        state = lax.while_loop(unfinished, step, state)
        return Run(state.params, state.steps)


class _State(NamedTuple):
    """Where a descent stands; `memory` is the optimizer's."""

    params: Any
    memory: Any
    steps: jax.Array
    stop: jax.Array


def mean_loss(loss: Loss, params: Any, some: LabelledSet, valid: jax.Array) -> Any:
    """The mean loss of the rows that count."""
    losses = jax.vmap(loss, (None, 0))(params, some)
    return jnp.sum(jnp.where(valid, losses, 0)) / jnp.sum(valid)


def all_finite(tree: Any) -> jax.Array:
    """() bool: whether every number of a pytree is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def debug_only(task: Task) -> Run:
    """Fits the debug set alone."""
    return task.fit()


def in_danger(task: Task) -> Run:
    """Fits it, finds who is endangered, and starts again with both."""
    alone = task.fit()
    sound = all_finite(alone.params)
    found = search(
        task.predict,
        task.params,
        alone.params,
        task.original,
        task.key,
        limit=task.limit,
        chunk=task.chunk,
        wanted=sound & ~task.already,
    )
    both = join(task.bug, task.original, found.indices, found.valid)
    again = task.fit(*both, wanted=sound)
    # What broke the first fit is not hidden behind a second that starts afresh.
    params = jax.tree.map(
        lambda first, second: jnp.where(sound, second, first),
        alone.params,
        again.params,
    )
    return Run(params, alone.steps + again.steps, found.scanned / task.size)


def random(task: Task) -> Run:
    """Fits it together with original examples drawn without replacement."""
    number = min(task.limit, task.size)
    rows = shuffled(task.key, task.size, 0)[:number]
    run = task.fit(*join(task.bug, task.original, rows, jnp.ones(number, bool)))
    return run._replace(passes=jnp.where(task.already, 0, number / task.size))


def in_l2_ball(task: Task) -> Run:
    """Fits it with the parameters in a ball around the first."""
    return task.fit(project=l2_ball(task.params, task.radius))


def with_l2_penalty(task: Task) -> Run:
    """Fits it with a price on the distance from the first parameters."""
    penalty = l2_penalty(task.params, task.weight)
    return task.fit(penalty=lambda params, step: penalty(params))


def with_kl(task: Task) -> Run:
    """Fits it with a price on other answers to original inputs, drawn at each step."""
    assert task.logits is not None  # `debug` has checked
    penalty = kl_penalty(task.logits, task.params, task.weight)

    def at_step(params: Any, step: jax.Array) -> jax.Array:
        key = jax.random.fold_in(task.key, step)
        return penalty(params, sample(task.original[0], key, task.limit))

    run = task.fit(penalty=at_step)
    return run._replace(passes=run.steps * (task.limit / task.size))


def with_fisher(task: Task) -> Run:
    """Fits it with a price on parameters that the original set depends on."""
    fisher = lax.cond(
        task.already,
        lambda: jax.tree.map(jnp.zeros_like, task.params),
        lambda: jax.tree.map(
            lambda f, x: f.astype(x.dtype),
            diagonal_fisher(task.loss, task.params, task.original),
            task.params,
        ),
    )
    penalty = fisher_penalty(task.params, fisher, task.weight)
    run = task.fit(penalty=lambda params, step: penalty(params))
    return run._replace(passes=jnp.where(task.already, 0.0, 1.0))


def epoch(task: Task) -> Run:
    """One epoch over the original and the debug set."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), task.original, task.bug)
    return _one_epoch(task, both)


def intensive(task: Task) -> Run:
    """One epoch over the original set, the debug set in every batch."""
    return _one_epoch(task, task.original, also=task.bug)


def _one_epoch(task: Task, some: LabelledSet, also: LabelledSet | None = None) -> Run:
    n, size = some[1].shape[0], task.batch_size
    order = shuffled(task.key, n, size)

    def objective(params: Any, step: jax.Array) -> jax.Array:
        places = step * size + jnp.arange(size)
        valid = places < n
        batch = take(some, order[jnp.minimum(places, n - 1)])
        if also is not None:
            batch = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, also)
            valid = jnp.concatenate([valid, jnp.ones(also[1].shape, bool)])
        return mean_loss(task.loss, params, batch, valid)

    batches = -(-n // size)
    run = task.descend(objective, lambda params: False, batches)
    return run._replace(passes=run.steps / batches)


METHODS: dict[str, Callable[[Task], Run]] = {
    "debug_only": debug_only,
    "in_danger": in_danger,
    "random": random,
    "l2_ball": in_l2_ball,
    "l2_penalty": with_l2_penalty,
    "kl": with_kl,
    "fisher": with_fisher,
    "epoch": epoch,
    "intensive": intensive,
}
# Those that read the original set.
READERS = METHODS.keys() - {"debug_only", "l2_ball", "l2_penalty"}

"""TracIn: how much the steps on each training example moved the loss on another."""

from collections.abc import Callable
from typing import Any

import jax

from ._chunks import count_examples
from ._methods import norms
from ._projecting import keyed, pairs_of
from ._run import Run
from ._task import Loss, Where
from ._totals import totals


def tracin(
    loss: Loss,
    *,
    where: Where = None,
    project: int | None = None,
    progress: bool | None = None,
) -> Callable[..., jax.Array]:
    r"""Scores every pair of a training and a test example by TracInCP.

    The score of training example z on test example z' is

    .. math:: \sum_i \eta_i \nabla l(w_i, z) \cdot \nabla l(w_i, z')

    over checkpoints w_i with learning rates \eta_i: to first order, how much the
    steps taken on z lowered the loss on z'. Positive: z helped (a proponent of z');
    negative: it harmed (an opponent).

    The scores are exact for any loss, and gradients are held for a bounded number of
    examples only. A weight that enters through matrix products, convolutions and
    look-ups alone, in loops as well, needs no gradient at all where its factors are
    cheaper: its part of the score comes from the inputs of those products and the
    gradients of their outputs. Any other parameter (biases, scales) has its per-example
    gradients taken, a chunk at a time; `forms` tells which is which.

    With `project`, gradients are replaced by random sketches of so many numbers an
    example, at each checkpoint anew and the same for training and test examples: the
    scores are unbiased over keys, whatever the number. Parameters share the numbers
    equally; one smaller than its share is kept exactly and leaves the rest to the
    others. A factored gradient is sketched on both sides of its product, never formed.

    Args:
        loss: `loss(params, example) -> scalar`, on one example without its leading
            axis. A mean over a batch inside it would scale the scores.
        where: Which parameters count: a predicate on key paths (tuples of plain
            names), or a list of paths, each naming a leaf or a subtree. None: all
            floating ones. Scores of disjoint sets of parameters add up.
        project: How many numbers are kept of an example's gradient, at least 1; None:
            no projection.
        progress: Whether to show on standard error how far a run is that reads batches
            or a manager; None: on a terminal, once it takes more than 2 seconds.

    Returns:
        `scores(checkpoints, learning_rates, train, test, *, visits=None,
        precondition=None) -> (n_test, n_train)`, in the dtype of the parameters
        (float32 at least); with `project` it is `scores(key, checkpoints, ...)`. A call
        traces anew: `jax.jit(scores)` to call it repeatedly. Under `shard_map` each
        device scores its own examples.

    Arguments of the call:
        key: Typed key of the sketches; with `project` alone.
        checkpoints: A pytree stacked over K checkpoints on axis 0, a list of K pytrees,
            or an orbax `CheckpointManager` of trees saved with `StandardSave`, which is
            read one checkpoint at a time.
        learning_rates: (K,), 0 or more.
        train: A pytree with a leading axis of n_train examples; or an iterable of such
            batches that is no pytree (a data loader, or `iter` of a list), read once.
        test: A pytree with a leading axis of n_test examples, of the structure of
            `train`.
        visits: What corrects for minibatches, (n_train,) or (K, n_train): how often an
            example was visited in the interval of checkpoint i, over the batch size.
        precondition: What corrects for an optimizer that scales its steps by a diagonal
            D_i (see `adam_preconditioner`): a pytree like the parameters a checkpoint,
            0 or more, given in the same forms. The score is
            \nabla l(w_i, z') \cdot D_i \nabla l(w_i, z) then, and gradients are formed.
            It has no derivative with respect to an entry of 0, a parameter that steps
            leave alone.

    Managers and batches are read in Python, outside of jit, with the results that
    arrays have. Running statistics that lie among the parameters (`batch_stats` of
    linen, `nnx.BatchStat`) are floating leaves and count as any other: leave them out
    with `where=[("params",)]`, or close over them. Of nnx: `graph, params, rest =
    nnx.split(model, nnx.Param, ...)`, `nnx.to_pure_dict(params)` as a checkpoint, and
    `nnx.merge(graph, params, rest)` in the loss.

    Raises:
        ValueError: The loss is no floating scalar, or looks at other examples;
            learning rates wrong in number, negative or not finite; checkpoints that
            differ in structure or shapes, or that a manager saved in another way; no
            training examples; `train` and `test` of different structure; `where` names
            no parameter, or none that is floating; `visits` or `precondition` of
            another shape, negative or not finite; outside of jit, a checkpoint or a
            gradient of an example that is not finite (inside, the scores are not).
        TypeError: A chosen parameter is complex; batches or a manager inside of jit
            (jit itself refuses an iterator as an argument); `where` is of another kind;
            no typed key with `project`, or one without.

    Complexity: one forward and one backward pass an example and checkpoint, and for a
    (p, q) weight applied once 2 (p + q) flops a pair, in place of 2 p q; projected,
    2 `project` flops a pair.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda params, example: (params["w"] @ example[0] - example[1]) ** 2
        >>> examples = jnp.eye(2), jnp.ones(2)
        >>> scores = tracin(loss)([{"w": jnp.zeros(2)}], [0.5], examples, examples)
        >>> scores.tolist()
        [[2.0, 0.0], [0.0, 2.0]]

        With running statistics among the parameters:

        >>> def normalised(variables, example):
        ...     x = example[0] - variables["batch_stats"]["mean"]
        ...     return loss(variables["params"], (x, example[1]))
        >>> variables = {
        ...     "params": {"w": jnp.zeros(2)}, "batch_stats": {"mean": jnp.ones(2)}
        ... }
        >>> scores = tracin(normalised, where=[("params",)])
        >>> scores([variables], [0.5], examples, examples).tolist()
        [[2.0, 0.0], [0.0, 2.0]]

    References:
        Pruthi, Liu, Kale, Sundararajan (2020), Estimating Training Data Influence by
        Tracing Gradient Descent, arXiv 2002.08484, section 3.2; appendix F for the
        projection.
    """
    method_of = pairs_of(project)

    def scores(
        key: jax.Array | None,
        checkpoints: Any,
        learning_rates: jax.Array,
        train: Any,
        test: Any,
        *,
        visits: jax.Array | None = None,
        precondition: Any = None,
    ) -> jax.Array:
        count_examples(test, "test", empty=True)
        run = Run(
            *(loss, where, checkpoints, learning_rates, train, test),
            key=key,
            visits=visits,
            precondition=precondition,
            progress=progress,
        )
        return totals(run, method_of)

    return keyed(scores, project)


def self_influence(
    loss: Loss, *, where: Where = None, progress: bool | None = None
) -> Callable[..., jax.Array]:
    r"""Scores examples by their influence on themselves.

    .. math:: S(z) = \sum_i \eta_i \| \nabla l(w_i, z) \|^2

    Ranked highest first, mislabelled, rare and memorised training examples lead.

    Args:
        loss: `loss(params, example) -> scalar`, as for `tracin`.
        where: Which parameters count, as for `tracin`.
        progress: Whether to show how far it is, as for `tracin`.

    Returns:
        `scores(checkpoints, learning_rates, examples, *, visits=None,
        precondition=None) -> (n,)`, nonnegative: the diagonal of `tracin` of the
        examples on themselves, without the rest. A call traces anew: `jax.jit(scores)`
        to call it repeatedly.

    Arguments of the call:
        examples: What is scored, given as the `train` of `tracin`.
        checkpoints, learning_rates, visits, precondition: As for `tracin`.

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

    def scores(
        checkpoints: Any,
        learning_rates: jax.Array,
        examples: Any,
        *,
        visits: jax.Array | None = None,
        precondition: Any = None,
    ) -> jax.Array:
        run = Run(
            *(loss, where, checkpoints, learning_rates, examples),
            name="examples",
            visits=visits,
            precondition=precondition,
            progress=progress,
        )
        return totals(run, norms)

    return scores

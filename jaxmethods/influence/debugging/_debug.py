"""Few-shot debugging: one signature for all methods."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ...core import check_choice, check_integer, check_key, vary_together
from ._arguments import (
    arrays,
    check_functions,
    check_optimizer,
    check_scale,
    check_sets,
    floating,
    merge,
    not_finite,
)
from ._methods import METHODS, READERS, Task, all_finite
from ._sets import Loss, Predict, right


class Debugged(NamedTuple):
    """A debugged model and what it took.

    Attributes:
        params: Its parameters; those given where the debug set was right already.
        steps: () int, the steps of the optimizer, those of both fits of "in_danger"; 0
            where the debug set was right already.
        passes: () float, how many examples of the original set were read, in units of
            its size.
        solved: () bool, whether all of the debug set is right at the end and every
            parameter finite.
    """

    params: Any
    steps: jax.Array
    passes: jax.Array
    solved: jax.Array


def debug(
    loss: Loss,
    predict: Predict,
    params: Any,
    debug_set: tuple[Any, jax.Array],
    original_set: tuple[Any, jax.Array],
    key: jax.Array,
    *,
    method: str = "in_danger",
    optimizer: optax.GradientTransformation | None = None,
    max_steps: int = 100,
    limit: int = 20,
    chunk: int = 256,
    batch_size: int = 32,
    radius: jax.Array | float = 1.0,
    weight: jax.Array | float = 1.0,
    logits: Callable[[Any, Any], jax.Array] | None = None,
) -> Debugged:
    r"""Fine-tunes a classifier until a few examples that it gets wrong are right.

    All methods but the last two take steps on all examples at once, from `params` and a
    fresh optimizer, and stop at the first at which all are right. With D the debug set:

    - "debug_only": fits D.
    - "in_danger": fits D; finds up to `limit` original examples that were right and now
      are not, as `find_in_danger` with the same key; starts again from `params` and
      fits D and those. The method of the paper.
    - "random": fits D and `limit` original examples drawn without replacement.
    - "l2_ball": fits D, projected after each step on
      :math:`\|w - w_0\|_2 \le` `radius`.
    - "l2_penalty": fits D with `weight` :math:`\|w - w_0\|_2^2` added to the mean loss.
    - "kl": adds `weight` times the mean of :math:`KL(p_{w_0} \| p_w)` over `limit`
      original inputs, drawn anew at each step.
    - "fisher": adds `weight` :math:`\sum_j F_j (w_j - w_{0j})^2`, with F the mean over
      the original set of the squared derivatives of its loss (the labels are the
      set's, not drawn from the model).
    - "epoch": one epoch over the original set and D, in batches; to compare with.
    - "intensive": one epoch over the original set, all of D added to each batch.

    Each fit and scan is a loop on the device that the host never waits for. A call
    traces anew: `jax.jit` what you call repeatedly, and `jax.vmap` it over keys,
    parameters, debug sets, weights or radii.

    Args:
        loss: `loss(params, (input, label)) -> scalar`, of one example.
        predict: `predict(params, inputs)` -> labels (n,), integer, of inputs with a
            leading axis, in inference mode; or (n, number of labels), bool: with which
            labels an answer agrees, as `grouped` makes it.
        params: A pytree of which the floating leaves are tuned; `optax.masked` or
            `optax.partition` leaves others out.
        debug_set: (inputs, labels): a pytree with a leading axis of m examples, and
            integers (m,), 0 or more. How many classes there are is known from `logits`
            or from columns of `predict`: without either a label beyond the last class
            is not seen, and is never predicted.
        original_set: (inputs, labels), like `debug_set` but for the number; may be
            empty where it is not read. "fisher" reads all of it, with a gradient each:
            give it a sample of a large set.
        key: Typed key; "debug_only", the L2 methods and "fisher" ignore it.
        method: One of those above.
        optimizer: An optax transformation; None is `optax.adam(1e-3)`. Without weight
            decay, which would pull towards 0.
        max_steps: At most so many steps a fit, at least 1; the epochs ignore it.
        limit: How many original examples are added, at least 1.
        chunk: How many original examples are predicted at a time; "in_danger".
        batch_size: Original examples a batch; "epoch" and "intensive".
        radius: Of the ball, 0 or more, may be traced; "l2_ball".
        weight: Of the penalty, 0 or more, may be traced; "l2_penalty", "kl", "fisher".
        logits: `logits(params, inputs)` -> (n, n_classes); needed by "kl", and with any
            method what tells labels that are no class.

    Returns:
        `Debugged(params, steps, passes, solved)`. A gradient that is not finite stops
        the fit; where values are traced the parameters hold the NaN or infinity and
        `solved` is False. Compare accuracies on held-out examples of both kinds: where
        nothing was done (`steps` 0) or found, the original accuracy looks perfect.
        Under `shard_map` each device debugs on its own examples.

    Raises:
        ValueError: Unknown method; an empty set; labels unequal in number to the
            inputs, negative or outside the known classes; sets of different shapes;
            "kl" without logits; a loss that is no floating scalar; predictions of
            another shape; an option out of range; a parameter that is not finite, in
            `params` or after the fit.
        TypeError: Labels that are no integers; no typed key; complex parameters; an
            optimizer that is none; a set that is no pair.

    Complexity: a step is a gradient and a prediction of m + `limit` examples; what is
    read of the original set is `passes`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> logits = lambda w, x: jnp.stack([jnp.zeros(len(x)), x @ w], 1)
        >>> predict = lambda w, x: jnp.argmax(logits(w, x), 1)
        >>> loss = lambda w, example: jax.nn.softplus(
        ...     (1 - 2 * example[1]) * (w @ example[0])
        ... )
        >>> x = jnp.asarray([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0], [-1.0, -1.0]])
        >>> w, y = jnp.asarray([1.0, 0.2]), jnp.asarray([1, 0, 1, 0])
        >>> bug = jnp.asarray([[-1.0, 3.0]]), jnp.asarray([1])
        >>> fit = dict(optimizer=optax.sgd(0.1))
        >>> done = debug(loss, predict, w, bug, (x, y), jax.random.key(0), **fit)
        >>> bool(done.solved), int(done.steps), float(done.passes)
        (True, 2, 1.0)
        >>> predict(done.params, bug[0]).tolist(), predict(done.params, x).tolist()
        ([1], [1, 0, 1, 0])

    References:
        Malon, Li, Kruus (2022), Fast Few-shot Debugging for NLU Test Suites, DeeLIO at
        ACL 2022, arXiv 2204.06555. Kirkpatrick et al. (2017), Overcoming catastrophic
        forgetting in neural networks, arXiv 1612.00796 ("fisher").
    """
    check_choice(method, list(METHODS), "method")
    counts = {"max_steps": max_steps, "limit": limit, "chunk": chunk}
    counts["batch_size"] = batch_size
    counts = {name: check_integer(n, name, 1) for name, n in counts.items()}
    radius, weight = check_scale(radius, "radius"), check_scale(weight, "weight")
    check_key(key)
    if method == "kl" and logits is None:
        raise ValueError(
            "method 'kl' without logits; wanted logits(params, inputs) -> "
            "(n, n_classes): pass logits=."
        )
    params = arrays(params)
    tuned = floating(params)
    bug, original = check_sets(debug_set, original_set, empty=method not in READERS)
    # Gradients of parameters that every device of a mesh shares would be summed.
    params, tuned, bug, original, key, radius, weight = vary_together(
        (params, tuned, bug, original, key, radius, weight)
    )

    def of_tuned(fn: Any) -> Any:
        return lambda tuned, inputs: fn(merge(tuned, params), inputs)

    loss, predict = of_tuned(loss), of_tuned(predict)
    logits = None if logits is None else of_tuned(logits)
    check_functions(loss, predict, logits, tuned, bug, original)
    task = Task(
        loss=loss,
        predict=predict,
        logits=logits,
        params=tuned,
        bug=bug,
        original=original,
        key=key,
        optimizer=check_optimizer(optimizer),
        radius=radius,
        weight=weight,
        already=jnp.all(right(predict, tuned, bug)),
        **counts,
    )
    run = METHODS[method](task)
    broken = not_finite(run.params)
    if broken:
        raise ValueError(
            f"after {run.steps} steps of {method!r} the parameters {broken} are not "
            "finite; wanted finite gradients: look at `loss` on the debug set, or "
            "lower the learning rate."
        )
    solved = jnp.all(right(predict, run.params, bug)) & all_finite(run.params)
    passes = jnp.asarray(run.passes, jnp.result_type(float))
    return Debugged(merge(run.params, params), run.steps, passes, solved)

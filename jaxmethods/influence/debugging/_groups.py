"""Labels that stand for groups of classes: their loss, and who is right."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...core import describe, is_concrete
from ._sets import Loss, Predict


class Grouped(NamedTuple):
    """The loss and the predictions of labels that stand for groups of classes.

    Attributes:
        loss: `loss(params, (input, label)) -> scalar`, -log of the probability of the
            label's group.
        predict: `predict(params, inputs) -> (n, n_groups)` bool: the groups that hold
            the most probable class.
    """

    loss: Loss
    predict: Predict


def grouped(logits: Callable[[Any, Any], jax.Array], groups: Any) -> Grouped:
    r"""Makes the loss and predictions of `debug` from logits and groups of classes.

    .. math:: l(w, (x, g)) = -\log \sum_{c \in g} \text{softmax}(f(w, x))_c

    A label is the number of a group, and an answer is right if its most probable class
    is in the group. Groups may overlap: beside a group for each class, which the
    original examples are labelled with, there may be wider ones for a debug set that
    knows less. HANS says non-entailment where MultiNLI says neutral or contradiction:
    four groups of three classes. With one group a class this is the cross-entropy.

    Args:
        logits: `logits(params, inputs)` -> (n, n_classes), of inputs with a leading
            axis.
        groups: (n_classes, n_groups), bool or 0 and 1: which classes are in a group.

    Returns:
        `Grouped(loss, predict)`, for `debug` and `find_in_danger`.

    Raises:
        ValueError: `groups` is no matrix of 0 and 1; a class in no group or a group
            without a class; logits of another number of classes (on the call).

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> entailment, neutral, contradiction = jnp.eye(3)
        >>> groups = jnp.stack(
        ...     [entailment, neutral, contradiction, neutral + contradiction], 1
        ... )
        >>> loss, predict = grouped(lambda params, x: x + params, groups)
        >>> x = jnp.log(jnp.asarray([[0.5, 0.2, 0.3], [0.1, 0.7, 0.2]]))
        >>> predict(0.0, x).astype(int).tolist()
        [[1, 0, 0, 0], [0, 1, 0, 1]]
        >>> [round(float(jnp.exp(-loss(0.0, (x[0], g)))), 4) for g in (0, 1, 3)]
        [0.5, 0.2, 0.5]

    References:
        Malon, Li, Kruus (2022), Fast Few-shot Debugging for NLU Test Suites, arXiv
        2204.06555. McCoy, Pavlick, Linzen (2019), Right for the Wrong Reasons, arXiv
        1902.01007.
    """
    members = _check_groups(groups)

    def scores(params: Any, inputs: Any) -> jax.Array:
        found = jnp.asarray(logits(params, inputs))
        if found.ndim != 2 or found.shape[1] != members.shape[0]:
            raise ValueError(
                f"logits returns {describe(found)}; wanted "
                f"[n, {members.shape[0]}]: a column a row of groups."
            )
        return found

    def loss(params: Any, example: Any) -> jax.Array:
        inputs, label = example
        found = scores(params, jax.tree.map(lambda x: jnp.asarray(x)[None], inputs))[0]
        group = members[:, label]
        return jax.nn.logsumexp(found) - jax.nn.logsumexp(found, where=group)

    def predict(params: Any, inputs: Any) -> jax.Array:
        return members[jnp.argmax(scores(params, inputs), -1)]

    return Grouped(loss, predict)


def _check_groups(groups: Any) -> jax.Array:
    groups = jnp.asarray(groups)
    if groups.ndim != 2 or 0 in groups.shape:
        raise ValueError(
            f"groups is {describe(groups)}; wanted a matrix [n_classes, n_groups]."
        )
    if is_concrete(groups):
        values = np.asarray(groups)
        if not np.isin(values, (0, 1)).all():
            raise ValueError(
                f"groups holds {values[~np.isin(values, (0, 1))][0]}; wanted 0 or 1: "
                "whether a class is in a group."
            )
        for axis, what in ((1, "class {} is in no group"), (0, "group {} is empty")):
            lost = np.flatnonzero(~values.any(axis))
            if lost.size:
                raise ValueError(
                    f"{what.format(lost[0])} of groups {describe(groups)}; wanted a 1 "
                    "in each row and column."
                )
    return groups.astype(bool)

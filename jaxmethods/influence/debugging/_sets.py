"""Labelled sets: checked, joined, and what a model gets right of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core import describe, is_concrete
from .._chunks import count_examples

Loss = Callable[[Any, Any], jax.Array]
Predict = Callable[[Any, Any], jax.Array]
LabelledSet = tuple[Any, jax.Array]


def check_set(some: Any, name: str, *, empty: bool = False) -> LabelledSet:
    """A pair of inputs and labels, as arrays.

    Raises:
        ValueError, TypeError: It is none; inputs without one leading axis; labels not
            integers, unequal in number to the inputs, or negative; no example (unless
            `empty`).
    """
    if not isinstance(some, tuple | list) or len(some) != 2:
        raise TypeError(f"{name} is {describe(some)}; wanted a pair: (inputs, labels).")
    inputs, labels = jax.tree.map(jnp.asarray, some[0]), jnp.asarray(some[1])
    n = count_examples(inputs, f"{name}: inputs", empty=True)
    if labels.shape != (n,):
        raise ValueError(
            f"{name}: labels is {describe(labels)} for {n} inputs; wanted one an input."
        )
    if n == 0 and not empty:
        raise ValueError(f"{name} has no examples; wanted one or more.")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"{name}: labels is {describe(labels)}; wanted integers, as `predict` "
            "returns them."
        )
    check_labels(labels, np.inf, name)
    return inputs, labels


def check_labels(labels: jax.Array, number: float, name: str) -> None:
    """Raises ValueError where a concrete label is outside 0..number - 1."""
    if is_concrete(labels):
        values = np.asarray(labels)
        outside = values[(values < 0) | (values >= number)]
        if outside.size:
            wanted = f"0..{number - 1}" if number < np.inf else "0 or more"
            raise ValueError(f"{name} has the label {outside[0]}; wanted {wanted}.")


def number_of_labels(predict: Predict, params: Any, some: LabelledSet) -> float:
    """How many labels `predict` has a column for, or infinity where it says labels."""
    inputs = jax.tree.map(lambda x: x[:1], some[0])
    out = jax.eval_shape(lambda: jnp.asarray(predict(params, inputs)))
    return out.shape[1] if out.ndim == 2 and out.dtype == bool else np.inf


def check_alike(some: Any, others: Any, names: str) -> None:
    """Raises ValueError unless two pytrees agree, but for the length of axis 0."""
    found = [
        (jax.tree.structure(x), [(a.shape[1:], a.dtype) for a in jax.tree.leaves(x)])
        for x in (some, others)
    ]
    if found[0] != found[1]:
        a, b = (jax.tree.map(describe, x) for x in (some, others))
        raise ValueError(
            f"{names} are {a} and {b}; wanted the same structure, dtypes and shapes "
            "but for the number of examples: pad to one length."
        )


def right(predict: Predict, params: Any, some: LabelledSet) -> jax.Array:
    """(n,) bool: which examples a model gets right.

    Args:
        predict: Parameters and inputs to labels (n,), integer, or to (n, number of
            labels), bool: with which labels the answer agrees.
        params: The parameters.
        some: Inputs and labels.
    """
    inputs, labels = some
    answers = jnp.asarray(predict(params, inputs))
    if jnp.issubdtype(answers.dtype, jnp.integer) and answers.shape == labels.shape:
        return answers == labels
    n = labels.shape[0]
    if answers.dtype == bool and answers.ndim == 2 and answers.shape[0] == n:
        return jnp.take_along_axis(answers, labels[:, None], 1)[:, 0]
    raise ValueError(
        f"predict returns {describe(answers)} for {n} inputs; wanted integer labels "
        f"[{n}], or bool [{n}, number of labels]: of logits take the argmax over the "
        "last axis."
    )


def take(tree: Any, rows: jax.Array) -> Any:
    """The rows of every leaf."""
    return jax.tree.map(lambda x: x[rows], tree)


def join(
    some: LabelledSet, others: LabelledSet, rows: jax.Array, valid: jax.Array
) -> tuple[LabelledSet, jax.Array]:
    """A set, with some rows of another; and which of its rows count.

    Rows that are not valid hold the first example of `some`, so that no loss is taken
    of an example that is in neither.
    """

    def both(a: jax.Array, b: jax.Array) -> jax.Array:
        mask = valid.reshape(-1, *[1] * (a.ndim - 1))
        return jnp.concatenate([a, jnp.where(mask, b[rows], a[:1])])

    count = jnp.ones(some[1].shape, bool)
    return jax.tree.map(both, some, others), jnp.concatenate([count, valid])

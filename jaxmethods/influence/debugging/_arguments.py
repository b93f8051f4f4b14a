"""What `debug` is called with, checked before anything runs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...core import check_nonnegative, describe, is_concrete, leaf_paths
from .._checkpoints import check_arrays
from .._gradients import check_scalar
from ._sets import (
    LabelledSet,
    Loss,
    Predict,
    check_alike,
    check_labels,
    check_set,
    number_of_labels,
)

Logits = Callable[[Any, Any], jax.Array]


def arrays(params: Any) -> Any:
    """The parameters as arrays.

    Raises:
        TypeError: A leaf is neither an array nor a number.
    """
    check_arrays(params)
    return jax.tree.map(jnp.asarray, params)


def floating(params: Any) -> Any:
    """The parameters that are tuned; None in place of the others.

    Raises:
        TypeError: One is complex.
        ValueError: None is floating, or a concrete one not finite.
    """
    paths, leaves = leaf_paths(params), jax.tree.leaves(params)
    for path, leaf in zip(paths, leaves, strict=True):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(
                f"parameter {path} is {describe(leaf)}; wanted real parameters: keep "
                "real and imaginary parts apart."
            )
    tuned = jax.tree.map(
        lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else None, params
    )
    if not jax.tree.leaves(tuned):
        found = dict(zip(paths, map(describe, leaves), strict=True))
        raise ValueError(f"params is {found}; wanted a floating parameter to tune.")
    broken = not_finite(tuned)
    if broken:
        raise ValueError(f"params is not finite at {broken}; wanted a trained model.")
    return tuned


def not_finite(tree: Any) -> list[Any]:
    """The paths of concrete leaves that hold NaN or infinity."""
    pairs = zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True)
    seen = [(path, np.asarray(x, np.float64)) for path, x in pairs if is_concrete(x)]
    return [path for path, x in seen if not np.isfinite(x).all()]


def merge(tuned: Any, params: Any) -> Any:
    """Tuned parameters, with the others where they are None."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, tuned, params, is_leaf=lambda x: x is None
    )


def check_sets(
    debug_set: Any, original_set: Any, *, empty: bool
) -> tuple[LabelledSet, LabelledSet]:
    """Both sets as arrays; the original one may be `empty`."""
    bug = check_set(debug_set, "debug_set")
    original = check_set(original_set, "original_set", empty=empty)
    check_alike(bug[0], original[0], "the inputs of debug_set and original_set")
    dtype = jnp.promote_types(bug[1].dtype, original[1].dtype)
    return (bug[0], bug[1].astype(dtype)), (original[0], original[1].astype(dtype))


def check_scale(value: Any, name: str) -> jax.Array:
    """A scalar, 0 or more and no NaN where concrete."""
    check_nonnegative(value, name)
    if jnp.shape(value):
        raise ValueError(
            f"{name} is {describe(value)}; wanted a scalar: jax.vmap over several."
        )
    return jnp.asarray(value)


def check_optimizer(optimizer: Any) -> optax.GradientTransformation:
    """The optimizer; Adam where there is None."""
    if optimizer is None:
        return optax.adam(1e-3)
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"optimizer is {describe(optimizer)}; wanted an optax transformation: "
            "optax.adam(1e-3)."
        )
    return optimizer


def check_functions(
    loss: Loss,
    predict: Predict,
    logits: Logits | None,
    params: Any,
    bug: LabelledSet,
    original: LabelledSet,
) -> None:
    """Raises ValueError where a function returns, or a label is, what it must not."""
    out = jax.eval_shape(lambda: loss(params, jax.tree.map(lambda x: x[0], bug)))
    check_scalar(out, "loss(params, (input, label))")
    number = number_of_labels(predict, params, bug)
    if logits is not None:
        out = jax.eval_shape(lambda: logits(params, bug[0]))
        n = bug[1].shape[0]
        if getattr(out, "ndim", 0) != 2 or out.shape[0] != n:
            raise ValueError(
                f"logits returns {jax.tree.map(describe, out)} for {n} inputs; wanted "
                f"[{n}, n_classes]."
            )
        # Labels that have columns of their own may be groups of classes.
        number = out.shape[1] if number == np.inf else number
    check_labels(bug[1], number, "debug_set")
    check_labels(original[1], number, "original_set")

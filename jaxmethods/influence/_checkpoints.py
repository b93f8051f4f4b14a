"""Checkpoints of a training run as one tree: stacked, listed, or of a manager."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import describe, is_concrete, leaf_paths


def stack_checkpoints(checkpoints: Any, learning_rates: Any) -> tuple[Any, jax.Array]:
    """Stacks checkpoints on a leading axis and checks the learning rates.

    Args:
        checkpoints: A pytree stacked on axis 0, a list of K pytrees, or an orbax
            `CheckpointManager` (its steps in ascending order).
        learning_rates: (K,) floats, nonnegative.

    Returns:
        The stacked pytree and the rates.

    Raises:
        ValueError: Rates wrong in number, negative or not finite; checkpoints that
            differ in structure or shapes; none.
    """
    if hasattr(checkpoints, "all_steps") and hasattr(checkpoints, "restore"):
        checkpoints = _restore(checkpoints)
    if isinstance(checkpoints, list):
        stacked, count = _stack(checkpoints), len(checkpoints)
    else:
        stacked, count = jax.tree.map(jnp.asarray, checkpoints), _count(checkpoints)
    if count == 0:
        raise ValueError("there are no checkpoints; wanted one or more.")
    return stacked, _check_rates(learning_rates, count)


def _check_rates(learning_rates: Any, count: int) -> jax.Array:
    rates = jnp.asarray(learning_rates)
    if rates.shape != (count,):
        raise ValueError(
            f"learning_rates is {describe(rates)} for {count} checkpoints; wanted "
            "one learning rate a checkpoint (a list holds checkpoints, any other "
            "tree is stacked on axis 0)."
        )
    if is_concrete(rates):
        values = np.asarray(rates, np.float64)
        if not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError(
                f"learning_rates is {values.tolist()}; wanted learning rates that are "
                "finite and 0 or more."
            )
    return rates


def _stack(checkpoints: list[Any]) -> Any:
    if not checkpoints:
        return []
    first = jax.tree.structure(checkpoints[0])
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(checkpoints[0])]
    for number, tree in enumerate(checkpoints):
        if jax.tree.structure(tree) != first:
            raise ValueError(
                f"checkpoint {number} has the structure {jax.tree.structure(tree)}, "
                f"checkpoint 0 {first}; wanted the same tree at each checkpoint."
            )
        leaves = jax.tree.leaves(tree)
        for path, leaf, shape in zip(leaf_paths(tree), leaves, shapes, strict=True):
            if np.shape(leaf) != shape:
                raise ValueError(
                    f"parameter {path} is {describe(leaf)} at checkpoint {number} and "
                    f"has shape {shape} at checkpoint 0; wanted equal shapes."
                )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *checkpoints)


def _count(stacked: Any) -> int:
    counts = {path: np.shape(leaf)[:1] for path, leaf in _items(stacked)}
    if len(set(counts.values())) != 1 or () in counts.values():
        raise ValueError(
            f"the checkpoints are one tree whose leaves have leading axes {counts}; "
            "wanted every leaf stacked over the checkpoints on axis 0, or a list of "
            "trees."
        )
    return next(iter(counts.values()))[0]


def _items(tree: Any) -> list[tuple[Any, Any]]:
    return list(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True))


def _restore(manager: Any) -> list[Any]:
    import orbax.checkpoint as ocp  # A manager was given: orbax is there.

    restore = ocp.args.StandardRestore()
    steps = sorted(manager.all_steps())
    return [manager.restore(step, args=restore) for step in steps]

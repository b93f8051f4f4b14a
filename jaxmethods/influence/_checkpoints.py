"""Checkpoints of a training run: stacked, listed, or of a manager, one at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import describe, leaf_paths
from ._numbers import as_amounts


class Series(NamedTuple):
    """Checkpoints to be looked at one after the other.

    Attributes:
        count: How many.
        at: From a number below `count` to the parameters, read when asked for.
    """

    count: int
    at: Callable[[int], Any]

    @property
    def numbers(self) -> range:
        """The numbers of the checkpoints."""
        return range(self.count)


def is_manager(checkpoints: Any) -> bool:
    """Whether the checkpoints are those of an orbax `CheckpointManager`."""
    return hasattr(checkpoints, "all_steps") and hasattr(checkpoints, "restore")


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
    stacked, count = stack_trees(checkpoints)
    return stacked, check_rates(learning_rates, count)


def stack_trees(checkpoints: Any) -> tuple[Any, int]:
    """Stacks trees, given as checkpoints may be; also says how many they are."""
    if is_manager(checkpoints):
        series = one_by_one(checkpoints)
        checkpoints = [series.at(k) for k in series.numbers]
    check_arrays(checkpoints)
    if isinstance(checkpoints, list):
        count = _some(len(checkpoints))
        for number, tree in enumerate(checkpoints):
            check_alike(tree, checkpoints[0], f"checkpoint {number}", "checkpoint 0")
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *checkpoints), count
    return jax.tree.map(jnp.asarray, checkpoints), _some(_count(checkpoints))


def one_by_one(checkpoints: Any) -> Series:
    """The same checkpoints as a series: those of a manager are never all in memory."""
    if is_manager(checkpoints):
        return _restored(checkpoints)
    check_arrays(checkpoints)
    if isinstance(checkpoints, list):
        count = _some(len(checkpoints))
        for number, tree in enumerate(checkpoints):
            check_alike(tree, checkpoints[0], f"checkpoint {number}", "checkpoint 0")
        return Series(count, checkpoints.__getitem__)
    count = _some(_count(checkpoints))
    return Series(count, lambda k: jax.tree.map(lambda x: x[k], checkpoints))


def check_arrays(params: Any) -> None:
    """Raises TypeError where a leaf is neither an array nor a number."""
    for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        array = hasattr(leaf, "dtype") and hasattr(leaf, "shape")
        if not array and not isinstance(leaf, int | float | complex):
            raise TypeError(
                f"parameter {path} is a {type(leaf).__name__}; wanted arrays alone: of "
                "an equinox module take them with params, static = eqx.partition(model,"
                " eqx.is_array), and eqx.combine(params, static) in the loss."
            )


def check_rates(learning_rates: Any, count: int) -> jax.Array:
    """Returns the learning rates as an array, or raises unless they are (count,)."""
    rates = as_amounts(learning_rates, "learning_rates")
    if rates.shape != (count,):
        raise ValueError(
            f"learning_rates is {describe(rates)} for {count} checkpoints; wanted "
            "one learning rate a checkpoint (a list holds checkpoints, any other "
            "tree is stacked on axis 0)."
        )
    return rates


def check_alike(tree: Any, like: Any, name: str, other: str) -> None:
    """Raises ValueError unless two trees of parameters agree in structure and shapes.

    Args:
        tree: A pytree of arrays.
        like: Another.
        name: What messages call the first.
        other: What messages call the second.
    """
    wanted = jax.tree.structure(like)
    if jax.tree.structure(tree) != wanted:
        raise ValueError(
            f"{name} has the structure {jax.tree.structure(tree)}, {other} {wanted}; "
            "wanted the same tree at each checkpoint."
        )
    for path, leaf, one in zip(
        leaf_paths(tree), jax.tree.leaves(tree), jax.tree.leaves(like), strict=True
    ):
        if np.shape(leaf) != np.shape(one):
            raise ValueError(
                f"parameter {path} is {describe(leaf)} at {name} and has shape "
                f"{np.shape(one)} at {other}; wanted equal shapes."
            )


def _some(count: int) -> int:
    if count == 0:
        raise ValueError("there are no checkpoints; wanted one or more.")
    return count


def _count(stacked: Any) -> int:
    counts = {
        path: np.shape(leaf)[:1]
        for path, leaf in zip(
            leaf_paths(stacked), jax.tree.leaves(stacked), strict=True
        )
    }
    if len(set(counts.values())) != 1 or () in counts.values():
        some = dict(list(counts.items())[:6])
        raise ValueError(
            f"the checkpoints are one tree of {len(counts)} leaves with leading axes "
            f"{some}; wanted every leaf stacked over the checkpoints on axis 0, or a "
            "list of trees: of one checkpoint [params]."
        )
    return next(iter(counts.values()))[0]


def _restored(manager: Any) -> Series:
    steps = sorted(manager.all_steps())
    first: list[Any] = []  # The shapes at the first step.
    held: dict[int, Any] = {}

    def at(k: int) -> Any:
        if k not in held:
            held.clear()  # Before the next is read: one is in memory at a time.
            params = _restore(manager, steps[k])
            first[:] = first or [jax.eval_shape(lambda tree: tree, params)]
            names = (f"the checkpoint of step {step}" for step in (steps[k], steps[0]))
            check_alike(params, first[0], *names)
            held[k] = params
        return held[k]

    return Series(_some(len(steps)), at)


def _restore(manager: Any, step: int) -> Any:
    import orbax.checkpoint as ocp  # A manager was given: orbax is there.

    try:
        return manager.restore(step, args=ocp.args.StandardRestore())
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"the checkpoint of step {step} cannot be restored as one tree "
            f"({type(error).__name__} of orbax, above); wanted what manager.save(step, "
            "args=ocp.args.StandardSave(params)) writes: restore any other yourself "
            "and pass a list of trees."
        ) from error

"""Names the examples whose gradients are not finite, where values can be looked at.

Inside `jit` nothing raises: their scores are NaN or infinite there.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import describe, is_concrete, leaf_paths
from ._checkpoints import one_by_one

_WANTED = "wanted finite losses and gradients: look for NaN, infinity or overflow in"


def check_finite(
    scores: Any, name: str = "train", index: Any = None, checkpoints: Any = None
) -> None:
    """Raises ValueError where scores are concrete and not all finite.

    Args:
        scores: (n,), a score an example, or (n_test, n).
        name: What the message calls the n examples.
        index: The numbers of the examples, like `scores`, where these are not all.
        checkpoints: As they were given; one that is not finite is named first.
    """
    if not is_concrete(scores) or bool(jnp.isfinite(scores).all()):
        return
    bad = np.atleast_2d(~np.isfinite(np.asarray(scores)))
    if checkpoints is not None:
        _check_checkpoints(checkpoints, infinity=bool(bad.all()))
    if bad.all() and bad.size > 1 and index is None:
        raise ValueError(
            f"no score is finite; {_WANTED} the checkpoints and the examples."
        )
    numbers = np.arange(bad.shape[1]) if index is None else np.asarray(index)
    numbers = np.broadcast_to(numbers, bad.shape)
    # A gradient that is not finite spoils every score of its example.
    spoiled = [set(row[b].tolist()) for row, b in zip(numbers, bad, strict=True)]
    trained = set.intersection(*spoiled)
    tested = set() if bad.all() else set(np.flatnonzero(bad.all(1)).tolist())
    if not trained and not tested:
        # Or of words those that are shared: then it is one side's that are fewer.
        columns, rows = set.union(*spoiled), set(np.flatnonzero(bad.any(1)).tolist())
        trained = columns if len(columns) < len(rows) else trained
        tested = rows if len(rows) < len(columns) else tested
    pair = tuple(np.argwhere(bad)[0].tolist())
    found = f"the score of test {pair[0]} and {name} {numbers[pair]}"
    if trained or tested:
        which = name if trained else "test"
        found = f"the scores of {which} {sorted(trained or tested)[:10]}"
    raise ValueError(f"not finite: {found}; {_WANTED} these examples.")


def _check_checkpoints(checkpoints: Any, *, infinity: bool) -> None:
    """Raises ValueError where a checkpoint holds NaN, or `infinity`.

    A mask may hold infinity, and spoils nothing: it counts where all is spoiled.
    """
    series = one_by_one(checkpoints)
    for k in series.numbers:
        params = series.at(k)
        paths, leaves = leaf_paths(params), jax.tree.leaves(params)
        for path, leaf in zip(paths, leaves, strict=True):
            floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
            if not floating or not is_concrete(leaf):
                continue
            values = np.asarray(leaf, np.float64)
            wrong = values[np.isnan(values) | (np.isinf(values) & infinity)]
            if wrong.size:
                raise ValueError(
                    f"not finite: parameter {path} of checkpoint {k}, {describe(leaf)} "
                    f"with {wrong[0]} in it; wanted finite parameters: leave that "
                    "checkpoint out, or train with a lower learning rate."
                )

"""Cuts the box of a function's inputs, which decides any function of few inputs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._methods import crown
from ._sets import Box, Set

Part = tuple[np.ndarray, np.ndarray]


class InputSplits:
    """Parts are boxes of the inputs, (lower, upper), each flattened."""

    def __init__(self, rows: Callable[[Any], Any], region: Set):
        """Prepares to cut `region`, a box or a ball in the linf norm."""
        leaves, treedef = jax.tree.flatten(region.placeholder)
        shapes = [leaf.shape for leaf in leaves]
        cuts = np.cumsum([leaf.size for leaf in leaves])[:-1]
        hull = region.hull()

        def tree(flat: Any) -> Any:
            parts = zip(jnp.split(flat, cuts), shapes, strict=True)
            return treedef.unflatten([p.reshape(shape) for p, shape in parts])

        def least(ends: tuple[Any, Any]) -> Any:
            box = Box(tree(ends[0]), tree(ends[1]))
            return jnp.min(crown(rows, side="lower")(box).lower)

        def bound(lower: Any, upper: Any) -> tuple[Any, Any, Any]:
            margin, slopes = jax.value_and_grad(least)((lower, upper))
            reach = jnp.abs(slopes[0]) + jnp.abs(slopes[1])
            middle = (lower + upper) / 2
            found = jnp.min(rows(tree(middle)))
            return margin, jnp.nan_to_num(reach) * (upper - lower), found

        self._tree = tree
        self._bound = jax.jit(jax.vmap(bound))
        self.root: Part = (
            np.concatenate([np.ravel(ends.lower) for ends in hull]),
            np.concatenate([np.ravel(ends.upper) for ends in hull]),
        )

    def bound(self, parts: list[Part]) -> tuple[np.ndarray, np.ndarray, Any]:
        """Bounds some parts.

        Returns:
            The proven least margin of each, what a cut of each entry promises, and the
            middle of the part with the least margin there, if that is not positive.
        """
        lower, upper = (np.stack([part[side] for part in parts]) for side in (0, 1))
        margins, scores, found = map(np.asarray, self._bound(lower, upper))
        worst = int(np.argmin(found))
        if found[worst] > 0:
            return margins, scores, None
        return margins, scores, self._tree((lower[worst] + upper[worst]) / 2)

    def split(self, part: Part, scores: np.ndarray) -> list[Part]:
        """Cuts a part in two where the score is highest; none where it cannot."""
        lower, upper = part
        at = int(np.argmax(scores))
        middle = (lower[at] + upper[at]) / 2
        if not lower[at] < middle < upper[at]:
            return []
        low, high = lower.copy(), upper.copy()
        low[at] = high[at] = middle
        return [(lower, high), (low, upper)]

"""Whether the mean of drawn gradients is the exact one, as far as chance goes."""

import jax
import numpy as np


def assert_unbiased(draws, exact):
    """|mean - exact|^2 over what chance explains: 1 on average, 20 once in 1e5.

    For each leaf; draws lie on axis 0.
    """
    draws, exact = (
        [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
        for tree in (draws, exact)
    )
    # Some gradients are zero but for rounding, such as that of a bias before a norm.
    rounding = 1e-11 * sum((e**2).sum() for e in exact)
    for d, e in zip(draws, exact, strict=True):
        chance = d.var(0).sum() / len(d) + rounding
        assert ((d.mean(0) - e) ** 2).sum() < 20 * chance

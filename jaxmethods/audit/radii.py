"""The radii of an audit: of attacks from above, of certificates from below."""

import math
from collections.abc import Sequence

import numpy as np

from ..core import check_choice, check_positive

NORMS = {"linf": math.inf, "l2": 2}
# A change of eps in each of d entries has the length eps * sqrt(d), so that lengths of
# the size of the first ones would ask almost nothing.
DEFAULTS = {
    "linf": (0.005, 0.01, 0.02, 0.05, 0.1),
    "l2": (0.1, 0.2, 0.5, 1.0, 2.0),
}


def default_radii(norm: str) -> tuple[float, ...]:
    """The radii that are looked at unless others are asked for, for inputs in [0, 1].

    Args:
        norm: A key of `NORMS`; of others, which `check_radii` refuses, those of "linf".

    Example:
        >>> default_radii("l2")
        (0.1, 0.2, 0.5, 1.0, 2.0)
    """
    return DEFAULTS.get(norm, DEFAULTS["linf"])


def check_radii(eps: Sequence[float] | None, norm: str) -> list[float]:
    """Returns radii in ascending order, or raises unless they are positive numbers.

    Args:
        eps: One or more, in any order; None for `default_radii`.
        norm: Has to be a key of `NORMS`.

    Example:
        >>> check_radii([0.2, 0.1], "l2")
        [0.1, 0.2]
    """
    check_choice(norm, tuple(NORMS), "norm")
    if eps is None:
        eps = default_radii(norm)
    if np.ndim(eps) != 1:
        raise ValueError(f"eps is {eps!r}; wanted a sequence of radii, such as [0.1].")
    if not len(eps):
        raise ValueError("eps has no radii; wanted at least one.")
    for radius in eps:
        check_positive(radius, "eps")
    return sorted({float(radius) for radius in eps})

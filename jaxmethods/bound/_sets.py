"""Sets of inputs, and what a bound needs to know of them.

A set stands where an array or a pytree would. Every set answers three questions:
`placeholder`, what the function sees while it is traced; `hull`, the smallest interval
round each of its arrays; `minimum`, the least value of a linear function. `check`
raises where a set is none.
"""

from typing import Any

from ._balls import Ball as Ball
from ._balls import Box as Box
from ._balls import safe_sqrt as safe_sqrt
from ._bounds import Bounds as Bounds
from ._bounds import meet as meet
from ._intersection import Intersection as Intersection
from ._intersection import cut_off as cut_off
from ._substitutions import Substitutions as Substitutions

Set = Ball | Box | Intersection | Substitutions


def is_set(x: Any) -> bool:
    """Whether `x` is a set that the bound transforms know."""
    return isinstance(x, Set)

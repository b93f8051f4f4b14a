"""Backward passes that carry some rows at a time, to save memory or skip rows."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Variable
from ._backward import proven
from ._flow import Flow
from ._needed import any_example, starts_as_patches, undecided
from ._rows import Entries
from ._sets import Bounds

# Rows that one step bounds where steps may be skipped: with fewer the matrix products
# waste more, with more fewer steps are skipped.
_ROWS = 32


def refine(flow: Flow, v: Variable, chunk: int | None = None) -> tuple[Bounds, bool]:
    """An interval of a value inside, tight wherever its readers are not linear there.

    Entries that some reader bends at come first, and passes stop at the first rows that
    no example needs.

    Args:
        flow: Its nodes up to `v` are visited and prepared.
        v: A floating variable that nonlinear nodes read.
        chunk: How many rows a pass carries at most; None for no limit.

    Returns:
        The interval, and whether it is tight everywhere.
    """
    found = undecided(flow, v)
    whole = chunk is None or v.aval.size <= chunk
    shared = whole and starts_as_patches(flow, v)
    if found is None or shared or v.aval.size <= _ROWS:
        return prove(flow, v, "both", chunk), True
    found = jax.lax.stop_gradient(found).reshape(-1)
    order = jnp.argsort(~found)
    places = _places(v, min(_ROWS, chunk or _ROWS))
    index = order[places]
    needed = any_example(jnp.any(found[index], axis=1))
    ends = _in_steps(flow, v, "both", index, needed)
    back = jnp.argsort(order)
    return Bounds(*(end[back].reshape(v.shape) for end in ends)), False


def prove(flow: Flow, v: Variable, side: str, chunk: int | None = None) -> Bounds:
    """The interval of a value that backward passes from every entry prove.

    Args:
        flow: Its nodes up to `v` are visited and prepared.
        v: A floating variable.
        side: "lower", "upper" or "both".
        chunk: As for `refine`.
    """
    if chunk is None or v.aval.size <= chunk:
        return proven(flow, v, side)
    ends = _in_steps(flow, v, side, _places(v, chunk))
    return Bounds(*(end[: v.aval.size].reshape(v.shape) for end in ends))


def _places(v: Variable, num: int) -> Any:
    """The entries of a value, (steps, num); the last step repeats the last entry."""
    num_steps = math.ceil(v.aval.size / num)
    return np.minimum(np.arange(num_steps * num), v.aval.size - 1).reshape(-1, num)


def _in_steps(
    flow: Flow, v: Variable, side: str, index: Any, needed: Any = None
) -> Bounds:
    """The flat ends of the entries `index` (steps, num), kept where not needed."""
    low, high = (end.reshape(-1) for end in flow.bounds[v])
    sign = jnp.full_like(low, -1 if side == "upper" else 1, shape=index.shape[1:])

    def bound(index: Any) -> Bounds:
        return proven(flow, v, side, Entries(sign, index, v.shape))

    def step(_: None, rows: tuple[Any, Any]) -> tuple[None, Bounds]:
        index, wanted = rows
        if wanted is None:
            return None, bound(index)
        keep = Bounds(low[index], high[index])
        return None, jax.lax.cond(wanted, lambda: bound(index), lambda: keep)

    _, found = jax.lax.scan(step, None, (jnp.asarray(index), needed))
    return Bounds(*(end.reshape(-1) for end in found))

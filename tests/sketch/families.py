"""The table of sketching families: a new one is a line here."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax

from jaxmethods import sketch


class Family(NamedTuple):
    """A constructor `new(key, m, n)` and whether an unbiasing scalar exists."""

    new: Callable
    has_scalar: bool


@partial(jax.jit, static_argnums=(1, 2))
def explicit_stack(key, m, n):
    return sketch.sparse_stack(key, m, n).explicit()


FAMILIES = {
    "countsketch": Family(sketch.countsketch, has_scalar=False),
    "sparse_stack": Family(sketch.sparse_stack, has_scalar=True),
    "SparseColumns": Family(explicit_stack, has_scalar=True),
}

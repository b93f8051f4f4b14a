"""What `project=` changes about a score of pairs: its method and its first argument."""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, cast

import jax
import jax.numpy as jnp

from ..core import check_integer, check_key
from ._methods import MethodOf, pairs, projected_pairs


def pairs_of(project: int | None) -> MethodOf:
    """The inner products of gradients: exact ones, or of so many numbers an example.

    Raises:
        TypeError, ValueError: `project` is no whole number, or below 1.
    """
    if project is None:
        return pairs
    return partial(projected_pairs, check_integer(project, "project", 1))


def keyed(fn: Callable[..., Any], project: int | None) -> Callable[..., Any]:
    """The function of a key and more that projects, or that of the rest that does not.

    Args:
        fn: `fn(key, ...)`.
        project: What was asked for.

    Returns:
        `fn` with its key checked; without `project` one whose key is None.
    """

    @wraps(fn)
    def with_key(*args: Any, **options: Any) -> Any:
        key = args[0] if args else options.get("key")
        check_key(key, "with project= a key comes first; key")
        return fn(*args, **options)

    @wraps(fn)
    def without(*args: Any, **options: Any) -> Any:
        dtype = getattr(args[0], "dtype", None) if args else None
        if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
            raise TypeError(
                "a key came first, and project is None; wanted a key with project=, "
                "the numbers kept an example, alone: without it nothing is drawn."
            )
        return fn(None, *args, **options)

    if project is not None:
        return with_key
    signature = inspect.signature(fn)
    _, *rest = signature.parameters.values()
    cast(Any, without).__signature__ = signature.replace(parameters=rest)
    return without

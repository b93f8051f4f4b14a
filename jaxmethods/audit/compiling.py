"""Compiles a program before its arguments are there."""

from collections.abc import Callable
from typing import Any

import jax


def compiled(fn: Callable[..., Any], *like: Any) -> Callable[..., Any]:
    """The program of a function, for arguments of the shapes and types of `like`."""
    return jax.jit(fn).lower(*like).compile()

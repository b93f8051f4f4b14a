"""How much a program computes, counted in its operations, the same on any machine."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import jaxprs_in_params


class Cost(NamedTuple):
    """What a program computes.

    Attributes:
        entries: Of the outputs of all operations, those in loops once a round.
        largest: The entries of the largest output of one operation.
    """

    entries: int
    largest: int


def cost(fn: Callable[..., Any], *args: Any) -> Cost:
    """Counts what a function computes, by tracing it.

    Of a `cond` all branches count, of a `while` one round.

    Args:
        fn: A function of pytrees of arrays.
        *args: What it is called with; shapes and types matter alone.

    Example:
        >>> import jax.numpy as jnp
        >>> cost(lambda x: jnp.sin(x) + 1, jnp.zeros(3))
        Cost(entries=6, largest=3)
    """
    return _of_body(jax.make_jaxpr(fn)(*args).jaxpr)


def _of_body(body: Any) -> Cost:
    entries = largest = 0
    for equation in body.eqns:
        size = sum(v.aval.size for v in equation.outvars)
        inside = [
            _of_body(getattr(each, "jaxpr", each))
            for each in jaxprs_in_params(equation.params)
        ]
        rounds = 1
        if equation.primitive.name == "scan":
            rounds = equation.params["length"]
        entries += rounds * sum(c.entries for c in inside) if inside else size
        largest = max([largest, size, *(c.largest for c in inside)])
    return Cost(entries, largest)

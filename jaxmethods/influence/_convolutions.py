"""Convolutions in the layout that CPUs are fast in, whoever wrote or derived them."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from ..core import interpret


def with_fast_convolutions(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, on CPUs with its convolutions channels last.

    XLA brings a convolution into that layout by itself, but on CPUs only outside loops:
    inside a `scan`, where all our chunks are, the derivative of a convolution, which
    has its kernel's channels the other way round, took 35 times as long.
    """

    def faster(*args: Any) -> Any:
        jaxpr, out = jax.make_jaxpr(fn, return_shape=True)(*args)
        rules = {"conv_general_dilated": _channels_last}
        flat = interpret(jaxpr, rules, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out), flat)

    return faster


def _channels_last(site: Any, x: jax.Array, kernel: jax.Array) -> Any:
    params = site.equation.params
    rank = x.ndim
    batch, channels, *places = params["dimension_numbers"].lhs_spec
    outputs, inputs, *taps = params["dimension_numbers"].rhs_spec
    out_batch, out_channels, *out_places = params["dimension_numbers"].out_spec
    image = (batch, *places, channels)
    weights = (*taps, inputs, outputs)
    result = (out_batch, *out_places, out_channels)
    if image == weights == result == tuple(range(rank)):
        return NotImplemented
    last = (0, rank - 1, *range(1, rank - 1))
    numbers = lax.ConvDimensionNumbers(
        last, (rank - 1, rank - 2, *range(rank - 2)), last
    )
    plain: dict[str, Any] = {**params, "dimension_numbers": numbers}

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        x, kernel = x.transpose(image), kernel.transpose(weights)
        out = lax.conv_general_dilated(x, kernel, **plain)
        return out.transpose([result.index(axis) for axis in range(rank)])

    def as_it_is(*operands: jax.Array) -> jax.Array:
        return site.bind(*operands)[0]

    # Accelerators know a derived convolution by its layout.
    return [lax.platform_dependent(x, kernel, cpu=convolve, default=as_it_is)]

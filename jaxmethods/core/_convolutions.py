"""Convolutions in the layout that CPUs are fast in, whoever wrote or derived them.

The derivative of an NHWC convolution is a convolution whose kernel has its two channel
axes swapped. XLA's CPU backend turns such layouts into the one that its fast kernels
take (NHWC image, HWIO kernel), but only at the top level of a program; inside a loop a
plain nest of loops runs instead: the gradient attack is 3 to 4 times slower
(`python -m benchmarks attacks`, row "plain fori_loop").
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import lax

from ._interpret import Site, interpret


def with_fast_convolutions(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, on CPUs with its convolutions channels last.

    Convolutions inside loops and calls count as well; those inside a function with a
    derivative of its own stay. On an accelerator all stay: its compiler knows a derived
    convolution by the very form that is rewritten here.

    Args:
        fn: A function of pytrees of arrays.

    Returns:
        A function of the same arguments, which traces `fn` at each call.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> conv = lambda x, w: jax.lax.conv(x, w, (1, 1), "SAME")  # NCHW
        >>> x, w = jnp.ones((2, 3, 8, 8)), jnp.ones((4, 3, 5, 5))
        >>> bool((with_fast_convolutions(conv)(x, w) == conv(x, w)).all())
        True
    """

    @functools.wraps(fn)
    def faster(*args: Any) -> Any:
        jaxpr, out = jax.make_jaxpr(fn, return_shape=True)(*args)
        rules = {"conv_general_dilated": _channels_last}
        flat = interpret(jaxpr, rules, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out), flat)

    return faster


def _channels_last(site: Site, image: jax.Array, kernel: jax.Array) -> Any:
    convolve = _in_canonical_layout(site.equation.params)
    if convolve is None:
        return NotImplemented

    def as_it_is(*operands: jax.Array) -> jax.Array:
        return site.bind(*operands)[0]

    return [lax.platform_dependent(image, kernel, cpu=convolve, default=as_it_is)]


def _in_canonical_layout(
    params: Mapping[str, Any],
) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """A convolution between transposes; None where it is channels last already."""
    numbers = params["dimension_numbers"]
    # They name (batch, channel, space...) and (out, in, space...).
    batch, channels, *places = numbers.lhs_spec
    outputs, inputs, *taps = numbers.rhs_spec
    out_batch, out_channels, *out_places = numbers.out_spec
    image_axes = (batch, *places, channels)
    kernel_axes = (*taps, inputs, outputs)
    result_axes = (out_batch, *out_places, out_channels)
    rank = len(image_axes)
    if image_axes == kernel_axes == result_axes == tuple(range(rank)):
        return None
    last = (0, rank - 1, *range(1, rank - 1))
    plain = lax.ConvDimensionNumbers(last, (rank - 1, rank - 2, *range(rank - 2)), last)
    options: dict[str, Any] = {**params, "dimension_numbers": plain}

    def convolve(image: jax.Array, kernel: jax.Array) -> jax.Array:
        image, kernel = image.transpose(image_axes), kernel.transpose(kernel_axes)
        out = lax.conv_general_dilated(image, kernel, **options)
        return out.transpose([result_axes.index(axis) for axis in range(rank)])

    return convolve

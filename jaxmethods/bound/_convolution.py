"""The transpose of a convolution, written for the CPU.

XLA's CPU backend transposes a strided convolution over an input filled up with zeros,
4 times slower than the convolution itself at stride 2, and takes 40 times longer for
the derivative of that in the kernel. Here the taps that share a phase of the stride
form a kernel of their own, all phases run as one convolution of stride 1, and their
outputs are interleaved. The rule for derivatives is written so that reverse mode, which
transposes it, comes to the convolution itself and to its own derivative in the kernel.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from ..core import Node, Variable


def is_plain_convolution(node: Node) -> bool:
    """Whether a node is a convolution of a variable, without dilation or groups."""
    if node.name != "conv_general_dilated" or not isinstance(node.inputs[0], Variable):
        return False
    params = node.params
    undilated = max(*params["lhs_dilation"], *params["rhs_dilation"], 1) == 1
    return (
        undilated and params["feature_group_count"] == 1 == params["batch_group_count"]
    )


def transposed_convolution(node: Node) -> Callable[[Any], Any]:
    """The transpose in the image of a node for which `is_plain_convolution` holds.

    Returns:
        A linear function of a cotangent of the node's output.
    """
    image, kernel = node.inputs

    @jax.custom_jvp
    def transpose(kernel: Any, cotangent: Any) -> Any:
        return _by_phases(node, image, kernel, cotangent)

    def derivative(primals: Any, tangents: Any) -> tuple[Any, Any]:
        kernel, cotangent = primals
        in_kernel, in_cotangent = tangents
        out = transpose(kernel, cotangent)

        def to_kernel(x: Any) -> Any:
            convolve = jax.linear_transpose(lambda k: node.evaluate(x, k)[0], kernel)
            return convolve(cotangent)[0]

        total = jnp.zeros_like(out)
        if not isinstance(in_cotangent, SymbolicZero):
            convolve = jax.linear_transpose(lambda x: node.evaluate(x, kernel)[0], out)
            total = total + convolve(in_cotangent)[0]
        if not isinstance(in_kernel, SymbolicZero):
            total = total + jax.linear_transpose(to_kernel, out)(in_kernel)[0]
        return out, total

    transpose.defjvp(derivative, symbolic_zeros=True)
    return lambda cotangent: transpose(kernel, cotangent)


def _by_phases(node: Node, image: Variable, kernel: Any, cotangent: Any) -> Any:
    """The transpose in the layout (N, *sizes, C), with kernels (*sizes, out, in)."""
    numbers, strides = node.params["dimension_numbers"], node.params["window_strides"]
    batch, features, *spatial = numbers.out_spec
    cotangent = cotangent.transpose(batch, *spatial, features)
    kernel = kernel.transpose(*numbers.rhs_spec[2:], *numbers.rhs_spec[:2])
    full = _interleave(_convolve(cotangent, _phase_kernel(kernel, strides)), strides)
    batch, features, *spatial = numbers.lhs_spec
    edges = [
        (-low, image.shape[i] + low - have, 0)
        for (low, _), i, have in zip(
            node.params["padding"], spatial, full.shape[1:], strict=False
        )
    ]
    out = lax.pad(full, jnp.zeros((), full.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    order = [batch, *spatial, features]
    return out.transpose([order.index(i) for i in range(out.ndim)])


def _convolve(cotangent: Any, kernel: Any) -> Any:
    """sum_t cotangent[a - t] kernel[t], with the sizes of a full convolution."""
    *num_taps, _, _ = kernel.shape
    count = len(num_taps)
    last = (0, count + 1, *range(1, count + 1))
    numbers = lax.ConvDimensionNumbers(last, (count + 1, count, *range(count)), last)
    return lax.conv_general_dilated(
        cotangent,
        jnp.flip(kernel, tuple(range(count))),
        (1,) * count,
        [(m - 1, m - 1) for m in num_taps],
        dimension_numbers=numbers,
        precision=lax.Precision.HIGHEST,
    )


def _phase_kernel(kernel: Any, strides: Sequence[int]) -> Any:
    """(*taps, out, in) -> (*taps of a phase, out, phases * in)."""
    count = len(strides)
    num_taps = [-(-k // s) for k, s in zip(kernel.shape, strides, strict=False)]
    edges = [
        (0, m * s - k) for m, s, k in zip(num_taps, strides, kernel.shape, strict=False)
    ]
    kernel = jnp.pad(kernel, [*edges, (0, 0), (0, 0)])
    split = [n for m, s in zip(num_taps, strides, strict=True) for n in (m, s)]
    num_out, num_in = kernel.shape[count:]
    kernel = kernel.reshape(*split, num_out, num_in)
    taps, phases = range(0, 2 * count, 2), range(1, 2 * count, 2)
    kernel = kernel.transpose(*taps, 2 * count, *phases, 2 * count + 1)
    return kernel.reshape(*num_taps, num_out, math.prod(strides) * num_in)


def _interleave(phases: Any, strides: Sequence[int]) -> Any:
    """(N, *sizes, phases * C) -> (N, *sizes times strides, C)."""
    count = len(strides)
    num, *sizes, _ = phases.shape
    split = phases.reshape(num, *sizes, *strides, -1)
    pairs = [n for i in range(count) for n in (1 + i, 1 + count + i)]
    mixed = split.transpose(0, *pairs, 1 + 2 * count)
    full = [n * s for n, s in zip(sizes, strides, strict=True)]
    return mixed.reshape(num, *full, mixed.shape[-1])

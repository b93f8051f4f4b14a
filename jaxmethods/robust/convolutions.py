"""Convolutions that stay fast inside loops on the CPU.

The backward pass of an NHWC convolution is a convolution whose kernel has its two
channel axes swapped. XLA's CPU backend turns such layouts into the one that its fast
kernels take (NHWC image, HWIO kernel), but only at the top level of a program; inside
a loop body a plain nest of loops runs instead, and the attack is 3 to 4 times slower
(`python -m benchmarks.attacks`, row "plain fori_loop"). `canonical` states every
convolution of a jaxpr in that layout, with explicit transposes.

On an accelerator the original is better: its compiler recognises a backward
convolution by the very form that is rewritten here.
"""

from typing import Any

import jax
from jax import lax
from jax.extend import core as jex

CONVOLUTION = jex.primitives.conv_general_dilated_p


def canonical(jaxpr: jex.Jaxpr) -> jex.Jaxpr:
    """Rewrites convolutions to channels-last ones, nested jaxprs included.

    Args:
      jaxpr: Any jaxpr.

    Returns:
      A jaxpr of the same inputs and outputs; `jaxpr` itself where nothing changes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxmethods.robust.convolutions import canonical
      >>> conv = lambda x, w: jax.lax.conv(x, w, (1, 1), "SAME")  # NCHW
      >>> traced = jax.make_jaxpr(conv)(jnp.ones((2, 3, 8, 8)), jnp.ones((4, 3, 5, 5)))
      >>> [eqn.primitive.name for eqn in canonical(traced.jaxpr).eqns]
      ['transpose', 'transpose', 'conv_general_dilated', 'transpose']
    """
    eqns = []
    for eqn in jaxpr.eqns:
        if eqn.primitive is CONVOLUTION:
            eqns += _channels_last(eqn)
        else:
            params = {name: _nested(value) for name, value in eqn.params.items()}
            same = all(params[name] is eqn.params[name] for name in params)
            eqns.append(eqn if same else eqn.replace(params=params))
    same = len(eqns) == len(jaxpr.eqns) and all(map(_is, eqns, jaxpr.eqns))
    return jaxpr if same else jaxpr.replace(eqns=eqns)


def _nested(value: Any) -> Any:
    """The parameter of an equation, with the jaxprs in it rewritten."""
    if isinstance(value, jex.Jaxpr):
        return canonical(value)
    if isinstance(value, jex.ClosedJaxpr):
        inner = canonical(value.jaxpr)
        return value if inner is value.jaxpr else value.replace(jaxpr=inner)
    if type(value) is tuple:
        items = tuple(map(_nested, value))
        return value if all(map(_is, items, value)) else items
    return value


def _channels_last(eqn: jex.JaxprEqn) -> list[jex.JaxprEqn]:
    """The equations that replace one convolution."""
    numbers = eqn.params["dimension_numbers"]
    # dimension_numbers name (batch, channel, space...) and (out, in, space...).
    image, kernel, result = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    image_axes = (image[0], *image[2:], image[1])
    kernel_axes = (*kernel[2:], kernel[1], kernel[0])
    result_axes = (result[0], *result[2:], result[1])
    rank = len(image)
    natural = tuple(range(rank))
    if (image_axes, kernel_axes, result_axes) == (natural,) * 3:
        return [eqn]
    last = (0, rank - 1, *range(1, rank - 1))
    plain = lax.ConvDimensionNumbers(last, (rank - 1, rank - 2, *range(rank - 2)), last)
    params = eqn.params | {"dimension_numbers": plain}

    def convolve(lhs, rhs):
        lhs, rhs = lax.transpose(lhs, image_axes), lax.transpose(rhs, kernel_axes)
        out = lax.conv_general_dilated(lhs, rhs, **params)
        return lax.transpose(out, [result_axes.index(axis) for axis in natural])

    # Traced on abstract values, so that types (varying axes, shardings) come from jax.
    new = jax.make_jaxpr(convolve)(*(atom.aval for atom in eqn.invars)).jaxpr
    names = dict(zip(new.invars, eqn.invars, strict=True))
    names |= dict(zip(new.outvars, eqn.outvars, strict=True))
    return [
        inner.replace(
            invars=[names.get(atom, atom) for atom in inner.invars],
            outvars=[names.get(atom, atom) for atom in inner.outvars],
            source_info=eqn.source_info,
            ctx=eqn.ctx,
        )
        for inner in new.eqns
    ]


def _is(a: Any, b: Any) -> bool:
    return a is b

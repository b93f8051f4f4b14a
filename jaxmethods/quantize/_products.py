"""A matrix product or convolution with quantized operands and quantized gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from ._quantizer import Quantizer

Product = Callable[[jax.Array, jax.Array], jax.Array]


class Operand(NamedTuple):
    """How one operand of a product is treated; None leaves it exact.

    Attributes:
        forward: rounds the operand itself, to the nearest.
        gradient: rounds the incoming gradient on the way to this operand, by chance.
    """

    forward: Quantizer | None = None
    gradient: Quantizer | None = None


def nearest(q: Quantizer | None, x: jax.Array) -> jax.Array:
    """The operand rounded to the nearest, its derivative that of the identity."""
    if q is None:
        return x

    @jax.custom_jvp
    def straight_through(x):
        return q(None, x)

    straight_through.defjvp(lambda primals, tangents: (q(None, *primals), *tangents))
    return straight_through(x)


def noisy_product(
    product: Product, sides: tuple[Operand, Operand], samples: int, impl: Any
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """A product whose gradients are quantized twice, each operand with its own noise.

    Args:
        product: bilinear function of two arrays.
        sides: the treatment of each operand; their `forward` is done by the caller.
        samples: the axis of the product's result that counts the samples.
        impl: the implementation of the key.

    Returns:
        `fn(words, lhs, rhs) -> product(lhs, rhs)`, given the words of a key. With the
        incoming gradient g, the gradient of lhs is that of `product` at Q_lhs(g), of
        rhs at Q_rhs(g).

    References:
        Chen et al. 2020 (arXiv 2010.14298), section 3: gradient bifurcation.
    """

    @jax.custom_vjp
    def fn(words, lhs, rhs):
        return product(lhs, rhs)

    def backward(residuals, g):
        words, lhs, rhs = residuals
        # Words travel, not the key: the checker of key reuse takes each loop and branch
        # that a key enters for a use of it.
        keys = jax.random.split(jax.random.wrap_key_data(words, impl=impl))
        of_lhs, of_rhs = (
            _rounded(side.gradient, k, g, samples)
            for side, k in zip(sides, keys, strict=True)
        )
        (lhs_bar,) = jax.vjp(lambda a: product(a, rhs), lhs)[1](of_lhs)
        (rhs_bar,) = jax.vjp(lambda b: product(lhs, b), rhs)[1](of_rhs)
        return None, lhs_bar, rhs_bar

    fn.defvjp(lambda *args: (product(*args[1:]), args), backward)
    return fn


def _rounded(
    q: Quantizer | None, key: jax.Array, g: jax.Array, samples: int
) -> jax.Array:
    if q is None:
        return g
    return jnp.moveaxis(q(key, jnp.moveaxis(g, samples, 0)), 0, samples)


def sample_axis(equation: JaxprEqn, lhs_is_data: bool, rhs_is_data: bool) -> int:
    """The axis of a product's result that counts the samples.

    The batch axis of a convolution; of a matrix product the first batch axis, or else
    the first free axis of the operand that holds the data, the left one if both do.
    """
    params = equation.params
    if equation.primitive.name == "conv_general_dilated":
        return params["dimension_numbers"].out_spec[0]
    (lhs_contracted, _), (lhs_batch, _) = params["dimension_numbers"]
    avals: list[Any] = [v.aval for v in equation.invars]
    lhs, rhs = (aval.ndim for aval in avals)
    num_batch, num_lhs = len(lhs_batch), lhs - len(lhs_contracted)
    right_only = rhs_is_data and not lhs_is_data
    has_free = rhs - len(lhs_contracted) > num_batch
    return num_lhs if num_batch == 0 and right_only and has_free else 0

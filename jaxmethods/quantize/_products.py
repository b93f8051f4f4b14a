"""A matrix product or convolution with quantized operands and quantized gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from ._qtensor import QTensor
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
    return _straight_through(lambda _, x: q(None, x))(None, x)


def low_bit_product(
    product: Product,
    sides: tuple[Operand, Operand],
    samples: int,
    impl: Any,
    *,
    packed: bool,
    value: Product | None = None,
) -> Callable[[jax.Array | None, jax.Array, jax.Array], jax.Array]:
    """A product of rounded operands, its gradient quantized once for each of them.

    Args:
        product: bilinear function of two arrays.
        sides: the treatment of each operand.
        samples: the axis of the product's result that counts the samples.
        impl: the implementation of the key.
        packed: whether the rounded operands wait for the gradient as codes.
        value: the product of operands not rounded yet, where there is another way to
            take it.

    Returns:
        `fn(words, lhs, rhs)`, given the words of a key: `product` of the operands
        rounded to the nearest. With the incoming gradient g, the gradient of lhs is
        that of `product` at Q_lhs(g), of rhs at Q_rhs(g); rounding passes it on as it
        is. Without a gradient quantizer the words may be None.

    References:
        Chen et al. 2020 (arXiv 2010.14298), section 3: gradient bifurcation.
    """

    def forward(words, *operands):
        kept = [
            _kept(side.forward, x, packed)
            for side, x in zip(sides, operands, strict=True)
        ]
        out = value(*operands) if value else product(*map(_value, kept))
        return out, (words, kept)

    def backward(residuals, g):
        words, kept = residuals
        if packed:
            # Else the compiler finds that the values at the codes are known from the
            # way forward, and keeps those.
            kept, g = jax.lax.optimization_barrier((kept, g))
        lhs, rhs = map(_value, kept)
        of_lhs, of_rhs = _rounded(words, impl, sides, g, samples)
        (lhs_bar,) = jax.vjp(lambda a: product(a, rhs), lhs)[1](of_lhs)
        (rhs_bar,) = jax.vjp(lambda b: product(lhs, b), rhs)[1](of_rhs)
        return None, lhs_bar, rhs_bar

    fn = jax.custom_vjp(lambda *args: forward(*args)[0])
    fn.defvjp(forward, backward)
    return fn


def _straight_through(rounded: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`rounded(words, x)` with the derivatives of `x`, of any order."""
    fn = jax.custom_jvp(rounded)
    # The value is `fn` again: what stands in a derivative is differentiated in turn.
    fn.defjvp(lambda primals, tangents: (fn(*primals), tangents[1]))
    return fn


def _kept(q: Quantizer | None, x: jax.Array, packed: bool) -> jax.Array | QTensor:
    """What is left of an operand: its rounded values, or the codes of them."""
    if q is None or not packed:
        return nearest(q, x)
    return _first_order(q.quantize(None, x), x)


def _value(kept: jax.Array | QTensor) -> jax.Array:
    return kept.dequantize() if isinstance(kept, QTensor) else kept


@jax.custom_jvp
def _first_order(tensor: QTensor, x: jax.Array) -> QTensor:
    """The codes, which do not know how they follow from `x`."""
    del x
    return tensor


@_first_order.defjvp
def _no_second_derivative(primals, tangents):
    del primals, tangents
    raise NotImplementedError(
        "packed=True keeps codes, through which a gradient cannot be differentiated "
        "again; wanted packed=False for second derivatives."
    )


def _rounded(
    words: jax.Array | None,
    impl: Any,
    sides: tuple[Operand, Operand],
    g: jax.Array,
    samples: int,
) -> list[jax.Array]:
    """The incoming gradient as each operand gets it, with noise of its own."""

    def rounded(number, q):
        def by_chance(words, g):
            # Words travel, not the key: the checker of key reuse takes each loop and
            # branch that a key enters for a use of it.
            key = jax.random.wrap_key_data(words, impl=impl)
            key = jax.random.fold_in(key, number)
            return jnp.moveaxis(q(key, jnp.moveaxis(g, samples, 0)), 0, samples)

        # A scalar is a grid of its own: it would come back as it is.
        exact = q is None or g.ndim == 0
        return g if exact else _straight_through(by_chance)(words, g)

    return [rounded(number, side.gradient) for number, side in enumerate(sides)]


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

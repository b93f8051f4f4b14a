"""Quantized training by AQT, of the benchmark's flax nets, and its rounding of rows.

    aqtp 0.9.0 from PyPI on PYTHONPATH

`config_v4(dlhs_bits=...)` rounds the gradient that enters a dense layer by chance, on
the way to the input, with one scale a sample; and the weight that it is multiplied with
to the nearest, in as few bits. `drhs_bits` does the same on the way to the weight, with
the layer's input. Convolutions have no quantized gradient here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

try:
    from aqt.jax.v2 import aqt_quantizer, config, stochastic_rounding, utils
    from aqt.jax.v2.flax import aqt_flax
except ImportError as error:
    missing: str | None = f"AQT is not measured: {error}"
else:
    missing = None

Apply = Callable[[jax.Array, Any, jax.Array], jax.Array]
NOISE = "jax.uniform"


def apply(
    model: Any,
    bits: int | None,
    *,
    weight_grad: int | None = None,
    forward: int | None = None,
    input_grad_only: bool = False,
) -> Apply:
    """The quantized net, `fn(key, params, x)`.

    Args:
        model: A linen module with a field `dot_general_cls`.
        bits: Of the gradients on the way to the input.
        weight_grad: Of the gradients on the way to the weight; None leaves them exact.
        forward: Of weights and activations; None leaves them exact.
        input_grad_only: Whether the weight stays exact that the gradient multiplies.
    """
    setting = config.config_v4(
        fwd_bits=forward, dlhs_bits=bits, drhs_bits=weight_grad, rng_type=NOISE
    )
    if input_grad_only:
        config.set_bits(
            setting,
            fwd_lhs_bit=forward,
            fwd_rhs_bit=forward,
            dlhs_lhs_bit=bits,
            dlhs_rhs_bit=None,
            drhs_lhs_bit=weight_grad,
            drhs_rhs_bit=weight_grad,
        )
        config.set_stochastic_rounding(setting, True, False, NOISE)
    quantized = model.clone(dot_general_cls=partial(aqt_flax.AqtDotGeneral, setting))
    return lambda key, params, x: quantized.apply(
        {"params": params}, x, rngs={"params": key}
    )


def round_rows(bits: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Quantizes a matrix by chance and back, `fn(key, x)`; a scale a row."""

    def quantize(key: jax.Array, x: jax.Array) -> jax.Array:
        quantizer = aqt_quantizer.quantizer_make(bits)
        quantizer.numerics = quantizer.numerics.replace(
            noise_fn=stochastic_rounding.JaxUniform()
        )
        quantizer.context = utils.Context(key=key, train_step=None)
        return quantizer.quant(x, calibration_axes=[1])[0].dequant()

    return quantize

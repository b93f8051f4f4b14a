"""Quantized training by qwix, of the benchmark's flax nets, and its rounding of rows.

    qwix 0.1.8 from PyPI on PYTHONPATH

`QtRule` has one switch for the way back, `bwd_qtype`: the gradient that enters a layer
gets that type twice, on the way to the input and on the way to the weight, with one
scale a sample or a feature. Noise is asked for (`bwd_stochastic_rounding`), its own for
every entry, where the default shares it along rows. qwix adds noise to int4 and int8
only; its int2, int3, int5, int6 and int7, and all gradients of convolutions, are
rounded to the nearest.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

try:
    import qwix as library
    from qwix._src.core import qarray, stochastic_rounding
except ImportError as error:
    missing: str | None = f"qwix is not measured: {error}"
else:
    missing = None

Apply = Callable[[jax.Array, Any, jax.Array], jax.Array]


def apply(
    model: Any,
    bits: int | None,
    *,
    forward: int | None = None,
    input_grad_only: bool = False,
) -> Apply:
    """The quantized net, `fn(key, params, x)`.

    Args:
        model: A linen module.
        bits: Of the gradients, 2..8; None leaves them exact.
        forward: Of weights and activations. None leaves them exact in dense layers; in
            convolutions, where qwix cannot, weights have 8 bits.
        input_grad_only: Whether the weights' gradients of dense layers stay exact.
    """
    # The fields that a rule has no switch for, of dense layers only.
    fields: dict[str, Any] = {}
    if forward is None:
        fields |= {"lhs_qtype": None, "rhs_qtype": None}
    if input_grad_only:
        fields |= {"drhs_grad_qtype": None}
    rule = library.QtRule(
        module_path=".*",
        weight_qtype=_type(forward or 8),
        act_qtype=None if forward is None else _type(forward),
        bwd_qtype=None if bits is None else _type(bits),
        bwd_stochastic_rounding="uniform",
        channelwise_noise_axes=(0, 1),
        additional_qt_config=fields,
    )
    quantized = library.quantize_model(model, library.QtProvider([rule]))
    return lambda key, params, x: quantized.apply(
        {"params": params}, x, rngs={"stochastic_rounding": key}
    )


def round_rows(bits: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Quantizes a matrix by chance and back, `fn(key, x)`; a scale a row."""

    def quantize(key: jax.Array, x: jax.Array) -> jax.Array:
        noise = stochastic_rounding.get_noise_fn("uniform", key, (0, 1))
        how = qarray.HowToQuantize(
            qtype=_type(bits), channelwise_axes=(0,), noise_fn=noise
        )
        return qarray.dequantize(qarray.quantize(x, how))

    return quantize


def _type(bits: int) -> Any:
    return {4: jnp.int4, 8: jnp.int8}.get(bits, f"int{bits}")

"""Derivatives of bounds where a function is infinitely steep, or has overflowed.

At an end of 0 the slope of sqrt is infinite, beyond 88 so is that of exp in float32.
What such an end hands back is infinite, or NaN where nothing depends on the end (0
times infinity), and NaN in one number of a gradient spoils all weights. So where an
operation that may be as steep reads a value, derivatives that are not finite become 0.
"""

from typing import Any

import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ._bounds import Bounds

# Whose derivative is infinite somewhere, or not a number where the value is infinite.
STEEP = frozenset(
    {
        *("acos", "acosh", "asin", "atanh", "cbrt", "cosh", "digamma", "div"),
        *("erf_inv", "exp", "exp2", "expm1", "integer_pow", "lgamma", "log", "log1p"),
        *("gelu", "gelu_tanh", "norm", "pow", "real_pow", "reciprocal", "rsqrt"),
        *("silu", "sinh", "sqrt", "tan"),
    }
)


def finite_derivatives(x: Any) -> Any:
    """The same bounds; derivatives in them that are not finite become 0.

    Args:
        x: `Bounds` of floating arrays; anything else is returned as it is.
    """
    if not isinstance(x, Bounds) or not jnp.issubdtype(x.lower.dtype, jnp.floating):
        return x
    return Bounds(*(_same_p.bind(end) for end in x))


def _transposed(cotangent: Any, x: Any) -> list[Any]:
    del x
    found = ad.instantiate_zeros(cotangent)
    return [jnp.where(jnp.isfinite(found), found, 0)]


# A primitive: a rule for the way back alone, under every other transform the identity.
_same_p = Primitive("finite_derivatives")
_same_p.def_impl(lambda x: x)
_same_p.def_abstract_eval(lambda x: x)
ad.deflinear2(_same_p, _transposed)
batching.defvectorized(_same_p)
mlir.register_lowering(_same_p, lambda ctx, x: [x])

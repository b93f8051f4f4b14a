"""Per-sample quantizer: a grid for each row, or for each column."""

from dataclasses import dataclass
from typing import Literal

import jax

from ..core import check_choice
from ._grid import fit_range
from ._qtensor import Decoder
from ._quantizer import Quantizer


@dataclass(frozen=True)
class PerSample:
    """One range for each row (per sample) or each column (per feature)."""

    per: str
    zero_aligned: bool

    def __call__(self, x: jax.Array, top: int) -> tuple[jax.Array, Decoder]:
        """Levels and decoder of the matrix `x`."""
        axis = 1 if self.per == "sample" else 0
        grid = fit_range(x, (axis,), top, self.zero_aligned)
        return grid.levels(x), Decoder(grid)


def psq(
    bits: int,
    *,
    per: Literal["sample", "feature"] = "sample",
    zero_aligned: bool = False,
) -> Quantizer:
    """Per-sample quantizer: a grid of 2^bits values between min and max of each row.

    Gradients of samples differ in size by orders of magnitude; a step of its own for
    each costs nothing and keeps the noise of small rows small. The variance of its
    rounding is at most `d sum_i (max_i - min_i)^2 / (4 (2^bits - 1)^2)`.

    Args:
        bits: 2..8.
        per: "sample": one range per index of axis 0. "feature": one per position of
            the other axes, taken over axis 0, which suits the gradient of a weight.
        zero_aligned: whether zero has to lie on every grid; worth it for sparse rows.

    Returns:
        Quantizer `q(key, x)`. Rows without a range (constant rows, a single column)
        come back as they are. NaN or infinity makes its row (column) NaN, no other.

    Raises:
        TypeError: `bits` is no int.
        ValueError: `bits` is not in 2..8, or `per` is not one of the two words.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[0.0, 0.4, 3.0], [0.0, 40.0, 300.0]])
        >>> psq(2)(None, x)
        Array([[  0.,   0.,   3.],
               [  0.,   0., 300.]], dtype=float32)

    References:
        Chen, Gai, Yao, Mahoney, Gonzalez 2020 (arXiv 2010.14298).
    """
    check_choice(per, ("sample", "feature"), "per")
    return Quantizer(bits, PerSample(per, zero_aligned))

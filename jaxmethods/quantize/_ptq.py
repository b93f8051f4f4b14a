"""Per-tensor quantizer: one grid for the whole array."""

from dataclasses import dataclass

import jax

from ._grid import fit_range
from ._qtensor import Decoder
from ._quantizer import Quantizer


@dataclass(frozen=True)
class PerTensor:
    """One range for all entries."""

    zero_aligned: bool

    def __call__(self, x: jax.Array, top: int) -> tuple[jax.Array, Decoder]:
        """Levels and decoder of the matrix `x`."""
        grid = fit_range(x, (0, 1), top, self.zero_aligned)
        return grid.levels(x), Decoder(grid)


def ptq(bits: int, *, zero_aligned: bool = True) -> Quantizer:
    """Per-tensor quantizer: one grid of 2^bits values between min and max.

    Cheap and coarse: a single large row sets the step for all. The variance of its
    rounding is at most `n d (max - min)^2 / (4 (2^bits - 1)^2)` for `n d` entries.
    The usual choice for weights (aligned to zero) and activations (not aligned).

    Args:
        bits: 2..8.
        zero_aligned: whether zero has to lie on the grid: zeros stay zeros, at the
            price of a slightly wider range.

    Returns:
        Quantizer `q(key, x)`. NaN or infinity in `x` makes the whole result NaN.

    Raises:
        TypeError: `bits` is no int.
        ValueError: `bits` is not in 2..8.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([-1.0, 0.0, 0.1, 2.0])
        >>> ptq(2)(None, x)
        Array([-1.,  0.,  0.,  2.], dtype=float32)

    References:
        Chen, Gai, Yao, Mahoney, Gonzalez 2020 (arXiv 2010.14298).
    """
    return Quantizer(bits, PerTensor(zero_aligned))

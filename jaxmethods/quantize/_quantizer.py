"""What every quantizer does: levels, rounded with a key or without, and back."""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp

from ..core import check_floating, check_integer, check_key, describe
from ..kernels import pack_levels
from ._qtensor import Decoder, QTensor, matrix_shape
from ._rounding import round_levels


class Scaling(Protocol):
    """Fits the grid of a matrix: a frozen value that may be called."""

    def __call__(self, x: jax.Array, top: int) -> tuple[jax.Array, Decoder]:
        """Real levels 0..top of the matrix `x`, and what turns levels into values."""
        ...


@dataclass(frozen=True)
class Quantizer:
    """A rounding to `2^bits` levels: what `ptq`, `psq` and `bhq` make.

    A frozen, hashable value that holds no arrays. Its result has derivative zero, as
    any rounding has; `qat` and `fqt` are what passes gradients straight through.

    Attributes:
        bits: 2..8.
        scaling: how the grid follows from the array.

    Raises:
        TypeError: `bits` is no int.
        ValueError: `bits` is not in 2..8.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods.quantize import ptq
        >>> ptq(2)(None, jnp.array([0.0, 0.4, 1.1, 3.0]))
        Array([0., 0., 1., 3.], dtype=float32)
        >>> keys = jax.random.split(jax.random.key(0), 10_000)
        >>> draws = jax.vmap(ptq(2), (0, None))(keys, jnp.array([0.0, 0.4, 1.1, 3.0]))
        >>> draws.mean(0).round(1)
        Array([0. , 0.4, 1.1, 3. ], dtype=float32)
    """

    bits: int
    scaling: Scaling

    def __post_init__(self):
        check_integer(self.bits, "bits", 2, 8)

    def __call__(self, key: jax.Array | None, x: jax.Array) -> jax.Array:
        """Quantizes and dequantizes.

        Args:
            key: scalar typed key: each entry is rounded up or down by chance, so that
                the expectation over keys is `x`. None: to the nearest, ties to even.
            x: floating array with at least one entry; axis 0 counts the samples. A NaN
                or an infinity makes NaN of all entries that share its grid. bfloat16
                and float16 have no room for all of 32 levels and more: there the result
                is rounded once more, to the nearest.

        Returns:
            Array of the shape and dtype of `x`.

        Raises:
            TypeError: `x` is not floating, or `key` is not a typed key.
            ValueError: `x` is empty.
        """
        x = jnp.asarray(x)
        levels, decoder = self._round(key, x)
        values = decoder(levels)
        return values.reshape(x.shape).astype(x.dtype)

    def quantize(self, key: jax.Array | None, x: jax.Array) -> QTensor:
        """Quantizes to packed codes; `.dequantize()` equals `q(key, x)`.

        Args:
            key: as in a call, or None.
            x: as in a call. Codes know no NaN: the scales beside them carry it.

        Returns:
            QTensor of `bits` bits an entry.

        Raises:
            TypeError: `x` is not floating, or `key` is not a typed key.
            ValueError: `x` is empty.
        """
        x = jnp.asarray(x)
        levels, decoder = self._round(key, x)
        codes = pack_levels(levels, self.bits)
        return QTensor(codes, decoder, self.bits, x.shape, x.dtype)

    def encode(self, x: jax.Array) -> tuple[jax.Array, Decoder]:
        """The real levels of `x` as a matrix, and what turns levels into values."""
        x = check_floating(x, "x")
        if x.dtype.itemsize == 1:
            raise TypeError(
                f"x is {describe(x)}, which has 8 bits already; wanted 16 or more."
            )
        if not x.size:
            raise ValueError(
                f"x is {describe(x)}, without entries; "
                f"wanted at least one: leave empty arrays out."
            )
        matrix = jax.lax.stop_gradient(x).reshape(matrix_shape(x.shape))
        # Levels and noise take at least float32: bfloat16 has whole numbers up to 256.
        matrix = matrix.astype(jnp.promote_types(x.dtype, jnp.float32))
        return self.scaling(matrix, 2**self.bits - 1)

    def _round(self, key: jax.Array | None, x: jax.Array) -> tuple[jax.Array, Decoder]:
        if key is not None:
            check_key(key)
        levels, decoder = self.encode(x)
        return round_levels(key, levels, 2**self.bits - 1), decoder

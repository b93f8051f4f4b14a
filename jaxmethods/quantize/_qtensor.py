"""A quantized array: packed codes, and what turns them back into values."""

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from ..core import describe
from ..kernels import unpack_levels
from ._grid import Grid
from ._householder import Householder
from ._rotation import rotate_columns


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoder:
    """Turns a matrix of levels `q` into values `T^-1 ((q - zero) * step) + offset`.

    Attributes:
        grid: the levels' values; its offset is added after `T^-1`.
        reflection: the transform `T` of the rows, or None for the identity.
        rotated: whether the columns have to be rotated back in the end.
    """

    grid: Grid
    reflection: Householder | None = None
    rotated: bool = field(default=False, metadata=dict(static=True))

    def __call__(self, levels: jax.Array) -> jax.Array:
        """The values at a matrix of levels."""
        values = (levels - self.grid.zero.astype(levels.dtype)) * self.grid.step
        if self.reflection is not None:
            values = self.reflection.invert(values)
        values = values + self.grid.offset
        return rotate_columns(values, inverse=True) if self.rotated else values

    def variance(self, levels: jax.Array) -> jax.Array:
        """Summed variance of the values when `levels` are rounded by chance."""
        up = levels - jnp.floor(levels)
        variance = up * (1 - up) * self.grid.step**2
        if self.reflection is not None:
            variance = variance * self.reflection.gain(variance.dtype)
        return variance.sum()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QTensor:
    """An array in `bits` bits an entry: what `q.quantize(key, x)` returns.

    A pytree: it passes through `jax.jit`, `jax.vmap` and `jax.lax.scan`.

    Attributes:
        codes: uint8 matrix, a row for each index of axis 0: the levels 0..2^bits - 1,
            along the longer axis 4 a byte at 2 bits, 2 a byte at 3 and 4 bits.
        decoder: scales, zero points and the transform of the rows, at most 32 bytes
            for each range.
        bits: how many bits a level has.
        shape: shape of the array.
        dtype: dtype of the array.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods.quantize import psq
        >>> x = jnp.outer(jnp.arange(1.0, 4.0), jnp.arange(16.0))
        >>> tensor = psq(4).quantize(None, x)
        >>> tensor.codes.shape, tensor.nbytes
        ((3, 8), 51)
        >>> bool(jnp.allclose(tensor.dequantize(), x))
        True
    """

    codes: jax.Array
    decoder: Decoder
    bits: int = field(metadata=dict(static=True))
    shape: tuple[int, ...] = field(metadata=dict(static=True))
    dtype: jnp.dtype = field(metadata=dict(static=True))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays held: codes, scales and transform."""
        return sum(
            leaf.size * jnp.dtype(leaf.dtype).itemsize
            for leaf in jax.tree_util.tree_leaves(self)
        )

    def dequantize(self) -> jax.Array:
        """The values at the codes, in the array's shape and dtype.

        Raises:
            ValueError: The codes are a batch, made under `vmap`: map over them as well.
        """
        if self.codes.ndim != 2:
            raise ValueError(
                f"codes is {describe(self.codes)}, a batch of them; wanted a matrix: "
                "call dequantize under the jax.vmap that they come from."
            )
        levels = unpack_levels(self.codes, self.bits, matrix_shape(self.shape))
        values = self.decoder(levels.astype(self.decoder.grid.step.dtype))
        return values.reshape(self.shape).astype(self.dtype)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of an array seen as a matrix with its axis 0 as rows."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)

"""How the values of selected entries travel: the second part of a codec.

A value code is a frozen dataclass with `encode(values, scale) -> wire` and
`decode(wire, size) -> values`, for a vector of float32; the wire is a pytree of arrays
whose shapes depend on the number of values alone.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ..core import check_integer
from ..kernels import by_pieces, count_bits, pack_bits, unpack_bits
from ._finite_mean import finite_mean
from ._ternary import pack_ternary, unpack_ternary


class ValueCode(Protocol):
    """What a codec asks of a value code.

    Example:
        >>> code = Float32()
        >>> code.decode(code.encode(jnp.ones(2), None), 2)
        Array([1., 1.], dtype=float32)
    """

    def encode(self, values: jax.Array, scale: jax.Array | None) -> Any:
        """The arrays that travel."""
        ...

    def decode(self, wire: Any, size: int) -> jax.Array:
        """The values, (size,) float32."""
        ...


@dataclass(frozen=True)
class Float32:
    """Values as they are: 4 bytes each.

    Example:
        >>> Float32().encode(jnp.ones(3), None).nbytes
        12
    """

    def encode(self, values: jax.Array, scale: jax.Array | None) -> jax.Array:
        """The values."""
        return values

    def decode(self, wire: jax.Array, size: int) -> jax.Array:
        """The values."""
        return wire


@dataclass(frozen=True)
class BFloat16:
    """Values rounded to 8 bits of mantissa: 2 bytes each.

    They travel as integers, since a sum of bfloat16 in a collective is float32 on CPUs.
    What is beyond the largest bfloat16, 3.39e38, becomes that.

    Example:
        >>> BFloat16().encode(jnp.ones(3), None).nbytes
        6
    """

    def encode(self, values: jax.Array, scale: jax.Array | None) -> jax.Array:
        """uint16 (size,)."""
        most = float(jnp.finfo(jnp.bfloat16).max)
        rounded = jnp.clip(values, -most, most).astype(jnp.bfloat16)
        return jax.lax.bitcast_convert_type(rounded, jnp.uint16)

    def decode(self, wire: jax.Array, size: int) -> jax.Array:
        """The rounded values."""
        values = jax.lax.bitcast_convert_type(wire, jnp.bfloat16)
        return values.astype(jnp.float32)


class ScaledBytes(NamedTuple):
    """The wire of `Int8Blocks`.

    Attributes:
        codes: (size,) int8, -127..127.
        steps: (ceil(size / block),) float32, the value of one step in each block.
    """

    codes: jax.Array
    steps: jax.Array


@dataclass(frozen=True)
class Int8Blocks:
    """Values as multiples of a step, 127 of which are the largest of a block.

    Rounded to the nearest, so an entry is off by half a step at most.

    Attributes:
        block: values that share a step, at least 1.

    Example:
        >>> code = Int8Blocks(2)
        >>> code.decode(code.encode(jnp.array([127.0, 0.4, 0.0]), None), 3)
        Array([127.,   0.,   0.], dtype=float32)
    """

    block: int = 256

    def __post_init__(self):
        check_integer(self.block, "block", 1)

    def encode(self, values: jax.Array, scale: jax.Array | None) -> ScaledBytes:
        """`ScaledBytes`: 1 + 4 / block bytes a value."""
        block = max(1, min(self.block, values.size))

        def largest(piece: jax.Array) -> jax.Array:
            rows = jnp.pad(piece, (0, -piece.size % block)).reshape(-1, block)
            return jnp.abs(rows).max(1)

        # 127 steps of the largest float32 over 127, rounded up, would be infinite.
        most = np.nextafter(jnp.finfo(jnp.float32).max / np.float32(127), np.float32(0))
        steps = jnp.minimum(by_pieces(largest, values, unit=block) / 127, most)
        # A step that underflows to 0 counts nothing.
        steps = jnp.where(steps < jnp.finfo(jnp.float32).tiny, 0, steps)
        step = self._of_each(steps, values.size)
        counts = jnp.round(values / jnp.where(step == 0, 1, step))
        return ScaledBytes(jnp.where(step == 0, 0, counts).astype(jnp.int8), steps)

    def decode(self, wire: ScaledBytes, size: int) -> jax.Array:
        """Codes times steps."""
        # A product that is rounded is another one where XLA fuses it with a sum, and
        # what was sent and what is left would not add up. Codes of 7 bits times either
        # half of a step, of 17 and 7 bits, are exact, and their sum the same product.
        bits = jax.lax.bitcast_convert_type(wire.steps, jnp.uint32)
        cut = bits & jnp.uint32(0xFFFFFF80)
        high = jax.lax.bitcast_convert_type(cut, jnp.float32)
        codes = wire.codes.astype(jnp.float32)
        low = self._of_each(wire.steps - high, size)
        return codes * self._of_each(high, size) + codes * low

    def _of_each(self, steps: jax.Array, size: int) -> jax.Array:
        """The step of each value: as part of what reads it, XLA does not write it."""
        shape = steps.size, max(1, min(self.block, size))
        return jnp.broadcast_to(steps[:, None], shape).reshape(-1)[:size]


class ScaledSigns(NamedTuple):
    """The wire of `OneBit` and `Ternary`.

    Attributes:
        signs: packed signs.
        scale: () float32, the size of all values.
    """

    signs: jax.Array
    scale: jax.Array


@dataclass(frozen=True)
class OneBit:
    """Values as their signs times one scale, by default their mean magnitude.

    Of all scales the mean magnitude leaves the least squared error; a zero becomes
    plus the scale.

    Example:
        >>> code = OneBit()
        >>> code.decode(code.encode(jnp.array([3.0, -1.0]), None), 2)
        Array([ 2., -2.], dtype=float32)

    References:
        Karimireddy, Rebjock, Stich, Jaggi 2019, Error feedback fixes SignSGD and other
        gradient compression schemes (arXiv 1901.09847).
    """

    def encode(self, values: jax.Array, scale: jax.Array | None) -> ScaledSigns:
        """`ScaledSigns`: an eighth of a byte a value."""
        scale = _mean_size(values) if scale is None else scale
        return ScaledSigns(pack_bits(values < 0), scale)

    def decode(self, wire: ScaledSigns, size: int) -> jax.Array:
        """Plus or minus the scale."""
        return jnp.where(unpack_bits(wire.signs, size), -wire.scale, wire.scale)


@dataclass(frozen=True)
class Ternary:
    """Values as 1, 0 or -1 times one scale, by default their mean magnitude.

    Example:
        >>> code = Ternary()
        >>> code.decode(code.encode(jnp.array([3.0, -1.0, 0.0]), None), 3)
        Array([ 2., -2.,  0.], dtype=float32)
    """

    def encode(self, values: jax.Array, scale: jax.Array | None) -> ScaledSigns:
        """`ScaledSigns`: a fifth of a byte a value."""
        scale = _mean_size(values) if scale is None else scale
        return ScaledSigns(pack_ternary(jnp.sign(values).astype(jnp.int8)), scale)

    def decode(self, wire: ScaledSigns, size: int) -> jax.Array:
        """Signs times the scale."""
        return wire.scale * unpack_ternary(wire.signs, size).astype(jnp.float32)


def _mean_size(values: jax.Array) -> jax.Array:
    """The mean magnitude of the values that are not 0, see `finite_mean`."""
    count = count_bits(pack_bits(values != 0)).astype(jnp.float32)
    return finite_mean(jnp.abs(values), jnp.maximum(count, 1))


def decoded(value: ValueCode, wire: Any, values: jax.Array) -> jax.Array:
    """`value.decode(wire, values.size)` of the values whose wire it is.

    Where the values tell what the wire says, nothing is unpacked.
    """
    if isinstance(value, OneBit):
        return jnp.where(values < 0, -wire.scale, wire.scale)
    if isinstance(value, Ternary):
        return wire.scale * jnp.sign(values)
    return value.decode(wire, values.size)

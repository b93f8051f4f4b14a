"""DCT's choice: what reaches a threshold, as a mask of bits, while it is summed.

Bound by memory: 8 bytes read and 4 and an eighth written an entry. XLA reads the sum
again to pack its mask, and both vectors again for the check that they are finite; the
Pallas kernel reads them once.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ..core import check_choice
from ._batch_axes import mapped_in_front, outputs_like
from ._by_pieces import finite_sum
from ._set_bits import count_bits, pack_bits

_LANES = 128
_ROWS = 1024  # of 128 in a block: 512 kB in float32
_WORD = 32


class ThresholdBits(NamedTuple):
    """A sum of vectors and what of it reaches a threshold.

    Attributes:
        total: (n,) float32.
        words: (ceil(n / 32),) uint32, as of `pack_bits`.
        count: () int32, how many bits are set.
        finite: () bool, whether all entries of the total are.
    """

    total: jax.Array
    words: jax.Array
    count: jax.Array
    finite: jax.Array


def threshold_bits(
    gradient: jax.Array,
    error: jax.Array,
    threshold: jax.Array,
    *,
    implementation: str = "xla",
) -> ThresholdBits:
    """Adds two vectors, and says where |sum| reaches a threshold and is not 0.

    Args:
        gradient: (n,) float32.
        error: (n,) float32.
        threshold: () float32, 0 or more.
        implementation: "xla", or "pallas": on TPUs, from 4096 entries on, one pass;
            what "xla" does elsewhere. It has been compiled for TPU v4, v5e, v5p and
            v6e, and measured on none. There is none for GPUs: Triton is about to leave
            jax.

    Returns:
        `ThresholdBits`.

    Raises:
        ValueError: `implementation` is none of the two.

    Complexity:
        In the kernel 12 bytes an entry and 512 flops of the matrix unit, which packs; a
        copy of both vectors more where n is no multiple of 128.

    Example:
        >>> import jax.numpy as jnp
        >>> found = threshold_bits(jnp.array([1.0, -3.0, 0.0]), jnp.ones(3), 2.0)
        >>> found.words, int(found.count)
        (Array([3], dtype=uint32), 2)

    References:
        Gupta et al. 2020, Training recommender systems at scale (arXiv 2010.08899).
    """
    check_choice(implementation, ("xla", "pallas"), "implementation")
    long = gradient.size >= _LANES * _WORD
    form = _choose if implementation == "pallas" and long else _bits
    operands = gradient, error, threshold
    return ThresholdBits(*form(*(jnp.asarray(x, jnp.float32) for x in operands)))


def _bits(gradient: jax.Array, error: jax.Array, threshold: jax.Array) -> Any:
    """The definition."""
    total = gradient + error
    words = pack_bits((jnp.abs(total) >= threshold) & (total != 0))
    return total, words, count_bits(words), finite_sum(gradient, error)


def _choose(gradient: jax.Array, error: jax.Array, threshold: jax.Array) -> Any:
    forms = dict(tpu=_fused, default=_bits)
    return mapped_in_front(lambda *x: jax.lax.platform_dependent(*x, **forms))(
        gradient, error, threshold
    )


def _fused(
    gradient: jax.Array,
    error: jax.Array,
    threshold: jax.Array,
    *,
    interpret: bool = False,
) -> Any:
    """The Pallas kernel: blocks of 1024 rows of 128 entries."""
    size = gradient.size
    # What is no longer than a block is one, of whole rows of words.
    unit = _LANES if size > _ROWS * _LANES else _WORD * _LANES
    rows = [
        jnp.pad(x, (0, -size % unit)).reshape(-1, _LANES) for x in (gradient, error)
    ]
    num_rows = len(rows[0])
    height = min(_ROWS, num_rows)
    blocks = pl.cdiv(num_rows, height)
    like = outputs_like(_bits, gradient, error, threshold)[0]
    block = pl.BlockSpec((height, _LANES), lambda i: (i, 0))
    total, words, counts = pl.pallas_call(
        partial(_step, num_rows),
        grid=(blocks,),
        in_specs=[
            block,
            block,
            pl.BlockSpec((1, 1), lambda i: (0, 0)),
            pl.BlockSpec((_LANES, 2 * _LANES), lambda i: (0, 0)),
        ],
        out_specs=[
            block,
            pl.BlockSpec((height // _WORD, _LANES), lambda i: (i, 0)),
            pl.BlockSpec((None, 2, _LANES), lambda i: (i, 0, 0)),
        ],
        out_shape=[
            like.update(shape=rows[0].shape),
            like.update(shape=(pl.cdiv(num_rows, _WORD), _LANES), dtype=jnp.int32),
            like.update(shape=(blocks, 2, _LANES), dtype=jnp.int32),
        ],
        interpret=interpret,
        name="threshold_bits",
    )(*rows, threshold.reshape(1, 1), _places_of_bits())
    words = jax.lax.bitcast_convert_type(words.reshape(-1), jnp.uint32)
    count, broken = counts.sum((0, 2), dtype=jnp.int32)
    words = words[: pl.cdiv(size, _WORD)]
    return total.reshape(-1)[:size], words, count, broken == 0


def _places_of_bits() -> jax.Array:
    """A matrix by which a row of 128 bits becomes its words, low and high halves.

    Column j of either half has the word j % 4 of the row: whichever row of 32 a word
    is from, it is there already.
    """
    lane = jax.lax.broadcasted_iota(jnp.int32, (_LANES, 2 * _LANES), 0)
    column = jax.lax.broadcasted_iota(jnp.int32, (_LANES, 2 * _LANES), 1)
    half = lane >> 4
    wanted = 2 * (column & 3) + (column >> 7)
    value = jnp.left_shift(1, lane & 15)
    return jnp.where(half == wanted, value, 0).astype(jnp.bfloat16)


def _step(num_rows: int, *refs: Any) -> None:
    """A block: sums, and words of 32 bits by two exact products of 16."""
    gradient, error, threshold, places, total, words, counts = refs
    value = gradient[...] + error[...]
    total[...] = value
    height = value.shape[0]
    row = jax.lax.broadcasted_iota(jnp.int32, value.shape, 0)
    inside = pl.program_id(0) * height + row < num_rows
    mask = (jnp.abs(value) >= threshold[...]) & (value != 0) & inside
    broken = (value - value != 0) & inside
    for place, what in enumerate((mask, broken)):
        number = jnp.where(what, 1, 0).sum(0, keepdims=True)
        counts[place : place + 1] = number
    bits = jnp.where(mask, 1.0, 0.0).astype(jnp.bfloat16)
    halves = jax.lax.dot(bits, places[...], preferred_element_type=jnp.float32)
    halves = halves.astype(jnp.int32)
    both = halves[:, :_LANES] | halves[:, _LANES:] << 16
    both = both.reshape(-1, _WORD, _LANES)
    # Word j of 128 is of row j // 4.
    row = jax.lax.broadcasted_iota(jnp.int32, both.shape, 1)
    lane = jax.lax.broadcasted_iota(jnp.int32, both.shape, 2)
    words[...] = jnp.where(row == lane >> 2, both, 0).sum(1)

"""AdaComp's choice: the entries of each bin that are large in it, as codes or signs.

Bound by memory: 8 bytes read an entry, and 4 written where the sum is. XLA on a CPU
gives each intermediate result an array in memory; there bins are taken by pieces. The
Pallas kernel for TPUs takes each block of bins through all steps in fast memory.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ..core import check_choice
from ._batch_axes import mapped_in_front, outputs_like
from ._by_pieces import by_pieces

BYTE_BIN, WORD_BIN = 64, 16384  # 6 or 14 bits of place, 2 bits of sign
_ROUNDS = 6  # maxima of rows that take a CPU as long as a top_k
_LANES = 128  # numbers in a row of a register; also the bins of a block
_WIDEST = 2048  # entries of a bin, so that eight arrays of a block take 8 MB
_MOST_SLOTS = 64


class BinSlots(NamedTuple):
    """The message of each bin, and what it was made of.

    Attributes:
        codes: (bins, slots) uint8 for bins of up to 64, else uint16; the low 6 or 14
            bits are the place in the bin, the high 2 bits are 0 (free slot), 1 (plus)
            or 2 (minus).
        tops: (bins,) float32, the largest magnitude of the sum in each bin, NaN where
            an entry is not finite.
        total: (n,) float32, the sum of residue and gradient.
    """

    codes: jax.Array
    tops: jax.Array
    total: jax.Array


def bin_slots(
    residue: jax.Array,
    gradient: jax.Array,
    *,
    bin_size: int,
    slots: int,
    scale_factor: float = 2.0,
    implementation: str = "xla",
) -> BinSlots:
    """The largest of what passes the bar of its bin, up to `slots` a bin.

    With G = r + g and H = G + (scale_factor - 1) g, an entry passes where |H| is at
    least the largest |G| of its bin, and G is not 0. Of those that pass, the ones of
    largest |H| come first, of equal ones the first.

    Args:
        residue: (n,) float32, n at least 1.
        gradient: (n,) float32.
        bin_size: consecutive entries a bin, 1..16384; the last bin may be short.
        slots: 1..bin_size.
        scale_factor: 0 or more.
        implementation: "xla", or "pallas": on TPUs a kernel that reads both vectors
            once, for bins of 128, 256, ... 2048, at least 128 of them, and up to 64
            slots; what "xla" does elsewhere. A bin of another size, as the paper's 50
            and 500, would lie across rows of the chip's memory, and to move it there is
            the pass that the kernel saves. It has been compiled for TPU v4, v5e, v5p
            and v6e, and measured on none. There is none for GPUs: Triton is about to
            leave jax.

    Returns:
        `BinSlots`. Bins that hold NaN or infinity have no codes.

    Raises:
        ValueError: `implementation` is none of the two.

    Complexity:
        On a CPU core 25 ms for 10^7 entries, where to add them takes 20. In the kernel
        `slots` rounds over a block, and 12 bytes an entry; a copy of both vectors more
        where n is no multiple of the bins.

    Example:
        >>> import jax.numpy as jnp
        >>> gradient = jnp.array([4.0, -1.0, -2.0, 0.0])
        >>> found = bin_slots(jnp.zeros(4), gradient, bin_size=4, slots=2)
        >>> found.codes, found.tops
        (Array([[ 64, 130]], dtype=uint8), Array([4.], dtype=float32))

    References:
        Chen et al. 2017, AdaComp (arXiv 1712.02679).
    """
    check_choice(implementation, ("xla", "pallas"), "implementation")
    options = (bin_size, slots, scale_factor)
    whole = bin_size % _LANES == 0 and bin_size <= _WIDEST and slots <= _MOST_SLOTS
    fits = whole and gradient.size > (_LANES - 1) * bin_size
    form = _choose if implementation == "pallas" and fits else _by_pieces
    return BinSlots(*form(options, jnp.asarray(residue), jnp.asarray(gradient)))


def bin_signs(
    residue: jax.Array,
    gradient: jax.Array,
    *,
    bin_size: int,
    scale_factor: float = 2.0,
) -> tuple[jax.Array, jax.Array]:
    """The sign of each entry that passes the bar of its bin, as in `bin_slots`.

    Args:
        residue: (n,) float32, n at least 1.
        gradient: (n,) float32.
        bin_size: consecutive entries a bin, at least 1; the last bin may be short.
        scale_factor: 0 or more.

    Returns:
        Signs int8 (n,), 0 where an entry does not pass, and `BinSlots.tops`.

    Example:
        >>> import jax.numpy as jnp
        >>> gradient = jnp.array([4.0, -1.0, -2.0, 0.0])
        >>> bin_signs(jnp.zeros(4), gradient, bin_size=4)[0]
        Array([ 1,  0, -1,  0], dtype=int8)
    """
    form = partial(_signs, bin_size, scale_factor)
    return by_pieces(form, residue, gradient, unit=bin_size)


def bin_ranks(
    total: jax.Array,
    gradient: jax.Array,
    *,
    bin_size: int,
    scale_factor: float = 2.0,
) -> tuple[jax.Array, jax.Array]:
    """What passes the bar of its bin, and how far: the rule of `bin_slots`.

    Args:
        total: (n,) float32, n at least 1: G.
        gradient: (n,) float32.
        bin_size: consecutive entries a bin, at least 1; the last bin may be short.
        scale_factor: 0 or more.

    Returns:
        |H| (n,), 0 where an entry does not pass, and `BinSlots.tops`.

    Example:
        >>> import jax.numpy as jnp
        >>> gradient = jnp.array([4.0, -1.0, -2.0, 0.0])
        >>> bin_ranks(gradient, gradient, bin_size=4)[0]
        Array([8., 0., 4., 0.], dtype=float32)
    """

    def flat(total: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, rank, tops = _ranked(bin_size, scale_factor, total, gradient)
        return rank.reshape(-1)[: total.size], tops

    return by_pieces(flat, total, gradient, unit=bin_size)


def _ranked(
    bin_size: int, scale_factor: float, total: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums (bins, bin_size), their ranks, 0 for none, and the largest of each bin."""
    pushed = jnp.abs(_in_bins(total + (scale_factor - 1) * gradient, bin_size))
    total = _in_bins(total, bin_size)
    # XLA's maximum of rows loses a NaN on CPUs; what is added here is 0 or NaN.
    tops = jnp.abs(total).max(1) + (0 * total).sum(1)
    passes = (pushed >= tops[:, None]) & (total != 0)
    return total, jnp.where(passes, pushed, 0), tops


def _in_bins(x: jax.Array, bin_size: int) -> jax.Array:
    """(bins, bin_size); zeros fill the last bin, which changes no maximum."""
    return jnp.pad(x, (0, -x.size % bin_size)).reshape(-1, bin_size)


def _signs(
    bin_size: int, scale_factor: float, residue: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    total = residue + gradient
    total, rank, tops = _ranked(bin_size, scale_factor, total, gradient)
    signs = jnp.where(rank > 0, jnp.sign(total), 0).astype(jnp.int8)
    return signs.reshape(-1)[: gradient.size], tops


def _slots(
    options: Any, residue: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The definition of codes and tops."""
    bin_size, slots, scale_factor = options
    total = residue + gradient
    total, rank, tops = _ranked(bin_size, scale_factor, total, gradient)
    height, place = largest_of_rows(rank, slots)
    value = jnp.take_along_axis(total, place, 1)
    kind = jnp.uint8 if bin_size <= BYTE_BIN else jnp.uint16
    return _codes(bin_size, height, place, value).astype(kind), tops


def _codes(bin_size: int, height: jax.Array, place: jax.Array, value: jax.Array) -> Any:
    """int32 codes of entries with these ranks, places and values."""
    bits = 6 if bin_size <= BYTE_BIN else 14
    mark = jnp.where(value < 0, 2 << bits, 1 << bits)
    return jnp.where(height > 0, place | mark, 0)


def _by_pieces(options: Any, residue: jax.Array, gradient: jax.Array) -> Any:
    form = partial(_slots, options)
    parts = by_pieces(form, residue, gradient, unit=options[0])
    return *parts, residue + gradient


def largest_of_rows(rank: jax.Array, slots: int) -> tuple[jax.Array, jax.Array]:
    """The largest entries of each row and their columns, of equal ones the first.

    Args:
        rank: (n, d) floating, 0 or more.
        slots: 1..d.

    Returns:
        Values (n, slots), and columns int32, where a value is 0 any.

    Example:
        >>> import jax.numpy as jnp
        >>> largest_of_rows(jnp.array([[1.0, 3.0, 2.0]]), 2)
        (Array([[3., 2.]], dtype=float32), Array([[1, 2]], dtype=int32))
    """
    if slots > _ROUNDS:
        return _by_top_k(slots, rank)
    return jax.lax.platform_dependent(
        rank, cpu=partial(_in_rounds, slots), default=partial(_by_top_k, slots)
    )


def _by_top_k(slots: int, rank: jax.Array) -> tuple[jax.Array, jax.Array]:
    height, place = jax.lax.top_k(rank, slots)
    return height, place


def _in_rounds(slots: int, rank: jax.Array) -> tuple[jax.Array, jax.Array]:
    width = rank.shape[1]
    column = jax.lax.broadcasted_iota(jnp.int32, rank.shape, 1)
    heights, places = [], []
    for _ in range(slots):
        height = rank.max(1)
        place = jnp.where(rank == height[:, None], column, width - 1).min(1)
        heights.append(height)
        places.append(place)
        rank = jnp.where(column == place[:, None], 0, rank)
    return jnp.stack(heights, 1), jnp.stack(places, 1)


def _choose(options: Any, residue: jax.Array, gradient: jax.Array) -> Any:
    forms = dict(tpu=partial(_fused, options), default=partial(_by_pieces, options))
    return mapped_in_front(lambda *x: jax.lax.platform_dependent(*x, **forms))(
        residue, gradient
    )


def _fused(
    options: Any, residue: jax.Array, gradient: jax.Array, *, interpret: bool = False
) -> Any:
    """The Pallas kernel: 128 bins at a time, one a row."""
    bin_size, slots, _ = options
    rows = [_in_bins(x, bin_size) for x in (residue, gradient)]
    bins, parts = len(rows[0]), bin_size // _LANES
    # Rows of 128 lie in memory as the vector does; longer ones would be moved there.
    rows = [x.reshape(-1, _LANES) for x in rows]
    height = pl.cdiv(slots + 1, 8) * 8
    codes, _, like = outputs_like(partial(_by_pieces, options), residue, gradient)
    block = pl.BlockSpec((parts * _LANES, _LANES), lambda i: (i, 0))
    packed, total = pl.pallas_call(
        partial(_step, options),
        grid=(pl.cdiv(bins, _LANES),),
        in_specs=[block, block],
        out_specs=[pl.BlockSpec((height, _LANES), lambda i: (0, i)), block],
        out_shape=[
            like.update(shape=(height, bins), dtype=jnp.int32),
            like.update(shape=rows[0].shape),
        ],
        interpret=interpret,
        name="bin_slots",
    )(*rows)
    tops = jax.lax.bitcast_convert_type(packed[slots], jnp.float32)
    marks = packed[:slots].T.astype(codes.dtype)
    return marks, tops, total.reshape(-1)[: gradient.size]


def _step(options: Any, residue: Any, gradient: Any, packed: Any, sums: Any) -> None:
    """A block: as many rounds as slots, each takes the largest that is left."""
    bin_size, slots, scale_factor = options
    parts = [
        pl.ds(part, _LANES, stride=bin_size // _LANES)
        for part in range(bin_size // _LANES)
    ]
    given = jnp.concatenate([gradient[part] for part in parts], 1)
    total = jnp.concatenate([residue[part] for part in parts], 1) + given
    for number, part in enumerate(parts):
        sums[part] = total[:, number * _LANES : (number + 1) * _LANES]
    pushed = jnp.abs(total + (scale_factor - 1) * given)
    tops = jnp.abs(total).max(1, keepdims=True)
    # Not every chip's maximum keeps a NaN.
    broken = jnp.where(total - total != 0, 1.0, 0.0).max(1, keepdims=True) > 0
    tops = jnp.where(broken, jnp.nan, tops)
    passes = (pushed >= tops) & (total != 0)
    # Columns as floats: not every chip has minima of integers.
    column = jax.lax.broadcasted_iota(jnp.int32, total.shape, 1).astype(jnp.float32)
    lane = jax.lax.broadcasted_iota(jnp.int32, (_LANES, _LANES), 1)

    def take(slot: Any, found: Any) -> Any:
        rank, codes = found
        height = rank.max(1, keepdims=True)
        place = jnp.where(rank == height, column, float(bin_size))
        place = place.min(1, keepdims=True)
        here = column == place
        value = jnp.where(here, total, 0.0).sum(1, keepdims=True)
        code = _codes(bin_size, height, place.astype(jnp.int32), value)
        return jnp.where(here, 0.0, rank), jnp.where(lane == slot, code, codes)

    start = jnp.where(passes, pushed, 0.0), jnp.zeros_like(lane)
    _, codes = jax.lax.fori_loop(0, slots, take, start)
    bits = jax.lax.bitcast_convert_type(tops, jnp.int32)
    packed[...] = jnp.where(lane == slots, bits, codes).T[: packed.shape[0]]

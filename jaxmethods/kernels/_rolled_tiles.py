"""Chunks of rows at cyclic offsets: the kernels of `block_roll` and its adjoint.

All buckets of a block of columns are in fast memory while rows stream by, a chunk at a
time. A chunk meets few blocks. For each, the rows are turned within registers by the
bucket of the first modulo 8; then whole registers are added, or read. A chunk runs past
the last bucket: the kernels have some more, and cyclic they are made outside.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ._batch_axes import outputs_like

_CHUNK, _TILE, _LANES = 128, 1024, 128  # rows at a time, rows and columns of a block
_NUMBERS = 2**20  # in the buckets of a block of columns: 8 MB with their second buffer
_TURNS = 32  # of a chunk at most: once for each stack and each block it meets
_REGISTER = 8  # rows


def buckets_fit(stacks: int, size: int, width: int) -> bool:
    """Whether the kernels take k stacks of `size` buckets of `width` columns.

    Args:
        stacks: k.
        size: buckets of a stack, and rows of a block.
        width: columns.
    """
    numbers = stacks * _height(size) * min(width, _LANES)
    return numbers <= _NUMBERS and stacks * _num_met(size) <= _TURNS


def add_tiles(
    size: int,
    rows: jax.Array,
    sign: jax.Array,
    offset: jax.Array,
    phase: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """`block_roll` for a TPU: the buckets, and some behind them that are folded back.

    Args:
        size: buckets of a stack, and rows of a block.
        rows: float32 or bfloat16 (n, d).
        sign: (k, n).
        offset: (k, blocks).
        phase: int32 scalar.
        interpret: whether to run in the interpreter.

    Returns:
        float32 (k, size, d).
    """
    num_rows, width = rows.shape
    lanes, stacks = min(_LANES, width), len(sign)
    places, signs = _for_tiles(sign, offset, phase, size)
    tile = signs.shape[1] // len(places)
    height, shape = _height(size), (stacks, _height(size), width)
    like = _output((rows, sign, offset, phase), shape)
    out = pl.pallas_call(
        partial(_add_tile, size, num_rows),
        grid=(pl.cdiv(width, lanes), len(places)),
        in_specs=[
            *_of_tile(places, signs),
            pl.BlockSpec((tile, lanes), lambda j, i: (i, j)),
        ],
        out_specs=pl.BlockSpec((stacks, height, lanes), lambda j, i: (0, 0, j)),
        out_shape=like,
        interpret=interpret,
        name="block_roll",
    )(places, signs, rows)
    times = pl.cdiv(height, size)
    out = jnp.pad(out, ((0, 0), (0, times * size - height), (0, 0)))
    return out.reshape(stacks, times, size, width).sum(1)


def _add_tile(size: int, num_rows: int, *refs: Any) -> None:
    """A tile of rows: adds each chunk where the blocks that it meets are."""
    places, signs, rows, out = refs
    (tile, lanes), stacks = rows.shape, out.shape[0]

    @pl.when(pl.program_id(1) == 0)
    def _():
        out[...] = jnp.zeros_like(out)

    row = jax.lax.broadcasted_iota(jnp.int32, (_CHUNK, lanes), 0)
    # What the last tile holds of rows that there are not was never written.
    remaining = num_rows - pl.program_id(1) * tile

    def add_chunk(c: Any) -> None:
        first = pl.multiple_of(c * _CHUNK, _CHUNK)
        values = rows[pl.ds(first, _CHUNK)].astype(jnp.float32)
        sign = signs[:, pl.ds(first, _CHUNK)].T

        def add_block(begin: Any, starts: list[Any]) -> None:
            inside = (row >= begin) & (
                row < jnp.minimum(begin + size, remaining - first)
            )
            some = jnp.where(inside, values, 0.0)
            for j, start in enumerate(starts):
                turn, at = _split(start)
                signed = some * sign[:, j : j + 1]
                signed = pltpu.roll(signed.reshape(-1, _REGISTER, lanes), turn, axis=1)
                none = jnp.zeros((1, _REGISTER, lanes), jnp.float32)
                below = jax.lax.broadcasted_iota(jnp.int32, none.shape, 1) < turn
                moved = jnp.where(
                    below,
                    jnp.concatenate([none, signed]),
                    jnp.concatenate([signed, none]),
                )
                out[j, at] += moved.reshape(-1, lanes)

        _for_blocks_met(places, c, size, stacks, add_block)

    _for_chunks(tile, add_chunk)


def collect_tiles(
    sums: jax.Array,
    sign: jax.Array,
    offset: jax.Array,
    phase: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """`block_roll_transpose` for a TPU: the first buckets stand behind the last again.

    Args:
        sums: float32 or bfloat16 (k, size, d).
        sign: (k, n).
        offset: (k, blocks).
        phase: int32 scalar.
        interpret: whether to run in the interpreter.

    Returns:
        float32 (n, d).
    """
    stacks, size, width = sums.shape
    lanes = min(_LANES, width)
    places, signs = _for_tiles(sign, offset, phase, size)
    tile = signs.shape[1] // len(places)
    height, shape = _height(size), (sign.shape[1], width)
    like = _output((sums, sign, offset, phase), shape)
    again = jnp.tile(sums, (1, pl.cdiv(height, size), 1))[:, :height]
    return pl.pallas_call(
        partial(_collect_tile, size),
        grid=(pl.cdiv(width, lanes), len(places)),
        in_specs=[
            *_of_tile(places, signs),
            pl.BlockSpec((stacks, height, lanes), lambda j, i: (0, 0, j)),
        ],
        out_specs=pl.BlockSpec((tile, lanes), lambda j, i: (i, j)),
        out_shape=like,
        interpret=interpret,
        name="block_roll_transpose",
    )(places, signs, again.astype(jnp.float32))


def _collect_tile(size: int, *refs: Any) -> None:
    """A tile of rows: each chunk collects the buckets of the blocks that it meets."""
    places, signs, sums, out = refs
    (tile, lanes), stacks = out.shape, sums.shape[0]
    row = jax.lax.broadcasted_iota(jnp.int32, (_CHUNK, lanes), 0)

    def collect_chunk(c: Any) -> None:
        first = pl.multiple_of(c * _CHUNK, _CHUNK)
        sign = signs[:, pl.ds(first, _CHUNK)].T

        def collect_block(begin: Any, starts: list[Any]) -> None:
            total = jnp.zeros((_CHUNK, lanes), jnp.float32)
            for j, start in enumerate(starts):
                turn, at = _split(start)
                some = sums[j, at].reshape(-1, _REGISTER, lanes)
                some = pltpu.roll(some, -turn & (_REGISTER - 1), axis=1)
                place = jax.lax.broadcasted_iota(jnp.int32, (1, *some.shape[1:]), 1)
                moved = jnp.where(place < _REGISTER - turn, some[:-1], some[1:])
                total += moved.reshape(-1, lanes) * sign[:, j : j + 1]
            # Later blocks write over what earlier ones put in their rows.
            old = out[pl.ds(first, _CHUNK)]
            out[pl.ds(first, _CHUNK)] = jnp.where(row >= begin, total, old)

        _for_blocks_met(places, c, size, stacks, collect_block)

    _for_chunks(tile, collect_chunk)


def _for_tiles(
    sign: jax.Array, offset: jax.Array, phase: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """What scalars and signs each tile of rows needs.

    Returns:
        int32 (tiles, 1, chunks * (1 + blocks * k)): for each chunk where in its block
        its first row stands, then for each block that it meets and each stack the
        bucket where the first row would fall if it were in that block. And float32
        signs, padded with zeros to whole tiles and registers.
    """
    stacks, num_rows = sign.shape
    num_chunks = pl.cdiv(num_rows, _CHUNK)
    chunks = min(_TILE // _CHUNK, num_chunks)
    tiles = pl.cdiv(num_chunks, chunks)
    position = phase + _CHUNK * jnp.arange(tiles * chunks, dtype=jnp.int32)
    met = position[:, None] // size + jnp.arange(_num_met(size), dtype=jnp.int32)[None]
    start = offset.astype(jnp.int32).at[:, met].get(mode="clip")
    start = (start + position[None, :, None]) % size
    start = jnp.moveaxis(start, 0, -1).reshape(tiles * chunks, -1)
    places = jnp.concatenate([(position % size)[:, None], start], 1)
    missing = -stacks % _REGISTER, tiles * chunks * _CHUNK - num_rows
    signs = jnp.pad(sign.astype(jnp.float32), [(0, x) for x in missing])
    return places.reshape(tiles, 1, -1), signs


def _of_tile(places: jax.Array, signs: jax.Array) -> list[pl.BlockSpec]:
    """Blocks of both for a grid of columns and tiles."""
    scalars = places.shape[1:]
    height, tile = len(signs), signs.shape[1] // len(places)
    return [
        pl.BlockSpec((None, *scalars), lambda j, i: (i, 0, 0), memory_space=pltpu.SMEM),
        pl.BlockSpec((height, tile), lambda j, i: (0, i)),
    ]


def _for_chunks(tile: int, act: Callable[[Any], None]) -> None:
    """Calls `act` with the number of each chunk of a tile, in 32 bits.

    The loop's own counter has 64 where that is the default, and a TPU multiplies none.
    """

    def body(_: Any, c: Any) -> Any:
        act(c)
        return c + 1

    jax.lax.fori_loop(0, tile // _CHUNK, body, np.int32(0))


def _for_blocks_met(
    places: Any, c: Any, size: int, stacks: int, act: Callable[[Any, list[Any]], None]
) -> None:
    """Calls `act` with the first row and the buckets of each block that a chunk meets.

    Args:
        places: the scalars of the tile.
        c: the number of the chunk.
        size: rows of a block.
        stacks: k.
        act: takes the row of the chunk, maybe negative, where the block begins, and for
            each stack the bucket of the row 0.
    """
    num_met = _num_met(size)
    first = c * (1 + num_met * stacks)
    place = places[0, first]
    for t in range(num_met):
        begin = t * size - place

        def turn_to(t: int = t, begin: Any = begin) -> None:
            at = first + 1 + t * stacks
            act(begin, [places[0, at + j] for j in range(stacks)])

        if t == 0:  # always met
            turn_to()
        else:
            pl.when(begin < _CHUNK)(turn_to)


def _output(operands: tuple[jax.Array, ...], shape: tuple[int, ...]) -> Any:
    """Float32 of this shape, with the mesh axes that an operand varies over."""

    def mixed(*operands: jax.Array) -> jax.Array:
        some = (x.ravel()[0].astype(jnp.float32) for x in operands)
        return jnp.broadcast_to(sum(some), shape)

    return outputs_like(mixed, *operands)[0]


def _num_met(size: int) -> int:
    """The most blocks that the rows of a chunk are in."""
    return 1 + pl.cdiv(_CHUNK - 1, size)


def _height(size: int) -> int:
    """Buckets that a chunk from any of them on falls into, in whole registers."""
    return pl.cdiv(size + _CHUNK, _REGISTER) * _REGISTER + _REGISTER


def _split(start: Any) -> tuple[Any, Any]:
    """By how many rows to turn a chunk, and the whole registers that it then covers."""
    turn = start & (_REGISTER - 1)
    whole = pl.multiple_of(start - turn, _REGISTER)
    return turn, pl.ds(whole, _CHUNK + _REGISTER)

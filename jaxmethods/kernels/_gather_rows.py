"""Weighted sums of a few rows of a matrix: what a row-sparse operator is made of.

XLA gathers one draw of all sums, then adds it: its sums are read and written s times.
The Pallas kernel copies eight rows at a time from where they lie while earlier ones are
added in fast memory. Both copy row by row; what differs is the rest. Cycles of a TPU
v5e (libtpu 0.0.52) for 64 draws a sum from 2^18 rows in float32, from the schedules and
estimates of the compiler, which leave out how long a copy takes to arrive:

| sums | numbers in a row | the definition, by XLA | the Pallas kernel |
|---|---|---|---|
| 1024 | 128 | 1 290 000 | 590 000 |
| 1024 | 256 | 1 630 000 | 840 000 |
| 8192 | 128 | 5 400 000 | 4 700 000 |
| 8192 | 256 | 8 000 000 | 6 700 000 |

That is half the cycles at best, and maybe none where the copies are what takes time, so
XLA is the default. The kernel has been compiled for TPU v4, v5e, v5p and v6e, and
measured on none. Either form first copies a matrix that lies by columns, as XLA itself
lays out a tall argument with fewer than 128 columns.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..core import check_choice
from ._batch_axes import outputs_like

_WIDEST = 2**13  # numbers in a row
_GROUP = 8  # sums that go through their draws together
_AHEAD = 16  # groups of rows on their way, a power of 2
_SUMS, _PIECE = 128, 2**14  # of a block at least, and draws of all its sums at a time
_NUMBERS = 2**18  # of a block of sums at most, if it has more than 128 rows; and on


def gather_rows(
    rows: jax.Array,
    index: jax.Array,
    weight: jax.Array,
    *,
    implementation: str = "xla",
) -> jax.Array:
    """Row i of the result is `sum_k weight[i, k] * rows[index[i, k]]`.

    One draw of all m sums after the other, so that no (m, s, d) array is formed.

    Args:
        rows: floating (n, d).
        index: integer (m, s); one of n or above stands for a row of zeros.
        weight: (m, s), any real dtype.
        implementation: "xla", or "pallas": on TPUs, for up to 8192 numbers in a row, in
            float32, or in bfloat16 where n is even, a kernel that reads and writes no
            sum before it is whole; what "xla" does elsewhere. Under `vmap` it is one
            call with more sums.

    Returns:
        (m, d), float32 or wider.

    Raises:
        ValueError: `implementation` is none of the two.

    Complexity:
        m s rows read, s reads and writes of the result; one write in the kernel, where
        an index of n or above also costs the copy of a row.

    Example:
        >>> import jax.numpy as jnp
        >>> rows, index = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[0, 2], [1, 3]])
        >>> gather_rows(rows, index, jnp.array([[1.0, -1.0], [0.5, 9.0]]))[:, 0]
        Array([-2.,  1.], dtype=float32)
    """
    check_choice(implementation, ("xla", "pallas"), "implementation")
    form = _add_draws if implementation == "xla" else _by_platform
    return form(rows, _wide(index, len(rows)), weight)


def _add_draws(rows: jax.Array, index: jax.Array, weight: jax.Array) -> jax.Array:
    """The definition."""
    dtype = jnp.promote_types(rows.dtype, jnp.float32)
    total = jax.lax.full_like(rows, 0, dtype, shape=(len(index), rows.shape[1]))

    def add_draw(total, draw):
        at, scale = draw
        picked = rows.at[at].get(mode="fill", fill_value=0).astype(dtype)
        return total + picked * scale.astype(dtype)[:, None], None

    return jax.lax.scan(add_draw, total, (index.T, weight.T))[0]


@jax.custom_jvp
def _by_platform(rows: jax.Array, index: jax.Array, weight: jax.Array) -> jax.Array:
    return _of_one(rows, index, weight)


@_by_platform.defjvp
def _derivative(primals: Any, tangents: Any) -> Any:
    """That of the definition."""
    return _by_platform(*primals), jax.jvp(_add_draws, primals, tangents)[1]


def _choose(rows: jax.Array, index: jax.Array, weight: jax.Array) -> jax.Array:
    n, width = rows.shape
    known = rows.dtype in (jnp.float32, jnp.bfloat16)
    fits = known and width <= _WIDEST and n <= jnp.iinfo(jnp.int32).max
    if not fits or n % _together(rows.dtype) or 0 in (*rows.shape, *index.shape):
        return _add_draws(rows, index, weight)
    return jax.lax.platform_dependent(
        rows, index, weight, tpu=_fused, default=_add_draws
    )


_of_one = custom_vmap(_choose)


@_of_one.def_vmap
def _of_many(
    size: int, mapped: Any, rows: jax.Array, index: jax.Array, weight: jax.Array
) -> Any:
    """More sums, and of more matrices those of one with more rows."""
    num_rows = rows.shape[-2]
    if mapped[0] and size * num_rows > jnp.iinfo(jnp.int32).max:
        over = jax.vmap(_add_draws, [0 if m else None for m in mapped])
        return over(rows, index, weight), True
    index, weight = (
        x if m else jnp.broadcast_to(x[None], (size, *x.shape))
        for m, x in zip(mapped[1:], (index, weight), strict=True)
    )
    if mapped[0]:
        first = num_rows * jnp.arange(size, dtype=jnp.int32)[:, None, None]
        place = _places(index, num_rows)
        index = jnp.where(place < num_rows, first + place, size * num_rows)
        rows = rows.reshape(size * num_rows, -1)
    sums, draws = index.shape[1:]
    flat = (x.reshape(size * sums, draws) for x in (index, weight))
    return _of_one(rows, *flat).reshape(size, sums, rows.shape[1]), True


def _together(dtype: Any) -> int:
    """Rows that lie in the same words of memory: they are fetched together."""
    return 4 // jnp.dtype(dtype).itemsize


def _fused(
    rows: jax.Array, index: jax.Array, weight: jax.Array, *, interpret: Any = False
) -> jax.Array:
    """The Pallas kernel: groups of rows are on their way while earlier ones add up."""
    (num_rows, width), (num_sums, num_draws) = rows.shape, index.shape
    together, place = _together(rows.dtype), _places(index, num_rows)
    known = place < num_rows
    height, depth = _block(num_sums, num_draws, width)
    tiles, pieces = pl.cdiv(num_sums, height), pl.cdiv(num_draws, depth)

    def lay_out(x: jax.Array, fill: Any) -> jax.Array:
        """A block's draws, one of all its sums behind the other, padded with `fill`."""
        after = pieces * depth - num_draws, tiles * height - num_sums
        x = jnp.pad(x.T, [(0, size) for size in after], constant_values=fill)
        x = x.reshape(pieces, depth, tiles, height).swapaxes(1, 2)
        return x.reshape(pieces, tiles, 1, depth * height)

    block = pl.BlockSpec(
        (None, None, 1, depth * height),
        lambda i, k: (k, i, 0, 0),
        memory_space=pltpu.SMEM,
    )
    # As many groups as fit, a power of 2.
    ahead = min(_AHEAD, _NUMBERS // (_GROUP * width), depth * height // _GROUP)
    ahead = 1 << ahead.bit_length() - 1
    (like,) = outputs_like(_add_draws, rows, index, weight)
    out = pl.pallas_call(
        _step,
        grid=(tiles, pieces),
        in_specs=[block, block, block, pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=pl.BlockSpec((height, width), lambda i, k: (i, 0)),
        out_shape=like.update(shape=(pl.cdiv(num_sums, _GROUP) * _GROUP, width)),
        scratch_shapes=[
            pltpu.VMEM((height, 1, width), jnp.float32),
            pltpu.VMEM((ahead, _GROUP, together, width), rows.dtype),
            pltpu.SemaphoreType.DMA((ahead,)),
        ],
        # Every place is inside; the checks would take longer than the fetches.
        compiler_params=pltpu.CompilerParams(disable_bounds_checks=True),
        interpret=interpret,
        name="gather_rows",
    )(
        lay_out(jnp.where(known, place & -together, 0), 0),
        lay_out(jnp.where(known, place & (together - 1), together), together),
        lay_out(weight.astype(jnp.float32), 0),
        rows,
    )
    return out[:num_sums]


def _block(num_sums: int, num_draws: int, width: int) -> tuple[int, int]:
    """How many sums a block has, and how many draws of each it adds at a time."""
    height = max(_NUMBERS // width & -_SUMS, _SUMS)
    height = min(height, pl.cdiv(num_sums, _GROUP) * _GROUP, _PIECE)
    return height, min(_PIECE // height, num_draws)


def _wide(index: jax.Array, num_rows: int) -> jax.Array:
    """Indices of a type that holds n."""
    return index if num_rows <= jnp.iinfo(index.dtype).max else index.astype(jnp.int32)


def _places(index: jax.Array, num_rows: int) -> jax.Array:
    """Row numbers from 0, and n for no row, as int32."""
    index = jnp.where(index < 0, index + num_rows, index)
    inside = (index >= 0) & (index < num_rows)
    return jnp.where(inside, index, num_rows).astype(jnp.int32)


def _step(*refs: Any) -> None:
    """A block of sums: adds some draws to each, in the order of the definition."""
    place, which, weight, rows, out, total, buffer, arrived = refs
    ahead, group, together, _ = buffer.shape
    (height, _), num_groups = out.shape, place.shape[1] // group

    @pl.when(pl.program_id(1) == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    def fetch(g: Any) -> None:
        """Starts the copies of the rows of a group of draws."""
        slot = g & (ahead - 1)  # a mask: a remainder asks which TPU it is for
        for i in range(group):
            at = pl.multiple_of(place[0, g * group + i], together)
            source = rows.at[pl.ds(at, together)]
            pltpu.make_async_copy(source, buffer.at[slot, i], arrived.at[slot]).start()

    def add(g: Any, first: Any) -> Any:
        """Adds a group that has arrived to the sums first, first + 1, ..."""
        slot = g & (ahead - 1)
        # One wait for the bytes of the whole group.
        pltpu.make_async_copy(buffer.at[slot], buffer.at[slot], arrived.at[slot]).wait()
        for i in range(group):
            chosen = which[0, g * group + i]
            row = buffer[slot, i].astype(jnp.float32)
            if together == 2:
                row = jnp.where(chosen == 1, row[1:], row[:1])
            row = jnp.where(chosen < together, row, 0.0)
            total[first + i] += row * weight[0, g * group + i]
        return jnp.where(first + group == height, 0, first + group)

    def fetch_and_add(g: Any, first: Any) -> Any:
        fetch(g + ahead - 1)
        return add(g, first)

    for g in range(ahead - 1):
        fetch(g)
    first = jax.lax.fori_loop(0, num_groups - ahead + 1, fetch_and_add, 0)
    jax.lax.fori_loop(num_groups - ahead + 1, num_groups, add, first)

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
        def put(i: Any, _: None) -> None:
            some = pl.ds(pl.multiple_of(i * group, group), group)
            out[some] = total[some][:, 0]

        jax.lax.fori_loop(0, height // group, put, None)


def scatter_rows(
    sums: jax.Array, index: jax.Array, weight: jax.Array, *, num_rows: int
) -> jax.Array:
    """The adjoint of `gather_rows`: row i adds `weight[i, k] * sums[i]` at its indices.

    There is no kernel: two draws may add to the same row, so a copy back to memory has
    to arrive before the next row is read, and n rows of zeros are written besides.

    Args:
        sums: floating (m, d).
        index: integer (m, s); one of `num_rows` or above is left out.
        weight: (m, s), any real dtype.
        num_rows: the number n of rows of the result.

    Returns:
        (n, d), float32 or wider.

    Complexity:
        m s rows read and written beside the result.

    Example:
        >>> import jax.numpy as jnp
        >>> index, weight = jnp.array([[0, 2], [1, 3]]), jnp.ones((2, 2))
        >>> scatter_rows(jnp.array([[5.0], [7.0]]), index, weight, num_rows=3)[:, 0]
        Array([5., 7., 5.], dtype=float32)
    """
    dtype = jnp.promote_types(sums.dtype, jnp.float32)
    total = jax.lax.full_like(sums, 0, dtype, shape=(num_rows, sums.shape[1]))
    sums, index = sums.astype(dtype), _wide(index, num_rows)

    def add_draw(total, draw):
        at, scale = draw
        return total.at[at].add(scale.astype(dtype)[:, None] * sums, mode="drop"), None

    return jax.lax.scan(add_draw, total, (index.T, weight.T))[0]

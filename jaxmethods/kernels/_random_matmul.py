"""Products with a random matrix that is drawn tile by tile and never stored.

The Pallas kernel draws each tile of R where the matrix unit wants it. Signs are exact
in bfloat16, so float32 operands are split in three parts, not both sides of the product
into three as at full precision: 3 passes of the matrix unit and not 6. Cycles of a TPU
v5e (libtpu 0.0.52) for R of 1024 x 2^18 and 128 columns in float32, from the estimates
of the compiler and, for the kernel, the length of its schedule:

| law | the definition, by XLA | the Pallas kernel | transposed, by XLA | the kernel |
|---|---|---|---|---|
| sign | 12 800 000 | 2 000 000 | 11 400 000 | 2 300 000 |
| normal | 17 400 000 | 13 500 000 | 15 500 000 | 13 600 000 |

A third of XLA's cycles for signs are those of small fusions at the estimate's least
value. The kernel first copies a matrix that lies by columns, as XLA lays out a tall
argument with fewer than 128 columns: 3 000 000 cycles for 10^6 x 100. Normal numbers
cost more than their products in either form. XLA is the default: the kernel has been
compiled for TPU v4, v5e, v5p and v6e, and measured on none.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..core import check_choice, check_key
from ._batch_axes import mapped_in_front, outputs_like
from ._random_bits import bit_signs, key_words, random_bits, threefry_2x32

Law = Literal["normal", "sign"]

_TILE = 1 << 19  # entries drawn at once: 2 MB in float32
_ROWS, _COLUMNS, _WIDTH = 512, 512, 512  # of a tile of R, and of A, in the kernel


def random_matmul(
    key: jax.Array,
    start: Any,
    rows: jax.Array,
    *,
    num_rows: int,
    law: Law,
    implementation: str = "xla",
) -> jax.Array:
    """`R A` for columns start, start + 1, ... of a random matrix R.

    An entry of R is a function of the key, its row and the number of its column, with
    mean 0 and variance 1: a standard normal number in float32, or -1 or 1.

    Args:
        key: scalar typed key.
        start: uint32 scalar, the number of the first column; may be traced.
        rows: floating (n, d), the matrix A.
        num_rows: the rows m of R.
        law: "normal" or "sign".
        implementation: "xla", or "pallas": on TPUs, in float32 and bfloat16, a kernel
            that draws tiles of R in fast memory; what "xla" does elsewhere. It has the
            same signs; of a normal number the random word is the same and the last bits
            are those of the TPU's logarithm in a kernel. Under `vmap` over matrices
            alone they are one wide matrix.

    Returns:
        (m, d), float32 or wider.

    Raises:
        ValueError: `implementation` is none of the two.

    Complexity:
        2 m n d flops; m n normal numbers, or m n / 32 random words. 2 MB of tiles.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> key, rows = jax.random.key(0), jnp.ones((50, 2))
        >>> random_matmul(key, jnp.uint32(0), rows, num_rows=4, law="sign").shape
        (4, 2)
    """
    return _multiply(implementation, _Form(law, num_rows, False), key, start, rows)


def random_matmul_transpose(
    key: jax.Array,
    start: Any,
    rows: jax.Array,
    *,
    num_columns: int,
    law: Law,
    implementation: str = "xla",
) -> jax.Array:
    """`R^T Y` for n columns start, start + 1, ... of a random matrix R.

    Args:
        key: scalar typed key.
        start: uint32 scalar, the number of the first column; may be traced.
        rows: floating (m, d), the matrix Y.
        num_columns: n.
        law: "normal" or "sign".
        implementation: as for `random_matmul`.

    Returns:
        (n, d), float32 or wider.

    Raises:
        ValueError: `implementation` is none of the two.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> key, rows, law = jax.random.key(0), jnp.ones((4, 2)), "sign"
        >>> random_matmul_transpose(
        ...     key, jnp.uint32(0), rows, num_columns=50, law=law
        ... ).shape
        (50, 2)
    """
    return _multiply(implementation, _Form(law, num_columns, True), key, start, rows)


def random_tile(
    key: jax.Array, start: jax.Array, num_rows: int, num_columns: int, law: Law
) -> jax.Array:
    """Columns start, ..., start + num_columns - 1 of R, (num_rows, num_columns).

    Args:
        key: scalar typed key.
        start: uint32 scalar.
        num_rows: rows of R.
        num_columns: columns of the tile.
        law: "normal" (float32) or "sign" (int8).

    Example:
        >>> import jax
        >>> key = jax.random.key(0)
        >>> tile = random_tile(key, jnp.uint32(0), 4, 9, "normal")
        >>> part = random_tile(key, jnp.uint32(5), 4, 3, "normal")
        >>> bool((tile[:, 5:8] == part).all())
        True
    """
    draw, each = _LAWS[law]
    column = start + jnp.arange(num_columns, dtype=jnp.uint32)
    stream = jnp.arange(-(-num_rows // each), dtype=jnp.uint32)
    entries = draw(random_bits(key, column[None, :], stream[:, None]))
    return entries.reshape(-1, num_columns)[:num_rows]


def _normal(words: jax.Array) -> jax.Array:
    """Standard normal numbers by the inverse of their distribution function."""
    odd = (words >> 9 << 1 | 1).astype(jnp.float32)  # 24 bits: exact
    return jax.lax.erf_inv(odd * 2.0**-23 - 1) * 2**0.5  # of -1 .. 1, both left out


_LAWS: dict[str, tuple[Callable[[jax.Array], jax.Array], int]] = {
    "normal": (_normal, 1),
    "sign": (partial(bit_signs, axis=1), 32),
}


def _tile_width(num_rows: int, num_columns: int) -> int:
    return min(num_columns, max(1, _TILE // num_rows))


class _Form(NamedTuple):
    """What of a product is static.

    Attributes:
        law: of the entries.
        size: the rows of the result.
        transposed: whether R^T multiplies.
    """

    law: Law
    size: int
    transposed: bool


def _multiply(
    implementation: str, form: _Form, key: jax.Array, start: Any, rows: jax.Array
) -> jax.Array:
    check_choice(implementation, ("xla", "pallas"), "implementation")
    check_key(key)
    start = jnp.asarray(start, jnp.uint32)
    known = rows.dtype in (jnp.float32, jnp.bfloat16) and not key.shape
    if implementation == "xla" or not known or 0 in (form.size, *rows.shape):
        return _by_tiles(form, key, start, rows)
    # Words: a key that goes through transforms would count as used.
    return _by_platform(form, jnp.stack(key_words(key)), start, rows)


def _by_tiles(
    form: _Form, key: jax.Array, start: jax.Array, rows: jax.Array
) -> jax.Array:
    """The definition."""
    return (_put_tiles if form.transposed else _add_tiles)(form, key, start, rows)


def _add_tiles(
    form: _Form, key: jax.Array, start: jax.Array, rows: jax.Array
) -> jax.Array:
    """`R A`, a tile of columns of R after the other."""
    dtype = jnp.promote_types(rows.dtype, jnp.float32)
    size, num_columns = _tile_width(form.size, len(rows)), len(rows)

    def add_tile(t, total):
        # The last window moves inside; columns that an earlier one had count as zero.
        begin = jnp.minimum(t * size, num_columns - size)
        new = begin + jnp.arange(size) >= t * size
        some = jax.lax.dynamic_slice_in_dim(rows, begin, size).astype(dtype)
        some = jnp.where(new[:, None], some, 0)
        tile = random_tile(
            key, start + begin.astype(jnp.uint32), form.size, size, form.law
        )
        return total + jnp.matmul(tile.astype(dtype), some, precision="highest")

    total = jax.lax.full_like(rows, 0, dtype, shape=(form.size, rows.shape[1]))
    return jax.lax.fori_loop(0, -(-num_columns // size), add_tile, total)


def _put_tiles(
    form: _Form, key: jax.Array, start: jax.Array, rows: jax.Array
) -> jax.Array:
    """`R^T Y`, some rows of it after the other."""
    dtype = jnp.promote_types(rows.dtype, jnp.float32)
    num_rows, width = rows.shape
    size, rows = _tile_width(num_rows, form.size), rows.astype(dtype)

    def put_tile(t, out):
        begin = jnp.minimum(t * size, form.size - size)
        tile = random_tile(
            key, start + begin.astype(jnp.uint32), num_rows, size, form.law
        )
        some = jnp.matmul(tile.astype(dtype).T, rows, precision="highest")
        return jax.lax.dynamic_update_slice_in_dim(out, some, begin, axis=0)

    out = jax.lax.full_like(rows, 0, dtype, shape=(form.size, width))
    return jax.lax.fori_loop(0, -(-form.size // size), put_tile, out)


def _from_words(
    form: _Form, words: jax.Array, start: jax.Array, rows: jax.Array
) -> jax.Array:
    """The definition, for the two words of a key."""
    key = jax.random.wrap_key_data(words, impl="threefry2x32")
    return _by_tiles(form, key, start, rows)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _by_platform(form: _Form, *operands: jax.Array) -> jax.Array:
    return _mappable(form)(*operands)


@_by_platform.defjvp
def _derivative(form: _Form, primals: Any, tangents: Any) -> Any:
    """That of the definition."""
    along = jax.jvp(partial(_from_words, form), primals, tangents)[1]
    return _by_platform(form, *primals), along


def _mappable(form: _Form) -> Callable[..., jax.Array]:
    """The choice between kernel and definition, and how `vmap` sees it."""
    forms = {"tpu": partial(_fused, form), "default": partial(_from_words, form)}

    def choose(*operands: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(*operands, **forms)

    of_one = custom_vmap(choose)

    @of_one.def_vmap
    def of_many(
        size: int, mapped: Any, words: jax.Array, start: jax.Array, rows: jax.Array
    ) -> Any:
        """Matrices that meet the same R are one wide matrix."""
        if mapped[0] or mapped[1]:
            over = jax.vmap(choose, [0 if m else None for m in mapped])
            return mapped_in_front(over)(words, start, rows), True
        wide = jnp.moveaxis(rows, 0, 1).reshape(rows.shape[1], -1)
        out = of_one(words, start, wide).reshape(form.size, size, -1)
        return jnp.moveaxis(out, 1, 0), True

    return of_one


def _fused(
    form: _Form,
    words: jax.Array,
    start: jax.Array,
    rows: jax.Array,
    *,
    interpret: Any = False,
) -> jax.Array:
    """The Pallas kernel: tiles of R are drawn where they are multiplied."""
    num_terms, num_columns = rows.shape
    sides = (_COLUMNS, _ROWS) if form.transposed else (_ROWS, _COLUMNS)
    height, depth = min(sides[0], form.size), min(sides[1], num_terms)
    width = min(_WIDTH, num_columns)
    out = pl.BlockSpec((height, width), lambda i, j, k: (i, j))
    (like,) = outputs_like(partial(_from_words, form), words, start, rows)
    return pl.pallas_call(
        partial(_step, form, num_terms),
        grid=(
            pl.cdiv(form.size, height),
            pl.cdiv(num_columns, width),
            pl.cdiv(num_terms, depth),
        ),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec((depth, width), lambda i, j, k: (k, j)),
        ],
        out_specs=out,
        out_shape=like,
        interpret=interpret,
        name="random_matmul_transpose" if form.transposed else "random_matmul",
    )(jnp.append(words, start)[None], rows)


def _step(form: _Form, num_terms: int, words: Any, rows: Any, out: Any) -> None:
    """Adds the product of one tile of R."""
    block, term = pl.program_id(0), pl.program_id(2)

    @pl.when(term == 0)
    def _():
        out[...] = jnp.zeros_like(out)

    (depth, _), height = rows.shape, out.shape[0]
    first = block * height, term * depth
    shape = height, depth
    if form.transposed:
        first, shape = first[::-1], shape[::-1]
    tile = _draw_tile(form.law, words, first, shape)
    values = rows[...].astype(jnp.float32)
    if num_terms % depth:  # the last block sticks out into what was never written
        place = term * depth + jax.lax.broadcasted_iota(jnp.int32, values.shape, 0)
        values = jnp.where(place < num_terms, values, 0.0)
    parts = [values]
    if form.law == "sign":
        parts = _bfloat16_parts(values, 3 if rows.dtype == jnp.float32 else 1)
    for part in parts:
        out[...] += jax.lax.dot_general(
            tile,
            part,
            (((0 if form.transposed else 1,), (0,)), ((), ())),
            precision="highest" if form.law == "normal" else None,
            preferred_element_type=jnp.float32,
        )


def _draw_tile(
    law: Law, words: Any, first: tuple[Any, Any], shape: tuple[int, int]
) -> jax.Array:
    """Entries of R from row and column `first`; signs in bfloat16, which holds them."""
    each = _LAWS[law][1]
    key, start = (words[0, 0], words[0, 1]), words[0, 2]
    size = pl.cdiv(shape[0], each), shape[1]
    stream, column = (
        jax.lax.broadcasted_iota(jnp.uint32, size, axis) for axis in (0, 1)
    )
    # A tile starts at a multiple of the rows of a word.
    stream += first[0].astype(jnp.uint32) >> (each.bit_length() - 1)
    column += start + first[1].astype(jnp.uint32)
    drawn = threefry_2x32(key, column, stream)[0]
    if law == "normal":
        return _normal(drawn)
    size = size[0], each, size[1]
    bit = jax.lax.broadcasted_iota(jnp.uint32, size, 1)
    drawn = jnp.broadcast_to(drawn[:, None], size) >> bit
    # The bit is the sign of a float32 that is 1 or -1.
    signs = (drawn << 31) | jnp.uint32(0x3F800000)
    signs = jax.lax.bitcast_convert_type(signs, jnp.float32)
    return signs.reshape(-1, shape[1])[: shape[0]].astype(jnp.bfloat16)


def _bfloat16_parts(values: jax.Array, num_parts: int) -> list[jax.Array]:
    """Float32 as a sum of bfloat16: three hold it all."""
    parts = []
    for _ in range(num_parts):
        parts.append(values.astype(jnp.bfloat16))
        part = parts[-1].astype(jnp.float32)
        # Of an infinity nothing is left, and not NaN.
        values = jnp.where(jnp.abs(part) < jnp.inf, values - part, 0.0)
    return parts

"""Inner products of sums of outer products: two Gram matrices, multiplied and summed.

The gradient of a weight at a sequence is a sum over its places of outer products, so
the inner product of two such gradients is a sum over pairs of places. The two Gram
matrices of all places have (n T) x (m S) entries each; here they are formed a tile at a
time, as attention is, and only the sums are kept.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ..core import check_choice, describe
from ._batch_axes import mapped_in_front, outputs_like

# Rows of each factor in a tile of the XLA form: 8 MB in float32 on CPUs. On an H100
# tiles of 512 rows took 5 to 9 times as long as no tiles at all; larger ones there, of
# 128 MB, are not measured.
_TILE, _LARGE_TILE = 1024, 4096
_ROWS, _COLUMNS = 256, 512  # of a block of the kernel, fewer where rows are long
_ALIGNED = 16  # rows that a register holds, also of bfloat16
_NUMBERS = 2**20  # in the blocks of rows: 8 MB of fast memory in float32, all buffers


def gram_products(
    left: jax.Array,
    right: jax.Array,
    other_left: jax.Array,
    other_right: jax.Array,
    *,
    implementation: str = "xla",
) -> jax.Array:
    r"""Inner products of all pairs of sums of outer products, from their factors.

    .. math:: K_{ij} = \sum_{ts} (l_{it} \cdot l'_{js}) (r_{it} \cdot r'_{js})
              = \Big\langle \sum_t l_{it} r_{it}^\top,
              \sum_s l'_{js} r_{js}'^\top \Big\rangle

    by tiles of rows, so that memory does not grow with T, S, or n m.

    Args:
        left: floating (n, T, p), or whole numbers (n, T): rows of the identity matrix,
            by their numbers, which must be columns of `other_left`.
        right: floating (n, T, q).
        other_left: floating (m, S, p), or whole numbers (m, S).
        other_right: floating (m, S, q).
        implementation: "xla", or "pallas": on TPUs, for float32 and bfloat16 factors, a
            kernel whose Gram matrices stay in fast memory; what "xla" does elsewhere.
            It has been compiled for TPU v4, v5e and v6e, and measured on none.

    Returns:
        (n, m), in float32 or the wider type of the factors.

    Raises:
        ValueError: Shapes that do not fit, or an unknown `implementation`.

    Complexity:
        2 n m T S (p + q) flops, 2 n m T S q where both left factors are numbers. In
        float32 on two CPU cores, n = m = T = S = p = q = 64: about 45 ms and 25 MB,
        where the formula evaluated as it stands takes over 100 ms and 100 MB.

    Example:
        >>> import jax.numpy as jnp
        >>> x, g = jnp.ones((1, 3, 2)), jnp.full((1, 3, 5), 2.0)
        >>> gram_products(x, g, x, g).tolist()  # the square of the norm of 6 ones(2, 5)
        [[360.0]]
        >>> words = jnp.asarray([[7, 1, 7]])
        >>> gram_products(words, g, words, g).tolist()  # 5 (4^2 + 2^2)
        [[100.0]]

    References:
        Pruthi, Liu, Kale, Sundararajan 2020, Estimating training data influence by
        tracing gradient descent (arXiv 2002.08484).
    """
    check_choice(implementation, ("xla", "pallas"), "implementation")
    _check_shapes(left, right, other_left, other_right)
    form = _tiled if implementation == "xla" else _by_platform
    return form(left, right, other_left, other_right)


def _check_shapes(*factors: jax.Array) -> None:
    left, right, other_left, other_right = factors
    dense = [x for x in (left, other_left) if not _numbered(x)]
    fit = (
        right.ndim == other_right.ndim == 3
        and all(x.ndim == 3 for x in dense)
        and left.shape[:2] == right.shape[:2]
        and other_left.shape[:2] == other_right.shape[:2]
        and right.shape[2] == other_right.shape[2]
        and len({x.shape[2] for x in dense}) < 2
        and all(x.ndim == 2 for x in (left, other_left) if _numbered(x))
    )
    if not fit:
        raise ValueError(
            f"the factors are {', '.join(map(describe, factors))}; wanted left "
            "(n, T, p) or whole numbers (n, T), right (n, T, q), other_left (m, S, p) "
            "or whole numbers (m, S), other_right (m, S, q)."
        )


def _numbered(factor: jax.Array) -> bool:
    return jnp.issubdtype(factor.dtype, jnp.integer)


def _products(*factors: jax.Array) -> jax.Array:
    """The definition."""
    (n, rows), (m, columns) = factors[1].shape[:2], factors[3].shape[:2]
    left, right, other_left, other_right = (
        x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]) for x in factors
    )
    dtype = jnp.promote_types(jnp.result_type(right, other_right), jnp.float32)
    terms = _gram(left, other_left, dtype) * _gram(right, other_right, dtype)
    return terms.reshape(n, rows, m, columns).sum((1, 3))


def _gram(a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
    """Inner products of all pairs of rows."""
    if _numbered(a) and _numbered(b):
        return (a[:, None] == b[None, :]).astype(dtype)
    if _numbered(a):
        return jnp.take(b, a, axis=1, mode="clip").astype(dtype).T
    if _numbered(b):
        return jnp.take(a, b, axis=1, mode="clip").astype(dtype)
    # A ranking needs every bit: scores are small differences of large sums. Products of
    # bfloat16 are exact in float32 as they are.
    kind = jnp.result_type(a, b)
    a, b = a.astype(kind), b.astype(kind)
    precision = None if kind == jnp.bfloat16 else lax.Precision.HIGHEST
    dims = ((1,), (1,)), ((), ())
    return lax.dot_general(
        a, b, dims, precision=precision, preferred_element_type=dtype
    )


def _tiled(*factors: jax.Array) -> jax.Array:
    """A tile of rows of both sides at a time, whose Gram matrices stay in a cache."""
    (n, rows), (m, columns) = factors[1].shape[:2], factors[3].shape[:2]
    if rows == columns == 1 or n * rows * m * columns <= _TILE**2:
        return _products(*factors)
    return lax.platform_dependent(
        *factors,
        cpu=partial(_in_tiles, _TILE),
        default=partial(_in_tiles, _LARGE_TILE),
    )


def _in_tiles(most: int, *factors: jax.Array) -> jax.Array:
    left, right, other_left, other_right = factors
    n, m = right.shape[0], other_right.shape[0]
    some, parts = _tiles(most, (left, right))
    others, other_parts = _tiles(most, (other_left, other_right))
    tile = jax.checkpoint(_products)
    found = lax.map(lambda b: lax.map(lambda a: tile(*a, *b), some), others)
    # Tiles are (of others, of these, these, others); a part of an example's rows counts
    # as an example up to here.
    found = found.transpose(1, 2, 0, 3)
    found = found.reshape(found.shape[0] * found.shape[1], -1)
    found = found[: n * parts, : m * other_parts]
    return found.reshape(n, parts, m, other_parts).sum((1, 3))


def _tiles(
    most: int, factors: tuple[jax.Array, ...]
) -> tuple[tuple[jax.Array, ...], int]:
    """Cuts factors (n, T, ...) into tiles of whole examples, or of parts of them.

    Returns:
        The factors (tiles, parts of examples in a tile, rows of a part, ...), with
        zeros behind, and the number of parts of an example.
    """
    n, rows = factors[0].shape[:2]
    parts = -(-rows // most)
    size = -(-rows // parts)
    tiles = -(-n * parts // (most // size))
    height = -(-n * parts // tiles)

    def cut(x: jax.Array) -> jax.Array:
        x = _pad(x, n, parts * size).reshape(n * parts, size, *x.shape[2:])
        return _pad(x, tiles * height, size).reshape(tiles, height, *x.shape[1:])

    return tuple(map(cut, factors)), parts


def _pad(x: jax.Array, *lengths: int) -> jax.Array:
    """Puts zeros behind the first axes to make them this long."""
    more = [(0, to - n) for n, to in zip(x.shape, lengths, strict=False)]
    return jnp.pad(x, more + [(0, 0)] * (x.ndim - len(more)))


@jax.custom_jvp
def _by_platform(*factors: jax.Array) -> jax.Array:
    known = {x.dtype for x in factors} in (
        {jnp.dtype("float32")},
        {jnp.dtype("bfloat16")},
    )
    # Not even eight rows of each side would fit.
    long = factors[0].shape[-1] + factors[1].shape[-1] > _NUMBERS // 24
    alone = factors[1].shape[1] == factors[3].shape[1] == 1
    if not known or long or alone or any(x.size == 0 for x in factors):
        return _tiled(*factors)
    return mapped_in_front(_choose)(*factors)


@_by_platform.defjvp
def _derivative(primals: Any, tangents: Any) -> Any:
    """That of the definition."""
    return _by_platform(*primals), jax.jvp(_tiled, primals, tangents)[1]


def _choose(*factors: jax.Array) -> jax.Array:
    return lax.platform_dependent(*factors, tpu=_fused, default=_tiled)


class _Blocks(NamedTuple):
    """How the kernel goes through the rows of one side.

    Attributes:
        parts: In which the rows of an example are cut; each counts as an example.
        size: The number of rows of a part, zeros among them.
        together: The number of parts in a block of rows.
        steps: The number of blocks of rows that belong to a block of the output.
        blocks: The number of those.
    """

    parts: int
    size: int
    together: int
    steps: int
    blocks: int

    @property
    def height(self) -> int:
        """The number of parts along a block of the output."""
        return self.together * self.steps

    @classmethod
    def of(cls, shape: tuple[int, ...], room: int, most: int) -> "_Blocks":
        """For factors of this shape, `room` rows in a block and `most` parts."""
        n, rows = shape[:2]
        room -= room % _ALIGNED
        parts = pl.cdiv(rows, room)
        size = pl.cdiv(pl.cdiv(rows, parts), _ALIGNED) * _ALIGNED
        together = min(room // size, most, n * parts)
        if n * parts <= most:  # One block: it may have any height.
            return cls(parts, size, together, pl.cdiv(n * parts, together), 1)
        together = 2 ** (together.bit_length() - 1)
        return cls(parts, size, together, most // together, pl.cdiv(n * parts, most))

    def lay_out(self, x: jax.Array) -> jax.Array:
        """Rows of all parts, one below the other, with zeros behind."""
        n, width = x.shape[0], x.shape[2]
        x = _pad(x, n, self.parts * self.size)
        x = x.reshape(n * self.parts * self.size, width)
        return _pad(x, self.blocks * self.height * self.size)

    def rows(self, width: int, axis: int) -> pl.BlockSpec:
        """The block of rows at a step of the grid (these, those, rows, rows)."""

        def place(*step: Any) -> Any:
            return step[axis] * self.steps + step[2 + axis], 0

        return pl.BlockSpec((self.together * self.size, width), place)


def _fused(*factors: jax.Array, interpret: bool = False) -> jax.Array:
    """The Pallas kernel: blocks of rows of both sides, each pair of blocks once.

    A block of the output stays in fast memory while all rows of its examples pass.
    """
    left, right, _, other_right = factors
    limit = _NUMBERS // (left.shape[2] + right.shape[2]) // 3
    sides = (
        _Blocks.of(right.shape, min(_ROWS, limit), 8),
        _Blocks.of(other_right.shape, min(_COLUMNS, 2 * limit), 128),
    )
    these, those = sides
    of_factors = [(side, axis) for axis, side in enumerate(sides) for _ in range(2)]
    laid = zip(of_factors, factors, strict=True)
    (like,) = outputs_like(_products, *factors)
    found = pl.pallas_call(
        partial(_step, sizes=(these.size, those.size)),
        grid=(these.blocks, those.blocks, these.steps, those.steps),
        in_specs=[side.rows(x.shape[2], axis) for (side, axis), x in laid],
        out_specs=pl.BlockSpec((these.height, those.height), lambda i, j, *_: (i, j)),
        out_shape=like.update(
            shape=(these.blocks * these.height, those.blocks * those.height)
        ),
        interpret=interpret,
        name="gram_products",
    )(*(side.lay_out(x) for (side, _), x in zip(of_factors, factors, strict=True)))
    n, m = right.shape[0], other_right.shape[0]
    found = found[: n * these.parts, : m * those.parts]
    return found.reshape(n, these.parts, m, those.parts).sum((1, 3))


def _step(*refs: Any, sizes: tuple[int, int]) -> None:
    """A pair of blocks of rows: adds the sums over the rows of each pair of parts."""
    *factors, out = refs
    steps = pl.program_id(2), pl.program_id(3)

    @pl.when((steps[0] == 0) & (steps[1] == 0))
    def _():
        out[...] = jnp.zeros_like(out)

    left, right, other_left, other_right = (x[...] for x in factors)
    terms = _gram(left, other_left, jnp.float32)
    terms *= _gram(right, other_right, jnp.float32)
    # A sum over the rows of each part is a product with zeros and ones.
    (height, size), (width, other_size) = zip(out.shape, sizes, strict=True)
    members = _members(height, terms.shape[0], size, steps[0])
    other_members = _members(width, terms.shape[1], other_size, steps[1])
    over_rows = jnp.dot(members, terms, precision="highest")
    out[...] += _gram(over_rows, other_members, jnp.float32)


def _members(parts: int, rows: int, size: int, step: Any) -> jax.Array:
    """Which rows of a block belong to which part: ones in (parts, rows)."""
    part, row = (
        lax.broadcasted_iota(jnp.int32, (parts, rows), axis) for axis in (0, 1)
    )
    before = row + step * rows - part * size
    return ((before >= 0) & (before < size)).astype(jnp.float32)

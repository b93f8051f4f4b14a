"""Long vectors a piece at a time, so that what is computed on the way stays in cache.

On a CPU a new array of 40 MB costs more (15 ms, the pages are new too) than to read one
(1 ms). XLA gives every intermediate result of a long vector such an array, unless it
fuses it away, which it does not into most reductions. In pieces the intermediate
results are some hundred kilobytes, used again by each piece.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

_ENTRIES = 2**16  # of a piece: 256 kB in float32
_ROW = 1024


def by_pieces(fn: Callable[..., Any], *vectors: jax.Array, unit: int = 1) -> Any:
    """`fn` of vectors, on CPUs piece by piece.

    Args:
        fn: maps pieces of the vectors to a pytree of arrays, whose first axes are put
            behind each other: some number of entries for each `unit`, which depend on
            that unit alone. The last unit may be short; `fn` must give for it what it
            gives when zeros fill it up. On other platforms `fn` gets all at once.
        *vectors: (n,) each, of one length.
        unit: pieces begin at multiples of it.

    Returns:
        The pytree of `fn`.

    Example:
        >>> import jax.numpy as jnp
        >>> by_pieces(lambda x: x.reshape(-1, 2).max(1), jnp.arange(6.0), unit=2)
        Array([1., 3., 5.], dtype=float32)
    """
    vectors = tuple(map(jnp.asarray, vectors))
    piece = max(_ENTRIES // unit, 1) * unit
    if vectors[0].size <= 2 * piece:
        return fn(*vectors)
    return jax.lax.platform_dependent(
        *vectors, cpu=partial(_in_turn, fn, piece), default=fn
    )


def _in_turn(fn: Callable[..., Any], piece: int, *vectors: jax.Array) -> Any:
    size = vectors[0].size
    whole = size // piece
    # The last piece has a place in the loop, too. Were it done after it, the vectors
    # could be needed until the end, and nothing be written where they lie.
    short = size - whole * piece
    rest = [jnp.pad(x[size - short :], (0, piece - short)) for x in vectors]

    def at(number: jax.Array) -> Any:
        start = number * piece
        parts = [jax.lax.dynamic_slice_in_dim(x, start, piece) for x in vectors]
        if short:
            last = number == whole
            parts = [jnp.where(last, r, x) for r, x in zip(rest, parts, strict=True)]
        return fn(*parts)

    outs = jax.lax.map(at, jnp.arange(whole + (short > 0), dtype=jnp.int32))
    return jax.tree.map(
        lambda x, like: x.reshape(-1, *x.shape[2:])[: len(like)],
        outs,
        jax.eval_shape(fn, *vectors),
    )


def finite_sum(*vectors: jax.Array) -> jax.Array:
    """Whether all entries of the sum of some vectors are finite.

    Without an array of the sums, or of comparisons.

    Args:
        *vectors: floating (n,) each, of one length.

    Returns:
        Scalar bool.

    Example:
        >>> import jax.numpy as jnp
        >>> finite_sum(jnp.ones(2), jnp.array([1.0, jnp.inf]))
        Array(False, dtype=bool)
    """

    def zeros(*parts: jax.Array) -> jax.Array:
        """Sums of rows, each 0 unless an entry is not finite, and then NaN."""
        total = 0 * sum(parts[1:], parts[0])
        return jnp.pad(total, (0, -total.size % _ROW)).reshape(-1, _ROW).sum(1)

    return by_pieces(zeros, *vectors, unit=_ROW).sum() == 0

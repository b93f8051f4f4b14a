"""Entries of a transformed Gram matrix: all of it, or some rows at a time."""

import math
from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp

from ...core import check_floating, check_key, describe
from ...kernels import random_bits
from ._entrywise import Entrywise

EntryFunction = Entrywise | Callable[[jax.Array], jax.Array]


def transformed_gram(x: Any, f: EntryFunction, *, mask: Any = None) -> jax.Array:
    """The matrix f(x^T x / sqrt p) / sqrt p with a diagonal of zeros.

    The data count as centred with features of variance 1. Where E f(xi) is not 0 the
    matrix has an eigenvalue of order sqrt n that means nothing: subtract that mean.

    Args:
        x: floating (p, n), n samples of p features as columns.
        f: an `Entrywise` or any elementwise function.
        mask: bool (n, n); entries where it is False become 0. Its lower triangle
            counts. `uniform` wants one: `uniform_mask`.

    Returns:
        (n, n) of the dtype of x, exactly symmetric; computed in float32 or wider.
        Differentiable in x as far as f is.

    Raises:
        ValueError: x is no matrix, f is `uniform` and has no mask, or the mask is of
            another shape.
        TypeError: x is not floating, or the mask not bool.

    Complexity:
        2 p n^2 flops, n^2 numbers.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods.sketch import spectral
        >>> x = jax.random.normal(jax.random.key(0), (50, 4))
        >>> k = spectral.transformed_gram(x, spectral.binarize(0.43))
        >>> sorted({round(abs(float(v)), 3) for v in k.ravel()})  # 1 / sqrt 50
        [0.0, 0.141]

    References:
        Liao, Couillet, Mahoney 2020, Sparse quantized spectral clustering (arXiv
        2010.01376).
    """
    x = check_samples(x)
    n = x.shape[1]
    index = jnp.arange(n, dtype=jnp.uint32)
    k = gram_rows(x, x, index, index, f)
    if mask is not None:
        k = jnp.where(_check_mask(mask, n), k, 0)
    elif is_random(f):
        raise ValueError(
            f"f is {f}, which drops entries at random, without a mask; wanted mask=, "
            f"bool of shape ({n}, {n}): spectral.uniform_mask(key, {n}, keep)."
        )
    # A product need not be symmetric to the last bit, and f may jump there.
    below = index[:, None] > index[None, :]
    return jnp.where(below, k, k.T).astype(x.dtype)


def uniform_mask(key: jax.Array, n: int, keep: Any) -> jax.Array:
    """A symmetric mask that keeps each pair with one probability.

    Args:
        key: scalar typed key; nothing else may draw from it.
        n: samples.
        keep: probability, scalar.

    Returns:
        bool (n, n); an entry depends on the key and its own place only.

    Raises:
        TypeError: key is not a typed key.

    Example:
        >>> import jax
        >>> mask = uniform_mask(jax.random.key(0), 100, 0.3)
        >>> bool((mask == mask.T).all()), round(float(mask.mean()), 1)
        (True, 0.3)
    """
    check_key(key)
    index = jnp.arange(n, dtype=jnp.uint32)
    return kept_pairs(key, index, index, keep)


def kept_pairs(
    key: jax.Array, row: jax.Array, column: jax.Array, keep: Any
) -> jax.Array:
    """The entries of `uniform_mask` at these rows and columns, uint32."""
    row, column = row[:, None], column[None, :]
    bits = random_bits(key, jnp.minimum(row, column), jnp.maximum(row, column))
    return (bits >> 8).astype(jnp.float32) * 2.0**-24 < keep


def gram_rows(
    left: jax.Array,
    right: jax.Array,
    row: jax.Array,
    column: jax.Array,
    f: EntryFunction,
    key: jax.Array | None = None,
) -> jax.Array:
    """Rows of a transformed Gram matrix, in float32 or wider.

    Args:
        left: (p, b), the samples of the rows.
        right: (p, n), the samples of the columns.
        row: uint32 (b,), the numbers of the former among all samples.
        column: uint32 (n,), those of the latter.
        f: what to do to the entries.
        key: of the mask of `uniform`.

    Returns:
        (b, n), 0 where row and column are one.
    """
    scale = math.sqrt(left.shape[0])
    wide = jnp.promote_types(left.dtype, jnp.float32)
    # Entries near a threshold go the way that the data say.
    inner = jnp.matmul(left.T, right, precision="highest", preferred_element_type=wide)
    values = jnp.asarray(f(inner / scale))
    if values.shape != inner.shape:
        raise ValueError(
            f"f takes an array of shape {inner.shape} to one of shape {values.shape}; "
            f"wanted a function that works entry by entry."
        )
    kept = row[:, None] != column[None, :]
    if is_random(f) and key is not None:
        kept &= kept_pairs(key, row, column, f.kept)
    return jnp.where(kept, values.astype(wide) / scale, 0)


def is_random(f: EntryFunction) -> TypeGuard[Entrywise]:
    """Whether f drops entries at random."""
    return isinstance(f, Entrywise) and f.random


def check_samples(x: Any) -> jax.Array:
    """Returns `x` as an array, or raises unless it is a floating (p, n)."""
    x = check_floating(x, "x")
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(
            f"x has shape {x.shape}; wanted (p, n), n samples of p features as columns."
        )
    return x


def _check_mask(mask: Any, n: int) -> jax.Array:
    mask = jnp.asarray(mask)
    if mask.shape != (n, n):
        raise ValueError(
            f"mask has shape {mask.shape}; wanted ({n}, {n}), an entry for each pair "
            f"of the {n} samples of x."
        )
    if mask.dtype != bool:
        raise TypeError(f"mask is {describe(mask)}; wanted bool: cast with mask != 0.")
    return mask
